"""Kernels of the router's book: what waits and runs on each worker, and who has least to do.

    place ──wait──▶ waiting: its prompt counts against the worker ──first──▶ running ──done──▶ gone
                       └── computed: a step's tokens come off the oldest first

The workers of one kind are the leaves of a tournament: each node knows the least key below it, so who has least to do
is found, and kept, in the logarithm of their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Ints, Records, compiled
from jevons.base.hub import view
from jevons.kv.holders import holds, overlaps, print_of

WORKER = np.dtype(
    [
        ("per_step_s", np.float64),
        ("per_token_s", np.float64),
        ("per_token_context_s", np.float64),
        ("per_decode_s", np.float64),
        ("step_tokens", np.float64),
        ("per_handover_s", np.float64),  # to be given the KV of a prompt computed elsewhere
        ("per_handed_token_s", np.float64),
        ("queued_tokens", np.float64),
        ("queued_context", np.float64),
        ("decoding", np.int32),  # running, and promised for after their first token elsewhere
        ("requests", np.int32),  # placed and not done
        ("up", np.int32),  # 1: may be given work
        ("whole", np.int32),  # 1: may compute prompts
        ("kind", np.int32),
        ("leaf", np.int32),
        ("oldest", np.int32),  # of what waits
        ("newest", np.int32),
        ("block_size", np.int32),
    ]
)
WAIT = np.dtype(
    [
        ("tokens", np.float64),
        ("context", np.float64),
        ("names", np.int64),  # where the names of its prompt's blocks begin, and how many
        ("named", np.int64),
        ("older", np.int32),
        ("newer", np.int32),
    ]
)
KIND = np.dtype([("root", np.int64), ("leaves", np.int64)])

KV, ROUND_ROBIN, LEAST_LOADED, RANDOM = 0, 1, 2, 3
ALIKE = 16  # of the newest that wait on a worker, so many are asked which blocks they will have computed
LISTED = 32  # of those that share what a prompt begins with, so many are looked at: all, in a small fleet
LOOKED_AT = 8  # of those with least to do, of each kind; besides all that hold something of the prompt
# Predictions this close are a tie: they differ by less than a step's jitter, and always taking the lowest would send
# every cold prompt to the worker that measured 1 % faster while the other's cache stays empty.
TIE_SHARE = 0.05
TIE_S = 0.002
_HELD_SCALE = float(1 << 40)  # blocks held decide between equal keys only


def board_arrays(kinds: Sequence[int], workers: Records, waits: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: a book of workers without work. The hub has the index of `kv.holders` too, and `names`.

    Args:
        kinds: the kind of each worker, from 0 on. Those of a kind are alike: same prices to begin with, same role.
        workers: WORKER, with prices, step_tokens and block_size set.
        waits: requests that may be under way at once.
    """
    table = np.zeros(max(kinds) + 1, KIND)
    at = 0
    for kind in range(len(table)):
        leaves = 1 << max(0, (kinds.count(kind) - 1).bit_length())
        table[kind] = (at, leaves)
        at += 2 * leaves
    member, seen = np.full(at, -1, np.int32), [0] * len(table)
    for worker, kind in enumerate(kinds):
        leaf = int(table[kind]["root"] + table[kind]["leaves"]) + seen[kind]
        seen[kind] += 1
        workers[worker]["kind"], workers[worker]["leaf"] = kind, leaf
        workers[worker]["oldest"] = workers[worker]["newest"] = -1
        member[leaf] = worker
    size = 2 * LISTED + LOOKED_AT * len(table)
    arrays = {
        "workers": workers,
        "waits": np.zeros(waits, WAIT),
        "kinds": table,
        "tree": np.full(at, np.inf),  # of each kind a tournament: nodes root + 1 to root + 2 * leaves - 1
        "member": member,  # who stands at each node that is a leaf
        "up": np.zeros(len(workers), np.int32),  # workers that may be given work, by number
        "keys": np.zeros(LOOKED_AT),  # to work in, like all that follow
        "leaves": np.zeros(LOOKED_AT, np.int64),
        "found": np.zeros(2 * size, np.int32),  # candidates: two desks of them
        "depths": np.zeros(2 * size, np.int32),
        "cached": np.zeros(2 * size, np.int64),
        "bring_s": np.zeros(2 * size),
        "seconds": np.zeros(2 * size),
        "mark": np.full(len(workers), -1, np.int64),  # the last look at candidates a worker was one of
    }
    numbers: dict[str, int | float] = {"turn": 0, "looks": 0, "up_count": 0, "policy": 0, "desk": size}
    return arrays, numbers


