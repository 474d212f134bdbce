"""Kernels of a simulated engine: continuous batching as vLLM does it, jumping over iterations that are alike.

    waiting ──admit──▶ prompt in chunks ──first token──▶ decoding ──▶ finished
       ▲                    │                                │
       └────────────── preempt, the youngest ────────────────┘

Each iteration has a budget of tokens: decodes first, one token each, then prompts begun, then new ones while there are
free blocks. An iteration that computes prompt tokens is an event of its own. Between those, and as long as nobody
finishes, iterations differ only in the context they attend to: a `jump` of many is one event, its time the sum of a
parabola through the first, the middle and the last. Who arrives meanwhile cuts the jump off at the iteration under way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Reals, Records, compiled
from jevons.base.hub import view
from jevons.kv.cache import allocate, available, idle, keep, match, release, seal, take
from jevons.perf.pace import step_s
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
        ("chunk", np.int64),
        ("emitted", np.int64),  # before the sequence began to decode
        ("ends", np.int64),  # the engine's clock when it is done
        ("names", np.int64),  # where its blocks' names begin, and how many
        ("named", np.int64),
        ("names_class", np.int64),
        ("table", np.int64),  # where its places begin
        ("table_class", np.int64),
        ("blocks", np.int64),
        ("sealed", np.int64),
        ("is_running", np.int64),  # in the router's book
        ("at_s", np.float64),
        ("admitted_s", np.float64),
        ("first_s", np.float64),
        ("predicted_s", np.float64),
        ("predicted_cached", np.int64),
        ("claimed", np.int64),  # tokens that the index took for there where it was placed first
        ("brought", np.int64),  # blocks that came from the tier
        ("predicted_depth", np.int64),  # blocks the router took for there, or to come, where it was placed last
    ]
)
# BROUGHT: waits, its prompt computed elsewhere. COMING: blocks are on their way from the tier.
WAITING, PROMPT, DECODE, BROUGHT, COMING = 0, 1, 2, 3, 4
ITL_BINS = 2048
_ITL_LOW_S, _ITL_RATIO = 1e-6, 0.01  # bins of 1 % from a microsecond on


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
        "names": np.zeros(1 << 20, np.int64),  # of the blocks of all sequences
        "names_spare": new_spare(),
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
def time_of(e: Records, steps: int) -> float:
    """Seconds of the first `steps` iterations of the event under way."""
    n = float(steps)
    return float(n * e.t0 + e.t1 * (n * (n - 1.0)) / 2.0 + e.t2 * ((n - 1.0) * n * (2.0 * n - 1.0)) / 6.0)


@compiled
def begun_by(e: Records, now_s: float) -> int:
    """Iterations of the event under way that have begun by then, at least one."""
    low, high = 1, e.steps
    while low < high:
        middle = (low + high) // 2
        if e.began_s + time_of(e, middle) > now_s:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def arrive(h: Records, i: int, slot: int, now_s: float) -> None:
    """A sequence arrives at engine `i`: it waits; a jump under way ends with its iteration."""
    e, s = engine_of(h, i), sequence_of(h, slot)
    s.worker = i
    if s.state != BROUGHT:
        s.state = WAITING
    _append_waiting(h, e, slot)
    if e.ends_s == np.inf:
        e.ends_s, e.steps, e.prompt_tokens = now_s, 0, 0  # who else arrives at this moment is in the same iteration
    else:
        cut_off(e, now_s)


@compiled
def cut_off(e: Records, now_s: float) -> None:
    """A jump under way ends with the iteration that is under way now."""
    if e.steps > 1:
        e.steps = begun_by(e, now_s)
        e.ends_s = e.began_s + time_of(e, e.steps)


@compiled
def _append_waiting(h: Records, e: Records, slot: int) -> None:
    s = sequence_of(h, slot)
    s.before, s.after = e.final, -1
    if e.final >= 0:
        sequence_of(h, e.final).after = slot
    else:
        e.next = slot
    e.final = slot
    e.waiting += 1


@compiled
def _unwait(h: Records, e: Records, slot: int) -> None:
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
def _leave(h: Records, e: Records, slot: int) -> None:
    """Out of the running; its blocks are free."""
    s = sequence_of(h, slot)
    _seal(h, e, s, computed_of(s, e.clock))  # what it has answered can be asked for, where its names are known
    if s.before >= 0:
        sequence_of(h, s.before).after = s.after
    else:
        e.first = s.after
    if s.after >= 0:
        sequence_of(h, s.after).before = s.before
    else:
        e.last = s.before
    e.running -= 1
    if s.state == DECODE:
        e.decodes -= 1
        e.context -= tokens_of(s, e.clock)
    tables = view(h.tables, h.tables_n, SMALL)
    table = tables[s.table : s.table + s.blocks]
    # A full block without a name, a second copy or an answer nobody knows of, goes in its turn; our own engine gives it
    # out first.
    full = 0 if e.waits_for_prefix else computed_of(s, e.clock) // e.block_size
    release(h, e.pool, table, s.blocks, full)
    give_back(tables, view(h.tables_spare, h.tables_spare_n, INT), s.table, s.table_class)


@compiled
def computed_of(s: Records, clock: int) -> int:
    """Tokens of a sequence that are in its blocks."""
    return int(s.computed if s.state != DECODE else s.prompt + s.output - 1 - (s.ends - clock))


@compiled
def tokens_of(s: Records, clock: int) -> int:
    """Tokens that a decoding sequence has, the last one drawn among them."""
    return int(s.prompt + s.output - (s.ends - clock))


@compiled
def plan(h: Records, i: int, now_s: float, exact: bool) -> None:
    """What engine `i` does next: one iteration with prompt tokens, or as many without as are alike."""
    e = engine_of(h, i)
    e.began_s, e.steps, e.prompt_tokens = now_s, 1, 0
    e.t1 = e.t2 = 0.0
    preempted = e.preempted
    _grow_decodes(h, i, 1)
    pairs = 0.0
    if e.running > e.decodes or (e.waiting > 0 and e.preempted == preempted):
        pairs = _plan_prompts(h, i, now_s, e.preempted == preempted)
    if e.prompt_tokens == 0 and e.decodes == 0:
        e.ends_s = np.inf
        return
    e.prompt_pairs = pairs
    e.t0 = step_s(h, e.pace, e.prompt_tokens, pairs, e.decodes, e.context)
    if e.prompt_tokens == 0 and not exact:
        _plan_jump(h, e)
    e.ends_s = now_s + time_of(e, e.steps)


@compiled
def handed_over_s(h: Records, slot: int, now_s: float) -> float:
    """When the KV of a prompt just computed is on the engine that goes on. Takes the lines until then.

    Layers are sent as they are computed, so that what is left after the prompt is the last one, if the line keeps up.
    """
    s = sequence_of(h, slot)
    a, b = engine_of(h, s.worker), engine_of(h, s.decode_on)
    rate = min(a.near_bytes_per_s, b.near_bytes_per_s)
    if a.domain != b.domain:
        rate = min(a.far_bytes_per_s, b.far_bytes_per_s)
    size = a.kv_fixed_bytes + a.kv_token_bytes * s.prompt
    begins_s = max(s.admitted_s, a.sends_until_s, b.takes_until_s)
    ends_s = max(begins_s + size / rate, now_s + size / a.layers / rate) + a.link_s
    if a.domain != b.domain:
        ends_s = max(ends_s, _through(view(h.uplinks_out_s, h.uplinks_out_s_n, FLOAT), a, begins_s, size))
        ends_s = max(ends_s, _through(view(h.uplinks_in_s, h.uplinks_in_s_n, FLOAT), b, begins_s, size))
    a.sends_until_s = b.takes_until_s = ends_s
    return float(ends_s)


@compiled
def _through(until_s: Reals, e: Records, begins_s: float, size: float) -> float:
    """When so many bytes are through the line that all of an engine's domain share: one after another, at its rate."""
    if e.uplink < 0:
        return 0.0
    until_s[e.uplink] = max(until_s[e.uplink], begins_s) + size * e.uplink_byte_s
    return float(until_s[e.uplink])


