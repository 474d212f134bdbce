"""Kernels of the prefix index: which workers hold which blocks, and which are about to.

    block ──▶ the worker that holds it, with the copies it holds and the requests under way that will compute it,
              or, where there have been several,
    set ──▶ their number, a fingerprint, and a list of
    pair (block, worker) ──▶ the copies and requests of each

What a request under way will compute counts as held: who asks for it next is sent there. A worker that has lost all it
held gets a new number here: what the old one had is told to nobody, and swept away bit by bit.

A fingerprint is the XOR of a random number for each worker: sets that differ and look alike are met once in 2^64. How
much of a prompt who holds is asked by the kernels of `kv.overlaps`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import INT, SMALL, Ints, Records, compiled
from jevons.base.hub import Hub, view
from jevons.kv.table import empty_heads, find, insert, key_of, refill, remove

BLOCK = np.dtype(
    [
        ("key", np.int64),
        ("link", np.int32),  # see `kv.table`; of a block given back, the next such one
        ("worker", np.int32),  # the only one that ever had it; -1: it was given back; -2 and below: see `set_at`
        ("copies", np.int16),  # of that worker
        ("coming", np.int16),
        ("unused", np.int32),
    ]
)
SET = np.dtype(
    [
        ("print", np.int64),  # fingerprint of the workers
        ("holders", np.int32),
        ("first", np.int32),  # of their pairs; of a set given back, the next such one
    ]
)
PAIR = np.dtype(
    [
        ("key", np.int64),
        ("link", np.int32),
        ("copies", np.int16),
        ("coming", np.int16),
        ("worker", np.int32),  # -1: it was given back
        ("block", np.int32),
        ("next", np.int32),
        ("before", np.int32),
    ]
)
_MOST = (1 << 15) - 1  # copies, or requests under way; more are as many


def index_arrays(workers: int, pairs: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: an empty index of so many workers, with room for so many (block, worker) pairs before it must grow."""
    arrays = {
        "blocks": np.zeros(pairs, BLOCK),
        "block_heads": empty_heads(pairs),
        "sets": np.zeros(max(1, pairs // 4), SET),
        "pairs": np.zeros(pairs, PAIR),
        "pair_heads": empty_heads(pairs),
        "held": np.zeros(workers, np.int64),  # distinct blocks, by worker
        "whose": np.arange(workers, dtype=np.int32),  # who has that number here; -1: nobody any more
    }
    # Entries ever used; the first of those given back, each of which names the next; blocks that are there.
    numbers: dict[str, int | float] = {
        "blocks_used": 0,
        "pairs_used": 0,
        "sets_used": 0,
        "block_spare": -1,
        "set_spare": -1,
        "pair_spare": -1,
        "blocks_known": 0,
        "sweep_at": 0,  # the place of both arrays to look at next for what nobody has any more
    }
    return arrays, numbers


def grow_index(hub: Hub, more: int) -> None:
    """Room for so many more pairs, and for twice as many as there are of what is short."""
    sets = len(hub["sets"])
    if sets - hub.number("sets_used") < more:
        hub.grow("sets", 2 * sets + more)
    for name, heads, least in (("blocks", "block_heads", more), ("pairs", "pair_heads", 2 * more)):
        size = len(hub[name])
        if size - hub.number(f"{name}_used") < least:
            wider, old = empty_heads(2 * size + least), hub[heads]
            hub.grow(name, 2 * size + least)
            refill(wider, old, hub[name])
            hub.put(heads, wider)


@compiled
def room(h: Records) -> int:
    """(block, worker) pairs that can be added for sure before the index must grow."""
    return int(min(h.blocks_n - h.blocks_used, (h.pairs_n - h.pairs_used) // 2, h.sets_n - h.sets_used))


@compiled
def print_of(worker: int) -> int:
    """A random number that stands for a worker (splitmix64)."""
    z = (worker + 1) * -7046029254386353131
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return z ^ ((z >> 31) & ((1 << 33) - 1))


@compiled
def find_pair(h: Records, key: int) -> int:
    return find(view(h.pair_heads, h.pair_heads_n, SMALL), view(h.pairs, h.pairs_n, PAIR), key)


@compiled
def find_block(h: Records, name: int) -> int:
    return find(view(h.block_heads, h.block_heads_n, SMALL), view(h.blocks, h.blocks_n, BLOCK), name)


@compiled
def set_at(worker: int) -> int:
    """Which set a block has whose `worker` is that: -2 stands for the first."""
    return -2 - worker


@compiled
def set_of(h: Records, block: int) -> Any:
    """Of a block that several have had."""
    return view(h.sets, h.sets_n, SET)[set_at(view(h.blocks, h.blocks_n, BLOCK)[block].worker)]


@compiled
def holders_of(h: Records, block: int) -> int:
    return 1 if view(h.blocks, h.blocks_n, BLOCK)[block].worker >= 0 else int(set_of(h, block).holders)


@compiled
def _block(h: Records, name: int) -> int:
    """The entry of `name`, a new one if there is none: nobody's yet."""
    blocks, heads = view(h.blocks, h.blocks_n, BLOCK), view(h.block_heads, h.block_heads_n, SMALL)
    block = find(heads, blocks, name)
    if block >= 0:
        return block
    block = h.block_spare
    if block >= 0:
        h.block_spare = blocks[block].link
    else:
        block = h.blocks_used
        h.blocks_used += 1
    blocks[block].key, blocks[block].worker = name, -1
    insert(heads, blocks, block)
    h.blocks_known += 1
    return int(block)


@compiled
def _new_set(h: Records, block: int) -> None:
    """A block that one worker has will be had by others too: it has a set, and that worker a pair."""
    sets, blk = view(h.sets, h.sets_n, SET), view(h.blocks, h.blocks_n, BLOCK)[block]
    at = h.set_spare
    if at >= 0:
        h.set_spare = sets[at].first
    else:
        at = h.sets_used
        h.sets_used += 1
    only = blk.worker
    sets[at].print, sets[at].holders, sets[at].first = 0, 0, -1
    blk.worker = -2 - at
    old = _new_pair(h, block, only, key_of(blk.key, only))
    old.copies, old.coming = blk.copies, blk.coming


@compiled
def _new_pair(h: Records, block: int, worker: int, key: int) -> Any:
    """One more of a set: a pair that stands for nothing yet."""
    pairs, among = view(h.pairs, h.pairs_n, PAIR), set_of(h, block)
    pair = h.pair_spare
    if pair >= 0:
        h.pair_spare = pairs[pair].next
    else:
        pair = h.pairs_used
        h.pairs_used += 1
    new = pairs[pair]
    new.key, new.copies, new.coming, new.worker, new.block, new.next, new.before = (
        key,
        0,
        0,
        worker,
        block,
        among.first,
        -1,
    )
    if among.first >= 0:
        pairs[among.first].before = pair
    among.first = pair
    among.holders += 1
    among.print ^= print_of(worker)
    insert(view(h.pair_heads, h.pair_heads_n, SMALL), pairs, pair)
    return new


@compiled
def _add(h: Records, worker: int, name: int, copies: int, coming: int) -> None:
    """`worker` has so many copies of a block more, and so many more requests under way begin with it there."""
    block = _block(h, name)
    blk = view(h.blocks, h.blocks_n, BLOCK)[block]
    held = view(h.held, h.held_n, INT)
    if blk.worker == -1:
        blk.worker, blk.copies, blk.coming = worker, copies, coming
        held[worker] += copies
        return
    if blk.worker == worker:
        held[worker] += blk.copies == 0 and copies > 0
        blk.copies = min(blk.copies + copies, _MOST)
        blk.coming = min(blk.coming + coming, _MOST)
        return
    if blk.worker >= 0:
        _new_set(h, block)
    key = key_of(name, worker)
    pair = find_pair(h, key)
    own = _new_pair(h, block, worker, key) if pair < 0 else view(h.pairs, h.pairs_n, PAIR)[pair]
    held[worker] += own.copies == 0 and copies > 0
    own.copies = min(own.copies + copies, _MOST)
    own.coming = min(own.coming + coming, _MOST)


@compiled
def _take(h: Records, worker: int, name: int, copies: int, coming: int) -> int:
    """The opposite of `_add`. Returns how many there were not to take."""
    block = find_block(h, name)
    if block < 0:
        return copies + coming
    blk = view(h.blocks, h.blocks_n, BLOCK)[block]
    held = view(h.held, h.held_n, INT)
    if blk.worker >= 0:
        if blk.worker != worker or blk.copies < copies or blk.coming < coming:
            return copies + coming
        blk.copies -= copies
        blk.coming -= coming
        held[worker] -= copies > 0 and blk.copies == 0
        if blk.copies == 0 and blk.coming == 0:
            _drop_block(h, block)
        return 0
    pair = find_pair(h, key_of(name, worker))
    if pair < 0:
        return copies + coming
    own = view(h.pairs, h.pairs_n, PAIR)[pair]
    if own.copies < copies or own.coming < coming:
        return copies + coming
    own.copies -= copies
    own.coming -= coming
    held[worker] -= copies > 0 and own.copies == 0
    if own.copies == 0 and own.coming == 0:
        _drop_pair(h, pair)
    return 0


@compiled
def _drop_block(h: Records, block: int) -> None:
    blocks = view(h.blocks, h.blocks_n, BLOCK)
    remove(view(h.block_heads, h.block_heads_n, SMALL), blocks, block)
    if blocks[block].worker < -1:
        set_of(h, block).first, h.set_spare = h.set_spare, set_at(blocks[block].worker)
    blocks[block].link, h.block_spare = h.block_spare, block
    blocks[block].worker = -1
    h.blocks_known -= 1


@compiled
def _drop_pair(h: Records, pair: int) -> None:
    pairs = view(h.pairs, h.pairs_n, PAIR)
    old = pairs[pair]
    among = set_of(h, old.block)
    if old.before >= 0:
        pairs[old.before].next = old.next
    else:
        among.first = old.next
    if old.next >= 0:
        pairs[old.next].before = old.before
    among.holders -= 1
    among.print ^= print_of(old.worker)
    remove(view(h.pair_heads, h.pair_heads_n, SMALL), pairs, pair)
    old.next, h.pair_spare = h.pair_spare, pair
    old.worker = -1
    if among.holders == 0:
        _drop_block(h, old.block)


@compiled
def store(h: Records, worker: int, names: Ints) -> None:
    """`worker` has one more copy of each of `names`."""
    for name in names:
        _add(h, worker, name, 1, 0)


@compiled
def store_one(h: Records, worker: int, name: int) -> None:
    """`worker` has one more copy of a block."""
    _add(h, worker, name, 1, 0)


@compiled
def drop(h: Records, worker: int, names: Ints) -> int:
    """`worker` has one copy less of each of `names`. Returns how many of them it was not known to hold."""
    unknown = 0
    for name in names:
        unknown += _take(h, worker, name, 1, 0)
    return unknown


@compiled
def drop_one(h: Records, worker: int, name: int) -> int:
    """`worker` has one copy less of a block. Returns 1 if it was not known to hold it."""
    return _take(h, worker, name, 1, 0)


@compiled
def promise(h: Records, worker: int, names: Ints) -> None:
    """A request that `worker` will compute has these blocks: they count as held."""
    for name in names:
        _add(h, worker, name, 0, 1)


@compiled
def settle(h: Records, worker: int, names: Ints) -> None:
    """It has computed them, or will not: what it then holds, its events tell."""
    for name in names:
        _take(h, worker, name, 0, 1)


@compiled
def sweep(h: Records, count: int) -> None:
    """Look at so many places of the arrays, going round, and give back what nobody has any more."""
    blocks, pairs = view(h.blocks, h.blocks_n, BLOCK), view(h.pairs, h.pairs_n, PAIR)
    whose, size = view(h.whose, h.whose_n, SMALL), max(h.blocks_used, h.pairs_used)
    for _ in range(count if size > 0 else 0):
        at = h.sweep_at if h.sweep_at < size else 0
        h.sweep_at = at + 1
        if at < h.pairs_used and pairs[at].worker >= 0 and whose[pairs[at].worker] < 0:
            _drop_pair(h, at)
        if at < h.blocks_used and blocks[at].worker >= 0 and whose[blocks[at].worker] < 0:
            _drop_block(h, at)
