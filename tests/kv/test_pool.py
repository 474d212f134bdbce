"""The pool: every block is free or used, named blocks are found again, and every change is an event."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jevons.base.errors import ConfigError, NoFreeBlocks
from jevons.base.ids import BlockHash, BlockId
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored
from jevons.kv.hashing import block_hashes
from jevons.kv.pool import BlockPool, FullBlocks

SIZE = 4


def full(tokens: list[int], start: int = 0, salt: str = "") -> FullBlocks:
    names = block_hashes(tokens, SIZE, salt)
    return FullBlocks(names[start:], tokens[start * SIZE :], names[start - 1] if start else None, salt)


def test_a_released_prefix_is_found_again_until_its_place_is_needed() -> None:
    pool, tokens = BlockPool(4, SIZE), list(range(8))
    places = pool.allocate(2)
    pool.seal(places, full(tokens))
    pool.release(places)

    assert pool.match(block_hashes(tokens, SIZE)) == places
    pool.allocate(3)
    assert pool.match(block_hashes(tokens, SIZE)) == places[:1]  # the tail went first


def test_events_tell_what_can_be_reused() -> None:
    pool, tokens = BlockPool(2, SIZE), list(range(8))
    places = pool.allocate(2)
    pool.seal(places, full(tokens, salt="tenant"))
    pool.release(places)
    pool.allocate(1)
    pool.clear()
    stored, removed, cleared = pool.drain_events()
    names = block_hashes(tokens, SIZE, "tenant")

    assert isinstance(stored, BlocksStored)
    assert (stored.hashes, stored.tokens, stored.parent, stored.extra) == (names, tokens, None, [["tenant"], None])
    assert isinstance(removed, BlocksRemoved)
    assert removed.hashes == names[1:]
    assert cleared == AllCleared()
    assert pool.drain_events() == []


def test_a_second_copy_of_a_block_makes_no_event_and_no_name() -> None:
    pool, tokens = BlockPool(8, SIZE), list(range(12))
    first, second = pool.allocate(1), pool.allocate(3)
    pool.seal(first, FullBlocks(block_hashes(tokens, SIZE)[:1], tokens[:SIZE], None))
    pool.seal(second, full(tokens))
    _, rest = pool.drain_events()

    assert isinstance(rest, BlocksStored)
    assert (rest.hashes, rest.parent) == (block_hashes(tokens, SIZE)[1:], block_hashes(tokens, SIZE)[0])
    assert pool.named == 3


def test_too_many_blocks_are_refused_and_nothing_changes() -> None:
    pool = BlockPool(2, SIZE)

    assert not pool.can_allocate(3)
    with pytest.raises(NoFreeBlocks, match="3 blocks wanted, 2 of 2 are free"):
        pool.allocate(3)
    assert pool.free == 2


def test_a_pool_of_no_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 block, got 0"):
        BlockPool(0, SIZE)


class PoolMachine(RuleBasedStateMachine):
    """Random sequences come and go; a consumer of the events always knows exactly what the pool can reuse."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, SIZE)
        self.tables: list[list[BlockId]] = []
        self.told: set[BlockHash] = set()

    @rule(head=st.integers(0, 2), blocks=st.integers(1, 5))
    def start(self, head: int, blocks: int) -> None:
        tokens = [head] * (blocks * SIZE)
        names = block_hashes(tokens, SIZE)
        found = self.pool.match(names)
        if not self.pool.can_allocate(blocks - len(found), found):
            return
        self.pool.take(found)
        fresh = self.pool.allocate(blocks - len(found))
        if fresh:
            self.pool.seal(fresh, full(tokens, len(found)))
        self.tables.append([*found, *fresh])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @rule()
    def clear(self) -> None:
        self.pool.clear()

    @invariant()
    def events_and_pool_agree(self) -> None:
        for event in self.pool.drain_events():
            if isinstance(event, BlocksStored):
                assert not self.told & set(event.hashes), "a name is stored once until it is removed"
                self.told |= {BlockHash(h) for h in event.hashes if isinstance(h, bytes)}
            elif isinstance(event, BlocksRemoved):
                self.told -= set(event.hashes)
            else:
                self.told.clear()
        assert len(self.told) == self.pool.named
        assert all(self.pool.match([name]) for name in self.told)

    @invariant()
    def no_block_is_lost(self) -> None:
        used = {place for table in self.tables for place in table}
        assert self.pool.free == self.pool.blocks - len(used)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
