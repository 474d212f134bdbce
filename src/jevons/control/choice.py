"""Kernels of the router's book: who may take a prompt, and who does.

    gather ──▶ candidates ──▶ conclude (policy.route, policy.disagg) ──▶ placed

See `control.board`, which has the arrays.
"""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Ints, Records, compiled
from jevons.base.hub import view
from jevons.control.board import (
    ANY,
    APART,
    ARRIVALS_S,
    KIND,
    LISTED,
    WANTED,
    WANTED_PLACES,
    WHOLE,
    WORKER,
    least,
    least_busy,
)
from jevons.control.queues import faded
from jevons.kv.entries import print_of
from jevons.kv.overlaps import depth_on, overlaps
from jevons.policy.belief import confidence
from jevons.policy.disagg import choose_apart
from jevons.policy.replicate import where_to_copy
from jevons.policy.route import (
    CANDIDATE,
    GUESS_OUTPUT_TOKENS,
    KV,
    LEAST_LOADED,
    ROUND_ROBIN,
    Limits,
    Weights,
    choose,
    first_token_s,
    in_time,
    token_s,
)


@compiled
def gather(h: Records, desk: int, count: int, names: Ints, model: int, block_size: int) -> int:
    """Add candidates for a prompt to the `count` that are on a desk. Returns how many there are then.

    They are those that hold, or will hold, something of the prompt (see `kv.overlaps.overlaps`), and of each kind those
    with least to do.

    Args:
        names: of the prompt's blocks that can be reused, of this size.
        model: what they serve; ANY.
    """
    found, depths = view(h.found, h.found_n, SMALL), view(h.depths, h.depths_n, SMALL)
    workers, kinds, mark = (
        view(h.workers, h.workers_n, WORKER),
        view(h.kinds, h.kinds_n, KIND),
        view(h.mark, h.mark_n, INT),
    )
    whose = view(h.whose, h.whose_n, SMALL)
    h.looks += 1
    if desk == WHOLE and count == 0:
        h.ends_depth = 0
    holding = overlaps(h, names, found, depths, LISTED)
    for i in range(holding):
        if depths[i] > h.ends_depth:
            h.ends, h.ends_depth = names[depths[i] - 1], depths[i]
        worker = whose[found[i]]
        if worker < 0 or not workers[worker].up or mark[worker] == h.looks:
            continue
        if _serves(kinds[workers[worker].kind], desk, model, block_size):
            count = _put(h, desk, count, worker, depths[i])
    for kind in range(h.kinds_n):
        if _serves(kinds[kind], desk, model, block_size):
            for i in range(least_busy(h, kind)):
                worker = view(h.least, h.least_n, SMALL)[i]
                if mark[worker] != h.looks:
                    depth = depth_on(h, workers[worker].holder, names) if holding > LISTED else 0
                    count = _put(h, desk, count, worker, depth)
    return count


@compiled
def pick(h: Records, desk: int, model: int) -> int:
    """Who takes it by the policies that know of no blocks; -1: nobody is up."""
    kinds, up_count = view(h.kinds, h.kinds_n, KIND), 0
    if h.policy == LEAST_LOADED:
        best, tree = -1, view(h.tree, h.tree_n, FLOAT)
        for kind in range(h.kinds_n):
            leaf = least(h, kind) if _serves(kinds[kind], desk, model, ANY) else -1
            if leaf >= 0 and (best < 0 or tree[leaf] < tree[best]):
                best = leaf
        return -1 if best < 0 else int(view(h.member, h.member_n, SMALL)[best])
    for kind in range(h.kinds_n):
        if _serves(kinds[kind], desk, model, ANY):
            up_count += kinds[kind].up_count
    if up_count == 0:
        return -1
    at = h.turn % up_count if h.policy == ROUND_ROBIN else drawn(h.turn, up_count)
    for kind in range(h.kinds_n):
        if _serves(kinds[kind], desk, model, ANY):
            if at < kinds[kind].up_count:
                return int(view(h.up, h.up_n, SMALL)[kinds[kind].up_first + at])
            at -= kinds[kind].up_count
    return -1


