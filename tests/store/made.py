"""Made-up blocks: number i always has the same key and page, so that whatever comes back can be judged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from jevons.base.errors import StoreError
from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, BlockMeta
from jevons.kv.layout import checksum
from jevons.store.disk import Block, DiskStore, Written
from jevons.store.header import record_bytes

SIZE = 512  # bytes of a page
RECORD = record_bytes(SIZE)  # what it takes on disk
NOISE = random.Random(0).randbytes(1 << 20)  # pages of up to half of it
FINGERPRINT = b"fingerprint 0001"


def key(number: int, fingerprint: bytes = FINGERPRINT) -> BlockKey:
    return BlockKey(fingerprint, BlockHash(number.to_bytes(16, "big")))


def page(number: int, size: int = SIZE) -> bytes:
    """Cheap, so that a process that fills a store spends its time in the store."""
    start = 997 * number % (len(NOISE) // 2)
    return (number.to_bytes(16, "big") + NOISE[start : start + size])[:size]


def block(number: int, size: int = SIZE, tenant: bytes = b"") -> Block:
    content = page(number, size)
    return key(number), BlockMeta(size, checksum(key(number), content), 16 * number, tenant), memoryview(content)


def numbered(keys: Iterable[BlockKey]) -> list[int]:
    return [int.from_bytes(each.name, "big") for each in keys]


def always(_: BlockKey) -> bool:
    return True


def never(_: BlockKey) -> bool:
    return False


def put(store: DiskStore, numbers: Iterable[int], is_worth: Callable[[BlockKey], bool] = never) -> Written:
    return store.put([block(number) for number in numbers], is_worth)


def small(directory: Path, blocks: int = 4, segments: int = 8) -> DiskStore:
    """Holds `segments` of `blocks`, and the third of one that recycling needs."""
    segment = blocks * RECORD
    return DiskStore(directory, segments * segment + segment // 3, segment_bytes=segment)


def get(store: DiskStore, number: int, size: int = SIZE) -> bytes:
    into = bytearray(size)
    store.get(key(number), memoryview(into))
    return bytes(into)


def outcome(store: DiskStore, number: int, size: int = SIZE) -> str:
    """`right`, or the reason why it cannot be had; a wrong page fails the test."""
    try:
        content = get(store, number, size)
    except StoreError as error:
        return error.reason
    assert content == page(number, size), f"block {number} came back with another page"
    return "right"
