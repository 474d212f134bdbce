"""Kernels of the router's book: what waits and runs on each worker, who has least to do, and who may take a prompt.

    gather ──▶ candidates ──▶ conclude (policy.route, policy.disagg) ──▶ placed
    placed ──wait──▶ waiting: its prompt counts against the worker ──first──▶ running ──done──▶ gone
                       └── computed: a step's tokens come off the oldest first

The workers of one kind are the leaves of a tournament: each node knows the least key below it, so who has least to do
is found, and kept, in the logarithm of their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Ints, Records, compiled
from jevons.base.hub import Hub, view
from jevons.kv.entries import print_of
from jevons.kv.holders import promise, settle
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
    TIE_S,
    Weights,
    choose,
    first_token_s,
    own_s,
    prompt_context,
    stream_weight,
    token_s,
)

WORKER = np.dtype(
    [
        ("per_step_s", np.float64),  # up to `whole` see CANDIDATE
        ("per_token_s", np.float64),
        ("per_token_context_s", np.float64),
        ("per_decode_s", np.float64),
        ("step_tokens", np.float64),
        ("queued_tokens", np.float64),
        ("queued_context", np.float64),
        ("near_s", np.float64),
        ("near_token_s", np.float64),
        ("far_s", np.float64),
        ("far_token_s", np.float64),
        ("promised", np.float64),
        ("per_context_s", np.float64),  # 0: not told, see `_context_s`
        ("context", np.float64),
        ("prompts_s", np.float64),  # seconds of prompts placed in about the last ARRIVALS_S before the one at
        ("prompts_at_s", np.float64),
        ("claimed", np.float64),  # see policy.belief
        ("confirmed", np.float64),
        ("decoding", np.int32),
        ("requests", np.int32),
        ("node", np.int32),
        ("takes", np.int32),
        ("whole", np.int32),
        ("up", np.int32),  # 1: may be given work
        ("kind", np.int32),  # -1: nobody has this number
        ("leaf", np.int32),
        ("oldest", np.int32),  # of what waits
        ("newest", np.int32),
        ("holder", np.int32),  # its number in the index
        ("unused", np.int32),
    ]
)
WAIT = np.dtype(
    [
        ("tokens", np.float64),
        ("context", np.float64),
        ("older", np.int32),
        ("newer", np.int32),
    ]
)
# How many wanted what ends with a block, in about the last ARRIVALS_S before the one at.
WANTED = np.dtype([("block", np.int64), ("requests", np.float64), ("at_s", np.float64)])
_WANTED = 1 << 14  # blocks that are counted: of two that share a place, the one that is wanted
# Workers of a kind are alike: what they serve, whether they compute prompts alone, how long their blocks are.
KIND = np.dtype(
    [
        ("root", np.int64),  # of its tournament
        ("leaves", np.int64),
        ("up_first", np.int32),  # where those that are up begin in `up`, and how many
        ("up_count", np.int32),
        ("model", np.int32),
        ("apart", np.int32),
        ("block_size", np.int32),
        ("unused", np.int32),
    ]
)

WHOLE, APART = (
    0,
    1,
)  # desks: who may do all of a request or what follows its first token, and who computes prompts alone
ANY = -1  # model
LISTED = 32  # of those that share what a prompt begins with, so many are looked at: all, in a small fleet
LOOKED_AT = 8  # of those with least to do, of each kind; besides all that hold something of the prompt
ARRIVALS_S = 30.0  # over which the rate of arrivals is taken, and of their prompts' seconds
ANSWERS_FADE = 0.98  # weight of the past after one more answer, or prompt: the last 50 say how long one is
GUESS_PROMPT_TOKENS = 2_048  # before the first one
_HELD_SCALE = float(1 << 40)  # blocks held decide between equal keys only


def board_arrays(kinds: Records, workers: Records, waits: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: a book of workers without work; `seat` them before it is used. The hub has `kv.holders`' index too.

    Args:
        kinds: KIND, with model, apart and block_size set.
        workers: WORKER, with kind, prices, step_tokens, takes, whole and holder set, and up.
        waits: requests that may be under way at once.
    """
    workers["oldest"] = workers["newest"] = -1
    arrays = {
        "workers": workers,
        "waits": np.zeros(waits, WAIT),
        "kinds": kinds,
        "tree": np.zeros(0),  # of each kind a tournament: nodes root + 1 to root + 2 * leaves - 1
        "member": np.zeros(0, np.int32),  # who stands at each node that is a leaf
        "up": np.zeros(len(workers), np.int32),  # workers that may be given work, kind by kind, by number
        "wanted": np.zeros(_WANTED, WANTED),
        "keys": np.zeros(LOOKED_AT),  # to work in, like all that follow
        "leaves": np.zeros(LOOKED_AT, np.int64),
        "least": np.zeros(LOOKED_AT, np.int32),
        "found": np.zeros(2 * LISTED, np.int32),
        "depths": np.zeros(2 * LISTED, np.int32),
        "candidates": np.zeros(0, CANDIDATE),  # two desks of them
        "mark": np.full(len(workers), -1, np.int64),  # the last look at candidates a worker was one of
    }
    numbers: dict[str, int | float] = {
        "turn": 0,
        "looks": 0,
        "policy": 0,
        "desk": 0,
        "stream_weight": stream_weight(),
        "tpot_slo_s": float("inf"),  # promised to the request to be placed
        "output_tokens": float("inf"),  # it has at most
        "answers": 1.0,  # of late, and their tokens
        "answer_tokens": float(GUESS_OUTPUT_TOKENS),
        "prompts": 1.0,  # of late, their tokens, and those that were there
        "prompt_tokens": float(GUESS_PROMPT_TOKENS),
        "reused_tokens": 0.0,
        "ends": 0,  # the last block of the prompt to be placed that a candidate has, and how deep it lies
        "ends_depth": 0,
        "is_copy": 0,  # 1: the request last concluded on was put where its prefix is not, on purpose
        "crowd": 0.0,  # arrivals in about the last ARRIVALS_S before the one at
        "arrived_s": 0.0,
    }
    return arrays, numbers


