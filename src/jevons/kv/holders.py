"""Kernels of the prefix index: which workers hold which blocks, and which are about to.

What a request under way will compute counts as held: who asks for it next is sent there. A worker that has lost all it
held gets a new number here: what the old one had is told to nobody, and swept away bit by bit. `kv.entries` says how it
lies in memory, `kv.overlaps` how it is asked, `kv.forget` what goes when memory is short.
"""

from __future__ import annotations

from jevons.base.compiled import INT, SMALL, Ints, Records, compiled
from jevons.base.hub import view
from jevons.kv.ahead import fetch_ahead, fetch_first, fetch_pairs
from jevons.kv.entries import (
    BLOCK,
    PAIR,
    block_of,
    drop_block,
    drop_pair,
    find_before,
    find_block,
    find_pair,
    pair_of,
)

_MOST = (1 << 15) - 1  # copies, or requests under way; more are as many
_STAMPS = (1 << 31) - 1


@compiled
def _add(h: Records, worker: int, block: int, copies: int, coming: int) -> None:
    """`worker` has so many copies of a block more, and so many more requests under way begin with it there."""
    blk = view(h.blocks, h.blocks_n, BLOCK)[block]
    held = view(h.held, h.held_n, INT)
    blk.stamp = h.stamps
    if blk.worker == -1 or _is_left(h, blk.worker, worker):
        blk.worker, blk.copies, blk.coming = worker, copies, coming
        held[worker] += copies
        return
    if blk.worker == worker:
        held[worker] += blk.copies == 0 and copies > 0
        blk.copies = min(blk.copies + copies, _MOST)
        blk.coming = min(blk.coming + coming, _MOST)
        return
    own = pair_of(h, block, worker)
    held[worker] += own.copies == 0 and copies > 0
    own.copies = min(own.copies + copies, _MOST)
    own.coming = min(own.coming + coming, _MOST)


@compiled
def _is_left(h: Records, only: int, worker: int) -> bool:
    """Whether the only worker of a block is gone. A pair made for it now may lie where `sweep` has looked already, and
    would then be that of whoever gets its number next."""
    return bool(only >= 0 and only != worker and view(h.whose, h.whose_n, SMALL)[only] < 0)


@compiled
def _take(h: Records, worker: int, block: int, copies: int, coming: int) -> int:
    """The opposite of `_add`, for a block that is there. Returns how many there were not to take."""
    blk = view(h.blocks, h.blocks_n, BLOCK)[block]
    held = view(h.held, h.held_n, INT)
    if blk.worker >= 0:
        if blk.worker != worker or blk.copies < copies or blk.coming < coming:
            return copies + coming
        blk.copies -= copies
        blk.coming -= coming
        held[worker] -= copies > 0 and blk.copies == 0
        if blk.copies == 0 and blk.coming == 0:
            drop_block(h, block)
        return 0
    pair = find_pair(h, block, worker)
    if pair < 0:
        return copies + coming
    own = view(h.pairs, h.pairs_n, PAIR)[pair]
    if own.copies < copies or own.coming < coming:
        return copies + coming
    own.copies -= copies
    own.coming -= coming
    held[worker] -= copies > 0 and own.copies == 0
    if own.copies == 0 and own.coming == 0:
        drop_pair(h, pair)
    return 0


@compiled
def _add_all(h: Records, worker: int, names: Ints, copies: int, coming: int) -> None:
    block = -1
    h.stamps = (h.stamps + 1) & _STAMPS
    are_new = len(names) > 1 and find_block(h, names[0]) < 0  # others lie in a row
    if are_new:
        fetch_first(h, names)
    for at in range(len(names)):
        if are_new:
            fetch_ahead(h, names, at)
        block = block_of(h, names[at], block)
        if not are_new and view(h.blocks, h.blocks_n, BLOCK)[block].worker != worker:
            fetch_pairs(h, block, worker)
        _add(h, worker, block, copies, coming)


@compiled
def _take_all(h: Records, worker: int, names: Ints, copies: int, coming: int) -> int:
    """Last to first: entries that are given back are used again last come, first served, so they lie in rows again."""
    block, missing = -1, 0
    for at in range(len(names) - 1, -1, -1):
        block = find_before(h, block, names[at])
        missing += _take(h, worker, block, copies, coming) if block >= 0 else copies + coming
    return missing


@compiled
def store(h: Records, worker: int, names: Ints) -> None:
    """`worker` has one more copy of each of `names`."""
    _add_all(h, worker, names, 1, 0)


@compiled
def store_one(h: Records, worker: int, name: int) -> None:
    """`worker` has one more copy of a block."""
    h.stamps = (h.stamps + 1) & _STAMPS
    _add(h, worker, block_of(h, name, -1), 1, 0)


@compiled
def drop(h: Records, worker: int, names: Ints) -> int:
    """`worker` has one copy less of each of `names`. Returns how many of them it was not known to hold."""
    return _take_all(h, worker, names, 1, 0)


@compiled
def drop_one(h: Records, worker: int, name: int) -> int:
    """`worker` has one copy less of a block. Returns 1 if it was not known to hold it."""
    block = find_block(h, name)
    return _take(h, worker, block, 1, 0) if block >= 0 else 1


@compiled
def promise(h: Records, worker: int, names: Ints) -> None:
    """A request that `worker` will compute has these blocks: they count as held."""
    _add_all(h, worker, names, 0, 1)


@compiled
def settle(h: Records, worker: int, names: Ints) -> None:
    """It has computed them, or will not: what it then holds, its events tell."""
    _take_all(h, worker, names, 0, 1)


@compiled
def sweep(h: Records, count: int) -> None:
    """Look at so many places of the arrays, going round, and give back what nobody has any more."""
    blocks, pairs = view(h.blocks, h.blocks_n, BLOCK), view(h.pairs, h.pairs_n, PAIR)
    whose, size = view(h.whose, h.whose_n, SMALL), max(h.blocks_used, h.pairs_used)
    for _ in range(count if size > 0 else 0):
        at = h.sweep_at if h.sweep_at < size else 0
        h.sweep_at = at + 1
        if at < h.pairs_used and pairs[at].worker >= 0 and whose[pairs[at].worker] < 0:
            drop_pair(h, at)
        if at < h.blocks_used and blocks[at].worker >= 0 and whose[blocks[at].worker] < 0:
            drop_block(h, at)
