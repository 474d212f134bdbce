"""The pools, fed the event stream of a real vLLM, hold the same blocks as it after every batch, and lose them in the
same order.

The stream tells what was stored, not who asked. A sequence is what goes on from its own last block; another begins
where an event goes on from elsewhere, or stores once more what its sequence has. Between requests nothing ran.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.kv.test_cache import Pools, Table

from jevons.base.ids import BlockHash
from jevons.control.shapes import decode_batch
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvEvent
from jevons.kv import cache
from jevons.kv.pool import BlockPool, FullBlocks

CAPTURE = "kv_events_capture_cbor_evict.jsonl"  # block of 32 tokens, evictions, a clear
BLOCKS = 68  # full blocks that the engine's pool had room for: one more, or one less, and it evicts otherwise


def batches(shared: Path) -> Iterator[list[KvEvent]]:
    for line in (shared / "data" / CAPTURE).read_text().splitlines():
        row = json.loads(line)
        yield decode_batch(row["seq"], bytes.fromhex(row["payload_hex"])).events


class Stream:
    """The engine's events as blocks that sequences compute, in numbers, and what it holds after each batch."""

    def __init__(self) -> None:
        self.names: dict[object, int] = {}
        self.parents: dict[int, int | None] = {}
        self.copies: dict[int, int] = {}  # of each block that the engine holds

    def number(self, name: object) -> int:
        return self.names.setdefault(name, len(self.names) + 1)

    def chain(self, last: int | None) -> list[int]:
        """All blocks up to one."""
        found: list[int] = []
        while last is not None:
            found.append(last)
            last = self.parents[last]
        return found[::-1]

    def stored(self, event: BlocksStored) -> tuple[int | None, list[int]]:
        parent = None if event.parent is None else self.number(event.parent)
        numbers = [self.number(name) for name in event.hashes]
        for before, number in zip([parent, *numbers], numbers, strict=False):
            self.parents[number] = before
            self.copies[number] = self.copies.get(number, 0) + 1
        return parent, numbers

    def removed(self, event: BlocksRemoved) -> list[int]:
        numbers = [self.number(name) for name in event.hashes]
        for number in numbers:
            self.copies[number] -= 1
        return numbers

    @property
    def held(self) -> set[int]:
        return {number for number, copies in self.copies.items() if copies}


class OfTwin:
    """The twin's pool. One sequence at a time."""

    def __init__(self, blocks: int) -> None:
        self.pools = Pools(blocks)
        cache.grow_log(self.pools.hub, 1_024)  # of all the stream, at once
        self.held: set[int] = set()
        self.lost: list[int] = []
        self.sequence: list[int] = []
        self.table = Table(0, [])

    def begin(self, prefix: list[int]) -> None:
        """A sequence whose first blocks are there."""
        self.end()
        self.sequence = list(prefix)
        self.table = Table(0, prefix)
        hits, found = self.pools.match(0, self.table.names)
        assert hits == len(prefix), "the engine found them"
        cache.take(self.pools.h, 0, found, hits)
        self.table.places[:hits] = found[:hits]
        self.table.sealed = hits

    def add(self, blocks: list[int]) -> None:
        first = len(self.sequence)
        self.sequence += blocks
        self.table.names = np.array(self.sequence, np.int64)
        self.pools.grow(self.table, first, len(self.sequence))
        self.pools.seal(self.table, len(self.sequence))
        self.table.sealed = len(self.sequence)
        self._hear()

    def end(self) -> None:
        count = len(self.sequence)
        cache.release(self.pools.h, 0, self.table.places, count, count)
        self.sequence = []

    def clear(self) -> None:
        self.end()
        self.table = Table(0, [])
        cache.forget(self.pools.h, 0)
        self.pools.changes()
        self.held.clear()

    def _hear(self) -> None:
        for _, name, change in self.pools.changes():
            if change > 0:
                self.held.add(name)
            else:
                self.held.discard(name)
                self.lost.append(name)


class OfLive(OfTwin):
    """The pool of our own engine."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.pool = BlockPool(blocks, 1)

    def begin(self, prefix: list[int]) -> None:
        self.end()
        self.sequence = list(prefix)
        self.table = Table(0, prefix)
        found = self.pool.match([_hash(number) for number in prefix])
        assert len(found) == len(prefix), "the engine found them"
        self.pool.take(found)
        self.table.live = found

    def add(self, blocks: list[int]) -> None:
        places = self.pool.allocate(len(blocks))
        parent = _hash(self.sequence[-1]) if self.sequence else None
        self.pool.seal(places, FullBlocks([_hash(number) for number in blocks], blocks, parent))
        self.table.live += places
        self.sequence += blocks
        for event in self.pool.drain_events():
            if isinstance(event, BlocksStored):
                self.held |= {_number(name) for name in event.hashes}
            elif isinstance(event, BlocksRemoved):
                self.lost += [_number(name) for name in event.hashes]
                self.held -= {_number(name) for name in event.hashes}

    def end(self) -> None:
        self.pool.release(self.table.live)
        self.table.live = []
        self.sequence = []

    def clear(self) -> None:
        self.end()
        self.pool.clear()
        self.pool.drain_events()
        self.held.clear()


def _hash(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "big"))


def _number(name: object) -> int:
    assert isinstance(name, bytes)
    return int.from_bytes(name, "big")


@pytest.mark.parametrize("kind", [OfTwin, OfLive])
def test_after_every_batch_a_pool_holds_what_the_engine_held(shared: Path, kind: type[OfTwin]) -> None:
    stream, ours, lost = Stream(), kind(BLOCKS), list[int]()
    for events in batches(shared):
        for event in events:
            if isinstance(event, AllCleared):
                ours.clear()
                stream.copies.clear()
            elif isinstance(event, BlocksRemoved):
                lost += stream.removed(event)
            else:
                parent, numbers = stream.stored(event)
                goes_on = parent is not None and ours.sequence[-1:] == [parent]
                if not goes_on or set(numbers) & set(ours.sequence):
                    ours.begin(stream.chain(parent))
                ours.add(numbers)
        assert ours.held == stream.held
    once = list(dict.fromkeys(lost))  # a second copy, which goes later, has no name with us
    assert ours.lost == once
    assert len(once) == 21