@compiled
def _grow_decodes(h: Records, i: int, steps: int) -> None:
    """Blocks for the next `steps` tokens of all that decode; the youngest gives way where there are none."""
    e = engine_of(h, i)
    slot = e.first
    while slot >= 0:
        s = sequence_of(h, slot)
        if s.state == DECODE:
            need = blocks_for(computed_of(s, e.clock) + steps, e.block_size) - s.blocks
            while need > 0 and available(h, e.pool) < need and slot >= 0:
                youngest = e.last
                preempt(h, i, youngest)
                if youngest == slot:
                    return
            if need > 0:
                _grow(h, e, s, s.blocks + need)
        slot = s.after


@compiled
def _grow(h: Records, e: Records, s: Records, blocks: int) -> None:
    table = view(h.tables, h.tables_n, SMALL)[s.table : s.table + blocks]
    allocate(h, e.pool, table, s.blocks, blocks)
    s.blocks = blocks


@compiled
def preempt(h: Records, i: int, slot: int) -> None:
    """A running sequence gives its blocks back and waits again, before all others: it will be computed anew."""
    e, s = engine_of(h, i), sequence_of(h, slot)
    emitted = s.output - (s.ends - e.clock) if s.state == DECODE else s.emitted
    _leave(h, e, slot)
    s.state, s.emitted, s.target = WAITING, emitted, s.prompt + emitted
    s.computed = s.blocks = s.sealed = s.chunk = 0
    s.before, s.after = -1, e.next
    if e.next >= 0:
        sequence_of(h, e.next).before = slot
    else:
        e.final = slot
    e.next = slot
    e.waiting += 1
    e.preempted += 1


