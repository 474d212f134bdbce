"""Buy now or wait: the arithmetic by hand, and what holds of any delay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.econ.cost import ChipHour, given_hour
from jevons.econ.draws import Draws
from jevons.econ.rivals import Rival, figures_of
from jevons.econ.wait import BUY_NOW, DELAY, DO_WITHOUT, RENT_THEN_BUY, Answer, Waiting, answer
from jevons.facts.hardware import Confidence, Figure


def figure(value: float) -> Figure:
    return Figure(value=value, source="a test", confidence=Confidence.ASSUMED)


def hour(basis: str, chip: str, usd: float) -> ChipHour:
    """Owned and rented hours must not share a figure."""
    return given_hour(f"{chip}-{basis}", figure(usd))


def asked(delay: float = 6.0, later_usd: float = 1.0, has_rent: bool = True) -> Answer:
    """10 chips at $2 an hour now, rented at $4; 10 others at $1 later; a million tokens an hour; 24 months."""
    own = {"now": hour("own", "now", 2.0), "later": hour("own", "later", later_usd)}
    rent = {"now": hour("rent", "now", 4.0)} if has_rent else {}
    waiting = Waiting(
        now=Rival(name="now", chips={"now": 10}),
        later=Rival(name="later", chips={"later": 10}),
        own=own,
        rent=rent,
        months=24.0,
        output_tokens_per_hour=1e6,
    )
    errors = {"now": 0.1, "later": 0.1}
    figures = figures_of(own, errors) | figures_of(rent, errors) | {DELAY: figure(delay)}
    return answer(waiting, figures, Draws(count=64))


def cost(found: Answer, name: str) -> float:
    return next(each.usd_per_million_tokens.base for each in found.choices if each.name == name)


def test_what_is_paid_meanwhile_counts() -> None:
    found = asked()
    assert cost(found, BUY_NOW) == pytest.approx(20.0)
    # 6 of 24 months at 10 × $4, the rest at 10 × $1.
    assert cost(found, RENT_THEN_BUY) == pytest.approx(0.25 * 40.0 + 0.75 * 10.0)
    assert found.choices[0].name == RENT_THEN_BUY


def test_who_waits_unserved_pays_less_a_token_and_serves_fewer() -> None:
    last = asked().choices[-1]
    assert last.name == DO_WITHOUT
    assert last.served == pytest.approx(0.75)
    assert last.usd_per_million_tokens.base == pytest.approx(10.0)


def test_a_long_delay_makes_it_better_to_buy_now() -> None:
    # 40 d + 10 (1 - d) = 20 at d = 1/3 of 24 months.
    found = asked(delay=12.0)
    assert found.choices[0].name == BUY_NOW
    flip = next(flip for flip in found.flips if flip.figure == DELAY)
    assert flip.at == pytest.approx(8.0, rel=0.01)
    assert flip.to == RENT_THEN_BUY


def test_where_nobody_rents_them_there_is_nothing_to_rent() -> None:
    assert [each.name for each in asked(has_rent=False).choices] == [BUY_NOW, DO_WITHOUT]


@given(st.floats(0.5, 23.0), st.floats(1.0, 10.0))
@settings(max_examples=25, deadline=None)
def test_waiting_longer_never_gets_cheaper_while_renting_is_dearer(delay: float, more: float) -> None:
    assert cost(asked(delay + more), RENT_THEN_BUY) >= cost(asked(delay), RENT_THEN_BUY) - 1e-9


@given(st.floats(0.2, 5.0), st.floats(1.0, 3.0))
@settings(max_examples=25, deadline=None)
def test_a_higher_price_later_never_makes_waiting_cheaper(usd: float, factor: float) -> None:
    for name in (RENT_THEN_BUY, DO_WITHOUT):
        assert cost(asked(later_usd=usd * factor), name) >= cost(asked(later_usd=usd), name) - 1e-9
