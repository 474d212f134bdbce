"""Routing: which worker should take this request?

Pure kernels over candidates. The live router and the twin call the same ones; neither has a rule of its own. `kv`
predicts the seconds to the first token on each worker and takes the least. The others are what fleets use without a KV
index, here to compare with and to fall back on by choice; they ask for load alone, so `control.board` knows the answer.
"""

from __future__ import annotations

import msgspec
import numpy as np

from jevons.base.compiled import Records, compiled
from jevons.base.errors import ConfigError
from jevons.base.ids import WorkerId
from jevons.perf.measured import Load

# What routing may know of one worker, at one moment.
CANDIDATE = np.dtype(
    [
        ("per_step_s", np.float64),  # prices of a step, see `perf.measured`
        ("per_token_s", np.float64),
        ("per_token_context_s", np.float64),
        ("per_decode_s", np.float64),
        ("step_tokens", np.float64),  # prompt tokens it computes in one step at most
        ("queued_tokens", np.float64),  # prompt work placed on it and not yet computed
        ("queued_context", np.float64),
        ("near_s", np.float64),  # to be given KV computed elsewhere: on its node, or fabric, and beyond
        ("near_token_s", np.float64),
        ("far_s", np.float64),
        ("far_token_s", np.float64),
        ("promised", np.float64),  # usual streams that those count for besides that are promised a time for each token
        ("busy", np.float64),  # share of its time that prompts take, 0 to 1
        ("per_context_s", np.float64),  # of a step, for each token that a stream attends to
        ("context", np.float64),  # tokens of prompts placed on it and not finished: what their streams attend to
        ("bring_s", np.float64),  # seconds it would wait for what it brings from a tier
        ("seconds", np.float64),  # to the first token, as `choose` and `choose_apart` predict it
        ("waiting_s", np.float64),  # of everybody concerned until then, see `weigh`
        ("tpot_s", np.float64),  # seconds for each token after it, as predicted
        ("answer_s", np.float64),  # of everybody concerned by those tokens, see `weigh`
        ("cached", np.int64),  # tokens of this prompt it holds, or would bring instead of computing them
        ("held", np.int64),  # blocks it holds
        ("depth", np.int32),  # leading blocks of the prompt it holds, or is to compute
        ("worker", np.int32),
        ("decoding", np.int32),  # sequences past their first token, or promised for after it
        ("requests", np.int32),  # placed on it and not finished
        ("node", np.int32),
        ("block_size", np.int32),
        ("takes", np.int32),  # how it takes over a prompt computed elsewhere: ANEW, ALL or BLOCKS
        ("whole", np.int32),  # 1: may compute prompts
    ]
)
# A prompt computed elsewhere: it computes it anew; it is given all of it; or full blocks, and computes the rest and the
# last token again.
ANEW, ALL, BLOCKS = 0, 1, 2

# Predictions this close are a tie: they differ by less than a step's jitter, and always taking the lowest would send
# every cold prompt to the worker that measured 1 % faster while the other's cache stays empty.
TIE_SHARE = 0.05
TIE_S = 0.002

# Two answers that meet on a worker are together for half of each, by the mean: who comes finds the other midway. (Of
# answers that end at any token alike it is ln 2 of the newer one and 1 - ln 2 of the older.)
TOGETHER = 0.5

# What is promised where nobody says otherwise, and how long answers are by the mean. GUESS, like the SLO of scenarios.
GUESS_TTFT_S, GUESS_TPOT_S, GUESS_OUTPUT_TOKENS = 2.0, 0.1, 256

KV, ROUND_ROBIN, LEAST_LOADED, RANDOM = 0, 1, 2, 3
POLICIES = {"kv": KV, "round_robin": ROUND_ROBIN, "least_loaded": LEAST_LOADED, "random": RANDOM}


# Seconds to first tokens that a second counts for by which one usual stream is held up; requests a second that arrive
# at such a worker; seconds a token after the first is promised to take (inf: nothing is); tokens of the answer; seconds
# to first tokens that a second counts for by which each token of a stream takes longer; share of the tokens of prompts
# that were there, of late.
Weights = tuple[float, float, float, float, float, float]

# Seconds to the first token, and for each after it, that are the most; inf: any.
Limits = tuple[float, float]


class Placement(msgspec.Struct, frozen=True):
    """A decision, with the numbers that justified it."""

    worker: WorkerId
    policy: str
    ttft_s: float  # predicted seconds to first token
    cached_tokens: int  # predicted tokens of the prompt that need no computing
    reason: str
    decode: WorkerId | None = None  # who goes on after the first token; None: the same worker
    tpot_s: float = 0.0  # predicted seconds for each token after the first


def stream_weight(ttft_s: float = GUESS_TTFT_S, tpot_s: float = GUESS_TPOT_S) -> float:
    """Seconds to first tokens that a second counts for by which a running stream is held up, by what is promised.

    A promise of TTFT is used up by a second of waiting to 1 / ttft_s, that of a stream to 1 / (tpot_s · its tokens).
    """
    return ttft_s / (tpot_s * GUESS_OUTPUT_TOKENS)


def usual_streams(tpot_s: float, output_tokens: float) -> float:
    """How many usual streams a promise of so much for each of so many tokens counts for, besides its own stream."""
    return GUESS_TPOT_S * GUESS_OUTPUT_TOKENS / (tpot_s * output_tokens)


def check_policy(policy: str, setting: str = "policy") -> int:
    """Its number.

    Args:
        setting: where it was given, for the error.

    Raises:
        ConfigError: there is no such policy.
    """
    if policy not in POLICIES:
        raise ConfigError(f"{setting}: must be one of {', '.join(POLICIES)}, got {policy!r}")
    return POLICIES[policy]


