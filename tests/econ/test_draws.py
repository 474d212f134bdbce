"""Draws: by name and seed, within their range, the same for whoever asks."""

from __future__ import annotations

import numpy as np
import pytest

from jevons.econ.draws import Draws, bases, interval, interval_of
from jevons.econ.tornado import Swing, tornado
from jevons.facts.economics import Bounds
from jevons.facts.hardware import Confidence, Figure


def figure(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value=value, low=low, high=high, source="test", confidence=Confidence.ASSUMED)


def test_a_name_is_drawn_alike_whoever_asks_and_whatever_else_is_drawn() -> None:
    power, price = figure(2.0, 1.0, 4.0), figure(3.0, 2.0, 5.0)
    before = Draws(100).of("power", power)
    Draws(100).of("price", price)

    assert np.array_equal(before, Draws(100).of("power", power))
    assert not np.array_equal(before, Draws(100).of("price", power))
    assert not np.array_equal(before, Draws(100, seed=1).of("power", power))


def test_draws_are_triangular() -> None:
    """Mean (1 + 2 + 6) / 3 = 3; below the base lie (2 - 1) / (6 - 1) = 20 %."""
    drawn = Draws(20_000).of("x", figure(2.0, 1.0, 6.0))

    assert drawn.min() >= 1.0
    assert drawn.max() <= 6.0
    assert drawn.mean() == pytest.approx(3.0, abs=0.03)
    assert (drawn < 2.0).mean() == pytest.approx(0.2, abs=0.01)


def test_what_has_no_range_is_its_base_and_half_a_range_ends_there() -> None:
    assert np.array_equal(Draws(3).of("x", figure(2.0)), [2.0, 2.0, 2.0])
    assert Draws(100).of("x", figure(2.0, high=3.0)).min() >= 2.0


def test_where_no_base_is_known_all_between_is_as_likely() -> None:
    bounds = Bounds(low=2e6, high=8e6, source="test", confidence=Confidence.ASSUMED)

    assert Draws(20_000).between("x", bounds).mean() == pytest.approx(5e6, rel=0.01)
    assert not hasattr(bounds, "value")  # so none can be taken for one


def test_an_interval_is_nine_of_ten_around_the_base() -> None:
    found = interval(np.arange(101.0), 42.0)

    assert (found.low, found.base, found.high) == (5.0, 42.0, 95.0)
    assert found.scaled(10.0).high == 950.0


def test_a_result_is_computed_for_all_draws_at_once() -> None:
    found = interval_of(lambda of: of["a"] * of["b"], {"a": figure(2.0, 1.0, 3.0), "b": figure(10.0)}, Draws())

    assert found.base == 20.0
    assert found.low == pytest.approx(10 * (1 + np.sqrt(0.1)), rel=0.02)  # P(a < 1 + x) = x² / 2


def test_the_widest_swing_comes_first() -> None:
    """a alone gives 10 to 30, b alone 18 to 24; c has no range."""
    figures = {"b": figure(10.0, 9.0, 12.0), "a": figure(2.0, 1.0, 3.0), "c": figure(1.0)}
    swings = tornado(lambda of: of["a"] * of["b"] * of["c"], figures)

    assert swings == [Swing("a", 1.0, 3.0, 10.0, 30.0), Swing("b", 9.0, 12.0, 18.0, 24.0)]
    assert bases(figures) == {"b": 10.0, "a": 2.0, "c": 1.0}