@compiled
def start(hubs: Records, worker: int, up: bool) -> None:
    """`worker` is there from the beginning; workers are started in order."""
    h = hubs[0]
    view(h.workers, h.workers_n, WORKER)[worker].up = up
    if up:
        view(h.up, h.up_n, SMALL)[h.up_count] = worker
        h.up_count += 1
    rekey(h, worker)


@compiled
def set_up(hubs: Records, worker: int, up: bool) -> None:
    """`worker` may be given work from now on, or may not. Costs O(workers)."""
    h = hubs[0]
    workers, list_up = view(h.workers, h.workers_n, WORKER), view(h.up, h.up_n, SMALL)
    workers[worker].up = up
    count = 0
    for other in range(h.workers_n):
        if workers[other].up:
            list_up[count] = other
            count += 1
    h.up_count = count
    rekey(h, worker)


@compiled
def prompt_context(prompt_tokens: float, fresh: float) -> float:
    """Sum over the last `fresh` tokens of a prompt of the tokens before each."""
    return fresh * (prompt_tokens - (fresh + 1.0) / 2.0)


@compiled
def first_token_s(worker: Records, prompt_tokens: float, cached_tokens: float, bring_s: float) -> float:
    """Predicted seconds to the first token: the queue, then our own uncached tokens, slowed by running decodes."""
    fresh = max(prompt_tokens - cached_tokens, 1.0)
    tokens = worker.queued_tokens + fresh
    steps = max(1.0, np.ceil(tokens / worker.step_tokens))
    return float(
        bring_s
        + steps * worker.per_step_s
        + tokens * worker.per_token_s
        + (worker.queued_context + prompt_context(prompt_tokens, fresh)) * worker.per_token_context_s
        + steps * worker.decoding * worker.per_decode_s
    )


@compiled
def disturbed_s(worker: Records, prompt_tokens: float, cached_tokens: float) -> float:
    """Seconds that the streams running on a worker wait, all together, while it computes this prompt."""
    fresh = max(prompt_tokens - cached_tokens, 1.0)
    own_s = fresh * worker.per_token_s + prompt_context(prompt_tokens, fresh) * worker.per_token_context_s
    return float(worker.decoding * own_s)


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
    if h.policy == ROUND_ROBIN or h.policy == RANDOM:
        return
    w = view(h.workers, h.workers_n, WORKER)[worker]
    _set(h, w.kind, w.leaf, busy_key(w, view(h.held, h.held_n, INT)[worker], h.policy))


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
def least_busy(h: Records, kind: int, at: int) -> int:
    """The up to LOOKED_AT workers of a kind with the least keys, into `found` from `at` on. Returns how many."""
    keys, leaves = view(h.keys, h.keys_n, FLOAT), view(h.leaves, h.leaves_n, INT)
    tree, member, found = (
        view(h.tree, h.tree_n, FLOAT),
        view(h.member, h.member_n, SMALL),
        view(h.found, h.found_n, SMALL),
    )
    count = 0
    while count < LOOKED_AT:
        leaf = least(h, kind)
        if leaf < 0:
            break
        keys[count], leaves[count], found[at + count] = tree[leaf], leaf, member[leaf]
        count += 1
        _set(h, kind, leaf, np.inf)
    for i in range(count):
        _set(h, kind, leaves[i], keys[i])
    return count


@compiled
def wait(h: Records, request: int, worker: int, prompt_tokens: float, cached_tokens: float) -> None:
    """`request` waits for its prompt to be computed on `worker`. Its names are set already."""
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


@compiled
def unwait(h: Records, request: int, worker: int) -> None:
    """The prompt of `request` is computed, or will not be."""
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