def seat(hub: Hub) -> None:
    """Every worker has its place in the tournament of its kind. For when workers or kinds were added; O(workers)."""
    kinds, of = hub["kinds"], hub["workers"]["kind"]
    counts = np.bincount(of[of >= 0], minlength=len(kinds))
    leaves = [1 << max(0, int(count) - 1).bit_length() for count in counts]
    kinds["leaves"] = leaves
    kinds["root"] = np.cumsum([0, *(2 * n for n in leaves)])[:-1]
    hub.put("tree", np.full(2 * sum(leaves), np.inf))
    hub.put("member", np.full(2 * sum(leaves), -1, np.int32))
    desk = (2 * LISTED + LOOKED_AT) * len(kinds) + 1  # one may be put besides
    if hub.number("desk") < desk:
        hub.set("desk", desk)
        hub.put("candidates", np.zeros(2 * desk, CANDIDATE))
    take_seats(hub.record)


@compiled
def take_seats(hubs: Records) -> None:
    h = hubs[0]
    workers, member = view(h.workers, h.workers_n, WORKER), view(h.member, h.member_n, SMALL)
    kinds = view(h.kinds, h.kinds_n, KIND)
    for kind in range(h.kinds_n):
        kinds[kind].up_count = 0
    for worker in range(h.workers_n):
        w = workers[worker]
        if w.kind >= 0:
            kind = kinds[w.kind]
            w.leaf = kind.root + kind.leaves + kind.up_count
            kind.up_count += 1
            member[w.leaf] = worker
            rekey(h, worker)
    _list_up(h)


@compiled
def _list_up(h: Records) -> None:
    """Who is up, kind by kind. Costs O(workers)."""
    workers, kinds = view(h.workers, h.workers_n, WORKER), view(h.kinds, h.kinds_n, KIND)
    list_up, first = view(h.up, h.up_n, SMALL), 0
    for kind in range(h.kinds_n):
        kinds[kind].up_count = 0
    for worker in range(h.workers_n):
        if workers[worker].kind >= 0 and workers[worker].up:
            kinds[workers[worker].kind].up_count += 1
    for kind in range(h.kinds_n):
        kinds[kind].up_first = first
        first += kinds[kind].up_count
        kinds[kind].up_count = 0
    for worker in range(h.workers_n):
        if workers[worker].kind >= 0 and workers[worker].up:
            kind = kinds[workers[worker].kind]
            list_up[kind.up_first + kind.up_count] = worker
            kind.up_count += 1


@compiled
def set_up(hubs: Records, worker: int, up: bool) -> None:
    """`worker` may be given work from now on, or may not. Costs O(workers)."""
    h = hubs[0]
    view(h.workers, h.workers_n, WORKER)[worker].up = up
    _list_up(h)
    rekey(h, worker)


@compiled
def set_all_up(hubs: Records, those: Ints, up: bool) -> None:
    """As `set_up` for many. Costs O(workers) once."""
    h = hubs[0]
    workers = view(h.workers, h.workers_n, WORKER)
    for worker in those:
        workers[worker].up = up
        rekey(h, worker)
    _list_up(h)


