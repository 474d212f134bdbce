"""Engines and sequences as records of arrays, and the lines that sequences stand in.

    waiting  next ──▶ … ──▶ final      running  first ──▶ … ──▶ last      linked both ways, through `before` and `after`

A sequence's blocks are known by names. A trace tells one id for many blocks, so what is kept of a sequence is the stems
of its names, as many as there are ids: name i is each × stem[i // each] + i % each. Names are spelled out when needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import INT, Records, compiled
from jevons.base.hub import view
from jevons.twin.jumps import ITL_BINS
from jevons.twin.segments import cut, give_back, new_spare, size_class

ENGINE = np.dtype(
    [
        ("pace", np.int32),
        ("pool", np.int32),
        ("block_size", np.int64),
        ("step_tokens", np.int64),
        ("max_running", np.int64),
        ("first", np.int32),  # running, in the order they were admitted
        ("last", np.int32),
        ("next", np.int32),  # waiting
        ("final", np.int32),
        ("running", np.int64),
        ("waiting", np.int64),
        ("decodes", np.int64),
        ("context", np.int64),  # tokens of what decodes
        ("clock", np.int64),  # iterations in which something decoded
        ("began_s", np.float64),
        ("ends_s", np.float64),  # of the event under way; infinite: idle
        ("steps", np.int64),  # iterations in it
        ("t0", np.float64),  # iteration k of it takes t0 + k t1 + k² t2
        ("t1", np.float64),
        ("t2", np.float64),
        ("prompt_tokens", np.int64),  # of this iteration
        ("prompt_pairs", np.float64),
        ("busy_s", np.float64),  # sums so far, like the next five
        ("sum_prompt_tokens", np.float64),
        ("sum_prompt_pairs", np.float64),
        ("sum_decodes", np.float64),
        ("sum_context", np.float64),
        ("iterations", np.int64),
        ("preempted", np.int64),
        ("lost", np.int64),  # sequences that ran when it ended
        ("waits_for_prefix", np.int64),  # schedules as our own engine does, see `_plan_prompts`
        ("layers", np.int64),  # of the model: its KV is handed over layer by layer
        ("domain", np.int64),  # engines of one are joined by the fast fabric
        ("kv_token_bytes", np.float64),
        ("kv_fixed_bytes", np.float64),
        ("near_bytes_per_s", np.float64),  # to and from others of the domain
        ("far_bytes_per_s", np.float64),
        ("link_s", np.float64),  # latency
        ("sends_until_s", np.float64),  # its line out is taken until then
        ("takes_until_s", np.float64),
        ("uplink", np.int64),  # of its domain to others, see `uplinks_out_s`; -1: no limit
        ("uplink_byte_s", np.float64),
        ("up", np.int64),
        ("tier", np.int64),  # the pool below its own, shared by a node; -1: none
        ("tier_line", np.int64),  # whose line is taken until `tier_until_s[tier_line]`
        ("tier_s", np.float64),  # latency
        ("tier_block_s", np.float64),  # a block
    ]
)
SEQUENCE = np.dtype(
    [
        ("request", np.int64),
        ("worker", np.int32),
        ("placed_on", np.int32),
        ("decode_on", np.int32),  # -1: here
        ("before", np.int32),  # neighbours among the running or the waiting
        ("after", np.int32),
        ("state", np.int32),
        ("cached", np.int64),  # tokens of the prompt at the first admission; -1: not admitted yet
        ("prompt", np.int64),
        ("output", np.int64),
        ("target", np.int64),  # tokens to be computed before the next is drawn
        ("computed", np.int64),
        ("chunk", np.int64),  # of its prompt, in this iteration; -1: it goes on here and drew no token yet
        ("emitted", np.int64),  # before the sequence began to decode
        ("ends", np.int64),  # the engine's clock when it is done
        ("stems", np.int64),  # where the stems of its blocks' names begin
        ("stems_class", np.int64),
        ("each", np.int64),  # blocks of a stem
        ("named", np.int64),  # blocks that have a name
        ("table", np.int64),  # where its places begin
        ("table_class", np.int64),
        ("blocks", np.int64),
        ("sealed", np.int64),
        ("is_running", np.int64),  # in the router's book
        ("at_s", np.float64),
        ("admitted_s", np.float64),
        ("began_s", np.float64),  # when it was admitted last
        ("first_s", np.float64),
        ("last_s", np.float64),  # when its last token came, of one that has some and is not among those that decode
        ("predicted_s", np.float64),
        ("predicted_cached", np.int64),
        ("claimed", np.int64),  # tokens that the index took for there where it was placed first
        ("brought", np.int64),  # blocks that came from the tier
        ("predicted_depth", np.int64),  # blocks the router took for there, or to come, where it was placed last
    ]
)
# BROUGHT: waits, its prompt computed elsewhere. COMING: blocks are on their way from the tier.
WAITING, PROMPT, DECODE, BROUGHT, COMING = 0, 1, 2, 3, 4


def engine_arrays(engines: Records, sequences: int, told: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: engines without work. The hub has pools and paces too.

    Args:
        engines: ENGINE.
        sequences: that may be under way at once.
        told: sequences that one event may bring to an end.
    """
    arrays = {
        "engines": engines,
        "sequences": np.zeros(sequences, SEQUENCE),
        "stems": np.zeros(1 << 20, np.int64),  # of the names of all sequences' blocks
        "stems_spare": new_spare(),
        "scratch": np.zeros(1 << 16, np.int64),  # names of a sequence's blocks, when they are spelled out
        "tables": np.zeros(1 << 20, np.int32),  # places of those that run
        "tables_spare": new_spare(),
        "told": np.zeros(told, np.int32),  # whose first token came, and from the end on who is done, of the last event
        "matched": np.zeros(1 << 16, np.int32),  # to work in
        "itl": np.zeros(ITL_BINS),  # gaps between tokens, by size
        "one": np.zeros(1, np.int32),  # to work in
        "uplinks_out_s": np.zeros(int(engines["uplink"].max(initial=0)) + 1),  # taken until then
        "uplinks_in_s": np.zeros(int(engines["uplink"].max(initial=0)) + 1),
        "tier_until_s": np.zeros(max(1, int(engines["tier_line"].max(initial=0)) + 1)),
    }
    return arrays, {"told_first": 0, "told_done": 0}


