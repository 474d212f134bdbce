"""Kernels between sequences and the router: where a sequence goes, and what the book says of it from then on."""

from __future__ import annotations

from jevons.base.compiled import INT, Ints, Records, compiled
from jevons.base.hub import view
from jevons.control.board import ANY, APART, WHOLE
from jevons.control.choice import conclude, gather, place
from jevons.control.queues import attend, count_decode, unwait, wait
from jevons.policy.route import CANDIDATE, KV
from jevons.twin.engine import arrive
from jevons.twin.schedule import begin_move, set_due
from jevons.twin.sequences import BROUGHT, engine_of, sequence_of, spell
from jevons.twin.tier import add_tiers, coming_s


@compiled
def _to_compute(h: Records, s: Records) -> tuple[int, int]:
    """The blocks, first and end, that its worker was to compute when `s` was placed. Their names are in `scratch`."""
    first = min(s.predicted_depth, s.named)
    end = max(first, min(s.named, s.prompt // h.block))
    spell(h, s, first, end)
    return first, end


@compiled
def attends(s: Records) -> int:
    """Who draws the tokens of a sequence after its first."""
    return int(s.decode_on if s.decode_on >= 0 else s.worker)


@compiled
def book(h: Records, slot: int, worker: int, cached: int, depth: int) -> None:
    """`slot` was placed on `worker`, which has the first `depth` blocks: the book and the engine know it."""
    s = sequence_of(h, slot)
    s.worker, s.predicted_depth = worker, depth if h.uses_index else s.named
    first, after = _to_compute(h, s)
    wait(h, slot, worker, s.target, cached, view(h.scratch, h.scratch_n, INT)[first:after])
    attend(h, attends(s), s.prompt)
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
    """See `choice.place`."""
    whole, apart = gather(h, WHOLE, 0, names, ANY, h.block), gather(h, APART, 0, names, ANY, h.block)
    add_tiers(h, WHOLE, whole, names)
    add_tiers(h, APART, apart, names)
    return conclude(h, prompt, whole, apart)


@compiled
def place_sequence(h: Records, s: Records) -> tuple[int, int, float, int, int]:
    """Of a sequence the worker, who goes on after the first token (-1: the same), predicted seconds, cached tokens,
    blocks there."""
    names = view(h.scratch, h.scratch_n, INT)[: min(s.named, (s.prompt - 1) // h.block)]
    spell(h, s, 0, len(names))
    if h.has_tiers and h.policy == KV:
        there, chosen = _place_by_tiers(h, names, s.target)
    else:
        there, chosen = place(h, names, s.target, h.block)
    if chosen < 0:  # nobody to go on: who computes prompts alone is of no use
        return -1, -1, 0.0, 0, 0
    candidates = view(h.candidates, h.candidates_n, CANDIDATE)
    c, decode_on = candidates[chosen], -1
    if there >= 0:
        c, decode_on = candidates[APART * h.desk + there], c.worker
    return c.worker, decode_on, c.seconds, c.cached, c.depth


@compiled
def count_first(h: Records, slot: int) -> None:
    """The first token of a sequence, or the first one where it was placed again."""
    s = sequence_of(h, slot)
    first, after = _to_compute(h, s)
    unwait(h, slot, s.worker, view(h.scratch, h.scratch_n, INT)[first:after])
    count_decode(h, s.worker, 1, 0.0)


@compiled
def place_again(h: Records, slot: int) -> bool:
    """The worker of a sequence is gone: take it out of the book, and place what it has so far. See `_arrival`."""
    s = sequence_of(h, slot)
    if s.is_running or s.state == BROUGHT:
        count_decode(h, s.worker, -1, 0.0)
    else:
        first, after = _to_compute(h, s)
        unwait(h, slot, s.worker, view(h.scratch, h.scratch_n, INT)[first:after])
        if s.decode_on >= 0:
            count_decode(h, s.decode_on, -1, 0.0)
    attend(h, attends(s), -s.prompt)
    s.target = s.prompt + s.emitted
    worker, decode_on, _, cached, depth = place_sequence(h, s)
    if worker < 0:
        return False
    s.decode_on, s.is_running, s.state, s.computed, s.brought = decode_on, 0, 0, 0, 0
    book(h, slot, worker, cached, depth)
    return True
