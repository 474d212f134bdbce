"""Thousands of sources of KV events in one event loop: one ZMQ context, one thread below it, a socket for each source.

    source ──▶ socket ──ready──▶ queue of those that have something ──▶ drain: a few batches of each in turn

A source has a socket of its own because nothing in a message tells who sent it: topics are what users make them. What
costs is not sockets but waiting for each of them by itself: here a socket that has something is put in a queue, which
is gone through once in each turn of the event loop, for TURN_S at most. Replays begin, and go on, one in each turn.

The connection is watched: who is there after it broke may be another engine, and what was sent meanwhile is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from jevons.base.errors import EngineError
from jevons.control.shapes import Malformed
from jevons.facts.event import KvPayload
from jevons.wire.codec import decode_seq, encode_seq
from jevons.wire.events import is_ipv6
from jevons.wire.turns import Turnstile

log = logging.getLogger("jevons.events")

HIGH_WATER = 100_000  # messages queued for us before ZMQ drops; vLLM's value
TURN_S = 0.001  # at most, and one more batch, before the event loop does something else
BATCHES_A_TURN = 16  # of one source before another has its turn
REPLAYS_AT_ONCE = 16
ASK_AGAIN_S = (0.5,)  # who asks an engine that just ends has its request lost with the connection
MAX_SOURCES = 16_384
_SOCKETS = 4 * MAX_SOURCES  # of a source: its own, two that tell of its connection; and one for a replay
_END_SEQ = -1
_RETRIES_S = 1.0  # between attempts of ZMQ to reach an engine that is away

OnBatch = Callable[[KvPayload], object]
OnLine = Callable[[bool], object]
"""A connection of the source begins (True), or has ended."""


class Sources:
    """All sources that one event loop listens to. Nothing is opened, or left to be closed, before the first."""

    def __init__(self) -> None:
        self._opened: zmq.Context[zmq.Socket[bytes]] | None = None
        self._answering: set[zmq.asyncio.Socket] = set()
        self._replays = asyncio.Semaphore(REPLAYS_AT_ONCE)
        self.turns = Turnstile()  # for who begins to listen too
        self._lines: deque[_Line] = deque()  # that have something, first
        self._ready: deque[Source] = deque()
        self._is_draining = False
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def _context(self) -> zmq.Context[zmq.Socket[bytes]]:
        if self._opened is None:
            self._opened = zmq.Context()
            self._opened.set(zmq.MAX_SOCKETS, _SOCKETS)
        return self._opened

    def listen(
        self, endpoint: str, on_batch: OnBatch, on_garbage: Callable[[], None], on_line: OnLine | None = None
    ) -> Source:
        """Have a source's batches, as they come, until it is closed.

        Args:
            endpoint: where the engine publishes. An address with `*` (tcp://*:5557) is bound instead of connected to:
                that is for engines that connect to their consumer, as vLLM does unless its own endpoint has a `*`.
            on_garbage: told of each message that is no numbered batch.
            on_line: told of its connections. That one has ended is told before anything of the next, which ZMQ begins
                after 0.1 s at the soonest. A subscription takes a moment more to hold.

        Raises:
            EngineError: the endpoint cannot be bound or connected to, or there are too many.
        """
        try:
            socket = self._context.socket(zmq.SUB)
        except zmq.ZMQError as error:
            raise EngineError(f"events of {endpoint}: no socket for source {self._count + 1}: {error}") from error
        socket.set_hwm(HIGH_WATER)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(1000 * _RETRIES_S))
        socket.subscribe(b"")
        socket.setsockopt(zmq.IPV6, is_ipv6(endpoint))
        line = None if on_line is None else _Line(self, socket, on_line)
        try:
            if "*" in endpoint:
                socket.bind(endpoint)
            else:
                socket.connect(endpoint)
        except zmq.ZMQError as error:
            if line is not None:
                line.close()
            socket.close(linger=0)
            raise EngineError(f"events of {endpoint}: {error}") from error
        self._count += 1
        return Source(self, socket, on_batch, on_garbage, line)

    async def replay(self, endpoint: str, start: int, timeout_s: float, on_batch: OnBatch) -> bool:
        """Ask an engine's replay endpoint for the batches from number `start` that it still keeps; `on_batch` gets them
        in rising order.

        Returns whether the answer came to its end; not so if the engine is silent for `timeout_s`, or what it sends is
        no batch. At most REPLAYS_AT_ONCE are under way; others wait for their turn.
        """
        async with self._replays:
            await self.turns.pass_through()
            for wait_s in _waits(timeout_s):
                answered = await self._ask(endpoint, start, wait_s, timeout_s, on_batch)
                if answered is not None:
                    return answered
        return False

    async def _ask(self, endpoint: str, start: int, wait_s: float, timeout_s: float, on_batch: OnBatch) -> bool | None:
        """As `replay`, once; None if nothing came for `wait_s`."""
        asking = zmq.asyncio.Context.shadow(self._context.underlying)
        socket = asking.socket(zmq.DEALER)
        self._answering.add(socket)
        try:
            socket.setsockopt(zmq.IPV6, is_ipv6(endpoint))
            socket.set_hwm(0)  # the answer is as long as the engine's window, and is not to be cut
            socket.connect(endpoint)
            await socket.send_multipart([b"", encode_seq(start)])
            if not await socket.poll(int(1000 * wait_s)):
                return None
            return await self._answer(socket, timeout_s, on_batch)
        except (TimeoutError, Malformed, zmq.ZMQError):
            return False
        finally:
            self._answering.discard(socket)
            socket.close(linger=0)

    async def _answer(self, socket: zmq.asyncio.Socket, timeout_s: float, on_batch: OnBatch) -> bool:
        turn_ends_s = perf_counter() + TURN_S
        while True:
            async with asyncio.timeout(timeout_s):
                frames = await socket.recv_multipart()
            if len(frames) < 2:
                raise Malformed(f"replay: must be a sequence and a payload frame, got {len(frames)}")
            seq = decode_seq(frames[-2])
            if seq == _END_SEQ:
                return True
            if perf_counter() > turn_ends_s:
                await self.turns.pass_through()
                turn_ends_s = perf_counter() + TURN_S
            on_batch(KvPayload(seq, frames[-1]))

    def close(self) -> None:
        """Close all that is open; for the end of the event loop."""
        for socket in self._answering:
            socket.close(linger=0)
        if self._opened is not None:
            self._opened.destroy(linger=0)

    def _is_ready(self, source: Source) -> None:
        self._ready.append(source)
        self._drain_soon()

    def _is_told(self, line: _Line) -> None:
        self._lines.append(line)
        self._drain_soon()

    def _drain_soon(self) -> None:
        """Once for all that are found ready in this turn: hundreds are where an engine's host goes."""
        if not self._is_draining:
            self._is_draining = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        ends_s = perf_counter() + TURN_S
        try:
            while self._lines or self._ready:
                if self._lines:
                    self._lines.popleft().look()
                else:
                    self._serve(self._ready.popleft(), ends_s)
                if perf_counter() > ends_s:
                    break
        finally:
            self._is_draining = bool(self._lines or self._ready)
            if self._is_draining:
                asyncio.get_running_loop().call_soon(self._drain)

    def _serve(self, source: Source, ends_s: float) -> None:
        has_more = True  # where taking a batch fails too: the rest must not stay where it is
        try:
            has_more = source.take(BATCHES_A_TURN, ends_s)
        finally:
            source.is_queued = has_more
            if has_more:
                self._ready.append(source)

    def _closed(self) -> None:
        self._count -= 1


def _waits(timeout_s: float) -> list[float]:
    """How long an answer is awaited before who is silent is asked again, for `timeout_s` in all."""
    first = [wait_s for wait_s in ASK_AGAIN_S if wait_s < timeout_s / 2]
    return [*first, timeout_s - sum(first)]


class _Line:
    """What ZMQ tells of a socket's connections. To ask for it at each batch would cost more than the batch."""

    def __init__(self, sources: Sources, socket: zmq.Socket[bytes], on_line: OnLine) -> None:
        self._sources = sources
        self._is_queued = False
        self._watched = socket
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._events = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._fd = int(self._events.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._on_readable)
        self._loop.call_soon(self._on_readable)  # as for the source itself

    def _on_readable(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._sources._is_told(self)

    def look(self) -> None:
        """Tell all that there is."""
        self._is_queued = False
        while not self._events.closed:
            try:
                told = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_line(parse_monitor_message(told)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        self._watched.disable_monitor()
        self._events.close(linger=0)


class Source:
    """One source that is listened to; a context that closes it at its end."""

    def __init__(
        self,
        sources: Sources,
        socket: zmq.Socket[bytes],
        on_batch: OnBatch,
        on_garbage: Callable[[], None],
        line: _Line | None,
    ) -> None:
        self.is_queued = False
        self._line = line
        self._sources = sources
        self._socket = socket
        self._on_batch = on_batch
        self._on_garbage = on_garbage
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._on_readable)
        self._loop.call_soon(self._on_readable)  # what came before we looked makes the descriptor ready no more

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hear nothing of it any more."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            if self._line is not None:
                self._line.close()
            self._socket.close(linger=0)
            self._sources._closed()

    def take(self, batches: int, until_s: float) -> bool:
        """Take so many batches at most, until then. Returns whether there may be more."""
        socket = self._socket
        for _ in range(batches):
            if socket.closed:
                return False
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._read(frames)
            if perf_counter() > until_s:
                break
        return True

    def _read(self, frames: list[bytes]) -> None:
        """Frames end with [seq] [payload], whatever stands before."""
        try:
            batch = KvPayload(decode_seq(frames[-2]), frames[-1]) if len(frames) >= 2 else None
        except Malformed:
            batch = None
        if batch is None:
            self._on_garbage()
        else:
            self._on_batch(batch)

    def _on_readable(self) -> None:
        """The descriptor tells once that something has changed: from then on the socket is asked until it has
        nothing."""
        if not self.is_queued and not self._socket.closed:
            self.is_queued = True
            self._sources._is_ready(self)
