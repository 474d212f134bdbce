"""Pages over plain TCP: the default link, which needs nothing.

    reader → source   count of ranges, 4 bytes; offset and size of each, 8 bytes each
    source → reader   one byte: welcome, or denied; then the bytes of all ranges, one after the other

little-endian, on a `line`. Bytes go from the source's arena to its socket and from the reader's socket to its
arena, with no copy in between but the kernel's. A read has a connection to itself, so that a short one never waits
behind a long one; up to LINES are kept for the next reads. What fails or is cancelled closes its connection, so what
is still under way for it is never read.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence

from jevons.base.errors import StoreError
from jevons.wire.line import Answer, Line, Listener, connect, expect_welcome
from jevons.wire.link import LinkAddress, Memory, Range, check, told

LINES = 4  # connections of one link
MAX_RANGES = 1024  # of one request
MAX_REQUEST_BYTES = 1 << 30
# A reader that takes longer than this for one request is dropped: it would hold one of our connections.
STALL_S = 5.0
SLOWEST_BYTES_PER_S = 10e6  # a tenth of gigabit Ethernet
_COUNT, _RANGE = struct.Struct("<I"), struct.Struct("<QQ")


class TcpSource:
    """Serves an arena over TCP; use `open`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._listener = Listener(self._serve)

    @classmethod
    async def open(cls, memory: Memory, host: str, port: int = 0) -> TcpSource:
        """Start to serve; arguments as in `Listener.open`."""
        source = cls(memory)
        await source._listener.open(host, port)
        return source

    @property
    def address(self) -> LinkAddress:
        return LinkAddress("tcp", self._listener.port, self._listener.secret)

    @property
    def counts(self) -> Counter[str]:
        return self._listener.counts

    async def close(self) -> None:
        await self._listener.close()

    async def _serve(self, line: Line) -> None:
        while True:
            (count,) = _COUNT.unpack(await line.receive(_COUNT.size))
            wanted = await self._wanted(line, count)
            size_bytes = sum(size for _, size in wanted)
            if not wanted or size_bytes > MAX_REQUEST_BYTES or not all(self._has(*each) for each in wanted):
                self.counts["denied"] += 1
                await line.send(bytes([Answer.DENIED]))
                return
            async with asyncio.timeout(STALL_S + size_bytes / SLOWEST_BYTES_PER_S):
                await line.send(bytes([Answer.WELCOME]))
                for offset, size in wanted:
                    await line.send(self._memory.memory[offset : offset + size])
            self.counts["bytes"] += size_bytes

    async def _wanted(self, line: Line, count: int) -> list[tuple[int, int]]:
        """Offset and size of each range of a request; empty if there are too many."""
        if count > MAX_RANGES:
            return []
        async with asyncio.timeout(STALL_S):
            return list(_RANGE.iter_unpack(await line.receive(count * _RANGE.size)))

    def _has(self, offset: int, size_bytes: int) -> bool:
        return offset + size_bytes <= self._memory.size_bytes  # neither is negative: they came unsigned


class TcpLink:
    """Reads the arena of a TcpSource.

    Args:
        address: the source's.
        host: by which it is reached.
        memory: our own arena, to read into.
    """

    def __init__(self, address: LinkAddress, host: str, memory: Memory) -> None:
        self._address, self._host, self._memory = address, host, memory
        self._peer = f"{host}:{address.port}"
        self._idle: list[Line] = []
        self._room = asyncio.Semaphore(LINES)
        self._deadlines: set[asyncio.Timeout] = set()  # of reads in progress
        self._is_closed = False

    async def read(self, ranges: Sequence[Range], timeout_s: float) -> None:
        """See `link.Link`. One range is at most 1 GiB."""
        check(ranges, self._memory)
        async with self._until_closed(timeout_s), self._room:
            line = self._idle.pop() if self._idle else await self._connect()
            try:
                for request in _requests(ranges):
                    await self._bring(line, request)
            except BaseException:
                line.close()
                raise
            self._keep(line)

    async def close(self) -> None:
        self._is_closed = True
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(0.0)  # the past
        while self._idle:
            self._idle.pop().close()

    @contextlib.asynccontextmanager
    async def _until_closed(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with told(self._peer, timeout_s) as deadline:
                self._deadlines.add(deadline)
                try:
                    yield
                finally:
                    self._deadlines.discard(deadline)
        except StoreError as error:
            if self._is_closed:
                raise StoreError("gone", f"link to {self._peer}: closed here") from error
            raise

    async def _connect(self) -> Line:
        if self._is_closed:
            raise ConnectionError("closed here")
        return await connect(self._host, self._address.port, self._address.secret)

    def _keep(self, line: Line) -> None:
        if self._is_closed:
            line.close()
        else:
            self._idle.append(line)

    async def _bring(self, line: Line, ranges: Sequence[Range]) -> None:
        asked = b"".join(_RANGE.pack(each.remote_offset, each.size_bytes) for each in ranges)
        await line.send(_COUNT.pack(len(ranges)) + asked)
        await expect_welcome(line, self._peer)
        for _, offset, size_bytes in ranges:
            await line.receive_into(self._memory.memory[offset : offset + size_bytes])


def _requests(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """The same ranges, as many at a time as one request may name."""
    request: list[Range] = []
    size_bytes = 0
    for each in ranges:
        if request and (len(request) == MAX_RANGES or size_bytes + each.size_bytes > MAX_REQUEST_BYTES):
            yield request
            request, size_bytes = [], 0
        request.append(each)
        size_bytes += each.size_bytes
    if request:
        yield request
