"""The tiers below the arena as the keeper drives them: batches to write, single blocks to read, never an exception."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from jevons.base.errors import StoreError
from jevons.base.ids import BlockHash
from jevons.control.breaker import Breaker
from jevons.facts.block import BlockKey, BlockMeta
from jevons.store.bucket import Bucket
from jevons.store.cipher import read_cipher
from jevons.store.disk import DiskStore
from jevons.wire.channel import KeeperConfig

Page = tuple[BlockKey, BlockMeta, memoryview]


class Load(NamedTuple):
    """A block to read."""

    key: BlockKey
    meta: BlockMeta
    page: memoryview  # where to
    offset: int  # the same, in the arena


Known = Sequence[tuple[BlockKey, BlockMeta]]

READ_S = 30.0  # of a bucket; engines give up long before, by their own reckoning
LIST_S = 60.0  # between two looks at what other nodes have put into a bucket


class Read(NamedTuple):
    """What became of a block to read: its checksum, or the reason why it cannot be had."""

    reason: str = ""
    checksum: int = 0


class Written(msgspec.Struct, frozen=True):
    """What became of a batch."""

    reasons: list[str]  # of each page; empty if it is held now
    removed: list[BlockKey] = []  # had to go for them


class Lower(Protocol):
    """One tier below the arena."""

    parallel_reads: int  # calls of `read` at once
    batch: int  # blocks of one

    @property
    def counts(self) -> Counter[str]: ...

    @property
    def used_bytes(self) -> int: ...

    async def write(self, pages: Sequence[Page], is_used: Callable[[BlockKey], bool]) -> Written:
        """Keep these. `is_used` tells which of those that would have to go for them are worth keeping."""

    async def read(self, loads: Sequence[Load]) -> list[Read]:
        """Read blocks into their pages, checked."""

    async def close(self) -> None: ...


class Disk:
    """A `DiskStore`, in threads: one writes, two read."""

    parallel_reads = 2
    batch = 8  # a call of a thread costs half as much as reading a block from the page cache

    def __init__(self, store: DiskStore) -> None:
        self._store = store
        self._writer = ThreadPoolExecutor(1, "disk-write")
        self._readers = ThreadPoolExecutor(2, "disk-read")

    @property
    def counts(self) -> Counter[str]:
        return Counter({f"disk_{reason}": count for reason, count in self._store.counts.items()})

    @property
    def used_bytes(self) -> int:
        return self._store.used_bytes

    def held(self) -> Known:
        """What it holds now."""
        return self._store.held()

    async def write(self, pages: Sequence[Page], is_used: Callable[[BlockKey], bool]) -> Written:
        put = asyncio.get_running_loop().run_in_executor(self._writer, self._store.put, pages, is_used)
        written = await put
        return Written([written.refused.get(key, "") for key, _, _ in pages], written.removed)

    async def read(self, loads: Sequence[Load]) -> list[Read]:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, loads)

    def _read(self, loads: Sequence[Load]) -> list[Read]:
        return [self._read_one(load.key, load.page) for load in loads]

    def _read_one(self, key: BlockKey, into: memoryview) -> Read:
        try:
            return Read(checksum=self._store.get(key, into).checksum)
        except StoreError as error:
            return Read(error.reason)

    async def close(self) -> None:
        self._store.close()
        self._writer.shutdown(wait=False)
        self._readers.shutdown(wait=False)


class Remote:
    """A `Bucket`, left alone for a while when it fails."""

    parallel_reads = 16
    batch = 1

    def __init__(self, bucket: Bucket) -> None:
        self._counts: Counter[str] = Counter()
        self._bucket = bucket
        self._breaker = Breaker()

    @property
    def counts(self) -> Counter[str]:
        return self._counts + Counter(remote_skipped=self._breaker.skipped)

    @property
    def used_bytes(self) -> int:
        return 0  # a bucket has no end, and others fill it too

    async def write(self, pages: Sequence[Page], is_used: Callable[[BlockKey], bool]) -> Written:
        return Written(list(await asyncio.gather(*(self._put(*page) for page in pages))))

    async def read(self, loads: Sequence[Load]) -> list[Read]:
        return [await self._get(load.key, load.page) for load in loads]

    async def _get(self, key: BlockKey, into: memoryview) -> Read:
        if not self._breaker.admit(time.monotonic()):
            return Read("gone")
        try:
            meta = await self._bucket.get(key, into, READ_S)
        except StoreError as error:
            return Read(self._record(error.reason))
        self._record("")
        return Read(checksum=meta.checksum)

    async def follow(self, fingerprint: bytes, on_known: Callable[[set[BlockHash]], Awaitable[None]]) -> None:
        """Tell what the bucket holds of these blocks, now and every `LIST_S` seconds, until cancelled."""
        while True:
            if self._breaker.admit(time.monotonic()):
                try:
                    await self._bucket.refresh(fingerprint)
                    self._record("")
                except StoreError as error:
                    self._counts[f"remote_list_{error.reason}"] += 1
                    self._record(error.reason)
                await on_known(self._bucket.names(fingerprint))
            await asyncio.sleep(LIST_S)

    async def close(self) -> None:
        pass

    async def _put(self, key: BlockKey, meta: BlockMeta, page: memoryview) -> str:
        if self._bucket.holds(key):
            return ""
        if not self._breaker.admit(time.monotonic()):
            return "gone"
        try:
            await self._bucket.put(key, meta, page)
        except StoreError as error:
            return self._record(error.reason)
        return self._record("")

    def _record(self, reason: str) -> str:
        self._breaker.record(time.monotonic(), reason or None)
        return reason


def open_disk(config: KeeperConfig) -> Disk | None:
    """The disk tier, if there is one.

    Raises:
        ConfigError: it cannot be had.
    """
    if config.disk_path is None:
        return None
    cipher = None if config.disk_key_file is None else read_cipher(Path(config.disk_key_file))
    return Disk(DiskStore(Path(config.disk_path), config.disk_bytes, cipher=cipher))


def open_remote(config: KeeperConfig) -> Remote | None:
    """The object tier, if there is one.

    Raises:
        ConfigError: it cannot be had.
    """
    if config.object_url is None:
        return None
    return Remote(Bucket(config.object_url, endpoint=config.object_endpoint))
