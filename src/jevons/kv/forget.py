"""What the prefix index forgets where its memory is short: what nobody stored or asked for longest, deepest first.

    draw a few entries ──▶ the stalest of them ──▶ and what lies behind it, as stale, of the same worker ──▶ forgotten

What a request under way will compute is never forgotten. Of blocks that several workers have, one worker's pair goes,
and only where room for pairs is short or nothing else was drawn. What is forgotten is still held: prompts are then sent
elsewhere although it is there, never here although it is not. `h.forgotten` counts it.
"""

from __future__ import annotations

from jevons.base.compiled import INT, SMALL, Records, compiled
from jevons.base.hub import view
from jevons.kv.entries import BLOCK, PAIR, drop_block, drop_pair, print_of, room

_DRAWN = 8
_RUN = 64  # entries forgotten at once, so that a draw costs little
_LOOKS = 64  # at least, before it is given up


@compiled
def forget(h: Records, count: int) -> bool:
    """Make room for so many (block, worker) pairs. Returns whether there is; a look costs a microsecond or two."""
    looks = 2 * count + _LOOKS
    while room(h) < count and looks > 0:
        looks -= 1
        block = _stalest(h, h.blocks_n - h.blocks_known < count)
        if block >= 0:
            if view(h.blocks, h.blocks_n, BLOCK)[block].worker >= 0:
                _forget_run(h, block)
            else:
                _forget_pair(h, block)
    return room(h) >= count


@compiled
def _stalest(h: Records, want_block: bool) -> int:
    """Of a few blocks drawn; -1: none of them can be forgotten."""
    blocks, best, best_age = view(h.blocks, h.blocks_n, BLOCK), -1, -1
    for _ in range(_DRAWN):
        h.forget_draws += 1
        at = (print_of(h.forget_draws) & ((1 << 62) - 1)) % max(1, h.blocks_used)
        blk = blocks[at]
        if blk.worker == -1 or (blk.worker >= 0 and (blk.coming > 0 or not want_block)):
            continue
        age = _age(h, at) + (1 << 32 if (blk.worker >= 0) == want_block else 0)
        if age > best_age:
            best, best_age = at, age
    return best


@compiled
def _age(h: Records, block: int) -> int:
    """Times something was stored or promised since it was."""
    return int((h.stamps - view(h.blocks, h.blocks_n, BLOCK)[block].stamp) & ((1 << 31) - 1))


@compiled
def _forget_run(h: Records, block: int) -> None:
    """A block that one worker has, and what lies behind it of the same worker and no younger; the deepest first."""
    blocks, age, end = view(h.blocks, h.blocks_n, BLOCK), _age(h, block), block + 1
    worker = blocks[block].worker
    while end < min(h.blocks_used, block + _RUN) and blocks[end].worker == worker:
        if blocks[end].coming > 0 or _age(h, end) < age:
            break
        end += 1
    for at in range(end - 1, block - 1, -1):
        _count(h, worker)
        drop_block(h, at)


@compiled
def _forget_pair(h: Records, block: int) -> None:
    """Of the workers of a block that several have: the first to have got it, of those looked at."""
    pairs, pair, last = view(h.pairs, h.pairs_n, PAIR), view(h.blocks, h.blocks_n, BLOCK)[block].first, -1
    for _ in range(_LOOKS):
        if pair < 0:
            break
        if pairs[pair].coming == 0:
            last = pair
        pair = pairs[pair].next
    if last >= 0:
        _count(h, pairs[last].worker)
        drop_pair(h, last)


@compiled
def _count(h: Records, worker: int) -> None:
    """One block less of a worker's; of one that is gone it counts as nothing."""
    if view(h.whose, h.whose_n, SMALL)[worker] >= 0:
        view(h.held, h.held_n, INT)[worker] -= 1
        h.forgotten += 1
