"""Distributions: exact while few, within a bin once many, never larger than that."""

from __future__ import annotations

import numpy as np
import pytest

from jevons.twin.spread import Distribution, Spread

POINTS = (0.5, 0.9, 0.99)


def drawn(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).lognormal(-1.0, 2.0, count)


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_few_values_have_their_own_quantiles(pieces: int) -> None:
    values, seen = drawn(1_000, 1), Distribution()
    for piece in np.array_split(values, pieces):
        seen.add(piece)

    spread = seen.spread()

    assert (spread.p50, spread.p90, spread.p99) == pytest.approx(np.quantile(values, POINTS), rel=1e-6)
    assert spread.mean == pytest.approx(values.mean())


def test_of_millions_the_quantiles_are_right_to_a_bin_and_little_is_kept() -> None:
    values, seen = drawn(3_000_000, 2), Distribution()
    for piece in np.array_split(values, 40):
        seen.add(piece)

    spread = seen.spread()

    assert (spread.p50, spread.p90, spread.p99) == pytest.approx(np.quantile(values, POINTS), rel=4e-4)
    assert spread.mean == pytest.approx(values.mean())
    assert seen._kept == []
    assert seen._bins is not None
    assert seen._bins.nbytes < 1e6


def test_values_of_nothing_are_nothing() -> None:
    assert Distribution().spread() == Spread(0.0, 0.0, 0.0, 0.0)
    seen = Distribution()
    for _ in range(3):
        seen.add(np.zeros(500_000))
    assert seen.spread() == Spread(0.0, 0.0, 0.0, 0.0)


def test_what_is_larger_than_any_bin_is_in_the_last() -> None:
    seen = Distribution()
    seen.add(np.full(1_100_000, 1e12))

    assert 1e8 < seen.spread().p50 <= 1e12
