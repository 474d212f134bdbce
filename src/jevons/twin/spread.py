"""Distributions of what a rehearsal measures, in bounded memory however many values there are."""

from __future__ import annotations

import msgspec
import numpy as np

from jevons.base.compiled import Ints, Reals

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_MOST_KEPT = 1 << 20  # values as they are; more are counted by size
_LOW, _RATIO = 1e-6, 5e-4  # bins of 0.05 %, from a microsecond on
_BINS = 1 + int(np.log(1e15) / _RATIO)  # up to thirty years


class Spread(msgspec.Struct, frozen=True):
    """A distribution, in the unit of its name."""

    mean: float
    p50: float
    p90: float
    p99: float


class Distribution:
    """Values ≥ 0 that come in pieces. Quantiles are exact up to a million values, right to 0.03 % beyond."""

    def __init__(self) -> None:
        self._kept: list[Reals] = []
        self.count, self._sum = 0, 0.0
        self._bins: Ints | None = None

    def add(self, values: Reals) -> None:
        self.count += len(values)
        self._sum += float(values.sum(dtype=np.float64))
        if self._bins is not None:
            self._bins += _counted(values)
            return
        self._kept.append(values.astype(np.float32))
        if self.count > _MOST_KEPT:
            self._bins = sum((_counted(values) for values in self._kept), np.zeros(_BINS, np.int64))
            self._kept.clear()

    def spread(self) -> Spread:
        """All 0 where there are no values."""
        if not self.count:
            return Spread(0.0, 0.0, 0.0, 0.0)
        found = self.quantiles(np.array(list(QUANTILES.values())))
        return Spread(self._sum / self.count, *(float(value) for value in found))

    def quantiles(self, shares: Reals) -> Reals:
        """Values below which such shares lie; there are values."""
        if self._bins is None:
            return np.asarray(np.quantile(np.concatenate(self._kept), shares))
        at = np.searchsorted(np.cumsum(self._bins), shares * self.count)
        return np.where(at == 0, 0.0, _LOW * np.exp((at - 0.5) * _RATIO))


def _counted(values: Reals) -> Ints:
    """How many there are of each size; the first bin holds what is below a microsecond."""
    at = np.ceil(np.log(np.maximum(values, _LOW) / _LOW) / _RATIO).astype(np.int64)
    counts: Ints = np.bincount(np.minimum(at, _BINS - 1), minlength=_BINS)
    return counts
