"""Kernels that ask the prefix index: how much of a prompt who holds.

A prompt is walked block by block with the workers still matching. Where a block has the same set of workers as the one
before, nothing has to be looked at; where it has not, each of the workers is looked up. So a hole in mid-chain ends an
overlap there. Blocks that were stored one after another lie so: mostly the
next block of a prompt is the next entry, which costs a comparison instead of a look into the hash table.

Of a prefix that thousands hold only some are told: those that hold more of the prompt than the crowd, and a few of the
crowd, among which the least busy are found otherwise.
"""

from __future__ import annotations

from jevons.base.compiled import SMALL, Ints, Places, Records, compiled
from jevons.base.hub import view
from jevons.kv.entries import BLOCK, CROWD, CROWDS, PAIR, find_after, find_block, find_pair, holders_of


@compiled
def holds(h: Records, worker: int, name: int) -> bool:
    """Whether `worker` holds a block, or is to compute it."""
    block = find_block(h, name)
    return block >= 0 and _has(h, worker, block)


@compiled
def overlaps(h: Records, names: Ints, workers: Places, depths: Places, most: int) -> int:
    """Leading blocks of `names` held, or to be computed, of workers that have the first one.

    Of all of them, where there are at most `most`. Where more share what the prompt begins with, of those that have the
    first block that at most `most` have, and of `most` of the others: the last to have got the first block.

    They go to workers[:n] and depths[:n], n is returned; both must have room for twice `most`.
    """
    first = find_block(h, names[0]) if len(names) > 0 else -1
    if first < 0:
        return 0
    if holders_of(h, first) <= most:
        still = _list_holders(h, first, workers, most)
        _follow(h, names, (1, first, still), workers, depths)
        return still
    block, depth = _pass_crowd(h, names, first, most)
    still = 0
    if block >= 0 and holders_of(h, block) <= most:
        still = _list_holders(h, block, workers, most)
        still = _keep_reaching(h, names[:depth], workers, still)
        _follow(h, names, (depth + 1, block, still), workers, depths)
    some = _list_crowd(h, first, workers[still:], most)
    _measure(h, names, first, workers[still : still + some], depths[still : still + some])
    return still + some


@compiled
def _pass_crowd(h: Records, names: Ints, block: int, most: int) -> tuple[int, int]:
    """From the first block, that more than `most` have, to the first that no more have, or nobody (-1), and its depth;
    to the last block if there is none."""
    depth = 0
    while block >= 0 and holders_of(h, block) > most:
        block, depth = _run(h, names, block, depth + 1)
        if depth == len(names):
            return block, depth - 1
        block = find_after(h, block, names[depth])
    return block, depth


@compiled
def depth_on(h: Records, worker: int, names: Ints) -> int:
    """Leading blocks of `names` that `worker` holds, or is to compute."""
    if len(names) == 0:
        return 0
    block, depth = find_block(h, names[0]), 0
    if block < 0 or not _has(h, worker, block):
        return 0
    while True:
        block, depth = _run(h, names, block, depth + 1)
        if depth == len(names):
            return depth
        block = find_after(h, block, names[depth])
        if block < 0 or not _has(h, worker, block):
            return depth


@compiled
def _follow(h: Records, names: Ints, begin: tuple[int, int, int], workers: Places, depths: Places) -> None:
    """Depths of the first of `workers`, which have all blocks before a depth.

    Args:
        begin: that depth, the block before it, how many they are.
    """
    depth, block, still = begin
    while still > 0:
        block, depth = _run(h, names, block, depth)
        if depth == len(names):
            break
        block = find_after(h, block, names[depth])
        kept = _keep(h, block, workers, still) if block >= 0 else 0
        for i in range(kept, still):
            depths[i] = depth
        still = kept
        depth += 1
    for i in range(still):
        depths[i] = len(names)


