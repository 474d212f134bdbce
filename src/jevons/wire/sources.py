"""Thousands of sources of KV events in one event loop: one ZMQ context, one thread below it, a socket for each source.

    source ──▶ socket ──ready──▶ queue of those that have something ──▶ drain: a few batches of each in turn

A source has a socket of its own because nothing in a message tells who sent it: topics are what users make them. What
costs is not sockets but waiting for each of them by itself: here a socket that has something is put in a queue, which
is gone through for TURN_S at most before others have theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter

import zmq
import zmq.asyncio

from jevons.base.errors import EngineError
from jevons.control.shapes import Malformed
from jevons.facts.event import KvPayload
from jevons.wire.codec import decode_seq, encode_seq

log = logging.getLogger("jevons.events")

HIGH_WATER = 100_000  # messages queued for us before ZMQ drops; vLLM's value
TURN_S = 0.002  # at most, and one more batch, before the event loop does something else
BATCHES_A_TURN = 16  # of one source before another has its turn
REPLAYS_AT_ONCE = 16
MAX_SOURCES = 32_768
_SOCKETS = 2 * MAX_SOURCES
_END_SEQ = -1
_RETRIES_S = 1.0  # between attempts of ZMQ to reach an engine that is away

OnBatch = Callable[[KvPayload], object]


class Sources:
    """All sources that one event loop listens to. Nothing is opened, or left to be closed, before the first."""

    def __init__(self) -> None:
        self._opened: zmq.Context[zmq.Socket[bytes]] | None = None
        self._answering: set[zmq.asyncio.Socket] = set()
        self._replays = asyncio.Semaphore(REPLAYS_AT_ONCE)
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

    def listen(self, endpoint: str, on_batch: OnBatch, on_garbage: Callable[[], None]) -> Source:
        """Have a source's batches, as they come, until it is closed.

        Args:
            endpoint: where the engine publishes. An address with `*` (tcp://*:5557) is bound instead of connected to:
                that is for engines that connect to their consumer, as vLLM does unless its own endpoint has a `*`.
            on_garbage: told of each message that is no numbered batch.

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
        try:
            if "*" in endpoint:
                socket.bind(endpoint)
            else:
                socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise EngineError(f"events of {endpoint}: {error}") from error
        self._count += 1
        return Source(self, socket, on_batch, on_garbage)

    async def replay(self, endpoint: str, start: int, timeout_s: float, on_batch: OnBatch) -> bool:
        """Ask an engine's replay endpoint for the batches from number `start` that it still keeps; `on_batch` gets them
        in rising order.

        Returns whether the answer came to its end; not so if the engine is silent for `timeout_s`, or what it sends is
        no batch. At most REPLAYS_AT_ONCE are under way; others wait for their turn.
        """
        async with self._replays:
            asking = zmq.asyncio.Context.shadow(self._context.underlying)
            socket = asking.socket(zmq.DEALER)
            self._answering.add(socket)
            try:
                socket.set_hwm(0)  # the answer is as long as the engine's window, and is not to be cut
                socket.connect(endpoint)
                await socket.send_multipart([b"", encode_seq(start)])
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
            on_batch(KvPayload(seq, frames[-1]))
            if perf_counter() > turn_ends_s:
                await asyncio.sleep(0)
                turn_ends_s = perf_counter() + TURN_S

    def close(self) -> None:
        """Close all that is open; for the end of the event loop."""
        for socket in self._answering:
            socket.close(linger=0)
        if self._opened is not None:
            self._opened.destroy(linger=0)

    def _is_ready(self, source: Source) -> None:
        self._ready.append(source)
        if not self._is_draining:
            self._is_draining = True
            self._drain()

    def _drain(self) -> None:
        ends_s = perf_counter() + TURN_S
        try:
            while self._ready:
                self._serve(self._ready.popleft(), ends_s)
                if perf_counter() > ends_s:
                    break
        finally:
            self._is_draining = bool(self._ready)
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


class Source:
    """One source that is listened to; a context that closes it at its end."""

    def __init__(
        self, sources: Sources, socket: zmq.Socket[bytes], on_batch: OnBatch, on_garbage: Callable[[], None]
    ) -> None:
        self.is_queued = False
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
