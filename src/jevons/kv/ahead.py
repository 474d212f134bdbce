"""Asking for memory before it is needed: a large index lies far away, and waits for its lines are to overlap.

Who stores many names knows which heads and entries they will need, and which heads will be split on the way. See
`kv.table` for how far ahead that is told.
"""

from __future__ import annotations

from jevons.base.compiled import SMALL, Ints, Places, Records, compiled
from jevons.base.hub import fetch, view
from jevons.kv.entries import BLOCK, BLOCK_BYTES, PAIR, PAIR_BYTES, pair_head
from jevons.kv.table import AHEAD_ENTRY, AHEAD_HEAD, HEAD_BYTES, head_among


@compiled
def fetch_ahead(h: Records, names: Ints, at: int) -> None:
    """`names` are looked up one by one, now the one `at`: ask for what is needed then, before it is."""
    if at + AHEAD_HEAD < len(names):
        _fetch_head(h, names[at + AHEAD_HEAD])
    if at + AHEAD_ENTRY < len(names):
        _fetch_entry(h, names[at + AHEAD_ENTRY])
    if h.block_spare < 0:
        heads = view(h.block_heads, h.block_heads_n, SMALL)
        _fetch_split(heads, h.block_heads_used, h.block_mask, view(h.blocks, h.blocks_n, BLOCK), h.blocks)


@compiled
def fetch_first(h: Records, names: Ints) -> None:
    """As `fetch_ahead`, for those that nobody comes before."""
    for at in range(min(AHEAD_HEAD, len(names))):
        _fetch_head(h, names[at])


@compiled
def fetch_pairs(h: Records, block: int, worker: int) -> None:
    """Blocks in a row come to be `worker`'s, now `block`, which others have: ask for what is needed of later ones."""
    if block + AHEAD_HEAD < h.blocks_used:
        blocks = view(h.blocks, h.blocks_n, BLOCK)
        fetch(h.pair_heads + HEAD_BYTES * pair_head(h, block + AHEAD_HEAD, worker))
        only, later = blocks[block + AHEAD_HEAD].worker, blocks[block + AHEAD_ENTRY]
        if only >= 0:
            fetch(h.pair_heads + HEAD_BYTES * pair_head(h, block + AHEAD_HEAD, only))
        if later.worker < -1 and later.first >= 0:
            fetch(h.pairs + PAIR_BYTES * later.first)
    if h.pair_spare < 0:
        heads = view(h.pair_heads, h.pair_heads_n, SMALL)
        _fetch_split(heads, h.pair_heads_used, h.pair_mask, view(h.pairs, h.pairs_n, PAIR), h.pairs)


@compiled
def _fetch_split(heads: Places, used: int, mask: int, entries: Records, address: int) -> None:
    """Heads are split one after another: ask for the first entry of one whose turn comes, the second of one before."""
    first, second = heads[(used + AHEAD_HEAD) & (mask >> 1)] - 1, heads[(used + AHEAD_ENTRY) & (mask >> 1)] - 1
    if first >= 0:
        fetch(address + entries.itemsize * first)
    if second >= 0 and entries[second].link >= 0:
        fetch(address + entries.itemsize * entries[second].link)


@compiled
def _fetch_head(h: Records, name: int) -> None:
    fetch(h.block_heads + HEAD_BYTES * head_among(h.block_heads_used, h.block_mask, name))


@compiled
def _fetch_entry(h: Records, name: int) -> None:
    head = view(h.block_heads, h.block_heads_n, SMALL)[head_among(h.block_heads_used, h.block_mask, name)]
    fetch(h.blocks + BLOCK_BYTES * (head - 1))