# Who has least to do


@compiled
def busy_key(worker: Records, held: int, policy: int) -> float:
    """The less, the sooner a worker is looked at: seconds of queue to within a tie, then requests, then blocks held."""
    if worker.up == 0:
        return np.inf
    if policy == LEAST_LOADED:
        return float(worker.requests + worker.queued_tokens / _HELD_SCALE)
    seconds = (
        worker.per_step_s
        + worker.queued_tokens * worker.per_token_s
        + worker.queued_context * worker.per_token_context_s
        + worker.decoding * worker.per_decode_s
    )
    return float(np.floor(seconds / TIE_S) + min(worker.requests, 1023) / 1024.0 + held / _HELD_SCALE)


@compiled
def rekey(h: Records, worker: int) -> None:
    """Something changed on `worker`."""
    if h.policy != KV and h.policy != LEAST_LOADED:
        return
    w = view(h.workers, h.workers_n, WORKER)[worker]
    _set(h, w.kind, w.leaf, busy_key(w, view(h.held, h.held_n, INT)[w.holder], h.policy))


@compiled
def _set(h: Records, kind: int, leaf: int, key: float) -> None:
    tree, root = view(h.tree, h.tree_n, FLOAT), view(h.kinds, h.kinds_n, KIND)[kind].root
    tree[leaf] = key
    node = (leaf - root) >> 1
    while node >= 1:
        left, right = tree[root + 2 * node], tree[root + 2 * node + 1]
        least_key = left if left <= right else right
        if tree[root + node] == least_key:
            break
        tree[root + node] = least_key
        node >>= 1


@compiled
def least(h: Records, kind: int) -> int:
    """The leaf of the worker of a kind with the least key, the first of equals; -1: none is up."""
    tree, k = view(h.tree, h.tree_n, FLOAT), view(h.kinds, h.kinds_n, KIND)[kind]
    root, node = k.root, 1
    if tree[root + 1] == np.inf:
        return -1
    while node < k.leaves:
        node = 2 * node if tree[root + 2 * node] <= tree[root + 2 * node + 1] else 2 * node + 1
    return int(root + node)


@compiled
def least_busy(h: Records, kind: int) -> int:
    """The up to LOOKED_AT workers of a kind with the least keys, into `least`. Returns how many."""
    keys, leaves = view(h.keys, h.keys_n, FLOAT), view(h.leaves, h.leaves_n, INT)
    tree, member, those = (
        view(h.tree, h.tree_n, FLOAT),
        view(h.member, h.member_n, SMALL),
        view(h.least, h.least_n, SMALL),
    )
    count = 0
    while count < LOOKED_AT:
        leaf = least(h, kind)
        if leaf < 0:
            break
        keys[count], leaves[count], those[count] = tree[leaf], leaf, member[leaf]
        count += 1
        _set(h, kind, leaf, np.inf)
    for i in range(count):
        _set(h, kind, leaves[i], keys[i])
    return count


# What waits and runs


@compiled
def wait(h: Records, request: int, worker: int, prompt_tokens: float, cached_tokens: float, names: Ints) -> None:
    """`request` waits for its prompt to be computed on `worker`.

    Args:
        names: of the blocks of its prompt that are not there and not to come yet: those it will compute.
    """
    waits, w = view(h.waits, h.waits_n, WAIT), view(h.workers, h.workers_n, WORKER)[worker]
    own = waits[request]
    own.tokens = max(prompt_tokens - cached_tokens, 1.0)
    own.context = prompt_context(prompt_tokens, own.tokens)
    own.older, own.newer = w.newest, -1
    if w.newest >= 0:
        waits[w.newest].newer = request
    else:
        w.oldest = request
    w.newest = request
    w.queued_tokens += own.tokens
    w.queued_context += own.context
    w.requests += 1
    w.prompts_s = faded(w.prompts_s, w.prompts_at_s, h.arrived_s) + own_s(w, prompt_tokens, own.tokens)
    w.prompts_at_s = h.arrived_s
    _count_prompt(h, prompt_tokens, min(cached_tokens, prompt_tokens - 1.0))
    promise(h, w.holder, names)
    rekey(h, worker)


@compiled
def _count_prompt(h: Records, tokens: float, reused: float) -> None:
    """A prompt of so many tokens was placed, of which some are there."""
    h.prompts = h.prompts * ANSWERS_FADE + 1.0
    h.prompt_tokens = h.prompt_tokens * ANSWERS_FADE + tokens
    h.reused_tokens = h.reused_tokens * ANSWERS_FADE + reused


