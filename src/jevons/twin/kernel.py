"""The event loop of the twin: arrivals, engines, KV events, in the order of simulated time.

    arrivals ──▶ place (the router's kernels) ──▶ engine ──▶ told: first token, done ──▶ the router's book
                                                    └──▶ log: blocks stored and removed ──(lag)──▶ the router's index

Whose event is next is kept in a tournament over the engines, so an event costs the logarithm of their number. The loop
returns to Python when arrays must grow, when it needs more arrivals, when results fill up, or at the time it was told.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Ints, Reals, Records, compiled
from jevons.base.hub import view
from jevons.control.board import (
    ANY,
    APART,
    WHOLE,
    WORKER,
    attend,
    computed,
    conclude,
    count_answer,
    count_arrival,
    count_decode,
    gather,
    place,
    rekey,
    unwait,
    wait,
    want,
)
from jevons.kv.cache import forget, has_room
from jevons.kv.entries import print_of, room
from jevons.kv.holders import drop_one, store_one
from jevons.perf.pace import step_s
from jevons.policy.belief import confirm
from jevons.policy.route import CANDIDATE, KV
from jevons.twin.engine import (
    BROUGHT,
    COMING,
    arrive,
    cut_off,
    end,
    engine_of,
    finish_event,
    handed_over_s,
    plan,
    sequence_of,
)
from jevons.twin.segments import cut, give_back, room_left, size_class
from jevons.twin.tier import add_tiers, came, coming_s

RESULT = np.dtype(
    [
        ("request", np.int64),
        ("at_s", np.float64),
        ("admitted_s", np.float64),
        ("first_s", np.float64),
        ("done_s", np.float64),
        ("predicted_s", np.float64),
        ("prompt", np.int64),
        ("output", np.int64),
        ("cached", np.int64),
        ("brought", np.int64),  # of those, from a tier
        ("predicted_cached", np.int64),
        ("worker", np.int32),
        ("decode_on", np.int32),
    ]
)
ARRIVAL = np.dtype(
    [
        ("at_s", np.float64),
        ("prompt", np.int64),
        ("output", np.int64),
        ("ids", np.int64),  # where its block ids begin, and how many
        ("count", np.int64),
    ]
)
# Of each arrival, where some wait for others to be done.
AFTER = np.dtype(
    [
        ("pending", np.int64),  # others to be done before it
        ("delay_s", np.float64),  # from then on until it arrives
        ("is_after", np.int64),  # it waits for others, not for its time
        ("first", np.int64),  # of `followers`, who wait for it, and how many
        ("count", np.int64),
    ]
)
# Why the loop returned
MORE, GROW, FULL, TIME, REFUSED = 0, 1, 2, 3, 4


def loop_arrays(engines: int, sequences: int, results: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: the loop's own. The hub has all of `twin.engine`, `control.board` and what they need besides."""
    leaves = 1 << max(0, (engines - 1).bit_length())
    arrays = {
        "due": np.full(2 * leaves, np.inf),  # a tournament of the engines' next events
        "slots": np.zeros(sequences, np.int32),  # of sequences that are done: a stack
        "results": np.zeros(results, RESULT),
        "scratch": np.zeros(1 << 16, np.int64),  # names of a prompt
        "arrivals": np.zeros(0, ARRIVAL),  # in order of time
        "ids": np.zeros(0, np.int64),  # which they name
        "afters": np.zeros(0, AFTER),  # one for each arrival, or none if nobody waits for anybody
        "followers": np.zeros(0, np.int64),  # arrivals
        # What will happen: KV on its way between engines is there, or an arrival (-1 - its number) that waited for
        # others comes. A heap by time, then by order of beginning.
        "moves_at_s": np.zeros(sequences),
        "moves_order": np.zeros(sequences, np.int64),
        "moves_slot": np.zeros(sequences, np.int64),
    }
    numbers: dict[str, int | float] = {
        "next": 0,  # arrival
        "base": 0,  # arrivals before these
        "slots_spare": 0,
        "slots_used": 0,
        "results_end": 0,
        "moves_end": 0,
        "moves_begun": 0,
        "heard": 0,  # KV events, and what was drawn before the first
        # What a run does not change
        "exact": 0,
        "uses_index": 1,
        "has_tiers": 0,
        "lag_s": 0.0,  # until the router hears of a block
        "loss": 0.0,  # share of that which it never hears
        "trace_block": 512,  # tokens behind an id of an arrival
        "block": 64,  # tokens of a block
        "margin": 0,  # blocks that one event may add at most
        "tables_margin": 0,  # places in tables that one event may cut at most
    }
    return arrays, numbers


