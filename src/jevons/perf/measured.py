"""How long an engine's steps take, and how long bringing blocks takes, learned from what was measured.

One step computes some prompt tokens and advances some running sequences. Its time is close to a sum of parts, each
with a price in seconds that belongs to that worker's hardware:

    seconds = steps · per_step + tokens · per_token + token·context · per_token_context + decodes · per_decode

The prices are learned by recursive least squares on relative errors, with forgetting, from a prior (what we believe
before measuring). What is known of a price fades to no less than the prior's certainty, and a price itself moves only
when a step that contains it was mispredicted: hours of decoding do not wash out what was learned of prefill, they only
make the next prefill count more. Time to first token of a queue of prompts is the same sum over several steps.

Bringing blocks from a tier is a sum of two parts, learned in the same way: a constant, and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from jevons.facts.block import Tier
from jevons.facts.worker import StepReport

# Scales that bring the four features near 1 for a usual step, so one ridge fits all.
_SCALE = (1.0, 256.0, 256.0 * 1024.0, 8.0)
_OUTLIER = 0.8  # of a measurement unforeseen: five times its prediction
_FADE = 0.98  # weight of the past after one more measurement: the last ~50 count
# How far off the prior may be, in multiples of itself, before it holds a measurement back. Attention's share differs by
# four orders of magnitude from a CPU to the newest accelerators, the rest by two.
_PRIOR_SPREAD = (10.0, 10.0, 100.0, 10.0)
_FITS = 4  # rounds of a fit, each relative to the last one's predictions; the fourth moves them by less than 0.1 %
_LEAST_SHARE = 0.2  # a step that took five times its prediction counts no more than that


class Load(msgspec.Struct, frozen=True):
    """What one step, or several in a row, computes."""

    steps: float = 0.0
    tokens: float = 0.0  # prompt tokens computed
    token_context: float = 0.0  # sum over those tokens of the tokens before each
    decodes: float = 0.0  # running sequences advanced by one token, summed over the steps


def load_of(report: StepReport) -> Load:
    """The load of one reported step."""
    return Load(steps=1, tokens=report.tokens, token_context=report.token_context, decodes=report.decodes)


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


def _parts(prices: Prices) -> tuple[float, float, float, float]:
    return prices.per_step_s, prices.per_token_s, prices.per_token_context_s, prices.per_decode_s


class _Sum:
    """Learns the prices of a sum's parts from measured totals. About 20 µs a measurement for four parts, plain floats.

    Args:
        prior: prices before anything is measured, all above 0.
        scales: sizes of the parts that bring `prior` times scale near a usual total, so one ridge fits all.
        spread: how far off each prior may be, in multiples of itself.
    """

    def __init__(self, prior: Sequence[float], scales: Sequence[float], spread: Sequence[float]) -> None:
        self._scales = scales
        self._theta = [price * scale for price, scale in zip(prior, scales, strict=True)]
        # What is known, as an information matrix, parts × parts. The prior knows each price to its spread.
        self._floor = [1.0 / (t * s) ** 2 for t, s in zip(self._theta, spread, strict=True)]
        parts = range(len(prior))
        self._parts = parts
        self._known = [[self._floor[i] if i == j else 0.0 for j in parts] for i in parts]
        self.samples = 0

    def measured(self, sizes: Sequence[float], seconds: float, share: float = 1.0) -> bool:
        """Parts of these sizes took `seconds`; passed over unless both are above 0.

        Args:
            share: of a measurement in what makes the past fade: 1 / n where n measure side by side.
        """
        if seconds <= 0 or not any(sizes):
            return False
        # Divided by seconds: a relative error counts alike at any size.
        x = [size / scale / seconds for size, scale in zip(sizes, self._scales, strict=True)]
        error = 1.0 - sum(a * t for a, t in zip(x, self._theta, strict=True))
        if error > _OUTLIER:
            self._doubt((1.0 - error) ** 2)
        self._learn(x, error, 1.0 - (1.0 - _FADE) * share)
        return True

    def left(self, sizes: Sequence[float], seconds: float, whole_s: float) -> None:
        """Parts of these sizes took `seconds`, as what was left of something foreseen to take `whole_s` with them.

        What that was mispredicted by is in it, so it counts relative to the whole, may be below 0, and says no more
        than that it took twice as long, or no time: relative to itself what is left by chance next to nothing would
        outweigh all else.
        """
        if whole_s <= 0 or not any(sizes):
            return
        x = [size / scale / whole_s for size, scale in zip(sizes, self._scales, strict=True)]
        error = seconds / whole_s - sum(a * t for a, t in zip(x, self._theta, strict=True))
        self._learn(x, max(-1.0, min(1.0, error)), _FADE)

    def _learn(self, x: Sequence[float], error: float, fade: float) -> None:
        """Parts of these sizes were off by so much."""
        for i in self._parts:
            row = self._known[i]
            for j in self._parts:
                row[j] = row[j] * fade + x[i] * x[j]
            row[i] += (1.0 - fade) * self._floor[i]
        gain = _solve(self._known, x)
        self._theta = _above_zero(self._known, [t + g * error for t, g in zip(self._theta, gain, strict=True)])
        self.samples += 1

    def _doubt(self, left: float) -> None:
        """What takes many times its prediction is no noise: what was known was known to a share of the old prices, and
        is now known to the same share of the new, so much larger ones. Otherwise a tier that hangs would weigh next to
        nothing against every fast moment before.
        """
        self._known = [[value * left for value in row] for row in self._known]

    @property
    def prices(self) -> list[float]:
        return [t / scale for t, scale in zip(self._theta, self._scales, strict=True)]


class StepSeconds:
    """Learns the `Prices` of a worker, or of several that are alike."""

    def __init__(self, prior: Prices = GUESS_PRICES) -> None:
        self._sum = _Sum(_parts(prior), _SCALE, _PRIOR_SPREAD)
        self.prices = prior

    @property
    def samples(self) -> int:
        return self._sum.samples

    def measured(self, load: Load, seconds: float, share: float = 1.0) -> None:
        """`load` took `seconds`; passed over unless both are above 0.

        Args:
            share: 1 / n where n workers measure side by side: so many times more steps are remembered.
        """
        if self._sum.measured((load.steps, load.tokens, load.token_context, load.decodes), seconds, share):
            self.prices = Prices(*self._sum.prices)


def fit_prices(loads: Sequence[Load], seconds: Sequence[float]) -> Prices:
    """The prices that explain a whole record of steps best; a step's error counts relative to what is predicted of it.

    Relative to what was measured a slow step would hardly count, and sums of steps would come out too small.

    Args:
        loads: of each step.
        seconds: what it took, above 0.

    Raises:
        ValueError: there are none.
    """
    if not loads or len(loads) != len(seconds):
        raise ValueError(f"steps: must be at least one, each with its seconds, got {len(loads)} and {len(seconds)}")
    sizes = np.array([[load.steps, load.tokens, load.token_context, load.decodes] for load in loads]) / _SCALE
    took, predicted = np.array(seconds), np.array(seconds)
    weak = np.diag([1e-6 / (g * s) ** 2 for g, s in zip(_parts(GUESS_PRICES), _SCALE, strict=True)])
    theta = [0.0] * len(_SCALE)
    for _ in range(_FITS):
        x = sizes / predicted[:, None]
        known = (x.T @ x + weak).tolist()
        theta = _above_zero(known, _solve(known, (x.T @ (took / predicted)).tolist()))
        predicted = np.maximum(sizes @ theta, _LEAST_SHARE * took)
    return Prices(*(t / scale for t, scale in zip(theta, _SCALE, strict=True)))


class MovePrices(msgspec.Struct, frozen=True):
    """Seconds to bring bytes from a tier or over a link."""

    per_move_s: float
    per_byte_s: float

    def seconds(self, size_bytes: float) -> float:
        """Predicted seconds for `size_bytes` asked for at once."""
        return self.per_move_s + size_bytes * self.per_byte_s


# Before anything is measured: GUESS, slow memory, a slow disk, a far bucket. A first fetch that turns out slower is
# given up in time, and a faster one corrects it.
GUESS_MOVES = {
    Tier.DRAM: MovePrices(per_move_s=0.001, per_byte_s=1 / 2e9),
    Tier.DISK: MovePrices(per_move_s=0.003, per_byte_s=1 / 500e6),
    Tier.PEER: MovePrices(per_move_s=0.005, per_byte_s=1 / 300e6),
    Tier.REMOTE: MovePrices(per_move_s=0.05, per_byte_s=1 / 50e6),
}
_MOVE_SCALE = (1.0, float(8 << 20))
_MOVE_SPREAD = (300.0, 300.0)  # a tier that hangs takes seconds for what it did in milliseconds


class MoveSeconds:
    """Learns the `MovePrices` of one tier, as one worker sees it."""

    def __init__(self, prior: MovePrices) -> None:
        self._sum = _Sum((prior.per_move_s, prior.per_byte_s), _MOVE_SCALE, _MOVE_SPREAD)
        self.prices = prior

    @property
    def samples(self) -> int:
        return self._sum.samples

    def measured(self, size_bytes: float, seconds: float) -> None:
        """`size_bytes` asked for at once were there after `seconds`."""
        if self._sum.measured((1.0, size_bytes), seconds):
            self.prices = MovePrices(*self._sum.prices)

    def left(self, size_bytes: float, seconds: float, besides_s: float) -> None:
        """They took `seconds` as far as can be told: what was left of a time, beside what else was foreseen in it."""
        self._sum.left((1.0, size_bytes), seconds, besides_s + self.prices.seconds(size_bytes))
        self.prices = MovePrices(*self._sum.prices)


def _above_zero(known: Sequence[Sequence[float]], theta: Sequence[float]) -> list[float]:
    """The prices ≥ 0 that explain what is known nearly as well as `theta` does.

    Where one price would be below 0 the others make up for it: two measurements of nearly the same size that differ by
    noise draw a line that falls, and cutting off its slope alone would leave its start far above both.
    """
    free = list(range(len(theta)))
    found = list(theta)
    while any(found[i] < 0.0 for i in free):
        free = [i for i in free if found[i] > 0.0]
        right = [sum(k * t for k, t in zip(known[i], theta, strict=True)) for i in free]
        solved = _solve([[known[i][j] for j in free] for i in free], right)
        found = [0.0] * len(theta)
        for i, value in zip(free, solved, strict=True):
            found[i] = value
    return found


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
