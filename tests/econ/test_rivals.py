"""How sure it is that one fleet is cheaper, and where that flips: by hand."""

from __future__ import annotations

from functools import partial

import pytest

from jevons.econ.cost import ChipHour, given_hour
from jevons.econ.draws import Draws, Result
from jevons.econ.rivals import Rival, Sureness, figures_of, sureness, usd_per_hour
from jevons.facts.hardware import Confidence, Figure

OURS, THEIRS = Rival(name="ours", chips={"a": 10}), Rival(name="theirs", chips={"b": 4})


def price(value: float, low: float, high: float) -> Figure:
    return Figure(value=value, low=low, high=high, source="a test", confidence=Confidence.ESTIMATE)


def compared(error: float | None = 0.1) -> Sureness:
    """$10 an hour against $12."""
    hours = {"a": given_hour("a", price(1.0, 0.9, 1.1)), "b": given_hour("b", price(3.0, 2.0, 4.0))}
    return told(hours, error, 512)


def told(hours: dict[str, ChipHour], error: float | None, draws: int) -> Sureness:
    figures = figures_of(hours, {"a": error, "b": error})
    costs: dict[str, Result] = {each.name: partial(usd_per_hour, each, hours) for each in (OURS, THEIRS)}
    return sureness(costs, figures, Draws(count=draws))


def test_each_assumption_is_told_where_the_other_fleet_becomes_the_cheapest() -> None:
    flips = {flip.figure: flip for flip in compared().flips}
    # 10 × $1.20 = 4 × $3.00, and 10 × $1.00 = 4 × $2.50.
    assert flips["given_usd_per_hour/a"].at == pytest.approx(1.2, rel=0.01)
    assert flips["given_usd_per_hour/b"].at == pytest.approx(2.5, rel=0.01)
    assert flips["step_time/a"].at == pytest.approx(1.2, rel=0.01)
    assert flips["given_usd_per_hour/a"].to == "theirs"


def test_a_flip_is_told_to_lie_within_or_beyond_what_is_known() -> None:
    flips = {flip.figure: flip for flip in compared().flips}
    assert flips["given_usd_per_hour/b"].is_within  # 2.00 to 4.00
    assert not flips["given_usd_per_hour/a"].is_within  # 0.90 to 1.10


def test_the_share_of_draws_in_which_each_is_cheapest_adds_up() -> None:
    sure = compared()
    assert sum(sure.cheapest_share) == pytest.approx(1.0)
    assert sure.cheapest_share[0] > 0.5
    assert sure.costs[0].low < 10.0 < sure.costs[0].high


def test_who_was_never_measured_is_less_sure() -> None:
    assert compared(error=None).cheapest_share[0] < compared(error=0.05).cheapest_share[0]


def test_nothing_flips_where_the_other_fleet_is_far_off() -> None:
    hours = {"a": given_hour("a", price(1.0, 0.9, 1.1)), "b": given_hour("b", price(300.0, 200.0, 400.0))}
    sure = told(hours, 0.1, 64)
    assert sure.flips == []
    assert sure.cheapest_share == [1.0, 0.0]
