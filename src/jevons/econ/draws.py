"""What is not known exactly, drawn: the same seed and name give the same numbers, whoever asks.

Each name has a stream of its own, so a parameter more or less changes no other, and what two fleets share (the price of
electricity, say) is drawn alike for both: their difference is not blurred by what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.facts.economics import Bounds
from jevons.facts.hardware import Figure

Amount: TypeAlias = float | Reals  # one number, or one for each draw
Result = Callable[[Mapping[str, Amount]], Amount]  # of parameters by name; element by element

_TAIL = 0.05  # below the interval, and above it


class Interval(msgspec.Struct, frozen=True):
    """Where a result lies with all parameters at their base, and between which bounds it does 9 times of 10."""

    low: float
    base: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """The same in another unit."""
        return Interval(self.low * factor, self.base * factor, self.high * factor)


class Draws(msgspec.Struct, frozen=True):
    """So many draws of each parameter; the seed and the name say which."""

    count: int = 4096
    seed: int = 0

    def of(self, name: str, figure: Figure) -> Reals:
        """Triangular between low and high with its peak at the base; the base alone where no range is known."""
        low, high = low_of(figure), high_of(figure)
        if low == high:
            return np.full(self.count, figure.value)
        return self._stream(name).triangular(low, figure.value, high, self.count)

    def between(self, name: str, bounds: Bounds) -> Reals:
        """Anywhere between, equally likely: where no base is known."""
        return self._stream(name).uniform(bounds.low, bounds.high, self.count)

    def _stream(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode()])


def low_of(figure: Figure) -> float:
    return figure.value if figure.low is None else figure.low


def high_of(figure: Figure) -> float:
    return figure.value if figure.high is None else figure.high


def bases(figures: Mapping[str, Figure]) -> dict[str, Amount]:
    return {name: figure.value for name, figure in figures.items()}


def interval(samples: Amount, base: Amount) -> Interval:
    """5th and 95th percentile of the samples, around the result with all parameters at their base.

    The base may lie outside where the parameters are skewed enough; it is what a plain sum would say.
    """
    low, high = np.quantile(samples, (_TAIL, 1.0 - _TAIL))
    return Interval(float(low), float(base), float(high))


def interval_of(result: Result, figures: Mapping[str, Figure], draws: Draws) -> Interval:
    """A result's interval over all that it hangs on."""
    drawn: dict[str, Amount] = {name: draws.of(name, figure) for name, figure in figures.items()}
    return interval(result(drawn), result(bases(figures)))
