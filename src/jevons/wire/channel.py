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
from jevons.facts.move import MoveReport
from jevons.facts.request import Step, Work
from jevons.facts.worker import Role, StepReport, WorkerFacts

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
    """One engine step; `report` is None for answers that cost no step. `moves` brought blocks since the last one."""

    steps: list[Step]
    report: StepReport | None = None
    moves: list[MoveReport] = []


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """The worker lives. `step` is the one in progress, with the seconds it has run so far.

    `tiers` counts pages saved and those that could not be brought, by reason.
    """

    step: StepReport | None
    tiers: dict[str, int] = {}


class TierConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The node's tiers, as a worker uses them."""

    socket: str  # the keeper's
    block_size: int  # tokens in a page; a multiple of the worker's own
    dtype: str  # of a page
    is_mixed: bool = False  # workers of unlike caches share pages: their bits differ, and that is accepted


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
    kv_dtype: str = "bfloat16"  # of the cache
    role: Role = Role.BOTH
    mock_tokens_per_s: float = 0.0  # 0: the model
    tiers: TierConfig | None = None
    tensor_parallel: int = 1  # processes that share the model; `threads` are of each


class KeeperConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a keeper process is started with; sizes in bytes."""

    socket: str  # path of its Unix socket
    dram_bytes: int
    disk_path: str | None = None
    disk_bytes: int = 0
    disk_key_file: str | None = None
    object_url: str | None = None
    object_endpoint: str | None = None
    listen: str | None = None  # HOST:PORT for keepers of other nodes
    peers: list[str] = []  # HOST:PORT of theirs
    peer_secret: str = ""  # that all share
    link: str = "tcp"  # or "nixl"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The line a worker or keeper prints when it can be connected to."""

    port: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The line it prints when it cannot start."""

    error: str


ToWorker = Submit | Cancel
ToFront = Hello | Steps | Beat
TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
TO_FRONT: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)
Incoming = TypeVar("Incoming")


def framed(message: msgspec.Struct) -> bytes:
    """A message as it travels."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def take_messages(pending: bytearray, decoder: msgspec.msgpack.Decoder[Incoming]) -> list[Incoming]:
    """Messages that have come whole; they are taken off `pending`.

    Raises:
        MsgspecError: one is not what `decoder` expects, or longer than MAX_MESSAGE_BYTES.
    """
    messages, start = [], 0
    while len(pending) - start >= _LENGTH_BYTES:
        body = start + _LENGTH_BYTES
        size = int.from_bytes(pending[start:body], "big")
        if size > MAX_MESSAGE_BYTES:
            raise msgspec.DecodeError(f"message of {size} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
        if len(pending) < body + size:
            break
        messages.append(decoder.decode(pending[body : body + size]))
        start = body + size
    del pending[:start]
    return messages


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
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_made = on_made
        self._chunk = bytearray(1 << 16)
        self._pending = bytearray()
        self.received_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._reason = "connection closed"

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; it is dropped if the connection is gone (on_lost has told or will tell)."""
        if self._transport is not None:
            self._transport.write(framed(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close_when_sent(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def backlog_bytes(self) -> int:
        """Bytes not yet taken by the other side."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def fileno(self) -> int:
        """Of the connection's socket."""
        assert self._transport is not None
        fd: int = self._transport.get_extra_info("socket").fileno()
        return fd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        if self._on_made is not None:
            self._on_made(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._chunk

    def buffer_updated(self, nbytes: int) -> None:
        self.received_bytes += nbytes
        self._pending += memoryview(self._chunk)[:nbytes]
        try:
            messages = take_messages(self._pending, self._decoder)
        except msgspec.MsgspecError as error:
            self._fail(f"unreadable message: {error}")
            return
        for message in messages:
            self._on_message(self, message)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self, str(exc) if exc is not None else self._reason)

    def _fail(self, reason: str) -> None:
        self._reason = reason
        self._pending.clear()
        self.close()
