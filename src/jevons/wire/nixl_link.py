"""Pages through NIXL, for hardware that reads remote memory by itself: extra `nixl`, Linux.

    source   listener ── what NIXL must know of it, for who shows the secret ──▶ link
             NIXL process over the arena ◀── one-sided reads ── NIXL process over slots of the link's own memory
                                                                   └─ copied to our arena by the event loop

A transfer of NIXL's cannot be taken back, so none goes to the arena: it goes to a slot, which is copied when the
transfer is over and its read still waits. What comes too late lies in a slot that nobody looks at, and the slot is
used again when its transfer is over at last. The price is one `memcpy`: over shared memory 2.4 GB/s instead of 4.3,
where `memcpy` alone makes 4.2 (two busy cores).

The secret guards what peers are told, not UCX's own ports: over TCP, UCX serves whoever reaches them, reads and writes.
Use NIXL only where every machine of the network may do both.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from jevons.base.errors import ConfigError, StoreError
from jevons.wire.channel import Channel, framed
from jevons.wire.line import Line, Listener, connect
from jevons.wire.link import LinkAddress, Memory, Range, check, told
from jevons.wire.nixl_process import TO_STARTER, Failed, Get, Over, Peer, Serving, ToProcess, ToStarter, installed

START_S = 30.0  # of a NIXL process and its connection; 1.2 s on two busy cores
RESTART_S = 0.5  # after a source's process ended
SLOT_BYTES = 1 << 21  # copied in one go: 0.25 ms of the event loop at 8 GB/s
SLOTS = 16
LENGTH_BYTES, MOST_SERVING_BYTES = 4, 1 << 20  # of what a source tells
_SERVING: msgspec.msgpack.Decoder[Serving] = msgspec.msgpack.Decoder(Serving)


class NixlProcess:
    """A running `wire.nixl_process`; use `start`."""

    def __init__(self, process: asyncio.subprocess.Process, on_over: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        self.serving: asyncio.Future[Serving] = loop.create_future()
        self.lost: asyncio.Future[StoreError] = loop.create_future()
        self._process = process
        self._on_over = on_over
        self._channel: Channel[ToStarter] | None = None

    @classmethod
    async def start(cls, memory_fd: int, size_bytes: int, on_over: Callable[[int], None]) -> NixlProcess:
        """Start it over shared memory, and wait until it serves.

        Args:
            on_over: called with the id of each transfer that is done.

        Raises:
            StoreError: it cannot; says why.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                started = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "jevons.wire.nixl_process"),
                    *(str(number) for number in (theirs.fileno(), memory_fd, size_bytes)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,  # UCX writes its warnings there
                    pass_fds=(theirs.fileno(), memory_fd),
                )
            except BaseException:
                ours.close()
                raise
        process = cls(started, on_over)
        try:
            await process._attach(ours)
        except BaseException:
            await process.end()
            raise
        return process

    def send(self, message: ToProcess) -> None:
        assert self._channel is not None
        self._channel.send(message)

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        if self._channel is not None:
            self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _attach(self, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        _, self._channel = await loop.create_unix_connection(
            lambda: Channel(TO_STARTER, self._on_message, self._on_lost), sock=line
        )
        await self.serving

    def _on_message(self, channel: Channel[ToStarter], message: ToStarter) -> None:
        match message:
            case Serving():
                self.serving.set_result(message)
            case Over(id):
                self._on_over(id)
            case Failed(reason, error):
                self._lose(StoreError(reason, error))

    def _on_lost(self, channel: Channel[ToStarter], reason: str) -> None:
        self._lose(StoreError("gone", "its NIXL process ended"))

    def _lose(self, error: StoreError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        if not self.serving.done():
            self.serving.set_exception(error)


class NixlSource:
    """Serves an arena through NIXL; use `open`."""

    def __init__(self, memory: Memory) -> None:
        require_nixl()
        self._memory = memory
        self._listener = Listener(self._serve)
        self._process: NixlProcess | None = None  # while it runs
        self._keeping: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, memory: Memory, host: str, port: int = 0) -> NixlSource:
        """Start to serve; arguments as in `Listener.open`, where peers ask. NIXL takes ports of its own.

        Raises:
            ConfigError: NIXL is not installed.
            StoreError: it cannot start.
        """
        source = cls(memory)
        source._process = await source._start()
        source._keeping = asyncio.create_task(source._keep())
        try:
            await source._listener.open(host, port)
        except BaseException:
            await source.close()
            raise
        return source

    @property
    def address(self) -> LinkAddress:
        return LinkAddress("nixl", self._listener.port, self._listener.secret)

    @property
    def counts(self) -> Counter[str]:
        return self._listener.counts

    async def close(self) -> None:
        await self._listener.close()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._process is not None:
            await self._process.end()

    async def _start(self) -> NixlProcess:
        return await NixlProcess.start(self._memory.fd, self._memory.size_bytes, lambda id: None)

    async def _keep(self) -> None:
        """Start the process again whenever it ends: a peer that dies in mid-read may take it along."""
        while True:
            if self._process is not None:
                await asyncio.shield(self._process.lost)
                await self._process.end()
                self._process = None
                self._listener.hang_up()  # peers come back for what NIXL must know now
                self.counts["restarted"] += 1
            await asyncio.sleep(RESTART_S)
            try:
                self._process = await self._start()
            except (StoreError, OSError):
                self.counts["unstarted"] += 1

    async def _serve(self, line: Line) -> None:
        if self._process is not None:
            await line.send(framed(self._process.serving.result()))
            await line.receive(1)  # nothing comes: until the peer leaves


class NixlLink:
    """Reads the arena of a NixlSource.

    Args:
        address: the source's.
        host: by which its listener is reached; NIXL finds its own way.
        memory: our own arena, to read into.

    Raises:
        ConfigError: NIXL is not installed.
    """

    def __init__(self, address: LinkAddress, host: str, memory: Memory) -> None:
        require_nixl()
        self.counts: Counter[str] = Counter()  # late: slots whose read had been given up
        self._address, self._host, self._memory = address, host, memory
        self._peer = f"{host}:{address.port}"
        self._session: _Session | None = None
        self._running: dict[asyncio.Task[None], _Session] = {}
        self._is_closed = False

    async def read(self, ranges: Sequence[Range], timeout_s: float) -> None:
        """See `link.Link`."""
        check(ranges, self._memory)
        if self._is_closed:
            raise StoreError("gone", f"link to {self._peer}: closed here")
        if self._session is None or self._session.is_over:
            self._session = self._begin()
        session = self._session
        try:
            async with told(self._peer, timeout_s):
                await asyncio.shield(session.ready)
                await session.read(ranges)
        except StoreError as error:
            if error.reason == "timeout":
                session.end_if_stuck()
            raise

    async def close(self) -> None:
        self._is_closed = True
        for task, session in self._running.items():
            if not session.is_over:  # else it is being cleared away
                task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _begin(self) -> _Session:
        session = _Session(self._memory, self._peer, self.counts)
        task = asyncio.create_task(session.run(self._host, self._address))
        self._running[task] = session
        task.add_done_callback(self._running.pop)
        return session


class _Read:
    """One call of `read`, until all of its pieces have come."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Piece(NamedTuple):
    """What one slot holds: ranges of one read."""

    read: _Read
    ranges: list[Range]


class _Session:
    """A line to the peer, a NIXL process that reads from it, and the slots it reads into."""

    def __init__(self, memory: Memory, peer: str, counts: Counter[str]) -> None:
        self.is_over = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())  # its readers may have left
        self._memory, self._peer, self._counts = memory, peer, counts
        self._source: Serving | None = None
        self._line: Line | None = None
        self._process: NixlProcess | None = None
        self._slots: mmap.mmap | None = None
        self._free = list(range(SLOTS))
        self._flying: dict[int, _Piece] = {}  # by slot
        self._waiting: deque[_Piece] = deque()

    async def run(self, host: str, address: LinkAddress) -> None:
        """Connect, and stay until it is lost; all reads end then."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with told(self._peer, START_S) as deadline:
                    line = await self._connect(host, address, stack)
                    deadline.reschedule(None)
                    self.ready.set_result(None)
                    await line.receive(1)  # nothing comes: until it is hung up, on either end
            except StoreError as error:
                self._end(self._process.lost.result() if self._process and self._process.lost.done() else error)
            finally:
                self._end(StoreError("gone", f"link to {self._peer}: closed here"))

    async def read(self, ranges: Sequence[Range]) -> None:
        """Once it is ready. Raises StoreError."""
        if self.is_over:
            raise StoreError("gone", f"link to {self._peer}: lost")
        assert self._source is not None
        for offset, _, size_bytes in ranges:
            if offset + size_bytes > self._source.size_bytes:
                raise StoreError("denied", f"link to {self._peer}: offset {offset} lies outside of its arena")
        pieces = list(_pieces(ranges))
        if pieces:
            read = _Read(len(pieces))
            self._waiting.extend(_Piece(read, piece) for piece in pieces)
            self._fill_slots()
            await read.over

    def end_if_stuck(self) -> None:
        """After a timeout: if every slot waits for what nobody wants any more, start anew."""
        if self._line is not None and not self._free and all(each.read.over.done() for each in self._flying.values()):
            self._line.hang_up()

    async def _connect(self, host: str, address: LinkAddress, stack: contextlib.AsyncExitStack) -> Line:
        self._line = line = await connect(host, address.port, address.secret)
        stack.callback(line.close)
        self._source = await _serving(line)
        self._process = await self._start(stack)
        stack.push_async_callback(self._process.end)
        self._process.lost.add_done_callback(lambda lost: line.hang_up())
        self._process.send(Peer(self._source.metadata, self._source.base))
        return line

    def _end(self, error: StoreError) -> None:
        """No read will get any more than it has."""
        self.is_over = True
        for future in (self.ready, *(piece.read.over for piece in (*self._flying.values(), *self._waiting))):
            if not future.done():
                future.set_exception(error)

    async def _start(self, stack: contextlib.AsyncExitStack) -> NixlProcess:
        fd, size_bytes = os.memfd_create("jevons-link", os.MFD_CLOEXEC), SLOTS * SLOT_BYTES
        try:
            os.ftruncate(fd, size_bytes)
            self._slots = stack.enter_context(contextlib.closing(mmap.mmap(fd, size_bytes)))
            return await NixlProcess.start(fd, size_bytes, self._on_over)
        finally:
            os.close(fd)

    def _fill_slots(self) -> None:
        assert self._process is not None
        while self._free and self._waiting:
            piece = self._waiting.popleft()
            if not piece.read.over.done():  # else it was given up
                slot = self._free.pop()
                self._flying[slot] = piece
                wanted = [(offset, size_bytes) for offset, _, size_bytes in piece.ranges]
                self._process.send(Get(slot, slot * SLOT_BYTES, wanted))

    def _on_over(self, slot: int) -> None:
        read, ranges = self._flying.pop(slot)
        if read.over.done():
            self._counts["late"] += 1
        else:
            self._copy(slot, ranges)
            read.left -= 1
            if not read.left:
                read.over.set_result(None)
        self._free.append(slot)
        self._fill_slots()

    def _copy(self, slot: int, ranges: Sequence[Range]) -> None:
        assert self._slots is not None
        at = slot * SLOT_BYTES
        with memoryview(self._slots) as slots:
            for _, offset, size_bytes in ranges:
                self._memory.memory[offset : offset + size_bytes] = slots[at : at + size_bytes]
                at += size_bytes


def require_nixl() -> None:
    """Raises ConfigError if NIXL is not installed."""
    if installed() is None:
        raise ConfigError("link nixl: NIXL is not installed; install jevons[nixl], or use tcp, which needs nothing")


async def _serving(line: Line) -> Serving:
    size_bytes = int.from_bytes(await line.receive(LENGTH_BYTES), "big")
    try:
        return _SERVING.decode(await line.receive(min(size_bytes, MOST_SERVING_BYTES)))
    except msgspec.MsgspecError as error:
        raise StoreError("io", f"link: the peer's NIXL cannot be understood: {error}") from error


def _pieces(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """The same bytes, as much at a time as a slot holds."""
    piece: list[Range] = []
    room = SLOT_BYTES
    for remote, local, size_bytes in ranges:
        while size_bytes:
            part = min(size_bytes, room)
            piece.append(Range(remote, local, part))
            remote, local, size_bytes, room = remote + part, local + part, size_bytes - part, room - part
            if not room:
                yield piece
                piece, room = [], SLOT_BYTES
    if piece:
        yield piece
