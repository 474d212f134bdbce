"""Prices over speed: by hand on points that are made up."""

from __future__ import annotations

import pytest

from jevons.config.catalog import read_catalog
from jevons.config.prices import price_of, read_price
from jevons.econ.cost import Basis
from jevons.econ.draws import Draws
from jevons.econ.speeds import Side, prices_at
from jevons.perf.frontier import Point
from jevons.perf.roofline import Group


def side(chip: str, usd_per_hour: str, *points: tuple[float, float], error: float | None = 0.0) -> Side:
    name, price = read_price(f"{chip}={usd_per_hour}")
    hour = price_of(read_catalog(), Basis.OWN, name, {name: price})
    return Side(
        chip=chip, points=[Point(fast, rate, Group(), 8) for fast, rate in points], hour=hour, rate_p90_error=error
    )


OLD = side("gb300", "1.8", (100.0, 500.0), (50.0, 1000.0))
NEW = side("rubin", "3.6", (200.0, 500.0), (50.0, 4000.0))


def test_a_million_tokens_at_each_speed_and_how_much_cheaper_the_last_is() -> None:
    """$1.80 an hour at 1,000 tokens/s is $0.50 a million, $3.60 at 4,000 is $0.25: twice as cheap; at 80 as dear."""
    at_50, at_80, at_150, at_300 = prices_at([OLD, NEW], [50.0, 80.0, 150.0, 300.0], Draws(50))

    assert [offer.mtok.base for offer in at_50.offers.values() if offer.mtok] == pytest.approx([0.5, 0.25])
    assert at_50.cheaper["gb300"] is not None
    assert at_50.cheaper["gb300"].base == pytest.approx(2.0)
    assert at_80.cheaper["gb300"] is not None
    assert at_80.cheaper["gb300"].base == pytest.approx(0.5)
    assert (at_150.offers["gb300"].mtok, at_150.cheaper["gb300"]) == (None, None)
    assert at_150.offers["rubin"].mtok is not None
    assert at_300.offers["rubin"].mtok is None


def test_slower_steps_may_put_a_speed_out_of_reach() -> None:
    unsure = side("rubin", "3.6", (200.0, 500.0), (50.0, 4000.0), error=1.0)
    (step,) = prices_at([OLD, unsure], [150.0], Draws(4000))
    offer = step.offers["rubin"]

    assert 0.5 < offer.reach < 0.9
    assert offer.mtok is not None
    assert offer.mtok.low < offer.mtok.base < offer.mtok.high == float("inf")


def test_what_was_never_measured_is_less_sure_than_what_was() -> None:
    spans = []
    for error in (0.2, 0.7, None):
        (step,) = prices_at([side("rubin", "3.6", (900.0, 500.0), error=error)], [50.0], Draws(500))
        assert step.offers["rubin"].mtok is not None
        spans.append(step.offers["rubin"].mtok.high / step.offers["rubin"].mtok.low)

    assert spans == sorted(spans)


def test_a_price_is_as_sure_whichever_chips_stand_beside_it() -> None:
    """What one has in common with others is its own error's part, not that of who stands last."""
    measured, unmeasured = (
        side("rubin", "3.6", (900.0, 500.0), error=0.2),
        side("lpu3", "1", (900.0, 500.0), error=None),
    )
    alone = {each.chip: prices_at([each], [50.0], Draws(500))[0].offers[each.chip] for each in (measured, unmeasured)}

    for sides in ([measured, unmeasured], [unmeasured, measured]):
        assert prices_at(sides, [50.0], Draws(500))[0].offers == alone


def test_what_was_never_measured_is_within_a_factor_of_three_nine_times_of_ten() -> None:
    (step,) = prices_at([side("lpu3", "3.6", (900.0, 500.0), error=None)], [50.0], Draws(4000))
    mtok = step.offers["lpu3"].mtok

    assert mtok is not None
    assert 2.5 < mtok.high / mtok.base < 3.5