@compiled
def engine_of(h: Records, i: int) -> Any:
    return view(h.engines, h.engines_n, ENGINE)[i]


@compiled
def sequence_of(h: Records, slot: int) -> Any:
    return view(h.sequences, h.sequences_n, SEQUENCE)[slot]


@compiled
def blocks_for(tokens: int, block_size: int) -> int:
    return (tokens + block_size - 1) // block_size


@compiled
def computed_of(s: Records, clock: int) -> int:
    """Tokens of a sequence that are in its blocks."""
    return int(s.computed if s.state != DECODE else s.prompt + s.output - 1 - (s.ends - clock))


@compiled
def tokens_of(s: Records, clock: int) -> int:
    """Tokens that a decoding sequence has, the last one drawn among them."""
    return int(s.prompt + s.output - (s.ends - clock))


# What blocks are called


@compiled
def keep_stems(h: Records, s: Records, first: int, named: int) -> None:
    """A sequence's blocks are called by the ids of a trace from number `first` on, so many blocks."""
    ids, stems, each = view(h.ids, h.ids_n, INT), view(h.stems, h.stems_n, INT), h.trace_block // h.block
    step = 1
    if each == 0:  # blocks of several ids: each is known by its last
        each, step = 1, h.block // h.trace_block
    count = (named + each - 1) // each
    s.named, s.each, s.stems_class = named, each, size_class(max(count, 1))
    s.stems = cut(stems, view(h.stems_spare, h.stems_spare_n, INT), s.stems_class)
    for at in range(count):
        stems[s.stems + at] = ids[first + at * step + step - 1]


@compiled
def forget_stems(h: Records, s: Records) -> None:
    """Nobody will ask for its names any more."""
    give_back(view(h.stems, h.stems_n, INT), view(h.stems_spare, h.stems_spare_n, INT), s.stems, s.stems_class)


@compiled
def spell(h: Records, s: Records, first: int, end: int) -> None:
    """The names of blocks first:end of a sequence are in scratch[first:end] from now on."""
    scratch, stems = view(h.scratch, h.scratch_n, INT), view(h.stems, h.stems_n, INT)
    each, at, stem = s.each, first, s.stems + first // s.each
    within = first % s.each
    while at < end:
        name = stems[stem] * each
        for more in range(within, min(each, within + end - at)):
            scratch[at] = name + more
            at += 1
        stem += 1
        within = 0


@compiled
def name_at(h: Records, s: Records, at: int) -> int:
    """What its block number `at` is called."""
    return int(view(h.stems, h.stems_n, INT)[s.stems + at // s.each] * s.each + at % s.each)


# Lines


@compiled
def append_waiting(h: Records, e: Records, slot: int) -> None:
    """`slot` waits behind all others."""
    s = sequence_of(h, slot)
    s.before, s.after = e.final, -1
    if e.final >= 0:
        sequence_of(h, e.final).after = slot
    else:
        e.next = slot
    e.final = slot
    e.waiting += 1


@compiled
def put_first(h: Records, e: Records, slot: int) -> None:
    """`slot` waits before all others."""
    s = sequence_of(h, slot)
    s.before, s.after = -1, e.next
    if e.next >= 0:
        sequence_of(h, e.next).before = slot
    else:
        e.final = slot
    e.next = slot
    e.waiting += 1


@compiled
def leave_waiting(h: Records, e: Records, slot: int) -> None:
    """`slot` waits no more."""
    s = sequence_of(h, slot)
    if s.before >= 0:
        sequence_of(h, s.before).after = s.after
    else:
        e.next = s.after
    if s.after >= 0:
        sequence_of(h, s.after).before = s.before
    else:
        e.final = s.before
    e.waiting -= 1


@compiled
def append_running(h: Records, e: Records, slot: int) -> None:
    """`slot` runs, the youngest of those that do."""
    s = sequence_of(h, slot)
    s.before, s.after = e.last, -1
    if e.last >= 0:
        sequence_of(h, e.last).after = slot
    else:
        e.first = slot
    e.last = slot
    e.running += 1


@compiled
def leave_running(h: Records, e: Records, slot: int) -> None:
    """`slot` runs no more."""
    s = sequence_of(h, slot)
    if s.before >= 0:
        sequence_of(h, s.before).after = s.after
    else:
        e.first = s.after
    if s.after >= 0:
        sequence_of(h, s.after).before = s.before
    else:
        e.last = s.before
    e.running -= 1
