"""Kernels of the memory below the chips of a node: what of it to bring to an engine, and when that is there.

A tier is a pool like the engines' own, numbered after them, in which nobody runs. Its line is shared by its engines.
"""

from __future__ import annotations

from jevons.base.compiled import FLOAT, INT, SMALL, Ints, Records, compiled
from jevons.base.hub import view
from jevons.control.board import WORKER
from jevons.kv.cache import allocate, available, match, release, seal, take
from jevons.policy.route import CANDIDATE
from jevons.policy.source import bring
from jevons.twin.sequences import COMING, engine_of, sequence_of, spell


@compiled
def tier_s(h: Records, e: Records, now_s: float) -> float:
    """Seconds until the first byte of what is asked of its tier now comes."""
    return float(e.tier_s + max(0.0, view(h.tier_until_s, h.tier_until_s_n, FLOAT)[e.tier_line] - now_s))


@compiled
def ask(h: Records, e: Records, blocks: int, now_s: float) -> float:
    """So many blocks are brought from its tier. Returns when they are here; its line is taken until then."""
    until_s = view(h.tier_until_s, h.tier_until_s_n, FLOAT)
    until_s[e.tier_line] = max(now_s, until_s[e.tier_line]) + blocks * e.tier_block_s
    return float(until_s[e.tier_line] + e.tier_s)


@compiled
def settle_in(h: Records, e: Records, names: Ints, blocks: int) -> int:
    """So many blocks after those of `names` that the pool has came from the tier: they can be found there too.

    Returns how many had room.
    """
    table = view(h.matched, h.matched_n, SMALL)
    held = match(h, e.pool, names, table)
    take(h, e.pool, table, held)  # they must not make room for what follows them
    end = held + min(blocks, len(names) - held, available(h, e.pool))
    allocate(h, e.pool, table, held, end)
    seal(h, e.pool, table, names, held, end)
    release(h, e.pool, table, end, end)
    return end - held


@compiled
def coming_s(h: Records, slot: int, worker: int) -> float:
    """Bring what pays from the tier of a worker. Returns when it is here, if the sequence waits for it, or -1."""
    s, e = sequence_of(h, slot), engine_of(h, worker)
    if e.tier < 0:
        return -1.0
    names = view(h.scratch, h.scratch_n, INT)[: min(s.named, (s.target - 1) // h.block)]
    spell(h, s, 0, len(names))
    matched = view(h.matched, h.matched_n, SMALL)
    held = match(h, e.pool, names, matched)
    count = match(h, e.tier, names[held:], matched)
    prices = view(h.workers, h.workers_n, WORKER)[worker]
    blocks, wait_s = bring(prices, held, count, (h.block, tier_s(h, e, h.now_s), e.tier_block_s))
    if blocks == 0:
        return -1.0
    here_s = ask(h, e, blocks, h.now_s)
    if wait_s == 0.0:  # those at the end come while those before are computed: as if the first were here
        s.brought = settle_in(h, e, names, blocks)
        return -1.0
    s.brought, s.state, s.worker = blocks, COMING, worker
    return here_s


@compiled
def came(h: Records, slot: int) -> None:
    """What a sequence waited for is here."""
    s, e = sequence_of(h, slot), engine_of(h, sequence_of(h, slot).worker)
    names = view(h.scratch, h.scratch_n, INT)[: min(s.named, (s.target - 1) // h.block)]
    spell(h, s, 0, len(names))
    s.brought = settle_in(h, e, names, s.brought)


@compiled
def add_tiers(h: Records, desk: int, count: int, names: Ints) -> None:
    """What each candidate would bring from its tier counts as cached, and is waited for."""
    candidates = view(h.candidates, h.candidates_n, CANDIDATE)[desk * h.desk : desk * h.desk + count]
    for i in range(count):
        c = candidates[i]
        e = engine_of(h, c.worker)
        if e.tier >= 0:
            held = match(h, e.tier, names[c.depth :], view(h.matched, h.matched_n, SMALL))
            blocks, c.bring_s = bring(c, c.depth, held, (h.block, tier_s(h, e, h.now_s), e.tier_block_s))
            c.cached += blocks * h.block
