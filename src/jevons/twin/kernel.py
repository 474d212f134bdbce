"""The event loop of the twin: arrivals, engines, KV events, in the order of simulated time.

    arrivals ──▶ place (the router's kernels) ──▶ engine ──▶ told: first token, done ──▶ the router's book
                                                    └──▶ log: blocks stored and removed ──(lag)──▶ the router's index

Whose event is next is kept in a tournament over the engines, so an event costs the logarithm of their number. The loop
returns to Python when arrays must grow, when it needs more arrivals, when results fill up, or at the time it was told.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Records, compiled
from jevons.base.hub import view
from jevons.control.board import WORKER, rekey
from jevons.control.choice import want
from jevons.control.queues import attend, computed, count_answer, count_arrival, count_decode
from jevons.kv.cache import forget, has_room
from jevons.kv.entries import room
from jevons.perf.pace import step_s
from jevons.policy.belief import confirm
from jevons.twin.engine import arrive, end, finish_event, plan
from jevons.twin.handover import handed_over_s
from jevons.twin.hearing import can_withhold, hear, unheard
from jevons.twin.jumps import cut_off
from jevons.twin.placing import attends, book, count_first, place_again, place_sequence
from jevons.twin.schedule import begin_move, end_move, set_due, soonest
from jevons.twin.segments import room_left
from jevons.twin.sequences import BROUGHT, COMING, engine_of, forget_stems, keep_stems, sequence_of
from jevons.twin.tier import came

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
        # What a run does not change
        "exact": 0,
        "uses_index": 1,
        "has_tiers": 0,
        "trace_block": 512,  # tokens behind an id of an arrival
        "block": 64,  # tokens of a block
        "margin": 0,  # blocks that one event may add at most
        "tables_margin": 0,  # places in tables that one event may cut at most
    }
    return arrays, numbers


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
        and (not h.uses_index or (room(h) >= unheard(h) + margin and can_withhold(h, margin)))
        and h.log_name_n - h.log_end >= 2 * margin
        and room_left(h.stems_n, view(h.stems_spare, h.stems_spare_n, INT)) >= 2 * margin
        and room_left(h.tables_n, view(h.tables_spare, h.tables_spare_n, INT)) >= h.tables_margin
        and (h.slots_spare > 0 or h.slots_used < h.sequences_n)
    )


@compiled
def _arrival(h: Records, number: int) -> bool:
    """Returns whether there was a worker for it."""
    count_arrival(h, h.now_s)
    arrival = view(h.arrivals, h.arrivals_n, ARRIVAL)[number]
    hear(h, h.now_s)
    slot = _new_slot(h)
    s = sequence_of(h, slot)
    s.request, s.at_s, s.prompt, s.output = h.base + number, h.now_s, arrival.prompt, arrival.output
    s.cached, s.computed, s.emitted, s.target = -1, 0, 0, arrival.prompt
    s.blocks = s.sealed = s.chunk = s.is_running = s.state = s.brought = 0
    keep_stems(h, s, arrival.ids, _named(h, arrival))
    worker, s.decode_on, s.predicted_s, s.predicted_cached, depth = place_sequence(h, s)
    if worker < 0:
        return False
    want(h)
    s.placed_on, s.claimed = worker, depth * h.block
    book(h, slot, worker, s.predicted_cached, depth)
    return True


@compiled
def _new_slot(h: Records) -> int:
    """For a sequence: one of one that is done, or one never used."""
    if h.slots_spare > 0:
        h.slots_spare -= 1
        return int(view(h.slots, h.slots_n, SMALL)[h.slots_spare])
    h.slots_used += 1
    return int(h.slots_used - 1)


@compiled
def _named(h: Records, arrival: Records) -> int:
    """Full blocks of a prompt that have names, and of its answer where the ids reach so far."""
    tokens, known = arrival.prompt, arrival.count * h.trace_block
    if known >= arrival.prompt + h.trace_block:
        tokens += arrival.output
    return int(min(tokens // h.block, known // h.block))


@compiled
def _moved(h: Records, slot: int) -> bool:
    """The KV of a prompt is on the engine that goes on; if that has ended, somebody computes it anew."""
    worker = sequence_of(h, slot).worker
    if not engine_of(h, worker).up:
        return place_again(h, slot)
    if sequence_of(h, slot).state == COMING:
        came(h, slot)
    arrive(h, worker, slot, h.now_s)
    set_due(h, worker, engine_of(h, worker).ends_s)
    return True


@compiled
def _engine_event(h: Records, i: int) -> None:
    e, told = engine_of(h, i), view(h.told, h.told_n, SMALL)
    now_s, prompt_tokens = e.ends_s, e.prompt_tokens
    finish_event(h, i)
    if prompt_tokens > 0:
        computed(h, i, prompt_tokens)
    if h.told_first > 0:
        hear(h, now_s)  # what is stored before it is promised no more keeps its entries
    for at in range(h.told_first):
        count_first(h, told[at])
    for at in range(h.told_done):
        _done(h, told[h.told_n - 1 - at], now_s)
    plan(h, i, now_s, h.exact)
    rekey(h, i)
    set_due(h, i, e.ends_s)


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
    attend(h, attends(s), -s.prompt)
    forget_stems(h, s)
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
        if not place_again(h, slot):
            return False
        slot = after
    return True
