"""One segment of the disk store: blocks one after another in a file, and the headers of them all in another.

    0000000007.blocks     header page header page header page …      append-only, deleted as a whole
    0000000007.headers    header header header …                     the same headers again, to read them at once

A header says where it belongs (segment and offset) and what its page is, with a checksum of its own, so that one that
is torn, altered, or in another file or place than it was written to, is known for it. The list of headers is written
after the blocks: a block that is listed was written whole, unless power failed, and then its page's checksum tells.
What the list lacks is found by walking the blocks themselves.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from jevons.base.errors import StoreError
from jevons.facts.block import BlockKey
from jevons.store.header import HEADER_BYTES, MAGIC, Header, Record, decode, encode

BLOCKS, HEADERS = ".blocks", ".headers"
MAX_BATCH = 512  # blocks in one write: Linux takes 1,024 pieces (IOV_MAX), a header and a page each

_SEARCH_BYTES = 1 << 16
_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Segment:
    """An open segment. One thread appends; others may read what was appended meanwhile.

    A reader counts itself in `users`, so that the file stays open until it is done even if the segment is retired
    meanwhile; whoever owns the segment guards that number with its lock.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.keys: list[BlockKey] = []  # of every block in it, those superseded since included
        self.end = 0  # of the last whole block
        self.users = 0
        self._is_retired = False
        self._blocks_path = directory / f"{number:010}{BLOCKS}"
        self._headers_path = directory / f"{number:010}{HEADERS}"
        self._headers_fd = -1  # open while blocks may be appended
        self._blocks_fd = os.open(self._blocks_path, _FILE_FLAGS, 0o600)

    @classmethod
    def create(cls, directory: Path, number: int) -> Segment:
        """A new one, empty, ready to be appended to. Raises OSError."""
        segment = cls(directory, number)
        try:
            segment.begin()
        except OSError:
            segment.retire()
            raise
        return segment

    @classmethod
    def load(cls, directory: Path, number: int, lost: Counter[str]) -> tuple[Segment, list[Header]]:
        """One that was written before, with the headers of its blocks, oldest first; deleted if there are none.

        From the list of headers. Blocks behind the last one listed are looked for in the file of blocks, where a crash
        may have left some; where anything in the list is wrong, all of them are. Pages are not read.

        Args:
            lost: what is refused is counted here, by reason.

        Raises:
            OSError: it cannot be read.
        """
        segment = cls(directory, number)
        try:
            headers = segment._recover(lost)
        except OSError:
            segment.retire()
            raise
        if not headers:
            segment.retire()
            segment.delete()
        return segment, headers

    @property
    def size_bytes(self) -> int:
        """Of both files."""
        return self.end + len(self.keys) * HEADER_BYTES

    @property
    def is_deleted(self) -> bool:
        """Somebody else removed one of its files, so that what is appended now would be gone with this process."""
        return not (os.fstat(self._blocks_fd).st_nlink and os.fstat(self._headers_fd).st_nlink)

    def begin(self) -> None:
        """Make ready for appending; what lies behind the last whole block goes. Raises OSError."""
        self._headers_fd = os.open(self._headers_path, _FILE_FLAGS, 0o600)
        self._rewind()

    def seal(self) -> None:
        """Nothing more will be appended."""
        if self._headers_fd >= 0:
            os.close(self._headers_fd)
            self._headers_fd = -1

    def retire(self) -> None:
        """Close it as soon as nobody reads it any more."""
        self.seal()
        self._is_retired = True
        self._close_if_unused()

    def leave(self) -> None:
        """A reader is done."""
        self.users -= 1
        self._close_if_unused()

    def delete(self) -> None:
        """Remove its files; those who are reading it can go on. Raises OSError."""
        self._headers_path.unlink(missing_ok=True)  # first: a list of blocks that are not there looks like a loss
        self._blocks_path.unlink(missing_ok=True)

    def append(self, records: Sequence[Record]) -> list[Header]:
        """Write blocks in one go, at most `MAX_BATCH`; when it returns they are found again after a crash of ours.

        Raises:
            OSError: nothing was appended.
        """
        headers: list[Header] = []
        parts: list[bytes | memoryview] = []
        end = self.end
        for record in records:
            size = len(record.stored)
            headers.append(Header(self.number, end, size, record.key, record.meta, record.nonce))
            parts += encode(headers[-1]), record.stored
            end = headers[-1].end
        try:
            _write(self._blocks_fd, parts, self.end)
            _write(self._headers_fd, [b"".join(parts[::2])], len(self.keys) * HEADER_BYTES)
        except OSError:
            with suppress(OSError):  # what is left behind is overwritten by the next, or told by its checksum
                self._rewind()
            raise
        self.end = end
        self.keys += [record.key for record in records]
        return headers

    def read(self, header: Header, into: memoryview) -> None:
        """The page as stored, `header.stored_bytes` of it, if the header before it is still this one.

        Raises:
            StoreError: `missing`, the file ends before it; `corrupt`, no header is there; `mismatch`, another one is;
                `io`, reading failed.
        """
        raw = bytearray(HEADER_BYTES)
        try:
            done = os.preadv(self._blocks_fd, [raw, into], header.offset)
        except OSError as error:
            raise StoreError("io", f"reading {self._blocks_path}: {error.strerror}") from error
        if done != HEADER_BYTES + into.nbytes:
            raise StoreError("missing", f"{self._blocks_path} ends before byte {header.end}")
        if raw != encode(header):
            (found,) = decode(raw)
            if found is None:
                raise StoreError("corrupt", f"{self._blocks_path} has no sound header at byte {header.offset}")
            raise StoreError("mismatch", f"{self._blocks_path} has another block at byte {header.offset}")

    def _recover(self, lost: Counter[str]) -> list[Header]:
        size = os.fstat(self._blocks_fd).st_size
        raw = self._headers_path.read_bytes() if self._headers_path.exists() else b""
        headers = list(self._listed(raw, size, lost))
        is_sound = len(headers) * HEADER_BYTES == len(raw)
        if not is_sound:
            headers = []
        found = list(self._found(headers[-1].end if headers else 0, size, lost))
        headers += found
        self.keys = [header.key for header in headers]
        self.end = headers[-1].end if headers else 0
        if found or not is_sound:
            with suppress(OSError):  # then it is found again the next time
                self._list_anew(headers)
        return headers

    def _listed(self, raw: bytes, size: int, lost: Counter[str]) -> Iterator[Header]:
        end = 0
        for header in decode(raw):
            fault = self._fault(header, end, size) if header else "corrupt"
            if header and not fault:
                yield header
                end = header.end
            else:
                lost[fault] += 1

    def _found(self, at: int, size: int, lost: Counter[str]) -> Iterator[Header]:
        """Walk from header to header; after a bad one, on from the next bytes that look like one."""
        while at + HEADER_BYTES <= size:
            header = next(decode(os.pread(self._blocks_fd, HEADER_BYTES, at)), None)
            fault = self._fault(header, at, size) if header else "corrupt"
            if header and not fault and header.offset == at:
                yield header
                at = header.end
            else:
                lost[fault or "mismatch"] += 1
                at = self._search(at + 1, size)
        if at < size:
            lost["missing"] += 1

    def _fault(self, header: Header, start: int, size: int) -> str:
        """Why a header does not count; empty if it does."""
        if header.segment != self.number:
            return "mismatch"
        if header.offset < start:
            return "corrupt"
        return "missing" if header.end > size else ""

    def _search(self, at: int, size: int) -> int:
        """Where the next header may start, or `size`."""
        while chunk := os.pread(self._blocks_fd, _SEARCH_BYTES, at):
            found = chunk.find(MAGIC)
            if found >= 0:
                return at + found
            at += max(1, len(chunk) - len(MAGIC) + 1)
        return size

    def _list_anew(self, headers: Sequence[Header]) -> None:
        self.begin()
        try:
            _write(self._headers_fd, [b"".join(encode(header) for header in headers)], 0)
        finally:
            self.seal()

    def _rewind(self) -> None:
        os.ftruncate(self._blocks_fd, self.end)
        os.ftruncate(self._headers_fd, len(self.keys) * HEADER_BYTES)

    def _close_if_unused(self) -> None:
        if self._is_retired and not self.users and self._blocks_fd >= 0:
            os.close(self._blocks_fd)
            self._blocks_fd = -1


def _write(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """All of `parts`, however many calls it takes; a disk that is nearly full takes some of a write."""
    left = [memoryview(part) for part in parts]
    while left:
        done = os.pwritev(fd, left, offset)
        offset += done
        whole = 0
        while whole < len(left) and done >= len(left[whole]):
            done -= len(left[whole])
            whole += 1
        left = left[whole:]
        if left:
            left[0] = left[0][done:]
