"""The oracle of routing, in plain Python: the rules that the kernels of `policy` and `control.board` must follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import msgspec

from jevons.base.errors import NoWorker
from jevons.perf.measured import Load, Prices
from jevons.policy.route import TIE_S, TIE_SHARE, TOGETHER, prompt_load, stream_weight


class Candidate(msgspec.Struct, frozen=True):
    """What routing may know of one worker, at one moment."""

    worker: int
    cached_tokens: int
    queued: Load
    decoding: int
    requests: int
    prices: Prices
    step_tokens: int
    held_blocks: int = 0
    bring_s: float = 0.0
    stream_weight: float = stream_weight()
    arrivals_per_s: float = 0.0  # at each such worker
    promised: float = 0.0  # usual streams that those count for besides that are promised a time for each token
    busy: float = 0.0  # share of its time that prompts take
    tpot_slo_s: float = inf
    output_tokens: float = 0.0
    token_weight: float = 0.0  # of seconds by which each token of a stream takes longer
    reused_share: float = 0.0  # of the tokens of prompts
    context: float = 0.0  # tokens that all there attend to
    per_context_s: float = 0.0


def ttft_s(prompt_tokens: int, c: Candidate) -> float:
    """Predicted seconds to the first token: the queue, then our own uncached tokens, slowed by running decodes."""
    own = prompt_load(prompt_tokens, c.cached_tokens)
    tokens = c.queued.tokens + own.tokens
    steps = max(1.0, -(-tokens // c.step_tokens))
    return c.bring_s + c.prices.seconds(
        Load(
            steps=steps,
            tokens=tokens,
            token_context=c.queued.token_context + own.token_context,
            decodes=steps * c.decoding,
        )
    )


def waiting_s(prompt_tokens: int, c: Candidate) -> float:
    """Seconds that all concerned wait: who asks, the streams that run there, who comes before its first token, and who
    wants what had to go for it."""
    own_s, first_s = c.prices.seconds(prompt_load(prompt_tokens, c.cached_tokens)), ttft_s(prompt_tokens, c)
    streams = (c.decoding + c.promised) * c.stream_weight
    return first_s + own_s * (streams + c.arrivals_per_s * first_s + c.reused_share)


def tpot_s(c: Candidate) -> float:
    """Predicted seconds of each token after the first: a step of all that are there and ours, held up by prompts."""
    step_s = c.prices.seconds(Load(steps=1, decodes=c.requests + 1))
    full_s = step_s + c.prices.seconds(Load(tokens=c.step_tokens))
    return min(full_s, step_s / (1 - c.busy)) if c.busy < 1 else full_s


def answer_s(prompt_tokens: int, c: Candidate) -> float:
    """Seconds that all concerned wait for the tokens after the first beyond what is promised, for one more in each step
    where something is promised, and for what each attends to of whom it meets."""
    slower_s = c.per_context_s * (c.context + c.requests * prompt_tokens) * TOGETHER
    late_s = max(0.0, tpot_s(c) - c.tpot_slo_s) + c.promised * c.stream_weight * c.prices.per_decode_s
    return c.token_weight * slower_s + c.output_tokens * late_s


def total_s(prompt_tokens: int, c: Candidate) -> float:
    return waiting_s(prompt_tokens, c) + answer_s(prompt_tokens, c)


def _kv(prompt_tokens: int, candidates: Sequence[Candidate], turn: int) -> Candidate:
    """Least waiting; among near ties the fewest requests, then the most cached, the emptiest, the lowest id."""
    timed = [(total_s(prompt_tokens, c), c) for c in candidates]
    least_s, best = min(timed, key=lambda each: each[0])
    limit = least_s + waiting_s(prompt_tokens, best) * TIE_SHARE + TIE_S
    near = [c for seconds, c in timed if seconds <= limit]
    return min(near, key=lambda c: (c.requests, -c.cached_tokens, c.held_blocks, c.worker))


def _round_robin(prompt_tokens: int, candidates: Sequence[Candidate], turn: int) -> Candidate:
    """Each in turn, by id."""
    return sorted(candidates, key=lambda c: c.worker)[turn % len(candidates)]


def _least_loaded(prompt_tokens: int, candidates: Sequence[Candidate], turn: int) -> Candidate:
    """Fewest unfinished requests, then fewest queued prompt tokens, then the lowest id."""
    return min(candidates, key=lambda c: (c.requests, c.queued.tokens, c.worker))


def _random(prompt_tokens: int, candidates: Sequence[Candidate], turn: int) -> Candidate:
    """Drawn from the turn number alone (splitmix64), so a replay draws the same."""
    z = (turn + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return sorted(candidates, key=lambda c: c.worker)[(z ^ z >> 31) % len(candidates)]


POLICIES: dict[str, Callable[[int, Sequence[Candidate], int], Candidate]] = {
    "kv": _kv,
    "round_robin": _round_robin,
    "least_loaded": _least_loaded,
    "random": _random,
}


def route(policy: str, prompt_tokens: int, candidates: Sequence[Candidate], turn: int = 0) -> Candidate:
    if not candidates:
        raise NoWorker("0 candidates")
    return POLICIES[policy](prompt_tokens, candidates, turn)


class Split(msgspec.Struct, frozen=True):
    """A decision: the prompt on `prefill`, the rest on `decode`; the same worker if it stays whole."""

    prefill: Candidate
    decode: Candidate
    cost_s: float  # predicted seconds of waiting, of everybody concerned


def split(
    prompt_tokens: int,
    decoders: Sequence[Candidate],
    prefillers: Sequence[Candidate],
    handover_s: Callable[[Candidate, Candidate], float],
) -> Split | None:
    """Choose worker or workers for a prompt.

    Args:
        prompt_tokens: its length.
        decoders: workers that may do all of it, or what follows the first token.
        prefillers: workers that may do the prompt.
        handover_s: of a prefiller and a decoder, seconds to bring the one the blocks that the other has computed.

    Returns:
        The least waiting, all together; whole before split, then the lowest ids. None without decoders.
    """
    options = [(total_s(prompt_tokens, c), 0, c.worker, c.worker, c, c) for c in decoders]
    for d in decoders:
        join_s = d.prices.per_decode_s * d.requests + answer_s(prompt_tokens, d)
        for p in prefillers:
            there_s = waiting_s(prompt_tokens, p)
            options.append((there_s + handover_s(p, d) + join_s, 1, p.worker, d.worker, p, d))
    if not options:
        return None
    cost_s, _, _, _, prefill, decode = min(options, key=lambda option: option[:4])
    return Split(prefill, decode, cost_s)
