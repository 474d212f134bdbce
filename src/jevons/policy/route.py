"""Routing: which worker should take this request?

Pure. The live router and the twin both call `route`; neither has a rule of its own. `kv` predicts the seconds to the
first token on each worker and takes the least. The others are what fleets use without a KV index, here to compare with
and to fall back on by choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from jevons.base.errors import ConfigError, NoWorker
from jevons.base.ids import WorkerId
from jevons.perf.measured import Load, Prices

# Predictions this close are a tie: they differ by less than a step's jitter, and always taking the lowest would send
# every cold prompt to the worker that measured 1 % faster while the other's cache stays empty.
TIE_SHARE = 0.05
TIE_S = 0.002


class Candidate(msgspec.Struct, frozen=True):
    """What routing may know of one worker, at one moment."""

    worker: WorkerId
    cached_tokens: int  # tokens of this prompt it holds, or would bring from a tier instead of computing them
    queued: Load  # prompt work placed on it and not yet computed
    decoding: int  # sequences that are past their first token
    requests: int  # requests placed on it and not finished
    prices: Prices
    step_tokens: int  # prompt tokens it computes in one step at most
    held_blocks: int = 0  # blocks it holds
    bring_s: float = 0.0  # seconds it would wait for what it brings


class Placement(msgspec.Struct, frozen=True):
    """A decision, with the numbers that justified it."""

    worker: WorkerId
    policy: str
    ttft_s: float  # predicted seconds to first token
    cached_tokens: int  # predicted tokens of the prompt that need no computing
    reason: str
    decode: WorkerId | None = None  # who goes on after the first token; None: the same worker


def prompt_load(prompt_tokens: int, cached_tokens: int) -> Load:
    """The work a prompt leaves when its first `cached_tokens` are there: its tokens, each with the ones before it.

    At least one token is always computed, the last one: its output is the first token.
    """
    fresh = max(prompt_tokens - cached_tokens, 1)
    return Load(tokens=fresh, token_context=fresh * (prompt_tokens - (fresh + 1) / 2))


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


def _kv(prompt_tokens: int, candidates: Sequence[Candidate], turn: int) -> Candidate:
    """Least predicted TTFT; among near ties the fewest requests, then the most cached, the emptiest, the lowest id."""
    timed = [(ttft_s(prompt_tokens, c), c) for c in candidates]
    limit = min(seconds for seconds, _ in timed) * (1 + TIE_SHARE) + TIE_S
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


def check_policy(policy: str) -> None:
    """Raises ConfigError if there is no such policy."""
    if policy not in POLICIES:
        raise ConfigError(f"policy: must be one of {', '.join(POLICIES)}, got {policy!r}")


def route(policy: str, prompt_tokens: int, candidates: Sequence[Candidate], turn: int = 0) -> Placement:
    """Choose a worker by the policy of that name.

    Args:
        prompt_tokens: length of the prompt, at least 1.
        candidates: the workers that may take it.
        turn: how many placements came before; round robin and random go by it.

    Raises:
        NoWorker: `candidates` is empty.
    """
    if not candidates:
        raise NoWorker(f"no worker can take a prompt of {prompt_tokens} tokens: 0 candidates")
    return placement(policy, prompt_tokens, POLICIES[policy](prompt_tokens, candidates, turn))


def placement(policy: str, prompt_tokens: int, chosen: Candidate, decode: WorkerId | None = None) -> Placement:
    """The placement on one chosen worker, with its reason."""
    seconds = ttft_s(prompt_tokens, chosen)
    reason = (
        f"{chosen.cached_tokens} of {prompt_tokens} tokens cached, {chosen.queued.tokens:.0f} queued, "
        f"{chosen.decoding} decoding: first token in {seconds:.3f} s"
    )
    if decode is not None:
        reason += f", the rest on {decode}"
    return Placement(chosen.worker, policy, seconds, chosen.cached_tokens, reason, decode)
