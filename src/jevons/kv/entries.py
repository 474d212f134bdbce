"""What the prefix index is made of, as records of arrays, and how they come and go.

    block ──▶ the worker that holds it, with the copies it holds and the requests under way that will compute it,
              or, where there have been several,
          ──▶ their set, equal ones stored once: a fingerprint and how many they are; and a list of
    pair (block, worker) ──▶ the copies and requests of each

A fingerprint is the XOR of a random number for each worker: sets that differ and look alike are met once in 2^64.

Arrays may be as long as they can ever get: memory that was never touched costs nothing. Heads come into use one by one
as entries do, so nothing is ever rehashed in one go.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import SMALL, Records, compiled, reserved
from jevons.base.hub import Hub, view
from jevons.kv.table import (
    LEAST_HEADS,
    find_from,
    head_among,
    insert_at,
    key_of,
    remove_at,
    split,
)

BLOCK = np.dtype(
    {
        "names": ["key", "link", "worker", "copies", "coming", "first", "stamp"],
        "formats": [np.int64, np.int32, np.int32, np.int16, np.int16, np.int32, np.int32],
        "offsets": [0, 8, 12, 16, 18, 16, 20],
        "itemsize": 24,
        # link    see `kv.table`; of a block given back, the next such one
        # worker  the only one that ever had it; -1: it was given back; -2 and below: see `set_at`
        # copies, coming  of that worker; in their place, first  of the pairs of a block that several have had
        # stamp   when it was last stored or asked for, by `h.stamps`
    }
)
SET = np.dtype(
    [
        ("key", np.int64),  # fingerprint of the workers
        ("link", np.int32),  # see `kv.table`; of a set given back, the next such one
        ("holders", np.int32),
        ("blocks", np.int32),  # that have these workers; 0: it was given back
        ("unused", np.int32),
    ]
)
PAIR = np.dtype(
    [
        ("link", np.int32),  # as in `kv.table`, with `key_of(block, worker)`
        ("block", np.int32),
        ("worker", np.int32),  # -1: it was given back
        ("next", np.int32),  # of the block's; of a pair given back, the next such one
        ("before", np.int32),
        ("copies", np.int16),
        ("coming", np.int16),
    ]
)
BLOCK_BYTES, PAIR_BYTES = BLOCK.itemsize, PAIR.itemsize
CROWDS, CROWD = 256, 32  # blocks of which it is kept who got them last, in a row, and how many of those


def index_arrays(workers: int, pairs: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: an empty index of so many workers, with room for so many (block, worker) pairs before it must grow."""
    sets = max(1, pairs // 4)
    arrays = {
        "blocks": np.zeros(pairs, BLOCK),
        "block_heads": np.zeros(pairs + LEAST_HEADS, np.int32),
        "sets": np.zeros(sets, SET),
        "set_heads": np.zeros(sets + LEAST_HEADS, np.int32),
        "pairs": np.zeros(pairs, PAIR),
        "pair_heads": np.zeros(pairs + LEAST_HEADS, np.int32),
        "listed": np.full(CROWDS, -1, np.int32),  # the block kept there, by the last bits of its number
        "listed_workers": np.zeros(CROWDS * CROWD, np.int32),  # workers of each
        "held": np.zeros(workers, np.int64),  # distinct blocks, by worker
        "whose": np.arange(workers, dtype=np.int32),  # who has that number here; -1: nobody any more
    }
    numbers: dict[str, int | float] = {
        "set_last": 0,  # the one a block came to have last: the next block probably will, too
        "sweep_at": 0,  # the place of both arrays to look at next for what nobody has any more
        "stamps": 0,  # times something was stored or promised
        "forgotten": 0,  # see `kv.forget`
        "forget_draws": 0,
    }
    for name in ("block", "set", "pair"):
        numbers |= {
            f"{name}s_used": 0,  # entries ever used: the first of the array
            f"{name}s_known": 0,  # that are there
            f"{name}_spare": -1,  # the first of those given back, each of which names the next
            f"{name}_heads_used": LEAST_HEADS,
            f"{name}_mask": LEAST_HEADS - 1,  # see `kv.table.head_among`
        }
    return arrays, numbers


def grow_index(hub: Hub, more: int, *, large_pages: bool = False) -> None:
    """Room for so many more pairs, and for twice as many as there are of what is short."""
    for name, least in (("set", more), ("block", more), ("pair", 2 * more)):
        size = int(hub.number(f"{name}s_n"))
        if size - hub.number(f"{name}s_known") < least:
            bound_entries(hub, name, 2 * size + least, large_pages=large_pages)


def bound_entries(hub: Hub, name: str, entries: int, *, large_pages: bool = False) -> None:
    """Let there be so many blocks, sets or pairs at most; those that are there remain."""
    if entries > len(hub[f"{name}s"]):
        # Only what is used is copied: the rest was never touched, and touching it would make it real memory.
        used, heads = int(hub.number(f"{name}s_used")), hub[f"{name}_heads"]
        hub.put(f"{name}s", reserved(hub[f"{name}s"][:used], entries, large_pages=large_pages))
        heads = heads[: hub.number(f"{name}_heads_used") if used else 0]
        hub.put(f"{name}_heads", reserved(heads, entries + LEAST_HEADS, large_pages=large_pages))
    hub.set(f"{name}s_n", max(entries, int(hub.number(f"{name}s_used"))))


@compiled
def room(h: Records) -> int:
    """(block, worker) pairs that can be added for sure before the index must grow."""
    return int(min(h.blocks_n - h.blocks_known, (h.pairs_n - h.pairs_known) // 2, h.sets_n - h.sets_known))


@compiled
def print_of(worker: int) -> int:
    """A random number that stands for a worker (splitmix64)."""
    z = (worker + 1) * -7046029254386353131
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return z ^ ((z >> 31) & ((1 << 33) - 1))


# What there is


@compiled
def find_block(h: Records, name: int) -> int:
    """Its entry, or -1."""
    heads = view(h.block_heads, h.block_heads_n, SMALL)
    return find_from(heads[head_among(h.block_heads_used, h.block_mask, name)], view(h.blocks, h.blocks_n, BLOCK), name)


@compiled
def find_after(h: Records, block: int, name: int) -> int:
    """As `find_block`; most likely it is the entry after that of `block`, the one before it in a prompt."""
    blocks = view(h.blocks, h.blocks_n, BLOCK)
    if block + 1 < h.blocks_used and blocks[block + 1].key == name and blocks[block + 1].worker != -1:
        return block + 1
    return find_block(h, name)


@compiled
def find_before(h: Records, block: int, name: int) -> int:
    """As `find_block`; most likely it is the entry before that of `block`, the one after it in a prompt."""
    blocks = view(h.blocks, h.blocks_n, BLOCK)
    if block > 0 and blocks[block - 1].key == name and blocks[block - 1].worker != -1:
        return block - 1
    return find_block(h, name)


@compiled
def find_pair(h: Records, block: int, worker: int) -> int:
    """Its entry, or -1."""
    heads, pairs = view(h.pair_heads, h.pair_heads_n, SMALL), view(h.pairs, h.pairs_n, PAIR)
    pair = heads[pair_head(h, block, worker)] - 1
    while pair >= 0 and (pairs[pair].block != block or pairs[pair].worker != worker):
        pair = pairs[pair].link
    return int(pair)


@compiled
def holders_of(h: Records, block: int) -> int:
    """How many workers a block has."""
    worker = view(h.blocks, h.blocks_n, BLOCK)[block].worker
    return 1 if worker >= 0 else int(view(h.sets, h.sets_n, SET)[set_at(worker)].holders)


@compiled
def set_at(worker: int) -> int:
    """Which set a block has whose `worker` is that: -2 stands for the first."""
    return -2 - worker


@compiled
def pair_head(h: Records, block: int, worker: int) -> int:
    return head_among(h.pair_heads_used, h.pair_mask, key_of(block, worker))


# Blocks, sets and pairs come and go


@compiled
def block_of(h: Records, name: int, before: int) -> int:
    """The entry of `name`, a new one if there is none: nobody's yet. `before` is that of the block before it, or -1."""
    blocks, heads = view(h.blocks, h.blocks_n, BLOCK), view(h.block_heads, h.block_heads_n, SMALL)
    if before + 1 < h.blocks_used and blocks[before + 1].key == name and blocks[before + 1].worker != -1:
        return before + 1
    head = head_among(h.block_heads_used, h.block_mask, name)
    block = find_from(heads[head], blocks, name)
    return block if block >= 0 else _new_block(h, name, head)


@compiled
def _new_block(h: Records, name: int, head: int) -> int:
    blocks, heads = view(h.blocks, h.blocks_n, BLOCK), view(h.block_heads, h.block_heads_n, SMALL)
    block = h.block_spare
    h.blocks_known += 1
    if block >= 0:
        h.block_spare = blocks[block].link
    else:
        block = h.blocks_used
        h.blocks_used += 1
    blocks[block].key, blocks[block].worker = name, -1
    insert_at(heads, head, blocks, block)
    if h.blocks_used > h.block_heads_used:
        h.block_heads_used += 1
        h.block_mask |= h.block_heads_used - 1
        split(heads, h.block_heads_used, h.block_mask, blocks)
    return int(block)


@compiled
def drop_block(h: Records, block: int) -> None:
    """Nobody has it any more."""
    blocks = view(h.blocks, h.blocks_n, BLOCK)
    heads = view(h.block_heads, h.block_heads_n, SMALL)
    remove_at(heads, head_among(h.block_heads_used, h.block_mask, blocks[block].key), blocks, block)
    blocks[block].link, h.block_spare = h.block_spare, block
    blocks[block].worker = -1
    h.blocks_known -= 1


@compiled
def _set(h: Records, print: int, holders: int) -> int:
    """The set with that fingerprint, which one block more has now."""
    sets, heads = view(h.sets, h.sets_n, SET), view(h.set_heads, h.set_heads_n, SMALL)
    at = h.set_last
    if sets[at].key != print or sets[at].blocks == 0:
        at = find_from(heads[head_among(h.set_heads_used, h.set_mask, print)], sets, print)
    if at < 0:
        at = _new_set(h, print, holders)
    sets[at].blocks += 1
    h.set_last = at
    return int(at)


@compiled
def _new_set(h: Records, print: int, holders: int) -> int:
    sets, heads = view(h.sets, h.sets_n, SET), view(h.set_heads, h.set_heads_n, SMALL)
    at = h.set_spare
    if at >= 0:
        h.set_spare = sets[at].link
    else:
        at = h.sets_used
        h.sets_used += 1
        if h.sets_used > h.set_heads_used:
            h.set_heads_used += 1
            h.set_mask |= h.set_heads_used - 1
            split(heads, h.set_heads_used, h.set_mask, sets)
    sets[at].key, sets[at].holders, sets[at].blocks = print, holders, 0
    insert_at(heads, head_among(h.set_heads_used, h.set_mask, print), sets, at)
    h.sets_known += 1
    return int(at)


@compiled
def _leave_set(h: Records, at: int) -> None:
    """A block less has it."""
    sets, heads = view(h.sets, h.sets_n, SET), view(h.set_heads, h.set_heads_n, SMALL)
    sets[at].blocks -= 1
    if sets[at].blocks == 0:
        remove_at(heads, head_among(h.set_heads_used, h.set_mask, sets[at].key), sets, at)
        sets[at].link, h.set_spare = h.set_spare, at
        h.sets_known -= 1


@compiled
def _change_set(h: Records, block: int, worker: int, by: int) -> None:
    """A block has one worker more (1) or less (-1)."""
    blk = view(h.blocks, h.blocks_n, BLOCK)[block]
    old = set_at(blk.worker)
    was = view(h.sets, h.sets_n, SET)[old]
    print, holders = was.key ^ print_of(worker), was.holders + by
    _leave_set(h, old)
    if holders == 0:
        drop_block(h, block)
    else:
        blk.worker = -2 - _set(h, print, holders)


@compiled
def _share(h: Records, block: int, worker: int) -> None:
    """A block that one worker has is had by another too: it has a set, and the first worker a pair."""
    blk = view(h.blocks, h.blocks_n, BLOCK)[block]
    only, copies, coming = blk.worker, blk.copies, blk.coming
    blk.worker, blk.first = -2 - _set(h, print_of(only) ^ print_of(worker), 2), -1
    old = _link_pair(h, block, only)
    old.copies, old.coming = copies, coming


@compiled
def _link_pair(h: Records, block: int, worker: int) -> Any:
    """One more of a block's pairs, the first now: it stands for nothing yet."""
    pairs, heads = view(h.pairs, h.pairs_n, PAIR), view(h.pair_heads, h.pair_heads_n, SMALL)
    blk, pair = view(h.blocks, h.blocks_n, BLOCK)[block], h.pair_spare
    if pair >= 0:
        h.pair_spare = pairs[pair].next
    else:
        pair = h.pairs_used
        h.pairs_used += 1
        if h.pairs_used > h.pair_heads_used:
            h.pair_heads_used += 1
            h.pair_mask |= h.pair_heads_used - 1
            _split_pairs(h)
    new = pairs[pair]
    new.block, new.worker, new.next, new.before = block, worker, blk.first, -1
    new.copies, new.coming = 0, 0
    if blk.first >= 0:
        pairs[blk.first].before = pair
    blk.first = pair
    _forget_crowd(h, block)
    insert_at(heads, pair_head(h, block, worker), pairs, pair)
    h.pairs_known += 1
    return new


@compiled
def pair_of(h: Records, block: int, worker: int) -> Any:
    """Of a block that another worker has, or has had: a new pair, that stands for nothing yet, if there is none."""
    blk = view(h.blocks, h.blocks_n, BLOCK)[block]
    if blk.worker >= 0:
        _share(h, block, worker)
        return _link_pair(h, block, worker)
    pair = find_pair(h, block, worker)
    if pair >= 0:
        return view(h.pairs, h.pairs_n, PAIR)[pair]
    _change_set(h, block, worker, 1)
    return _link_pair(h, block, worker)


@compiled
def _forget_crowd(h: Records, block: int) -> None:
    crowds = view(h.listed, h.listed_n, SMALL)
    if crowds[block & (CROWDS - 1)] == block:
        crowds[block & (CROWDS - 1)] = -1


@compiled
def _split_pairs(h: Records) -> None:
    """As `kv.table.split`."""
    pairs, heads = view(h.pairs, h.pairs_n, PAIR), view(h.pair_heads, h.pair_heads_n, SMALL)
    old = (h.pair_heads_used - 1) & (h.pair_mask >> 1)
    pair, heads[old] = heads[old] - 1, 0
    while pair >= 0:
        after = pairs[pair].link
        insert_at(heads, pair_head(h, pairs[pair].block, pairs[pair].worker), pairs, pair)
        pair = after


@compiled
def drop_pair(h: Records, pair: int) -> None:
    """Its worker has the block no more."""
    pairs, heads = view(h.pairs, h.pairs_n, PAIR), view(h.pair_heads, h.pair_heads_n, SMALL)
    old = pairs[pair]
    block, worker = old.block, old.worker
    if old.before >= 0:
        pairs[old.before].next = old.next
    else:
        view(h.blocks, h.blocks_n, BLOCK)[block].first = old.next
    if old.next >= 0:
        pairs[old.next].before = old.before
    _forget_crowd(h, block)
    remove_at(heads, pair_head(h, block, worker), pairs, pair)
    old.next, h.pair_spare = h.pair_spare, pair
    old.worker = -1
    h.pairs_known -= 1
    _change_set(h, block, worker, -1)