@compiled
def _comes_before(h: Records, i: int, j: int) -> bool:
    at_s, order = view(h.moves_at_s, h.moves_at_s_n, FLOAT), view(h.moves_order, h.moves_order_n, INT)
    return bool(at_s[i] < at_s[j] or (at_s[i] == at_s[j] and order[i] < order[j]))


@compiled
def _swap(h: Records, i: int, j: int) -> None:
    at_s, order = view(h.moves_at_s, h.moves_at_s_n, FLOAT), view(h.moves_order, h.moves_order_n, INT)
    slots = view(h.moves_slot, h.moves_slot_n, INT)
    at_s[i], at_s[j] = at_s[j], at_s[i]
    order[i], order[j] = order[j], order[i]
    slots[i], slots[j] = slots[j], slots[i]


@compiled
def begin_move(h: Records, at_s: float, slot: int) -> None:
    """At that time `slot` is at the other engine, or an arrival comes."""
    i = h.moves_end
    view(h.moves_at_s, h.moves_at_s_n, FLOAT)[i] = at_s
    view(h.moves_order, h.moves_order_n, INT)[i] = h.moves_begun
    view(h.moves_slot, h.moves_slot_n, INT)[i] = slot
    h.moves_end += 1
    h.moves_begun += 1
    while i > 0 and _comes_before(h, i, (i - 1) // 2):
        _swap(h, i, (i - 1) // 2)
        i = (i - 1) // 2


@compiled
def end_move(h: Records) -> int:
    """Take the first off the heap. Returns its slot, or -1 - the number of an arrival."""
    slot = view(h.moves_slot, h.moves_slot_n, INT)[0]
    h.moves_end -= 1
    count, i = h.moves_end, 0
    _swap(h, 0, count)
    while True:
        least = i
        for child in range(2 * i + 1, min(2 * i + 3, count)):
            if _comes_before(h, child, least):
                least = child
        if least == i:
            return int(slot)
        _swap(h, i, least)
        i = least


@compiled
def set_due(h: Records, engine: int, at_s: float) -> None:
    """The next event of `engine` is at that time; infinite: none."""
    due = view(h.due, h.due_n, FLOAT)
    node = h.due_n // 2 + engine
    due[node] = at_s
    node >>= 1
    while node >= 1:
        soonest = min(due[2 * node], due[2 * node + 1])
        if due[node] == soonest:
            return
        due[node] = soonest
        node >>= 1


@compiled
def soonest(due: Reals) -> int:
    """The engine whose event is next, the first of equals."""
    leaves, node = len(due) // 2, 1
    while node < leaves:
        node = 2 * node if due[2 * node] <= due[2 * node + 1] else 2 * node + 1
    return node - leaves


@compiled
def run(hubs: Records, until_s: float, is_last: bool) -> int:
    """Go on until something is needed. Returns what: MORE arrivals, GROW arrays, FULL results, or the TIME is up.

    Args:
        hubs: [1] see `loop_arrays`.
        is_last: no arrivals come after those that are there.
    """
    h = hubs[0]
    due, arrivals = view(h.due, h.due_n, FLOAT), view(h.arrivals, h.arrivals_n, ARRIVAL)
    moves_at_s = view(h.moves_at_s, h.moves_at_s_n, FLOAT)
    while True:
        if not _has_room(h):
            return GROW
        if h.results_end + h.told_n > h.results_n:
            return FULL
        _pass_over_followers(h)
        event_s = due[1]
        at_s = arrivals[h.next].at_s if h.next < h.arrivals_n else np.inf
        if at_s == np.inf and not is_last:
            return MORE
        move_s = moves_at_s[0] if h.moves_end > 0 else np.inf
        next_s = min(event_s, at_s, move_s)
        if next_s > until_s or next_s == np.inf:
            return TIME if until_s < np.inf else MORE
        h.now_s = next_s
        if move_s == next_s:
            slot = end_move(h)
            if not (_moved(h, slot) if slot >= 0 else _arrival(h, -1 - slot)):
                return REFUSED
        elif at_s == next_s:  # before engines: who arrives at this moment is in what they do next
            if not _arrival(h, h.next):
                return REFUSED
            h.next += 1
        else:
            _engine_event(h, soonest(due))


@compiled
def _pass_over_followers(h: Records) -> None:
    """The next arrival is one that comes at its time."""
    afters = view(h.afters, h.afters_n, AFTER)
    while h.next < h.afters_n and afters[h.next].is_after:
        h.next += 1


@compiled
def _has_room(h: Records) -> bool:
    """Whether the next event, whatever it is, finds room in the arrays."""
    margin = h.margin
    return bool(
        has_room(h, margin)
        and (not h.uses_index or room(h) >= h.log_end - h.log_read + margin)
        and h.log_name_n - h.log_end >= 2 * margin
        and room_left(h.names_n, view(h.names_spare, h.names_spare_n, INT)) >= 2 * margin
        and room_left(h.tables_n, view(h.tables_spare, h.tables_spare_n, INT)) >= h.tables_margin
        and (h.slots_spare > 0 or h.slots_used < h.sequences_n)
    )


@compiled
def _arrival(h: Records, number: int) -> bool:
    """Returns whether there was a worker for it."""
    count_arrival(h, h.now_s)
    arrival = view(h.arrivals, h.arrivals_n, ARRIVAL)[number]
    _hear(h, h.now_s)
    scratch = view(h.scratch, h.scratch_n, INT)
    named = _name(h, scratch, arrival)
    reusable = scratch[: min(named, (arrival.prompt - 1) // h.block)]
    worker, decode_on, predicted_s, cached, depth = _place(h, reusable, arrival.prompt)
    if worker < 0:
        return False
    want(h)
    if h.slots_spare > 0:
        h.slots_spare -= 1
        slot = view(h.slots, h.slots_n, SMALL)[h.slots_spare]
    else:
        slot = h.slots_used
        h.slots_used += 1
    s = sequence_of(h, slot)
    s.request, s.at_s, s.prompt, s.output = h.base + number, h.now_s, arrival.prompt, arrival.output
    s.cached, s.computed, s.emitted, s.target, s.decode_on = -1, 0, 0, arrival.prompt, decode_on
    s.blocks = s.sealed = s.chunk = s.is_running = s.state = s.brought = 0
    s.placed_on, s.predicted_s, s.predicted_cached, s.claimed = worker, predicted_s, cached, depth * h.block
    s.names_class, s.named = size_class(max(named, 1)), named
    names = view(h.names, h.names_n, INT)
    s.names = cut(names, view(h.names_spare, h.names_spare_n, INT), s.names_class)
    for at in range(named):
        names[s.names + at] = scratch[at]
    _book(h, slot, worker, cached, depth)
    return True


@compiled
def _to_compute(h: Records, s: Records) -> tuple[int, int]:
    """Where the names lie, first and end, of the blocks that its worker was to compute when `s` was placed."""
    first = min(s.predicted_depth, s.named)
    return s.names + first, s.names + max(first, min(s.named, s.prompt // h.block))


@compiled
def _attends(s: Records) -> int:
    """Who draws the tokens of a sequence after its first."""
    return int(s.decode_on if s.decode_on >= 0 else s.worker)


@compiled
def _book(h: Records, slot: int, worker: int, cached: int, depth: int) -> None:
    """`slot` was placed on `worker`, which has the first `depth` blocks: the book and the engine know it."""
    s = sequence_of(h, slot)
    s.worker, s.predicted_depth = worker, depth if h.uses_index else s.named
    first, after = _to_compute(h, s)
    wait(h, slot, worker, s.target, cached, view(h.names, h.names_n, INT)[first:after])
    attend(h, _attends(s), s.prompt)
    here_s = coming_s(h, slot, worker) if h.has_tiers else -1.0
    if here_s >= 0.0:
        begin_move(h, here_s, slot)
    else:
        arrive(h, worker, slot, h.now_s)
        set_due(h, worker, engine_of(h, worker).ends_s)
    if s.decode_on >= 0:
        count_decode(h, s.decode_on, 1, 0.0)  # promised


@compiled
def _place_by_tiers(h: Records, names: Ints, prompt: int) -> tuple[int, int]:
    """See `board.place`."""
    whole, apart = gather(h, WHOLE, 0, names, ANY, h.block), gather(h, APART, 0, names, ANY, h.block)
    add_tiers(h, WHOLE, whole, names)
    add_tiers(h, APART, apart, names)
    return conclude(h, prompt, whole, apart)


@compiled
def _place(h: Records, names: Ints, prompt: int) -> tuple[int, int, float, int, int]:
    """The worker, who goes on after the first token (-1: the same), predicted seconds, cached tokens, blocks there."""
    if h.has_tiers and h.policy == KV:
        there, chosen = _place_by_tiers(h, names, prompt)
    else:
        there, chosen = place(h, names, prompt, h.block)
    if chosen < 0:  # nobody to go on: who computes prompts alone is of no use
        return -1, -1, 0.0, 0, 0
    candidates = view(h.candidates, h.candidates_n, CANDIDATE)
    c, decode_on = candidates[chosen], -1
    if there >= 0:
        c, decode_on = candidates[APART * h.desk + there], c.worker
    return c.worker, decode_on, c.seconds, c.cached, c.depth


@compiled
def _moved(h: Records, slot: int) -> bool:
    """The KV of a prompt is on the engine that goes on; if that has ended, somebody computes it anew."""
    worker = sequence_of(h, slot).worker
    if not engine_of(h, worker).up:
        return _place_again(h, slot)
    if sequence_of(h, slot).state == COMING:
        came(h, slot)
    arrive(h, worker, slot, h.now_s)
    set_due(h, worker, engine_of(h, worker).ends_s)
    return True


@compiled
def _name(h: Records, out: Ints, arrival: Records) -> int:
    """Names of the full blocks of a prompt, and of its answer where the ids reach so far. Returns how many."""
    ids, first = view(h.ids, h.ids_n, INT), arrival.ids
    tokens = arrival.prompt
    if arrival.count * h.trace_block >= arrival.prompt + h.trace_block:
        tokens += arrival.output
    count = min(tokens // h.block, arrival.count * h.trace_block // h.block)
    if h.block <= h.trace_block:
        each = h.trace_block // h.block
        for i in range(count):
            out[i] = ids[first + i // each] * each + i % each
    else:
        each = h.block // h.trace_block
        for i in range(count):
            out[i] = ids[first + (i + 1) * each - 1]
    return int(count)


@compiled
def _engine_event(h: Records, i: int) -> None:
    e, told = engine_of(h, i), view(h.told, h.told_n, SMALL)
    now_s, prompt_tokens = e.ends_s, e.prompt_tokens
    finish_event(h, i)
    if prompt_tokens > 0:
        computed(h, i, prompt_tokens)
    for at in range(h.told_first):
        _first(h, told[at])
    for at in range(h.told_done):
        _done(h, told[h.told_n - 1 - at], now_s)
    plan(h, i, now_s, h.exact)
    rekey(h, i)
    set_due(h, i, e.ends_s)


@compiled
def _first(h: Records, slot: int) -> None:
    """The first token of a sequence, or the first one where it was placed again."""
    s = sequence_of(h, slot)
    first, after = _to_compute(h, s)
    unwait(h, slot, s.worker, view(h.names, h.names_n, INT)[first:after])
    count_decode(h, s.worker, 1, 0.0)


@compiled
def _done(h: Records, slot: int, now_s: float) -> None:
    """A sequence has its last token, or its last one here."""
    s = sequence_of(h, slot)
    count_decode(h, s.worker, -1, 0.0)
    if s.decode_on >= 0 and s.worker != s.decode_on and s.output > s.emitted:
        s.state = BROUGHT
        begin_move(h, handed_over_s(h, slot, now_s), slot)
        s.worker = s.decode_on
        return
    if s.decode_on >= 0 and s.worker != s.decode_on:  # it was promised there, for nothing
        count_decode(h, s.decode_on, -1, 0.0)
    count_answer(h, s.output)
    confirm(view(h.workers, h.workers_n, WORKER)[s.placed_on], s.claimed, s.cached)
    attend(h, _attends(s), -s.prompt)
    give_back(view(h.names, h.names_n, INT), view(h.names_spare, h.names_spare_n, INT), s.names, s.names_class)
    r = view(h.results, h.results_n, RESULT)[h.results_end]
    h.results_end += 1
    r.request, r.at_s, r.admitted_s, r.first_s, r.done_s = s.request, s.at_s, s.admitted_s, s.first_s, now_s
    r.predicted_s, r.predicted_cached = s.predicted_s, s.predicted_cached
    r.prompt, r.output, r.cached = s.prompt, s.output, s.cached
    r.brought = min(s.brought * h.block, s.cached)
    r.worker, r.decode_on = s.placed_on, s.decode_on
    view(h.slots, h.slots_n, SMALL)[h.slots_spare] = slot
    h.slots_spare += 1
    if h.afters_n > 0:
        _let_go_on(h, s.request - h.base, now_s)


@compiled
def _let_go_on(h: Records, number: int, now_s: float) -> None:
    """An arrival is done: who waited for it alone arrives after a while."""
    afters, followers = view(h.afters, h.afters_n, AFTER), view(h.followers, h.followers_n, INT)
    first = afters[number].first
    for at in range(first, first + afters[number].count):
        after = afters[followers[at]]
        after.pending -= 1
        if after.pending == 0:
            begin_move(h, now_s + after.delay_s, -1 - followers[at])


@compiled
def _chance(number: int) -> float:
    """A number of [0, 1) drawn from a number, so that a replay draws the same."""
    return float((print_of(number) >> 11) & ((1 << 53) - 1)) / float(1 << 53)


@compiled
def _hear(h: Records, now_s: float) -> None:
    """What changed in the pools long enough ago reaches the index."""
    if not h.uses_index:
        h.log_read = h.log_end = 0
        return
    names, changes = view(h.log_name, h.log_name_n, INT), view(h.log_change, h.log_change_n, SMALL)
    at_s, at = view(h.log_at_s, h.log_at_s_n, FLOAT), h.log_read
    while at < h.log_end and at_s[at] + h.lag_s <= now_s:
        h.heard += 1
        if abs(changes[at]) > h.engines_n or (h.loss > 0.0 and _chance(h.heard) < h.loss):
            at += 1  # of a tier, or lost
            continue
        if changes[at] > 0:
            store_one(h, changes[at] - 1, names[at])
        else:
            drop_one(h, -changes[at] - 1, names[at])
        at += 1
    if at == h.log_end:
        at = h.log_end = 0
    h.log_read = at


@compiled
def price_context(hubs: Records) -> None:
    """What a step takes longer for each token attended to, by the engines' paces: the router's prices have no such part
    where they come from data sheets."""
    h = hubs[0]
    workers = view(h.workers, h.workers_n, WORKER)
    for i in range(h.engines_n):
        pace = engine_of(h, i).pace
        one_s, more_s = step_s(h, pace, 0.0, 0.0, 1.0, 8192.0), step_s(h, pace, 0.0, 0.0, 1.0, 16384.0)
        workers[i].per_context_s = max(0.0, more_s - one_s) / 8192.0


@compiled
def change_pace(hubs: Records, i: int, pace: int, now_s: float) -> None:
    """Engine `i` goes on at another pace after the iteration under way."""
    h = hubs[0]
    e = engine_of(h, i)
    e.pace = pace
    cut_off(e, now_s)
    rekey(h, i)
    set_due(h, i, e.ends_s)


@compiled
def fail(hubs: Records, i: int, now_s: float) -> bool:
    """Engine `i` ends: what it held is gone, what it ran is placed again and computed anew, with the tokens it had.

    It is marked as not up already. Returns whether there was a worker for all it had.
    """
    h = hubs[0]
    h.now_s = now_s
    engine_of(h, i).up = 0
    slot = end(h, i, now_s)
    set_due(h, i, np.inf)
    forget(h, engine_of(h, i).pool)
    while slot >= 0:
        after = sequence_of(h, slot).after
        if not _place_again(h, slot):
            return False
        slot = after
    return True


@compiled
def _place_again(h: Records, slot: int) -> bool:
    """The worker of a sequence is gone: take it out of the book, and place what it has so far. See `_arrival`."""
    s = sequence_of(h, slot)
    names = view(h.names, h.names_n, INT)
    if s.is_running or s.state == BROUGHT:
        count_decode(h, s.worker, -1, 0.0)
    else:
        first, after = _to_compute(h, s)
        unwait(h, slot, s.worker, names[first:after])
        if s.decode_on >= 0:
            count_decode(h, s.decode_on, -1, 0.0)
    attend(h, _attends(s), -s.prompt)
    s.target = s.prompt + s.emitted
    reusable = names[s.names : s.names + min(s.named, (s.prompt - 1) // h.block)]
    worker, decode_on, _, cached, depth = _place(h, reusable, s.target)
    if worker < 0:
        return False
    s.decode_on, s.is_running, s.state, s.computed, s.brought = decode_on, 0, 0, 0, 0
    _book(h, slot, worker, cached, depth)
    return True
