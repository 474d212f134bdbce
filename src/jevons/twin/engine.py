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

import numpy as np

from jevons.base.compiled import INT, SMALL, Records, compiled
from jevons.base.hub import view
from jevons.kv.cache import allocate, available, idle, keep, match, release, seal, take
from jevons.perf.pace import step_s
from jevons.twin.jumps import begun_by, count_gap, count_gap_before, count_gaps, cut_off, fit_jump, time_of
from jevons.twin.segments import cut, give_back, size_class
from jevons.twin.sequences import (
    BROUGHT,
    DECODE,
    PROMPT,
    WAITING,
    append_running,
    append_waiting,
    blocks_for,
    computed_of,
    engine_of,
    leave_running,
    leave_waiting,
    name_at,
    put_first,
    sequence_of,
    spell,
    tokens_of,
)


@compiled
def arrive(h: Records, i: int, slot: int, now_s: float) -> None:
    """A sequence arrives at engine `i`: it waits; a jump under way ends with its iteration."""
    e, s = engine_of(h, i), sequence_of(h, slot)
    s.worker = i
    if s.state != BROUGHT:
        s.state = WAITING
    append_waiting(h, e, slot)
    if e.ends_s == np.inf:
        e.ends_s, e.steps, e.prompt_tokens = now_s, 0, 0  # who else arrives at this moment is in the same iteration
    else:
        cut_off(e, now_s)


@compiled
def _leave(h: Records, e: Records, slot: int) -> None:
    """Out of the running; its blocks are free."""
    s = sequence_of(h, slot)
    _seal(h, e, s, computed_of(s, e.clock))  # what it has answered can be asked for, where its names are known
    leave_running(h, e, slot)
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
def plan(h: Records, i: int, now_s: float, exact: bool) -> None:
    """What engine `i` does next: one iteration with prompt tokens, or as many without as are alike."""
    e = engine_of(h, i)
    e.began_s, e.steps, e.prompt_tokens = now_s, 1, 0
    e.t1 = e.t2 = 0.0
    preempted = e.preempted
    _grow_decodes(h, i, 1)
    pairs = 0.0
    if e.running > e.decodes or (e.waiting > 0 and e.preempted == preempted):
        pairs = _plan_prompts(h, i, now_s, preempted)
    if e.prompt_tokens == 0 and e.decodes == 0:
        e.ends_s = np.inf
        return
    e.prompt_pairs = pairs
    e.t0 = step_s(h, e.pace, e.prompt_tokens, pairs, e.decodes, e.context)
    if e.prompt_tokens == 0 and not exact:
        _plan_jump(h, e)
    e.ends_s = now_s + time_of(e, e.steps)


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
    if s.state == DECODE and s.chunk >= 0:
        s.last_s = e.began_s
    _leave(h, e, slot)
    s.state, s.emitted, s.target = WAITING, emitted, s.prompt + emitted
    s.computed = s.blocks = s.sealed = s.chunk = 0
    put_first(h, e, slot)
    e.preempted += 1