@compiled
def _measure(h: Records, names: Ints, first: int, workers: Places, depths: Places) -> None:
    """Depths of `workers`, which have the first block; they stay where they are."""
    depths[:] = -1
    block, depth, still = first, 1, len(workers)
    while still > 0:
        block, depth = _run(h, names, block, depth)
        if depth < len(names):
            block = find_after(h, block, names[depth])
        for i in range(len(workers)):
            if depths[i] < 0 and (depth == len(names) or block < 0 or not _has(h, workers[i], block)):
                depths[i] = depth
                still -= 1
        depth += 1


@compiled
def _run(h: Records, names: Ints, block: int, depth: int) -> tuple[int, int]:
    """Go on from `block`, the one before `depth`, to the last of those that the same workers have.

    Returns the last block of the run, and the depth after it.
    """
    blocks = view(h.blocks, h.blocks_n, BLOCK)
    workers = blocks[block].worker
    while depth < len(names):
        more = min(len(names) - depth, h.blocks_used - 1 - block)
        same = _count_same(blocks[block + 1 : block + 1 + more], names[depth : depth + more], workers)
        block += same
        depth += same
        if depth == len(names):
            break
        after = find_block(h, names[depth])
        if after < 0 or blocks[after].worker != workers:
            break
        block = after
        depth += 1
    return block, depth


@compiled
def _count_same(blocks: Records, names: Ints, workers: int) -> int:
    """How many of `blocks` are those of `names` and `workers` have: of eight at a time, then one by one."""
    count = 0
    for i in range(0, len(names) - 7, 8):
        differ = 0
        for j in range(8):
            differ |= (blocks[i + j].key ^ names[i + j]) | (blocks[i + j].worker ^ workers)
        if differ != 0:
            break
        count = i + 8
    while count < len(names) and blocks[count].key == names[count] and blocks[count].worker == workers:
        count += 1
    return count


@compiled
def _has(h: Records, worker: int, block: int) -> bool:
    only = view(h.blocks, h.blocks_n, BLOCK)[block].worker
    return bool(only == worker) if only >= 0 else find_pair(h, block, worker) >= 0


@compiled
def _keep(h: Records, block: int, workers: Places, count: int) -> int:
    """Bring those of the first `count` workers that have a block to the front. Returns how many they are."""
    kept = 0
    for i in range(count):
        worker = workers[i]
        if _has(h, worker, block):
            workers[i], workers[kept] = workers[kept], worker
            kept += 1
    return kept


@compiled
def _keep_reaching(h: Records, names: Ints, workers: Places, count: int) -> int:
    """As `_keep`, of those that hold all of `names`."""
    block, depth = find_block(h, names[0]), 0
    count = _keep(h, block, workers, count) if block >= 0 else 0
    while count > 0:
        block, depth = _run(h, names, block, depth + 1)
        if depth == len(names):
            return count
        block = find_after(h, block, names[depth])
        count = _keep(h, block, workers, count) if block >= 0 else 0
    return count


@compiled
def _list_crowd(h: Records, block: int, workers: Places, most: int) -> int:
    """As `_list_holders`, of a block that more have. Pairs of one block lie far apart, so who they are is kept."""
    if most > CROWD:
        return _list_holders(h, block, workers, most)
    crowds, at = view(h.listed, h.listed_n, SMALL), block & (CROWDS - 1)
    kept = view(h.listed_workers, h.listed_workers_n, SMALL)[at * CROWD : (at + 1) * CROWD]
    if crowds[at] != block:
        crowds[at] = block if _list_holders(h, block, kept, CROWD) == CROWD else -1
        if crowds[at] < 0:
            return _list_holders(h, block, workers, most)
    for i in range(most):
        workers[i] = kept[i]
    return most


@compiled
def _list_holders(h: Records, block: int, workers: Places, most: int) -> int:
    """At most so many of the workers of a block, the last to have got it first. Returns how many."""
    only = view(h.blocks, h.blocks_n, BLOCK)[block].worker
    if only >= 0:
        workers[0] = only
        return 1
    pairs, count, pair = view(h.pairs, h.pairs_n, PAIR), 0, view(h.blocks, h.blocks_n, BLOCK)[block].first
    while pair >= 0 and count < most:
        workers[count] = pairs[pair].worker
        count += 1
        pair = pairs[pair].next
    return count