@compiled
def will_hold(h: Records, worker: int, names: Ints, depth: int) -> int:
    """Leading blocks of `names` that `worker` has when what waits is computed; `depth` of them it holds now.

    A block's name stands for all before it: prompts that have a block in common have it at the same place.
    """
    waits, known = view(h.waits, h.waits_n, WAIT), view(h.names, h.names_n, INT)
    before = -1
    while before != depth:
        before = depth
        request, asked = view(h.workers, h.workers_n, WORKER)[worker].newest, 0
        while request >= 0 and asked < ALIKE:
            other = waits[request]
            while depth < min(len(names), other.named) and known[other.names + depth] == names[depth]:
                depth += 1
            request, asked = other.older, asked + 1
        while depth < len(names) and holds(h, worker, names[depth]):
            depth += 1
    return depth


@compiled
def place(h: Records, names: Ints, prompt_tokens: int) -> int:
    """Choose a worker: the candidate it is, of the first desk; -1: nobody is up.

    Candidates are those that hold, or will hold, something of the prompt (see `kv.holders.overlaps`), and of each kind
    those with least to do.

    Args:
        names: of the prompt's blocks that can be reused.
    """
    turn = h.turn
    h.turn += 1
    if h.up_count == 0:
        return -1
    if h.policy == ROUND_ROBIN or h.policy == RANDOM:
        at = turn % h.up_count if h.policy == ROUND_ROBIN else drawn(turn, h.up_count)
        return _alone(h, names, view(h.up, h.up_n, SMALL)[at], prompt_tokens)
    if h.policy == LEAST_LOADED:
        best, tree = -1, view(h.tree, h.tree_n, FLOAT)
        for kind in range(h.kinds_n):
            leaf = least(h, kind)
            if leaf >= 0 and (best < 0 or tree[leaf] < tree[best]):
                best = leaf
        return -1 if best < 0 else _alone(h, names, view(h.member, h.member_n, SMALL)[best], prompt_tokens)
    count = _candidates(h, 0, names, 0, h.kinds_n)
    return -1 if count == 0 else choose(h, prompt_tokens, count)


@compiled
def place_apart(h: Records, names: Ints, prompt_tokens: int, decoders: int) -> tuple[int, int]:
    """Choose who computes a prompt and who goes on after its first token. See `policy.disagg`.

    Kinds below `decoders` may do all of it, or what follows; those above compute prompts alone.

    Returns:
        (-1, d): all on candidate d of the first desk; (p, d): the prompt on p of the second; (-1, -1): none is up.
    """
    far, found = h.desk, view(h.found, h.found_n, SMALL)
    cached, workers = view(h.cached, h.cached_n, INT), view(h.workers, h.workers_n, WORKER)
    h.turn += 1
    whole = _candidates(h, 0, names, 0, decoders)
    apart = _candidates(h, far, names, decoders, h.kinds_n)
    there, there_s = -1, np.inf
    for i in range(far, far + apart):
        cost_s = _predict(h, i, prompt_tokens) + disturbed_s(workers[found[i]], prompt_tokens, cached[i])
        if there < 0 or cost_s < there_s or (cost_s == there_s and found[i] < found[there]):
            there, there_s = i, cost_s
    one, two, best_s = -1, -1, np.inf
    for i in range(whole):
        w = workers[found[i]]
        cost_s = _predict(h, i, prompt_tokens) + disturbed_s(w, prompt_tokens, cached[i])
        if w.whole and _is_better(h, (cost_s, best_s), (-1, i), (one, two)):
            one, two, best_s = -1, i, cost_s
        if there >= 0:
            missing = max(prompt_tokens - cached[i], 0)
            cost_s = there_s + w.per_handover_s + missing * w.per_handed_token_s
            cost_s += w.requests * w.per_decode_s  # one more to advance, for all that are there
            if _is_better(h, (cost_s, best_s), (there, i), (one, two)):
                one, two, best_s = there, i, cost_s
    return one, two


@compiled
def _is_better(h: Records, costs_s: tuple[float, float], new: tuple[int, int], best: tuple[int, int]) -> bool:
    """Less waiting; of equals whole before apart, then the lowest worker."""
    if best[1] < 0 or costs_s[0] < costs_s[1]:
        return True
    if costs_s[0] > costs_s[1] or new[0] != best[0]:
        return bool(costs_s[0] == costs_s[1] and new[0] < 0)
    found = view(h.found, h.found_n, SMALL)
    return bool(found[new[1]] < found[best[1]])


