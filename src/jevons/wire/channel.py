"""The channel between a front and its workers: length-prefixed msgpack messages over one TCP connection.

    front → worker   Submit(work), Cancel(id)
    worker → front   Hello(facts, …) once, then Steps(report, steps) after each engine step, and Beat(…) all the time

One message carries a whole step's tokens for all sequences, so a step costs one write and one read, however many
streams there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import msgspec

from jevons.base.ids import RequestId, WorkerId
from jevons.facts.request import Step, Work
from jevons.facts.worker import StepReport, WorkerFacts

MAX_MESSAGE_BYTES = 64 << 20
_LENGTH_BYTES = 4


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    work: Work


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    id: RequestId


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a worker. `events` and `replays` are ZMQ endpoints."""

    facts: WorkerFacts
    context_tokens: int  # prompt + output of one sequence at most
    events: str
    replays: str


class Steps(msgspec.Struct, frozen=True, tag="steps"):
    """One engine step; `report` is None for answers that cost no step."""

    steps: list[Step]
    report: StepReport | None = None


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """The worker lives. `step` is the one in progress, with the seconds it has run so far."""

    step: StepReport | None


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker process is started with; sizes in bytes and tokens."""

    id: WorkerId
    model: str
    model_dir: str
    device: str
    threads: int
    kv_bytes: int
    block_size: int
    step_tokens: int
    max_running: int
    invariant: bool
    tensor_parallel: int = 1  # processes that share the model; `threads` are of each


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The line a worker process prints when it can be connected to."""

    port: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The line it prints when it cannot start."""

    error: str


ToWorker = Submit | Cancel
ToFront = Hello | Steps | Beat
TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
TO_FRONT: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)
Incoming = TypeVar("Incoming")


class Channel(asyncio.BufferedProtocol, Generic[Incoming]):
    """One end of a connection.

    Args:
        decoder: of the messages this end receives, `TO_WORKER` or `TO_FRONT`.
        on_message: called with each, in order.
        on_lost: called once when the connection ends, with the reason.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Incoming],
        on_message: Callable[[Channel[Incoming], Incoming], None],
        on_lost: Callable[[Channel[Incoming], str], None],
        on_made: Callable[[Channel[Incoming]], None] | None = None,
    ) -> None:
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_made = on_made
        self._chunk = bytearray(1 << 16)
        self._pending = bytearray()
        self._transport: asyncio.Transport | None = None
        self._reason = "connection closed"

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; it is dropped if the connection is gone (on_lost has told or will tell)."""
        if self._transport is not None:
            body = self._encoder.encode(message)
            self._transport.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def backlog_bytes(self) -> int:
        """Bytes not yet taken by the other side."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        if self._on_made is not None:
            self._on_made(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._chunk

    def buffer_updated(self, nbytes: int) -> None:
        self._pending += memoryview(self._chunk)[:nbytes]
        start = 0
        while len(self._pending) - start >= _LENGTH_BYTES:
            size = int.from_bytes(self._pending[start : start + _LENGTH_BYTES], "big")
            if size > MAX_MESSAGE_BYTES:
                self._fail(f"message of {size} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
                return
            end = start + _LENGTH_BYTES + size
            if len(self._pending) < end:
                break
            try:
                message = self._decoder.decode(self._pending[start + _LENGTH_BYTES : end])
            except msgspec.MsgspecError as error:
                self._fail(f"unreadable message: {error}")
                return
            start = end
            self._on_message(self, message)
        del self._pending[:start]

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self, str(exc) if exc is not None else self._reason)

    def _fail(self, reason: str) -> None:
        self._reason = reason
        self._pending.clear()
        self.close()