@compiled
def _serves(kind: Records, desk: int, model: int, block_size: int) -> bool:
    return bool(
        kind.apart == desk
        and (model == ANY or kind.model == model)
        and (block_size == ANY or kind.block_size == block_size)
    )


@compiled
def drawn(turn: int, count: int) -> int:
    """One of so many, drawn from the turn number alone (splitmix64), so a replay draws the same."""
    bits = print_of(turn)  # a number without sign, of which `high` are all but the last bit
    high = (bits >> 1) & ((1 << 63) - 1)
    return (high % count * 2 + (bits & 1)) % count


@compiled
def _put(h: Records, desk: int, count: int, worker: int, depth: int) -> int:
    """`worker`, which has `depth` blocks of the prompt, is the next candidate. Returns how many there are then."""
    c = view(h.candidates, h.candidates_n, CANDIDATE)[desk * h.desk + count]
    w = view(h.workers, h.workers_n, WORKER)[worker]
    c.per_step_s, c.per_token_s, c.per_token_context_s = w.per_step_s, w.per_token_s, w.per_token_context_s
    c.per_decode_s, c.step_tokens = w.per_decode_s, w.step_tokens
    c.queued_tokens, c.queued_context = w.queued_tokens, w.queued_context
    c.near_s, c.near_token_s, c.far_s, c.far_token_s = w.near_s, w.near_token_s, w.far_s, w.far_token_s
    c.decoding, c.requests, c.node, c.takes, c.whole = w.decoding, w.requests, w.node, w.takes, w.whole
    c.context, c.per_context_s = w.context, _context_s(h, w)
    c.promised, c.busy = w.promised, min(1.0, faded(w.prompts_s, w.prompts_at_s, h.arrived_s) / ARRIVALS_S)
    c.worker, c.depth, c.held = worker, depth, view(h.held, h.held_n, INT)[w.holder]
    c.block_size = view(h.kinds, h.kinds_n, KIND)[w.kind].block_size
    c.cached, c.bring_s = int(depth * confidence(w) + 0.5) * c.block_size, 0.0
    view(h.mark, h.mark_n, INT)[worker] = h.looks
    return count + 1


@compiled
def _context_s(h: Records, w: Records) -> float:
    """What a step takes longer for each token attended to. Where only a stream's share of it is known, that is for as
    many as prompts have by the mean."""
    if w.per_context_s > 0.0:
        return float(w.per_context_s)
    return float(w.per_decode_s * h.prompts / h.prompt_tokens)


@compiled
def put_also(h: Records, desk: int, count: int, worker: int) -> None:
    """`worker`, of which no blocks are known, is one more candidate on a desk that has so many."""
    _put(h, desk, count, worker, 0)


@compiled
def put_alone(h: Records, desk: int, worker: int, names: Ints) -> None:
    """`worker` was picked: it is the only candidate on a desk."""
    _put(h, desk, 0, worker, depth_on(h, view(h.workers, h.workers_n, WORKER)[worker].holder, names))


@compiled
def _weights(h: Records, desk: int) -> Weights:
    """Arrivals are shared by all workers of the desk that are up; answers are as long as they are by the mean, or as
    they may be; `stream_weight` is by a guess of that mean."""
    kinds, workers = view(h.kinds, h.kinds_n, KIND), 0
    for kind in range(h.kinds_n):
        workers += kinds[kind].up_count if kinds[kind].apart == desk else 0
    mean_tokens, token_weight = h.answer_tokens / h.answers, h.stream_weight * GUESS_OUTPUT_TOKENS
    arrivals_per_s = float(h.crowd / (ARRIVALS_S * max(workers, 1)))
    output_tokens = min(h.output_tokens, mean_tokens)
    reused_share = float(h.reused_tokens / h.prompt_tokens)
    return token_weight / mean_tokens, arrivals_per_s, h.tpot_slo_s, output_tokens, token_weight, reused_share


