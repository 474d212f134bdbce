"""The kernels of the pools against the live pool: the same sequences come and go in both, and both tell the same.

They agree where `release` is told that no block is full. A full block without a name, a second copy or an answer that
nobody will ask for, is where they differ: the live pool gives it out first, the kernels keep it in its turn as engines
do, so that it pushes out others as it would there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jevons.base.hub import Hub
from jevons.base.ids import BlockHash, BlockId
from jevons.facts.event import BlocksRemoved, BlocksStored
from jevons.kv import cache
from jevons.kv.pool import BlockPool, FullBlocks

Change = tuple[int, int, int]  # pool, name, stored (1) or removed (-1)


class Table:
    """A sequence: its names, its places in both pools, how many blocks are sealed."""

    def __init__(self, pool: int, names: list[int]) -> None:
        self.pool = pool
        self.names = np.array(names, np.int64)
        self.places = np.zeros(64, np.int32)
        self.live: list[BlockId] = []
        self.sealed = 0


class Pools:
    """Pools of kernels, with room for little, so that they grow."""

    def __init__(self, *blocks: int) -> None:
        self.hub = Hub(*cache.pool_arrays(blocks, 2, 4))

    @property
    def h(self) -> Any:
        return self.hub.record[0]

    def match(self, pool: int, names: Any) -> tuple[int, Any]:
        found = np.zeros(max(1, len(names)), np.int32)
        return cache.match(self.h, pool, names, found), found

    def grow(self, table: Table, first: int, end: int) -> None:
        if not cache.has_room(self.h, end - first):
            cache.grow_places(self.hub, 2 * len(self.hub["places"]) + end - first)
        self._make_log_room()
        cache.allocate(self.h, table.pool, table.places, first, end)

    def seal(self, table: Table, end: int) -> None:
        self._make_log_room()
        cache.seal(self.h, table.pool, table.places, table.names, table.sealed, end)

    def changes(self) -> list[Change]:
        """Since the last call, in order."""
        read, end = self.hub.number("log_read"), self.hub.number("log_end")
        names, changes = self.hub["log_name"][read:end], self.hub["log_change"][read:end]
        self.hub.set("log_read", end)
        return [(abs(int(c)) - 1, int(n), 1 if c > 0 else -1) for n, c in zip(names, changes, strict=True)]

    def _make_log_room(self) -> None:
        if len(self.hub["log_name"]) - self.hub.number("log_end") < 24:
            cache.grow_log(self.hub, 64 + self.hub.number("log_end") - self.hub.number("log_read"))


def ids(names: Any) -> list[BlockHash]:
    return [BlockHash(int(name).to_bytes(8, "big")) for name in names]


class PoolMachine(RuleBasedStateMachine):
    """Random sequences come, grow, become full and go, in several pools and in their live twins."""

    BLOCKS = (12, 7, 20)

    def __init__(self) -> None:
        super().__init__()
        self.pools = Pools(*self.BLOCKS)
        self.live = [BlockPool(blocks, 1) for blocks in self.BLOCKS]
        self.tables: list[Table] = []

    @rule(pool=st.integers(0, 2), head=st.integers(0, 3), blocks=st.integers(1, 6), full=st.integers(0, 6))
    def start(self, pool: int, head: int, blocks: int, full: int) -> None:
        table, live = Table(pool, [100 * head + i for i in range(24)]), self.live[pool]
        names = table.names[:blocks]
        hits, found = self.pools.match(pool, names)
        there = live.match(ids(names))
        assert hits == len(there)
        idle = cache.idle(self.pools.h, found, hits)
        can = blocks - hits <= cache.available(self.pools.h, pool) - idle
        assert can == live.can_allocate(blocks - hits, there)
        if not can:
            return
        cache.take(self.pools.h, pool, found, hits)
        live.take(there)
        table.places[:hits], table.sealed = found[:hits], hits
        self.pools.grow(table, hits, blocks)
        table.live = [*there, *live.allocate(blocks - hits)]
        self.tables.append(table)
        self._seal(table, min(full, blocks))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), more=st.integers(1, 3), full=st.integers(0, 3))
    def go_on(self, data: Any, more: int, full: int) -> None:
        table = data.draw(st.sampled_from(self.tables), "table")
        have, live = len(table.live), self.live[table.pool]
        if cache.available(self.pools.h, table.pool) < more or have + more > len(table.names):
            return
        self.pools.grow(table, have, have + more)
        table.live += live.allocate(more)
        self._seal(table, min(table.sealed + full, have + more))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        cache.release(self.pools.h, table.pool, table.places, len(table.live), 0)
        self.live[table.pool].release(table.live)

    @rule(pool=st.integers(0, 2))
    def fail(self, pool: int) -> None:
        for table in [table for table in self.tables if table.pool == pool]:
            self.tables.remove(table)
            cache.release(self.pools.h, pool, table.places, len(table.live), 0)
            self.live[pool].release(table.live)
        self.told_the_same()
        named = self.live[pool].named
        self.pools._make_log_room()
        cache.forget(self.pools.h, pool)
        self.live[pool].clear()
        self.live[pool].drain_events()  # the live pool tells it as one event
        gone = self.pools.changes()
        assert len(set(gone)) == len(gone) == named
        assert {(where, change) for where, _, change in gone} <= {(pool, -1)}

    def _seal(self, table: Table, end: int) -> None:
        if end <= table.sealed:
            return
        self.pools.seal(table, end)
        names = ids(table.names[:end])
        full = FullBlocks(names[table.sealed :], [0] * (end - table.sealed), names[table.sealed - 1])
        self.live[table.pool].seal(table.live[table.sealed : end], full)
        table.sealed = end

    @invariant()
    def told_the_same(self) -> None:
        changes = self.pools.changes()
        for pool, live in enumerate(self.live):
            told: list[tuple[BlockHash, int]] = []
            for event in live.drain_events():
                assert isinstance(event, BlocksStored | BlocksRemoved)
                sign = 1 if isinstance(event, BlocksStored) else -1
                told += [(BlockHash(name), sign) for name in event.hashes if isinstance(name, bytes)]
            assert [(ids([name])[0], change) for where, name, change in changes if where == pool] == told

    @invariant()
    def same_blocks_are_free(self) -> None:
        for pool, live in enumerate(self.live):
            assert cache.available(self.pools.h, pool) == live.free
            used = {int(place) for t in self.tables if t.pool == pool for place in t.places[: len(t.live)]}
            assert live.free == live.blocks - len(used)

    @invariant()
    def same_blocks_are_found(self) -> None:
        for pool, live in enumerate(self.live):
            for head in range(4):
                names = np.arange(100 * head, 100 * head + 24)
                assert self.pools.match(pool, names)[0] == len(live.match(ids(names)))


TestPools = PoolMachine.TestCase
TestPools.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def held(pools: Pools, pool: int, names: list[int], *, full: int) -> Table:
    """A sequence that came with so many blocks, of which the first are named and `full` are full, and went."""
    table = Table(pool, names)
    pools.grow(table, 0, max(full, len(names)))
    pools.seal(table, len(names))
    cache.release(pools.h, pool, table.places, max(full, len(names)), full)
    return table


def test_a_full_block_without_a_name_is_kept_in_its_turn() -> None:
    pools = Pools(4)
    held(pools, 0, [1, 2], full=3)  # the third is of the answer
    held(pools, 0, [7], full=1)
    pools.changes()

    assert cache.available(pools.h, 0) == 4
    pools.grow(Table(0, []), 0, 1)
    assert pools.changes() == []  # the answer went first, as the end of the oldest: nobody hears of it
    pools.grow(Table(0, []), 0, 2)
    assert pools.changes() == [(0, 2, -1), (0, 1, -1)]


def test_growing_keeps_names_users_and_order() -> None:
    pools = Pools(300)
    for first in range(0, 300, 3):
        held(pools, 0, [first, first + 1, first + 2], full=3)
    stored = pools.changes()

    assert stored == [(0, name, 1) for name in range(300)]
    assert all(pools.match(0, np.arange(first, first + 3))[0] == 3 for first in range(0, 300, 3))
    pools.grow(Table(0, []), 0, 4)
    assert pools.changes() == [(0, name, -1) for name in (2, 1, 0, 5)]


def test_pools_share_arrays_but_no_blocks() -> None:
    pools = Pools(2, 2)
    held(pools, 0, [5, 6], full=2)

    assert pools.match(0, np.array([5, 6]))[0] == 2
    assert pools.match(1, np.array([5, 6]))[0] == 0
    held(pools, 1, [5, 6], full=2)
    cache.forget(pools.h, 0)
    assert pools.match(0, np.array([5, 6]))[0] == 0
    assert pools.match(1, np.array([5, 6]))[0] == 2


def test_changes_carry_the_time_they_were_made() -> None:
    pools = Pools(2)
    pools.hub.set("now_s", 12.5)
    held(pools, 0, [5], full=1)

    assert pools.hub["log_at_s"][0] == 12.5