@compiled
def _plan_prompts(h: Records, i: int, now_s: float, preempted: int) -> float:
    """Give prompts what decodes leave of the budget. Returns their pairs; their tokens are booked on the engine.

    A prompt is admitted where all of it fits, as vLLM does since 0.19 (`scheduler_reserve_full_isl`). An engine that
    waits for prefixes names blocks when they are computed, not before, and passes over a prompt whose next block is
    just being computed for another.

    Args:
        preempted: sequences before this iteration; whoever gave way in it must not come back in it.
    """
    e = engine_of(h, i)
    budget, pairs, matched = e.step_tokens - e.decodes, 0.0, view(h.matched, h.matched_n, SMALL)
    slot = e.first
    while slot >= 0 and budget > 0:
        s = sequence_of(h, slot)
        if s.state == PROMPT:
            chunk = min(s.target - s.computed, budget)
            need = blocks_for(s.computed + chunk, e.block_size) - s.blocks
            if not _make_way(h, i, s, need):
                break
            pairs += _chunk(h, e, s, chunk)
            budget -= chunk
        slot = s.after
    slot = e.next
    while e.preempted == preempted and budget > 0 and slot >= 0 and e.running < e.max_running:
        s = sequence_of(h, slot)
        after = s.after
        brought = s.state == BROUGHT
        most = s.target if brought else s.target - 1  # at least one token is always computed
        names = view(h.scratch, h.scratch_n, INT)[: min(s.named, most // e.block_size)]
        spell(h, s, 0, len(names))
        hits = match(h, e.pool, names, matched)
        chunk = min(s.target - hits * e.block_size, budget)
        if e.waits_for_prefix and hits < len(names) and _is_coming(h, e, names[hits], hits):
            slot = after
            continue
        need = blocks_for(s.target + 1 if brought else s.target, e.block_size) - hits
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
def _make_way(h: Records, i: int, s: Records, need: int) -> bool:
    """The youngest give way until a running prompt can have so many blocks more. Returns whether it still runs."""
    while need > available(h, engine_of(h, i).pool) and s.state == PROMPT:
        preempt(h, i, engine_of(h, i).last)
    return bool(s.state == PROMPT)


@compiled
def _is_coming(h: Records, e: Records, name: int, at: int) -> bool:
    """Whether some running prompt is going to fill its block number `at`, of that name."""
    slot = e.first
    while slot >= 0:
        s = sequence_of(h, slot)
        fills = s.state == PROMPT and s.sealed <= at < min(s.named, s.prompt // e.block_size)
        if fills and name_at(h, s, at) == name:
            return True
        slot = s.after
    return False


@compiled
def _admit(h: Records, e: Records, slot: int, hits: int, now_s: float) -> None:
    s = sequence_of(h, slot)
    leave_waiting(h, e, slot)
    s.table_class = size_class(blocks_for(s.prompt + s.output, e.block_size))
    tables, matched = view(h.tables, h.tables_n, SMALL), view(h.matched, h.matched_n, SMALL)
    s.table = cut(tables, view(h.tables_spare, h.tables_spare_n, INT), s.table_class)
    take(h, e.pool, matched, hits)
    for at in range(hits):
        tables[s.table + at] = matched[at]
    s.blocks = s.sealed = hits
    s.computed = hits * e.block_size
    s.state, s.began_s = PROMPT, now_s
    if s.cached < 0:
        s.cached, s.admitted_s = min(s.computed, s.prompt), now_s
    append_running(h, e, slot)


@compiled
def _go_on(h: Records, e: Records, s: Records) -> None:
    """The prompt of a sequence just admitted came from elsewhere: it decodes in this iteration."""
    _grow(h, e, s, blocks_for(s.target + 1, e.block_size))
    _seal(h, e, s, s.target)
    s.computed = s.target
    s.state, s.ends, s.chunk = DECODE, e.clock + s.output - s.emitted, -1
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
        names = view(h.scratch, h.scratch_n, INT)[:full]
        spell(h, s, s.sealed, full)
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
    fit_jump(h, e)


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
        count_gaps(h, e)
        _grow_decodes(h, i, steps)  # what `plan` has made sure is there
        e.clock += steps
        e.context += e.decodes * steps
    slot = e.first
    while slot >= 0:
        s = sequence_of(h, slot)
        after = s.after
        if s.state == DECODE:
            if s.chunk < 0:
                count_gap_before(h, e, s.last_s)
                s.chunk = 0
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
        e.began_s = e.ends_s
    preempted = e.preempted
    while e.last >= 0:
        preempt(h, i, e.last)
    e.lost += e.preempted - preempted  # nobody gave way: it ended
    e.preempted = preempted
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
    else:
        count_gap(h, now_s - s.last_s, 1)
    s.last_s = now_s
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