@compiled
def wanted(h: Records) -> float:
    """Requests of late that found what the one to be placed finds, and no more."""
    w = view(h.wanted, h.wanted_n, WANTED)[_place_of(h.ends)]
    return faded(w.requests, w.at_s, h.arrived_s) if h.ends_depth > 0 and w.block == h.ends else 0.0


@compiled
def want(h: Records) -> None:
    """The request just gathered for is placed: it counts for those after it."""
    w = view(h.wanted, h.wanted_n, WANTED)[_place_of(h.ends)]
    requests = faded(w.requests, w.at_s, h.arrived_s)
    if h.ends_depth == 0 or (w.block != h.ends and requests > 1.0):
        return
    w.requests = 1.0 + (requests if w.block == h.ends else 0.0)
    w.block, w.at_s = h.ends, h.arrived_s


@compiled
def _place_of(block: int) -> int:
    return int(print_of(block) & (WANTED_PLACES - 1))


@compiled
def _choose(h: Records, candidates: Records, prompt_tokens: int) -> int:
    """One for all of a request: where it is cheapest, or where those after it gain more, if it keeps its promise there
    too."""
    weights = _weights(h, WHOLE)
    chosen = choose(candidates, prompt_tokens, weights)
    if chosen < 0 or h.policy != KV:
        return chosen
    copy = where_to_copy(candidates, chosen, prompt_tokens, weights, wanted(h))
    h.is_copy = copy >= 0 and not candidates[chosen].seconds <= h.ttft_slo_s < candidates[copy].seconds
    return in_time(candidates, copy if h.is_copy else chosen, _limits(h))


@compiled
def _limits(h: Records) -> Limits:
    """What is promised to who would rather not be served than late."""
    return (h.ttft_slo_s, h.tpot_slo_s) if h.is_strict else (np.inf, np.inf)


@compiled
def conclude(h: Records, prompt_tokens: int, whole: int, apart: int) -> tuple[int, int]:
    """Choose among the first so many candidates of each desk.

    Returns:
        (-1, d): all of it on candidate d of desk WHOLE; (p, -1): of desk APART, there is nobody else; (p, d): its
        prompt on p, the rest on d; (-1, -1): there is nobody.
    """
    h.turn += 1
    h.is_copy = 0
    ones = view(h.candidates, h.candidates_n, CANDIDATE)[:whole]
    others = view(h.candidates, h.candidates_n, CANDIDATE)[h.desk : h.desk + apart]
    if apart == 0:
        return -1, _choose(h, ones, prompt_tokens)
    if whole == 0:
        return in_time(others, choose(others, prompt_tokens, _weights(h, APART)), _limits(h)), -1
    if h.policy == KV:
        return choose_apart(ones, others, prompt_tokens, (_weights(h, WHOLE), _weights(h, APART)), _limits(h))
    for c in (ones[0], others[0]):  # who knows no seconds always splits
        c.seconds, c.tpot_s = first_token_s(c, prompt_tokens), token_s(c)
    return 0, 0


@compiled
def place(h: Records, names: Ints, prompt_tokens: int, block_size: int) -> tuple[int, int]:
    """`gather` and `conclude`, where all workers serve the same and have blocks of one size."""
    if h.policy == KV:
        whole, apart = gather(h, WHOLE, 0, names, ANY, block_size), gather(h, APART, 0, names, ANY, block_size)
        return conclude(h, prompt_tokens, whole, apart)
    one, other = pick(h, WHOLE, ANY), pick(h, APART, ANY)
    if one >= 0:
        put_alone(h, WHOLE, one, names)
    if other >= 0:
        put_alone(h, APART, other, names)
    return conclude(h, prompt_tokens, int(one >= 0), int(other >= 0))
