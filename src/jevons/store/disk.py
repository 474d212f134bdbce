"""The disk store: blocks that outlive the process, in segments on a local disk.

    put ──▶ the open segment, appended to ──full──▶ sealed ──quota full, oldest──▶ recycled: what was used since is
                                                                                  appended again, the rest is removed

One owner at a time, which a lock on the directory holds. One thread puts at a time (others wait), any number get
meanwhile. Opening reads the lists of headers (128 bytes a block), not the blocks.

What is promised: a block that `get` returns is the one that was put under that key, or `StoreError` says why not, and
a block that cannot be read is forgotten. When `put` returns, its blocks survive the end of this process at any later
instant. Nothing is synced: a power failure may lose or tear the last seconds' blocks, and the checksums tell.
Dropping is not written down: a dropped block may be back after reopening, with the bytes it had.

Without a cipher anybody who may write to the directory can plant a block; with one, nobody who lacks the key.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError, StoreError
from jevons.facts.block import BlockKey, BlockMeta
from jevons.kv.layout import checksum
from jevons.store.cipher import TAG_BYTES, Cipher
from jevons.store.directory import Directory, divide
from jevons.store.header import Header, Record, record_bytes, what
from jevons.store.segment import MAX_BATCH, Segment

Block = tuple[BlockKey, BlockMeta, memoryview]

BATCH_BYTES = 8 << 20  # of blocks in one write, if there are several; more gains nothing
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Written(msgspec.Struct, frozen=True):
    """What became of blocks that were put, and of others: those put and named in neither list are held now."""

    removed: list[BlockKey] = msgspec.field(default_factory=list)  # no longer held
    refused: dict[BlockKey, str] = msgspec.field(default_factory=dict)  # not stored: a word of `facts.block.LOST`


class DiskStore:
    """Blocks on disk by key.

    Args:
        directory: made if it is not there. Files in it that are named like a segment's belong to the store.
        size_bytes: the most that all files take together, in recycling too.
        segment_bytes: what is recycled at once; None: 64 MiB, less or more where there would be fewer than 8 of them
            or more than 256, and more once a block is larger.
        block_bytes: the largest page that will be put, so that a store too small for it is told at once.
        cipher: encrypts pages, see `cipher`. With one, nothing that was stored without is served, nor the reverse.

    Raises:
        ConfigError: a size is too small, another process has the directory, or it cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        size_bytes: int,
        *,
        segment_bytes: int | None = None,
        block_bytes: int = 1,
        cipher: Cipher | None = None,
    ) -> None:
        self.size_bytes = size_bytes
        self.counts: Counter[str] = Counter()  # blocks and headers refused or lost, by reason
        self._directory = Directory(directory)
        self._cipher = cipher
        self._tag_bytes = TAG_BYTES if cipher else 0
        self._room = divide(size_bytes, segment_bytes, record_bytes(block_bytes + self._tag_bytes))
        self._may_widen = segment_bytes is None
        self._scratch = threading.local()
        self._writing = threading.Lock()  # held by who puts, through all of its I/O; taken before the other
        self._lock = threading.Lock()  # guards what follows; held for microseconds
        self._index: dict[BlockKey, Header] = {}  # oldest first
        self._segments: dict[int, Segment] = {}  # by number, oldest first
        self._active: Segment | None = None  # appended to; the last of them. Only who puts touches it
        self._next_number = 0
        self._is_closed = False
        try:
            self._enter()
        except BlockingIOError:
            rule = "another process has it, and a store has one owner"
            raise ConfigError(f"directory: {rule}: {directory}; stop that one or name another directory") from None
        except OSError as error:
            advice = "name one on a local disk that this user may write to"
            raise ConfigError(f"directory: cannot use {directory}: {error.strerror}; {advice}") from error

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._index)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._index

    @property
    def used_bytes(self) -> int:
        """Of all files, blocks that were dropped included."""
        with self._lock:
            return sum(segment.size_bytes for segment in self._segments.values())

    def held(self) -> list[tuple[BlockKey, BlockMeta]]:
        """Every block, oldest first."""
        with self._lock:
            return [(key, header.meta) for key, header in self._index.items()]

    def put(self, blocks: Sequence[Block], is_worth: Callable[[BlockKey], bool]) -> Written:
        """Store blocks; those held already are left as they are. Cheapest for some megabytes at a time.

        Never raises: what cannot be stored is refused, with a reason. After ENOSPC the oldest segment is given up and
        the write tried once more. A directory that went away is made again, empty.

        Args:
            is_worth: asked for each block of a segment that is recycled: whether to keep it.
        """
        written = Written()
        with self._writing:
            pending: list[Block] = []
            try:
                self._come_home(written)
                pending += self._wanted(blocks, written)
                while pending:
                    del pending[: self._write_some(pending, is_worth, written)]
            except OSError as error:
                reason = "gone" if self._is_closed else _reason(error)
                for key, _, _ in pending or blocks:
                    self._refuse(key, reason, written)
        return written

    def get(self, key: BlockKey, into: memoryview) -> BlockMeta:
        """Read a block straight into `into`, which has its size, and verify it. After an error `into` holds anything.

        Raises:
            StoreError: it cannot be had; unless `into` has the wrong size, it is not held any more.
        """
        segment, header = self._enter_segment(key)
        try:
            if into.nbytes != header.meta.size_bytes:
                self._count("mismatch")
                raise StoreError("mismatch", f"a block of {header.meta.size_bytes} bytes read into {into.nbytes}")
            try:
                self._read(segment, header, into)
            except StoreError as error:
                self._forget(header, error.reason)
                raise
        finally:
            with self._lock:
                segment.leave()
        return header.meta

    def drop(self, key: BlockKey) -> bool:
        """Forget a block; its bytes stay until its segment is recycled. Whether it was held."""
        with self._lock:
            return self._index.pop(key, None) is not None

    def close(self) -> None:
        """Let go of files and directory. Reads in progress end as they would; what comes later finds nothing."""
        with self._writing:
            self._is_closed = True
            self._leave()

    # Reading.

    def _enter_segment(self, key: BlockKey) -> tuple[Segment, Header]:
        """Where a block is; that file stays open until the caller leaves the segment."""
        with self._lock:
            header = self._index.get(key)
            if header is None:
                self.counts["missing"] += 1
                raise StoreError("missing", f"block {key.name.hex()} is not on disk")
            segment = self._segments[header.segment]
            segment.users += 1
            return segment, header

    def _read(self, segment: Segment, header: Header, into: memoryview) -> None:
        if header.is_sealed != (self._cipher is not None):
            how = "with a key" if header.is_sealed else "without one"
            raise StoreError("undecryptable", f"segment {segment.number} has a block that was stored {how}")
        if self._cipher is None:
            segment.read(header, into)
        else:
            sealed = self._scratch_of(header.stored_bytes)
            segment.read(header, sealed)
            self._cipher.open(header.meta.tenant, what(header.key, header.meta), header.nonce, sealed, into)
        if checksum(header.key, into) != header.meta.checksum:
            raise StoreError("corrupt", f"segment {segment.number} has a block whose page does not match its checksum")

    def _scratch_of(self, size_bytes: int) -> memoryview:
        """This thread's buffer: mapping fresh memory for each block costs more than encrypting it."""
        buffer = getattr(self._scratch, "buffer", b"")
        if len(buffer) < size_bytes:
            buffer = self._scratch.buffer = bytearray(size_bytes)
        return memoryview(buffer)[:size_bytes]

    def _forget(self, header: Header, reason: str) -> None:
        """What cannot be read is not held; unless it was stored anew meanwhile."""
        with self._lock:
            self.counts[reason] += 1
            if self._index.get(header.key) is header:
                del self._index[header.key]

    # Writing: only who holds `_writing` comes here.

    def _wanted(self, blocks: Sequence[Block], written: Written) -> list[Block]:
        """Those to write, each once."""
        wanted: dict[BlockKey, Block] = {}
        for key, meta, page in blocks:
            if key in self._index:
                continue
            if page.nbytes != meta.size_bytes:
                self._refuse(key, "mismatch", written)
            elif not self._can_hold(self._record_bytes(meta)):
                self._refuse(key, "full", written)
            else:
                wanted.setdefault(key, (key, meta, page))
        return list(wanted.values())

    def _can_hold(self, record: int) -> bool:
        """Whether a segment can. Where their size was not given, those to come are made larger if need be."""
        if record > self._room.segment_bytes and self._may_widen:
            with suppress(ConfigError):  # the whole is too small for that
                self._room = divide(self.size_bytes, None, record)
        return record <= self._room.segment_bytes

    def _write_some(self, pending: Sequence[Block], is_worth: Callable[[BlockKey], bool], written: Written) -> int:
        """Append as many of the first blocks as one write and one segment take; how many. Raises OSError."""
        try:
            return self._write_first(pending, is_worth, written)
        except OSError as error:
            if error.errno not in NO_SPACE:
                self._seal()  # whatever is the matter with that file, the next is another
                raise
            if not self._give_up_oldest(written):
                raise
        return self._write_first(pending, is_worth, written)

    def _write_first(self, pending: Sequence[Block], is_worth: Callable[[BlockKey], bool], written: Written) -> int:
        need = self._record_bytes(pending[0][1])
        segment = self._active
        if segment is None or segment.size_bytes + need > self._room.segment_bytes:
            segment = self._roll(need, is_worth, written)
        else:
            self._recycle(segment, need, is_worth, written)  # where that was cut off by a crash
        room = min(BATCH_BYTES, self._room.segment_bytes - segment.size_bytes)
        count = 0
        for _, meta, _ in pending[:MAX_BATCH]:
            room -= self._record_bytes(meta)
            if count and room < 0:  # the first fits, however large
                break
            count += 1
        headers = segment.append(self._records(pending[:count]))
        with self._lock:
            self._index.update((header.key, header) for header in headers)
        return count

    def _records(self, blocks: Sequence[Block]) -> list[Record]:
        if self._cipher is None:
            return [Record(key, meta, page.cast("B")) for key, meta, page in blocks]
        records = []
        scratch = self._scratch_of(sum(meta.size_bytes + TAG_BYTES for _, meta, _ in blocks))
        for key, meta, page in blocks:
            sealed, scratch = scratch[: meta.size_bytes + TAG_BYTES], scratch[meta.size_bytes + TAG_BYTES :]
            nonce = self._cipher.seal(meta.tenant, what(key, meta), page.cast("B"), sealed)
            records.append(Record(key, meta, sealed, nonce))
        return records

    def _record_bytes(self, meta: BlockMeta) -> int:
        return record_bytes(meta.size_bytes + self._tag_bytes)

    def _roll(self, need: int, is_worth: Callable[[BlockKey], bool], written: Written) -> Segment:
        """Begin a segment with room for `need` bytes, recycling the oldest ones as the quota wants. Raises OSError."""
        self._seal()
        fresh = Segment.create(self._directory.path, self._next_number)
        self._next_number += 1
        with self._lock:
            self._segments[fresh.number] = fresh
        self._active = fresh
        self._recycle(fresh, need, is_worth, written)
        return fresh

    def _recycle(self, into: Segment, need: int, is_worth: Callable[[BlockKey], bool], written: Written) -> None:
        """Give up the oldest segments while the quota wants it. What is kept goes to `into`, beside `need` bytes."""
        spare = min(self._room.kept_bytes, self._room.segment_bytes - need) - into.size_bytes
        while self.used_bytes - into.size_bytes > self._room.quota_bytes - self._room.segment_bytes:
            oldest = next(iter(self._segments.values()))
            spare -= self._carry(oldest, into, spare, is_worth)
            self._remove(oldest, written)

    def _carry(self, oldest: Segment, fresh: Segment, spare: int, is_worth: Callable[[BlockKey], bool]) -> int:
        """Copy what is worth keeping, at most `spare` bytes of it, as it lies there; how many bytes."""
        began = fresh.size_bytes
        for key in oldest.keys:
            header = self._index.get(key)
            if header is None or header.segment != oldest.number or not is_worth(key):
                continue
            if fresh.size_bytes - began + record_bytes(header.stored_bytes) > spare:
                break
            stored = self._scratch_of(header.stored_bytes)
            try:
                oldest.read(header, stored)
                (moved,) = fresh.append([Record(key, header.meta, stored, header.nonce)])
            except (StoreError, OSError) as error:
                self._count(error.reason if isinstance(error, StoreError) else _reason(error))
                continue
            with self._lock:
                if self._index.get(key) is header:  # not dropped meanwhile
                    del self._index[key]  # so that it becomes the newest
                    self._index[key] = moved
        return fresh.size_bytes - began

    def _remove(self, segment: Segment, written: Written) -> None:
        """Delete a segment, after whatever of it is kept was appended elsewhere: a crash in between leaves both."""
        with self._lock:
            for key in segment.keys:
                header = self._index.get(key)
                if header is not None and header.segment == segment.number:
                    del self._index[key]
                    written.removed.append(key)
            del self._segments[segment.number]
            segment.retire()
        try:
            segment.delete()
        except OSError as error:
            self._count(_reason(error))

    def _give_up_oldest(self, written: Written) -> bool:
        """Make room on a full disk; what was used goes too, for there is nowhere to copy it. Whether there was one."""
        oldest = next(iter(self._segments.values()), None)
        if oldest is None or oldest is self._active:
            return False
        before = len(written.removed)
        self._remove(oldest, written)
        self._count("full", len(written.removed) - before)
        return True

    def _seal(self) -> None:
        active, self._active = self._active, None
        if active is not None:
            active.seal()
            if not active.keys:  # the write that failed was its first
                self._remove(active, Written())

    def _refuse(self, key: BlockKey, reason: str, written: Written) -> None:
        written.refused[key] = reason
        self._count(reason)

    def _count(self, reason: str, blocks: int = 1) -> None:
        with self._lock:
            self.counts[reason] += blocks

    # The directory.

    def _come_home(self, written: Written) -> None:
        """See that what is written now will be found again; begin anew where the directory went away.

        Raises:
            OSError: it cannot be had.
        """
        if self._is_closed:
            raise OSError(errno.EBADF, "the store is closed")
        if self._directory.is_locked:
            if self._active is not None and self._active.is_deleted:
                self._seal()
            return
        lost = list(self._index)
        self._leave()
        try:
            self._enter()
        finally:
            gone = [key for key in lost if key not in self._index]
            self._count("io", len(gone))
            written.removed.extend(gone)

    def _enter(self) -> None:
        """Lock the directory and learn what is in it. Raises OSError."""
        self._directory.lock()
        try:
            self._scan()
        except OSError:
            self._leave()
            raise

    def _leave(self) -> None:
        self._active = None
        with self._lock:
            for segment in self._segments.values():
                segment.retire()
            self._segments.clear()
            self._index.clear()
        self._directory.unlock()

    def _scan(self) -> None:
        numbers = self._directory.segment_numbers()
        for number in numbers:
            self._load(number)
        self._next_number = numbers[-1] + 1 if numbers else 0
        while self.used_bytes > self.size_bytes:  # above the quota recycling was cut off: the next put goes on with it
            self._remove(next(iter(self._segments.values())), Written())
        last = next(reversed(self._segments.values()), None)
        if last is not None:
            with suppress(OSError):  # then the next put begins another
                last.begin()
                self._active = last

    def _load(self, number: int) -> None:
        lost: Counter[str] = Counter()
        try:
            segment, headers = Segment.load(self._directory.path, number, lost)
        except OSError:
            lost["io"] += 1
            headers = []
        with self._lock:
            self.counts.update(lost)
            if headers:
                self._segments[number] = segment
            for header in headers:
                self._index.pop(header.key, None)  # an older copy: the block was moved, or dropped and put again
                self._index[header.key] = header


def _reason(error: OSError) -> str:
    return "full" if error.errno in NO_SPACE else "io"
