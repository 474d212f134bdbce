"""Kernels of the router's book: what waits and runs on each worker, and what came of late.

See `control.board`, which has the arrays.
"""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import Ints, Records, compiled
from jevons.base.hub import view
from jevons.control.board import ARRIVALS_S, WAIT, WORKER, rekey
from jevons.kv.holders import promise, settle
from jevons.policy.route import own_s, prompt_context

ANSWERS_FADE = 0.98  # weight of the past after one more answer, or prompt: the last 50 say how long one is


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
    """An answer of so many tokens has come to its end; of none, it took as much as one of one."""
    h.answers = h.answers * ANSWERS_FADE + 1.0
    h.answer_tokens = h.answer_tokens * ANSWERS_FADE + max(tokens, 1)


@compiled
def faded(sum_s: float, at_s: float, now_s: float) -> float:
    """What is left of a sum as of `at_s`."""
    return float(sum_s * np.exp(min(0.0, at_s - now_s) / ARRIVALS_S))


@compiled
def count_arrival(h: Records, now_s: float) -> None:
    """A request has arrived."""
    h.crowd = faded(h.crowd, h.arrived_s, now_s) + 1.0
    h.arrived_s = max(h.arrived_s, now_s)


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