@compiled
def _plan_prompts(h: Records, i: int, now_s: float, admits: bool) -> float:
    """Give prompts what decodes leave of the budget. Returns their pairs; their tokens are booked on the engine.

    An engine that waits for prefixes names blocks when they are computed, not before. It passes over a prompt whose
    next block is just being computed for another, and admits one only where all of it fits.
    """
    e = engine_of(h, i)
    budget, pairs, matched = e.step_tokens - e.decodes, 0.0, view(h.matched, h.matched_n, SMALL)
    slot = e.first
    while slot >= 0 and budget > 0:
        s = sequence_of(h, slot)
        after = s.after
        if s.state == PROMPT:
            chunk = min(s.target - s.computed, budget)
            need = blocks_for(s.computed + chunk, e.block_size) - s.blocks
            if need > available(h, e.pool):
                break
            pairs += _chunk(h, e, s, chunk)
            budget -= chunk
        slot = after
    slot = e.next
    while admits and budget > 0 and slot >= 0 and e.running < e.max_running:
        s = sequence_of(h, slot)
        after = s.after
        brought = s.state == BROUGHT
        most = s.target if brought else s.target - 1  # at least one token is always computed
        names = view(h.names, h.names_n, INT)[s.names : s.names + min(s.named, most // e.block_size)]
        hits = match(h, e.pool, names, matched)
        chunk = min(s.target - hits * e.block_size, budget)
        if e.waits_for_prefix and hits < len(names) and _is_coming(h, e, names[hits], hits):
            slot = after
            continue
        end = s.target if e.waits_for_prefix else hits * e.block_size + chunk
        need = blocks_for(s.target + 1 if brought else end, e.block_size) - hits
        if need > available(h, e.pool) - idle(h, matched, hits):
            break
        _admit(h, e, slot, hits, now_s)
        if brought:
            _go_on(h, e, s)
            budget -= 1
        else:
            pairs += _chunk(h, e, s, chunk)
            budget -= chunk
        slot = after
    return pairs


@compiled
def _is_coming(h: Records, e: Records, name: int, at: int) -> bool:
    """Whether some running prompt is going to fill its block number `at`, of that name."""
    names, slot = view(h.names, h.names_n, INT), e.first
    while slot >= 0:
        s = sequence_of(h, slot)
        fills = s.state == PROMPT and s.sealed <= at < min(s.named, s.prompt // e.block_size)
        if fills and names[s.names + at] == name:
            return True
        slot = s.after
    return False


@compiled
def _admit(h: Records, e: Records, slot: int, hits: int, now_s: float) -> None:
    s = sequence_of(h, slot)
    _unwait(h, e, slot)
    s.table_class = size_class(blocks_for(s.prompt + s.output, e.block_size))
    tables, matched = view(h.tables, h.tables_n, SMALL), view(h.matched, h.matched_n, SMALL)
    s.table = cut(tables, view(h.tables_spare, h.tables_spare_n, INT), s.table_class)
    take(h, e.pool, matched, hits)
    for at in range(hits):
        tables[s.table + at] = matched[at]
    s.blocks = s.sealed = hits
    s.computed = hits * e.block_size
    s.state = PROMPT
    if s.cached < 0:
        s.cached, s.admitted_s = min(s.computed, s.prompt), now_s
    s.before, s.after = e.last, -1
    if e.last >= 0:
        sequence_of(h, e.last).after = slot
    else:
        e.first = slot
    e.last = slot
    e.running += 1


@compiled
def _go_on(h: Records, e: Records, s: Records) -> None:
    """The prompt of a sequence just admitted came from elsewhere: it decodes in this iteration."""
    _grow(h, e, s, blocks_for(s.target + 1, e.block_size))
    _seal(h, e, s, s.target)
    s.computed = s.target
    s.state, s.ends = DECODE, e.clock + s.output - s.emitted
    e.decodes += 1
    e.context += tokens_of(s, e.clock)


@compiled
def _chunk(h: Records, e: Records, s: Records, chunk: int) -> float:
    """The next `chunk` tokens of a prompt are in this iteration. Returns the pairs of tokens they make."""
    s.chunk = chunk
    e.prompt_tokens += chunk
    need = blocks_for(s.computed + chunk, e.block_size)
    if need > s.blocks:
        _grow(h, e, s, need)
    if not e.waits_for_prefix:
        _seal(h, e, s, s.computed + chunk)
    return float(chunk * (s.computed + (chunk + 1) / 2.0))


@compiled
def _seal(h: Records, e: Records, s: Records, tokens: int) -> None:
    """The blocks of the first `tokens` tokens can be found by name."""
    full = min(tokens // e.block_size, s.named)
    if full > s.sealed:
        table = view(h.tables, h.tables_n, SMALL)[s.table : s.table + full]
        names = view(h.names, h.names_n, INT)[s.names : s.names + full]
        seal(h, e.pool, table, names, s.sealed, full)
        if e.tier >= 0:
            keep(h, e.tier, view(h.one, h.one_n, SMALL), names[s.sealed :])
        s.sealed = full


@compiled
def _plan_jump(h: Records, e: Records) -> None:
    """Iterations until the first sequence is done, or blocks run out."""
    steps = 1 << 40
    slot = e.first
    while slot >= 0:
        s = sequence_of(h, slot)
        if s.state == DECODE:
            steps = min(steps, s.ends - e.clock)
        slot = s.after
    if _growth(h, e, steps) > available(h, e.pool):
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            if _growth(h, e, middle) > available(h, e.pool):
                high = middle - 1
            else:
                low = middle
        steps = low
    e.steps = steps
    if steps > 2:
        last = float(steps - 1)
        half = np.floor(last / 2.0)
        half_s = step_s(h, e.pace, 0.0, 0.0, e.decodes, e.context + e.decodes * half)
        last_s = step_s(h, e.pace, 0.0, 0.0, e.decodes, e.context + e.decodes * last)
        e.t2 = ((last_s - e.t0) / last - (half_s - e.t0) / half) / (last - half)
        e.t1 = (last_s - e.t0) / last - e.t2 * last
    elif steps == 2:
        e.t1 = step_s(h, e.pace, 0.0, 0.0, e.decodes, e.context + e.decodes) - e.t0


@compiled
def _growth(h: Records, e: Records, steps: int) -> int:
    """Blocks that `steps` more tokens of all that decode need."""
    total, slot = 0, e.first
    while slot >= 0:
        s = sequence_of(h, slot)
        if s.state == DECODE:
            total += max(0, blocks_for(computed_of(s, e.clock) + steps, e.block_size) - s.blocks)
        slot = s.after
    return total


@compiled
def finish_event(h: Records, i: int) -> None:
    """The event under way on engine `i` is over: book it. `told` gets who drew a first token, and who is done."""
    e = engine_of(h, i)
    h.told_first = h.told_done = 0
    now_s, steps = e.ends_s, e.steps
    if steps == 0:
        return
    e.busy_s += now_s - e.began_s
    e.iterations += steps
    e.sum_prompt_tokens += e.prompt_tokens
    e.sum_prompt_pairs += e.prompt_pairs if e.prompt_tokens > 0 else 0.0
    e.sum_decodes += float(e.decodes) * steps
    e.sum_context += float(e.context) * steps + float(e.decodes) * steps * (steps - 1) / 2.0
    if e.decodes > 0:
        _count_gaps(h, e)
        _grow_decodes(h, i, steps)  # what `plan` has made sure is there
        e.clock += steps
        e.context += e.decodes * steps
    slot = e.first
    while slot >= 0:
        s = sequence_of(h, slot)
        after = s.after
        if s.state == DECODE:
            if s.ends == e.clock:
                _finish(h, e, slot)
        elif s.chunk > 0:
            _book_chunk(h, e, slot, now_s)
        slot = after


@compiled
def end(h: Records, i: int, now_s: float) -> int:
    """Engine `i` ends: the iteration under way is lost, what ran waits. Returns the first that waits; nobody does then.

    What it holds is free, and can still be found by name.
    """
    e = engine_of(h, i)
    if e.steps > 1:  # a jump, of which nobody is done before its end
        e.steps = begun_by(e, now_s) - 1
        e.ends_s = e.began_s + time_of(e, e.steps)
        finish_event(h, i)
    while e.last >= 0:
        preempt(h, i, e.last)
    first = int(e.next)
    e.next, e.final, e.waiting = -1, -1, 0
    e.ends_s, e.steps, e.prompt_tokens = np.inf, 0, 0
    return first


@compiled
def _book_chunk(h: Records, e: Records, slot: int, now_s: float) -> None:
    s = sequence_of(h, slot)
    s.computed += s.chunk
    s.chunk = 0
    if e.waits_for_prefix:
        _seal(h, e, s, s.computed)
    if s.computed < s.target:
        return
    if s.emitted == 0:
        s.first_s = now_s
    if not s.is_running:  # its first token, or its first one here
        s.is_running = 1
        view(h.told, h.told_n, SMALL)[h.told_first] = slot
        h.told_first += 1
    s.emitted += 1
    s.state = DECODE
    s.ends = e.clock + s.output - s.emitted
    e.decodes += 1
    e.context += tokens_of(s, e.clock)
    if s.emitted == s.output or (s.decode_on >= 0 and s.decode_on != s.worker):  # the latter go on elsewhere
        _finish(h, e, slot)


@compiled
def _finish(h: Records, e: Records, slot: int) -> None:
    _leave(h, e, slot)
    h.told_done += 1
    view(h.told, h.told_n, SMALL)[h.told_n - h.told_done] = slot


@compiled
def itl_s(at: int) -> float:
    """The middle of a bin of gaps, seconds."""
    return float(_ITL_LOW_S * np.exp((at + 0.5) * _ITL_RATIO))


@compiled
def _count_gaps(h: Records, e: Records) -> None:
    """Each decode of the iterations just over waited as long as they took."""
    each = time_of(e, e.steps) / e.steps
    at = int(np.log(each / _ITL_LOW_S) / _ITL_RATIO)
    view(h.itl, h.itl_n, FLOAT)[min(max(at, 0), ITL_BINS - 1)] += e.steps * e.decodes
