"""The prefix index as the live router keeps it: which workers hold which blocks, and which are to compute them.

Its kernels are those of `kv.holders`, which the twin uses too. A block is known here by 64 bits of its hash: two that
differ are taken for the same once in 2^64, and then a prompt is sent where less of it is than was thought.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jevons.base.compiled import SMALL, Ints, Places, Records, alike, compiled
from jevons.base.hub import Hub, view
from jevons.base.ids import BlockHash
from jevons.facts.block import Tier
from jevons.kv import entries, forget, groups, holders, overlaps

# Entries of an index that is told no other limit: blocks, and as many (block, worker) pairs. They take 2 GB when all
# are in use; until then only the address space is taken.
MOST_ENTRIES = 1 << 25
ENTRY_BYTES = 62  # of a block and a pair, a quarter of a set, and their heads
_SWEPT = 4  # places looked at for what nobody has any more, for each block that comes
_SWEPT_AT_LEAST = 256
_FIRST_ROOM = 1 << 10  # (block, worker) pairs
_LEAST_ENTRIES = 1 << 14


def names_of(hashes: Sequence[BlockHash]) -> Ints:
    """What the kernels know blocks by: the second half of each hash."""
    return np.frombuffer(b"".join(hashes), np.int64)[1::2].copy()


@compiled
def _store(hubs: Records, holder: int, names: Ints) -> bool:
    """Returns whether there was room; if not, nothing was stored."""
    h = hubs[0]
    if entries.room(h) < len(names):
        return False
    holders.store(h, holder, names)
    return True


@compiled
def _drop(hubs: Records, holder: int, names: Ints) -> int:
    return holders.drop(hubs[0], holder, names)


@compiled
def _forget(hubs: Records, count: int) -> bool:
    return forget.forget(hubs[0], count)


@compiled
def _sweep(hubs: Records, count: int) -> None:
    holders.sweep(hubs[0], count)


@compiled
def _depth(hubs: Records, holder: int, names: Ints) -> int:
    return overlaps.depth_on(hubs[0], holder, names)


@compiled
def _reach(hubs: Records, holder: int, names: Ints, parts: Ints, windows: Places) -> int:
    return groups.reach(hubs[0], holder, names, parts, windows)


@compiled
def _held(hubs: Records, holder: int, names: Ints, held: Ints) -> None:
    for i in range(len(names)):
        held[i] = overlaps.holds(hubs[0], holder, names[i])


@compiled
def _overlaps(hubs: Records, names: Ints, workers: Places, depths: Places, most: int) -> int:
    h = hubs[0]
    count, whose = overlaps.overlaps(h, names, workers, depths, most), view(h.whose, h.whose_n, SMALL)
    for i in range(count):
        workers[i] = whose[workers[i]]
    return count


@compiled
def _has(hubs: Records, holder: int, name: int) -> bool:
    return overlaps.holds(hubs[0], holder, name)


class PrefixIndex:
    """Exact as long as it hears every event and need not forget.

    Its memory is bounded. What does not fit makes room by what nobody stored or asked for longest, a little at a time;
    `forgotten` counts it. Nothing costs more when much is known: no table is ever rehashed or copied in one go.

    Args:
        hub: with the arrays of `kv.entries.index_arrays`; none: one of its own.
        most: blocks it may know, and (block, worker) pairs; at least 16,384.
    """

    def __init__(self, hub: Hub | None = None, most: int = MOST_ENTRIES) -> None:
        self.hub = hub or Hub(*entries.index_arrays(0, _FIRST_ROOM))
        self.bound(most)
        self._store, self._drop, self._overlaps = alike(_store), alike(_drop), alike(_overlaps)
        self._found: tuple[Places, Places] = np.zeros(0, np.int32), np.zeros(0, np.int32)  # workers and depths
        self._numbers = 0  # of holders ever given
        self._swept = 0  # places looked at for what nobody has any more
        # Numbers that can be used again, and `_swept` when their holders died.
        self._dead: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        """Distinct blocks known."""
        return int(self.hub.number("blocks_known"))

    def holding(self, worker: int, on_renumbered: Callable[[], None] | None = None, tier: Tier = Tier.HBM) -> Holding:
        """What a worker, by its number in the hub, holds in a tier: nothing so far. Told when `holder` is another."""
        return Holding(self, worker, on_renumbered, tier)

    def overlaps(self, hashes: Sequence[BlockHash], most: int = 32) -> dict[int, int]:
        """Leading blocks of `hashes` held, or to be computed, by worker. See `kv.overlaps.overlaps`."""
        workers, depths = self.find(names_of(hashes), most)
        return {int(w): int(d) for w, d in zip(workers, depths, strict=True) if w >= 0}

    def find(self, names: Ints, most: int = 32) -> tuple[Places, Places]:
        """Workers (-1: one that is gone), and how many leading blocks of `names` each has. See `kv.overlaps.overlaps`.

        Of another tier than hbm with `kv.groups.names_in`. Both arrays are overwritten by the next call. Costs a
        microsecond, and one or two ns for each block of `names`.
        """
        workers, depths = self._found
        if len(workers) < 2 * most:
            workers, depths = self._found = np.zeros(2 * most, np.int32), np.zeros(2 * most, np.int32)
        count = self._overlaps(self.hub.record, np.ascontiguousarray(names, np.int64), workers, depths, most)
        return workers[:count], depths[:count]

    def bound(self, most: int) -> None:
        """Let it know so many blocks, and (block, worker) pairs, at most; before it knows anything, or else more."""
        most = max(most, _LEAST_ENTRIES)
        for name, count in (("block", most), ("pair", most), ("set", most // 4)):
            entries.bound_entries(self.hub, name, count)

    @property
    def forgotten(self) -> int:
        """Blocks of workers that were forgotten because memory was short."""
        return int(self.hub.number("forgotten"))

    def make_room(self, names: int) -> None:
        """So many more blocks can be promised: what is promised is never refused, if need be beyond the limit."""
        if not _forget(self.hub.record, names):
            entries.grow_index(self.hub, names)

    def sweep(self, places: int) -> None:
        """Give back what was held by those who hold nothing any more, as far as it lies in the next so many places."""
        if self._dead:
            _sweep(self.hub.record, places)
            self._swept += places

    def _new_holder(self, worker: int) -> int:
        size = max(int(self.hub.number("blocks_used")), int(self.hub.number("pairs_used")))
        if self._dead and self._swept - self._dead[0][1] >= size:
            holder, _ = self._dead.popleft()
        else:
            holder = self._numbers
            self._numbers += 1
            if holder >= len(self.hub["held"]):
                for name in ("held", "whose"):
                    self.hub.grow(name, max(16, 2 * holder))
        self.hub["held"][holder], self.hub["whose"][holder] = 0, worker
        return holder

    def _end(self, holder: int) -> None:
        self.hub["whose"][holder] = -1
        self._dead.append((holder, self._swept))


class Holding:
    """What one worker holds in one tier, in the index. `holder` is its number there, another one after each `clear`."""

    def __init__(
        self, index: PrefixIndex, worker: int, on_renumbered: Callable[[], None] | None, tier: Tier = Tier.HBM
    ) -> None:
        self._index = index
        self._tier, self._is_lower = tier, tier is not Tier.HBM
        self._worker = worker
        self._on_renumbered = on_renumbered
        self.holder = index._new_holder(worker)

    def __len__(self) -> int:
        """Distinct blocks held."""
        return int(self._index.hub["held"][self.holder])

    def store(self, hashes: Sequence[BlockHash]) -> None:
        """It has one more copy of each of `hashes`."""
        if hashes:
            self.store_names(names_of(hashes))

    def store_names(self, names: Ints, group: int = 0) -> None:
        """As `store`, of blocks that are named as the kernels name them, in a group of layers. See `kv.groups`."""
        index = self._index
        if group or self._is_lower:
            names = groups.names_in(names, self._tier, group)
        if not index._store(index.hub.record, self.holder, names):
            index.make_room(len(names))
            index._store(index.hub.record, self.holder, names)
        if index._dead:
            index.sweep(_SWEPT * len(names) + _SWEPT_AT_LEAST)

    def remove(self, hashes: Sequence[BlockHash]) -> int:
        """It has one copy less of each of `hashes`. Returns how many of them it was not known to hold."""
        return self.remove_names(names_of(hashes)) if hashes else 0

    def remove_names(self, names: Ints, group: int = 0) -> int:
        """As `remove`, of blocks that are named as the kernels name them, in a group of layers."""
        return self._index._drop(self._index.hub.record, self.holder, groups.names_in(names, self._tier, group))

    def clear(self) -> None:
        """It holds nothing any more. Costs the same however much it held: that is swept away later."""
        self._index._end(self.holder)
        self.holder = self._index._new_holder(self._worker)
        if self._on_renumbered is not None:
            self._on_renumbered()

    def end(self) -> None:
        """The worker is gone for good."""
        self._index._end(self.holder)

    def holds(self, name: BlockHash) -> bool:
        """Whether it holds a block, or is to compute it."""
        return _has(self._index.hub.record, self.holder, int(groups.names_in(names_of([name]), self._tier)[0]))

    def depth(self, hashes: Sequence[BlockHash]) -> int:
        """Leading blocks of `hashes` held, or to be computed."""
        return self.depth_of(names_of(hashes)) if hashes else 0

    def depth_of(self, names: Ints, tier: Tier | None = None) -> int:
        """As `depth`, of blocks that are named as the kernels name them; in another tier, if it keeps that here too."""
        return _depth(self._index.hub.record, self.holder, groups.names_in(names, tier or self._tier))

    def held(self, names: Ints, tier: Tier) -> Ints:
        """Where in `names` are blocks that it holds in a tier."""
        held = np.zeros(len(names), np.int64)
        _held(self._index.hub.record, self.holder, groups.names_in(names, tier), held)
        return np.flatnonzero(held)

    def reach(self, names: Ints, windows: Mapping[int, int], tier: Tier | None = None) -> int:
        """Leading blocks of `names` after which it can go on by all its groups of layers; in another tier, as above.

        Args:
            windows: by group, blocks its sliding window reaches back to (`kv.groups.window_blocks`); FULL: all.
        """
        parts = np.array([groups.part_of(tier or self._tier, group) for group in windows], np.int64)
        back = np.array(list(windows.values()), np.int32)
        return _reach(self._index.hub.record, self.holder, names, parts, back)
