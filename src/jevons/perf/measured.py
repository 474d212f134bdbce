"""How long an engine's steps take, learned from what it reports.

One step computes some prompt tokens and advances some running sequences. Its time is close to a sum of parts, each
with a price in seconds that belongs to that worker's hardware:

    seconds = steps · per_step + tokens · per_token + token·context · per_token_context + decodes · per_decode

The prices are learned by recursive least squares on relative errors, with forgetting, from a prior (what we believe
before measuring). What is known of a price fades to no less than the prior's certainty, and a price itself moves only
when a step that contains it was mispredicted: hours of decoding do not wash out what was learned of prefill, they only
make the next prefill count more. Time to first token of a queue of prompts is the same sum over several steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

# Scales that bring the four features near 1 for a usual step, so one ridge fits all.
_SCALE = (1.0, 256.0, 256.0 * 1024.0, 8.0)
_FADE = 0.98  # weight of the past after one more measurement: the last ~50 count
# How far off the prior may be, in multiples of itself, before it holds a measurement back. Attention's share differs by
# four orders of magnitude from a CPU to the newest accelerators, the rest by two.
_PRIOR_SPREAD = (10.0, 10.0, 100.0, 10.0)
_PARTS = range(4)


class Load(msgspec.Struct, frozen=True):
    """What one step, or several in a row, computes."""

    steps: float = 0.0
    tokens: float = 0.0  # prompt tokens computed
    token_context: float = 0.0  # sum over those tokens of the tokens before each
    decodes: float = 0.0  # running sequences advanced by one token, summed over the steps

    def features(self) -> tuple[float, float, float, float]:
        return (
            self.steps / _SCALE[0],
            self.tokens / _SCALE[1],
            self.token_context / _SCALE[2],
            self.decodes / _SCALE[3],
        )


class Prices(msgspec.Struct, frozen=True):
    """Seconds for each part of a step, all ≥ 0."""

    per_step_s: float
    per_token_s: float
    per_token_context_s: float
    per_decode_s: float

    def seconds(self, load: Load) -> float:
        """Predicted seconds for `load`."""
        return (
            load.steps * self.per_step_s
            + load.tokens * self.per_token_s
            + load.token_context * self.per_token_context_s
            + load.decodes * self.per_decode_s
        )

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second of a long run of short prompts, without step costs."""
        return 1.0 / self.per_token_s if self.per_token_s > 0 else float("inf")


# Before anything is measured: a slow accelerator. GUESS: it only has to be wrong by the same factor for every worker,
# and a few measurements outweigh it.
GUESS_PRICES = Prices(per_step_s=0.005, per_token_s=0.0005, per_token_context_s=1e-7, per_decode_s=0.001)


class StepSeconds:
    """Learns one worker's `Prices`. About 20 µs a measurement, plain floats."""

    def __init__(self, prior: Prices = GUESS_PRICES) -> None:
        self._theta = list(_scaled(prior))
        # What is known, as an information matrix, 4 × 4. The prior knows each price to its spread.
        spread = [t * s for t, s in zip(self._theta, _PRIOR_SPREAD, strict=True)]
        self._floor = [1.0 / s**2 for s in spread]
        self._known = [[self._floor[i] if i == j else 0.0 for j in _PARTS] for i in _PARTS]
        self.samples = 0
        self.prices = prior

    def measured(self, load: Load, seconds: float) -> None:
        """`load` took `seconds`; passed over unless both are above 0."""
        if seconds <= 0 or not any(load.features()):
            return
        x = [f / seconds for f in load.features()]  # divided by seconds: a relative error counts alike at any size
        for i in _PARTS:
            row = self._known[i]
            for j in _PARTS:
                row[j] = row[j] * _FADE + x[i] * x[j]
            row[i] += (1.0 - _FADE) * self._floor[i]
        error = 1.0 - sum(a * t for a, t in zip(x, self._theta, strict=True))
        gain = _solve(self._known, x)
        self._theta = [max(0.0, t + g * error) for t, g in zip(self._theta, gain, strict=True)]
        self.samples += 1
        self.prices = Prices(*(t / scale for t, scale in zip(self._theta, _SCALE, strict=True)))


def _scaled(prices: Prices) -> tuple[float, ...]:
    values = (prices.per_step_s, prices.per_token_s, prices.per_token_context_s, prices.per_decode_s)
    return tuple(value * scale for value, scale in zip(values, _SCALE, strict=True))


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Solve a small symmetric positive definite system by Gaussian elimination."""
    n = len(right)
    rows = [[*matrix[i], right[i]] for i in range(n)]
    for i in range(n):
        pivot = rows[i][i]
        for j in range(i + 1, n):
            factor = rows[j][i] / pivot
            if factor:
                rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    out = [0.0] * n
    for i in reversed(range(n)):
        out[i] = (rows[i][n] - sum(rows[i][j] * out[j] for j in range(i + 1, n))) / rows[i][i]
    return out