@compiled
def unwait(h: Records, request: int, worker: int, names: Ints) -> None:
    """The prompt of `request` is computed, or will not be. `names` are those that `wait` was given."""
    waits, w = view(h.waits, h.waits_n, WAIT), view(h.workers, h.workers_n, WORKER)[worker]
    own = waits[request]
    if own.older >= 0:
        waits[own.older].newer = own.newer
    else:
        w.oldest = own.newer
    if own.newer >= 0:
        waits[own.newer].older = own.older
    else:
        w.newest = own.older
    w.requests -= 1
    if w.oldest < 0:  # rounding must not pile up
        w.queued_tokens = w.queued_context = 0.0
    else:
        w.queued_tokens = max(0.0, w.queued_tokens - own.tokens)
        w.queued_context = max(0.0, w.queued_context - own.context)
    settle(h, w.holder, names)
    rekey(h, worker)


@compiled
def count_decode(h: Records, worker: int, change: int, promised: float) -> None:
    """A sequence begins (1) or ends (-1) to run on `worker` past its first token, or to be promised for after it.

    Args:
        promised: usual streams that it counts for besides, by what it is promised.
    """
    w = view(h.workers, h.workers_n, WORKER)[worker]
    w.decoding += change
    w.requests += change
    w.promised = max(0.0, w.promised + change * promised) if w.decoding > 0 else 0.0  # rounding must not pile up
    rekey(h, worker)


@compiled
def attend(h: Records, worker: int, tokens: float) -> None:
    """Something that attends to so many tokens is placed on `worker`; or is finished, of which they are taken off."""
    w = view(h.workers, h.workers_n, WORKER)[worker]
    w.context = max(0.0, w.context + tokens)


@compiled
def count_answer(h: Records, tokens: int) -> None:
    """An answer of so many tokens has come to its end."""
    h.answers = h.answers * ANSWERS_FADE + 1.0
    h.answer_tokens = h.answer_tokens * ANSWERS_FADE + tokens


@compiled
def faded(sum_s: float, at_s: float, now_s: float) -> float:
    """What is left of a sum as of `at_s`."""
    return float(sum_s * np.exp(min(0.0, at_s - now_s) / ARRIVALS_S))


@compiled
def promise_again(h: Records, worker: int, names: Ints) -> None:
    """`worker` has lost all it held; what waits there will still compute these blocks."""
    promise(h, view(h.workers, h.workers_n, WORKER)[worker].holder, names)


@compiled
def computed(h: Records, worker: int, tokens: float) -> None:
    """That many prompt tokens were computed: they come off the oldest that wait, all but the last token of each (which
    its own first token takes off)."""
    waits, w = view(h.waits, h.waits_n, WAIT), view(h.workers, h.workers_n, WORKER)[worker]
    request = w.oldest
    while request >= 0 and tokens > 0.0:
        own = waits[request]
        done = min(tokens, own.tokens - 1.0)
        if done > 0.0:
            context = own.context * (done / own.tokens)
            own.tokens -= done
            own.context -= context
            w.queued_tokens = max(0.0, w.queued_tokens - done)
            w.queued_context = max(0.0, w.queued_context - context)
            tokens -= done
        request = own.newer
    rekey(h, worker)


# Who takes it


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
def count_arrival(h: Records, now_s: float) -> None:
    """A request has arrived."""
    h.crowd = faded(h.crowd, h.arrived_s, now_s) + 1.0
    h.arrived_s = max(h.arrived_s, now_s)


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
    return int(print_of(block) & (_WANTED - 1))


@compiled
def _choose(h: Records, candidates: Records, prompt_tokens: int) -> int:
    """One for all of a request: where it is cheapest, or where those after it gain more."""
    weights = _weights(h, WHOLE)
    chosen = choose(candidates, prompt_tokens, weights)
    if chosen < 0 or h.policy != KV:
        return chosen
    copy = where_to_copy(candidates, chosen, prompt_tokens, weights, wanted(h))
    h.is_copy = copy >= 0
    return copy if copy >= 0 else chosen


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
        return choose(others, prompt_tokens, _weights(h, APART)), -1
    if h.policy == KV:
        return choose_apart(ones, others, prompt_tokens, _weights(h, WHOLE), _weights(h, APART))
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


def kinds_of(rows: Sequence[tuple[int, bool, int]]) -> Records:
    """KIND of each (model, computes prompts alone, block size)."""
    kinds = np.zeros(len(rows), KIND)
    for kind, (model, apart, block_size) in zip(kinds, rows, strict=True):
        kind["model"], kind["apart"], kind["block_size"] = model, apart, block_size
    return kinds
