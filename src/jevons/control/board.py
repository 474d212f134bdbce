"""Kernels of the router's book: its workers, who may be given work, and who has least to do.

    control.choice   gather ──▶ candidates ──▶ conclude (policy.route, policy.disagg) ──▶ placed
    control.queues   placed ──wait──▶ waiting: its prompt counts against the worker ──first──▶ running ──done──▶ gone
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
from jevons.policy.route import CANDIDATE, GUESS_OUTPUT_TOKENS, KV, LEAST_LOADED, TIE_S, stream_weight

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
WANTED_PLACES = 1 << 14  # blocks that are counted: of two that share a place, the one that is wanted
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
GUESS_PROMPT_TOKENS = 2_048  # before the first one
_HELD_SCALE = float(1 << 40)  # blocks held decide between equal keys only


def kinds_of(rows: Sequence[tuple[int, bool, int]]) -> Records:
    """KIND of each (model, computes prompts alone, block size)."""
    kinds = np.zeros(len(rows), KIND)
    for kind, (model, apart, block_size) in zip(kinds, rows, strict=True):
        kind["model"], kind["apart"], kind["block_size"] = model, apart, block_size
    return kinds


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
        "wanted": np.zeros(WANTED_PLACES, WANTED),
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
        "ttft_slo_s": float("inf"),  # promised to the request to be placed
        "tpot_slo_s": float("inf"),
        "is_strict": 0,  # 1: it would rather not be served than late
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