@compiled
def drawn(turn: int, count: int) -> int:
    """One of so many, drawn from the turn number alone (splitmix64), so a replay draws the same."""
    bits = print_of(turn)  # a number without sign, of which `high` are all but the last bit
    high = (bits >> 1) & ((1 << 63) - 1)
    return (high % count * 2 + (bits & 1)) % count


@compiled
def _predict(h: Records, at: int, prompt_tokens: int) -> float:
    """Predicted seconds to the first token on the candidate at `at`."""
    worker = view(h.workers, h.workers_n, WORKER)[view(h.found, h.found_n, SMALL)[at]]
    cached, bring_s = view(h.cached, h.cached_n, INT)[at], view(h.bring_s, h.bring_s_n, FLOAT)[at]
    seconds = first_token_s(worker, prompt_tokens, cached, bring_s)
    view(h.seconds, h.seconds_n, FLOAT)[at] = seconds
    return seconds


@compiled
def _put(h: Records, at: int, worker: int, depth: int) -> None:
    """`worker`, which has `depth` blocks of the prompt, is the candidate at `at`."""
    view(h.found, h.found_n, SMALL)[at] = worker
    view(h.cached, h.cached_n, INT)[at] = depth * view(h.workers, h.workers_n, WORKER)[worker].block_size
    view(h.bring_s, h.bring_s_n, FLOAT)[at] = 0.0


@compiled
def _alone(h: Records, names: Ints, worker: int, prompt_tokens: int) -> int:
    _put(h, 0, worker, will_hold(h, worker, names, 0))
    _predict(h, 0, prompt_tokens)
    return 0


@compiled
def _candidates(h: Records, base: int, names: Ints, first: int, end: int) -> int:
    """Candidates of the kinds first:end, from `base` on. Returns how many."""
    found, depths = view(h.found, h.found_n, SMALL), view(h.depths, h.depths_n, SMALL)
    mark, workers = view(h.mark, h.mark_n, INT), view(h.workers, h.workers_n, WORKER)
    h.looks += 1
    holding = overlaps(h, names, found[base:], depths[base:], LISTED)
    at = base
    for i in range(base, base + holding):
        worker, depth = found[i], depths[i]
        w = workers[worker]
        if w.up and first <= w.kind and w.kind < end and mark[worker] != h.looks:
            _put(h, at, worker, will_hold(h, worker, names, depth))
            mark[worker] = h.looks
            at += 1
    for kind in range(first, end):
        start = at
        for i in range(start, start + least_busy(h, kind, start)):
            worker = found[i]
            if mark[worker] != h.looks:
                _put(h, at, worker, will_hold(h, worker, names, 0) if holding > LISTED else 0)
                mark[worker] = h.looks
                at += 1
    return int(at - base)


@compiled
def choose(h: Records, prompt_tokens: int, count: int) -> int:
    """The candidate of the least predicted TTFT, of the first `count`; among near ties the one with the fewest
    requests, then the most cached, the emptiest, the lowest worker.
    """
    seconds, limit = view(h.seconds, h.seconds_n, FLOAT), np.inf
    for i in range(count):
        limit = min(limit, _predict(h, i, prompt_tokens))
    limit = limit * (1 + TIE_SHARE) + TIE_S
    best = -1
    for i in range(count):
        if seconds[i] <= limit and (best < 0 or _is_before(h, i, best)):
            best = i
    return best


@compiled
def _is_before(h: Records, i: int, j: int) -> bool:
    found, cached = view(h.found, h.found_n, SMALL), view(h.cached, h.cached_n, INT)
    workers, held = view(h.workers, h.workers_n, WORKER), view(h.held, h.held_n, INT)
    a, b = found[i], found[j]
    if workers[a].requests != workers[b].requests:
        return bool(workers[a].requests < workers[b].requests)
    if cached[i] != cached[j]:
        return bool(cached[i] > cached[j])
    if held[a] != held[b]:
        return bool(held[a] < held[b])
    return bool(a < b)