def prompt_load(prompt_tokens: int, cached_tokens: int) -> Load:
    """The work a prompt leaves when its first `cached_tokens` are there: its tokens, each with the ones before it.

    At least one token is always computed, the last one: its output is the first token.
    """
    fresh = max(prompt_tokens - cached_tokens, 1)
    return Load(tokens=fresh, token_context=fresh * (prompt_tokens - (fresh + 1) / 2))


@compiled
def prompt_context(prompt_tokens: float, fresh: float) -> float:
    """Sum over the last `fresh` tokens of a prompt of the tokens before each."""
    return fresh * (prompt_tokens - (fresh + 1.0) / 2.0)


@compiled
def own_s(c: Records, prompt_tokens: float, fresh: float) -> float:
    """Seconds of the last `fresh` tokens of a prompt, without what each step costs."""
    return float(fresh * c.per_token_s + prompt_context(prompt_tokens, fresh) * c.per_token_context_s)


@compiled
def first_token_s(c: Records, prompt_tokens: float) -> float:
    """Predicted seconds to the first token: the queue, then our own uncached tokens, slowed by running decodes."""
    fresh = max(prompt_tokens - c.cached, 1.0)
    tokens = c.queued_tokens + fresh
    steps = max(1.0, np.ceil(tokens / c.step_tokens))
    return float(
        c.bring_s
        + steps * c.per_step_s
        + tokens * c.per_token_s
        + (c.queued_context + prompt_context(prompt_tokens, fresh)) * c.per_token_context_s
        + steps * c.decoding * c.per_decode_s
    )


@compiled
def token_s(c: Records) -> float:
    """Predicted seconds for each token after the first: a step with ours and all that run there or wait to, held up by
    the prompts that come meanwhile, by their share of its time; by no more than a full step of them."""
    step_s = c.per_step_s + (c.requests + 1) * c.per_decode_s
    full_s = step_s + c.step_tokens * c.per_token_s
    return float(full_s if c.busy >= 1.0 else min(full_s, step_s / (1.0 - c.busy)))


@compiled
def weigh(c: Records, prompt_tokens: int, weights: Weights) -> None:
    """Set a candidate's `seconds` and `tpot_s`, and what they cost all concerned.

    While it computes the prompt (`waiting_s`) that is our client, for the first token; each stream that runs there, for
    as long as it computes our tokens; and who is placed there before our first token, as long too. So tokens that need
    not be computed count for more than a queue that is as long, the more, the busier the fleet is. And what we compute
    takes the place of something that would have to be computed again, as probably as what is there is reused. Of the
    tokens after it (`answer_s`) it is our client, for what each takes longer than it is promised, and each stream there
    that is promised something too, since one more is advanced with it; and whoever meets there, since each makes the
    other's steps longer by what it attends to: a share of what a token is usually promised.
    """
    stream_weight, arrivals_per_s, tpot_slo_s, output_tokens, token_weight, reused_share = weights
    fresh_s = own_s(c, prompt_tokens, max(prompt_tokens - c.cached, 1.0))
    c.seconds, c.tpot_s = first_token_s(c, prompt_tokens), token_s(c)
    others = (c.decoding + c.promised) * stream_weight + arrivals_per_s * c.seconds + reused_share
    c.waiting_s = c.seconds + fresh_s * others
    slower_s = c.per_context_s * (c.context + c.requests * prompt_tokens) * TOGETHER  # a token, ours and theirs
    c.answer_s = token_weight * slower_s
    c.answer_s += output_tokens * (max(0.0, c.tpot_s - tpot_slo_s) + c.promised * stream_weight * c.per_decode_s)


@compiled
def choose(candidates: Records, prompt_tokens: int, weights: Weights) -> int:
    """The candidate of the least waiting, all together; among near ties the one with the fewest requests, then the most
    cached, the emptiest, the lowest worker. How near is a share of the waiting until the first token alone: the longer
    tokens are late by their promise, the less does a little matter.

    Args:
        candidates: [n], CANDIDATE. What `weigh` sets is set.
        weights: see `weigh`.

    Returns:
        its place; -1: there are no candidates.
    """
    least_s, limit = np.inf, np.inf
    for i in range(len(candidates)):
        weigh(candidates[i], prompt_tokens, weights)
        c = candidates[i]
        if c.waiting_s + c.answer_s < least_s:
            least_s = c.waiting_s + c.answer_s
            limit = least_s + c.waiting_s * TIE_SHARE + TIE_S
    best = -1
    for i in range(len(candidates)):
        c = candidates[i]
        if c.waiting_s + c.answer_s <= limit and (best < 0 or _is_before(c, candidates[best])):
            best = i
    return best


@compiled
def is_late(first_s: float, token_s: float, limits: Limits) -> bool:
    return first_s > limits[0] or token_s > limits[1]


@compiled
def in_time(candidates: Records, chosen: int, limits: Limits) -> int:
    """The chosen one, or where that is late the one of the least waiting, all together, that is not, if any is.

    Args:
        candidates: as `choose` has weighed them.
        chosen: by it.
    """
    if not is_late(candidates[chosen].seconds, candidates[chosen].tpot_s, limits):
        return chosen
    best, least_s = chosen, np.inf
    for i in range(len(candidates)):
        c = candidates[i]
        cost_s = c.waiting_s + c.answer_s
        if not is_late(c.seconds, c.tpot_s, limits) and cost_s < least_s:
            best, least_s = i, cost_s
    return best


@compiled
def _is_before(a: Records, b: Records) -> bool:
    if a.requests != b.requests:
        return bool(a.requests < b.requests)
    if a.cached != b.cached:
        return bool(a.cached > b.cached)
    if a.held != b.held:
        return bool(a.held < b.held)
    return bool(a.worker < b.worker)
