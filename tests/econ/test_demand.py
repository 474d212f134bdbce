"""Demand: hand-computed examples, and what holds whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.econ.demand import (
    Course,
    Limits,
    Outcome,
    Wants,
    flip,
    most_elasticity,
    outcome,
    rebound,
    taken_back,
    trend_without_price,
)

factor = st.floats(0.05, 20.0)
elasticity = st.floats(0.1, 3.0)


def told(price: float, epsilon: float, trend: float = 1.0, *, gain: float = 1.0, **limits: float) -> Outcome:
    """`gain`: tasks a chip and a joule do, over the first year's. Without a markup given, the highest bids have it."""
    one = np.ones(1)
    endless = dict.fromkeys(Limits.__struct_fields__, np.inf) | limits
    return outcome(
        Wants(trend=trend * one, elasticity=epsilon * one),
        Course(cost=price * one, chips=one / gain, energy=one / gain, tokens=one),
        Limits(**{name: limit * one for name, limit in endless.items()}),
    )


def test_ten_times_cheaper_at_1_11_is_12_9_times_the_volume_and_1_29_times_the_spend() -> None:
    assert rebound(10.0, 1.11).volume == pytest.approx(12.88, abs=0.01)  # 10^1.11
    assert rebound(10.0, 1.11).spend == pytest.approx(1.288, abs=0.001)  # 10^0.11


def test_ten_times_cheaper_at_0_8_is_6_3_times_the_volume_and_0_63_times_the_spend() -> None:
    assert rebound(10.0, 0.8).volume == pytest.approx(6.31, abs=0.01)
    assert rebound(10.0, 0.8).spend == pytest.approx(0.631, abs=0.001)


def test_half_the_tokens_for_each_task_raise_raw_tokens_only_above_one() -> None:
    assert rebound(2.0, 1.5).tokens == pytest.approx(2**0.5)
    assert rebound(2.0, 0.5).tokens == pytest.approx(2**-0.5)


def test_ten_times_cheaper_takes_back_132_percent_of_the_saving_at_1_11_and_59_at_0_8() -> None:
    """0.1 · (12.88 - 1) / 0.9 and 0.1 · (6.31 - 1) / 0.9; at 1 all of it, at 0 none; where nothing is saved none."""
    each = np.full(4, 0.1)

    assert taken_back(each, 10 ** np.array([1.11, 0.8, 1.0, 0.0])) == pytest.approx([1.320, 0.590, 1.0, 0.0], abs=5e-4)
    assert taken_back(np.ones(1), np.full(1, 3.0)) == [0.0]


@given(st.floats(1.01, 1e3), st.floats(0.02, 3.0))
def test_more_than_all_is_taken_back_if_and_only_if_spend_rises(cheaper: float, epsilon: float) -> None:
    shares = taken_back(np.array([1.0 / cheaper]), np.array([cheaper**epsilon]))
    spend = rebound(cheaper, epsilon).spend

    assert (shares[0] > 1.0) == (spend > 1.0) or spend == pytest.approx(1.0)


def test_the_years_and_the_rebound_say_the_same() -> None:
    done = told(0.1, 1.11)
    assert (done.volume[0], done.spend[0]) == pytest.approx((rebound(10, 1.11).volume, rebound(10, 1.11).spend))


def test_without_limits_spend_begins_to_rise_at_an_elasticity_of_one() -> None:
    found = flip(lambda e: float(told(0.2, e).spend[0] - told(1.0, e).spend[0]))
    assert found == pytest.approx(1.0, abs=1e-6)


def test_what_chips_cannot_do_is_bid_for_and_cheaper_tokens_then_change_no_spend_at_any_elasticity() -> None:
    def change(epsilon: float) -> float:
        dear, cheap = told(1.0, epsilon, trend=8.0, chips=2.0), told(0.5, epsilon, trend=8.0, chips=2.0)
        return float(cheap.spend[0] - dear.spend[0])

    assert [change(e) for e in (0.5, 1.0, 2.0)] == pytest.approx([0.0, 0.0, 0.0])
    assert flip(change) is None


def test_what_comes_of_cheaper_tokens_that_are_bid_for_flips_at_one_too() -> None:
    # Wanted at half the price: 2^ε, of which 1.5 can be done, bid up to 1.5^(-1/ε): spend is 1.5^(1 - 1/ε).
    assert flip(lambda e: float(told(0.5, e, chips=1.5).spend[0] - 1.0)) == pytest.approx(1.0, abs=1e-6)
    # Short before and after, and twice as many from the same power.
    more = flip(
        lambda e: float(told(0.5, e, 8.0, gain=2.0, power=2.0).spend[0] - told(1.0, e, 8.0, power=2.0).spend[0])
    )
    assert more == pytest.approx(1.0, abs=1e-6)


def test_where_who_is_left_over_waits_cheaper_tokens_lower_spend_at_every_elasticity() -> None:
    def change(epsilon: float) -> float:
        dear, cheap = (told(p, epsilon, 8.0, chips=1.0, most_markup=1.0) for p in (1.0, 0.5))
        return float(cheap.spend[0] - dear.spend[0])

    assert [change(e) for e in (0.5, 1.0, 2.0)] == pytest.approx([-0.5, -0.5, -0.5])
    assert flip(change) is None


def test_a_limit_that_binds_when_tokens_are_cheap_puts_the_flip_above_one_or_nowhere() -> None:
    """At half the price twice the volume would make up for it; 1.5 times is all there is, and 1.2 the most markup."""
    found = flip(lambda e: float(told(0.5, e, chips=1.5, most_markup=1.2).spend[0] - 1.0))
    slack = flip(lambda e: float(told(0.5, e, chips=3.0, most_markup=1.2).spend[0] - 1.0))

    assert found is None  # 0.5 · 1.2 · 1.5 = 0.9 of the spend at most
    assert slack == pytest.approx(1.0, abs=1e-6)  # 2^1.585 = 3: it binds from there on


def test_under_a_limit_what_is_paid_above_cost_is_rent() -> None:
    done = told(1.0, 1.0, trend=8.0, chips=2.0)
    assert (done.volume[0], done.paid[0], done.spend[0], done.rent[0]) == pytest.approx((2.0, 4.0, 8.0, 6.0))
    assert (done.by_chips[0], done.by_power[0]) == (1.0, 0.0)


def test_of_2_2_times_a_year_at_prices_that_halve_little_is_left_at_1_1() -> None:
    left = trend_without_price(np.array([2.2]), np.array([2.0]), np.array([1.1]))
    assert left[0] == pytest.approx(1.0263, abs=1e-4)  # 2.2 / 2^1.1 = 2.2 / 2.1435
    assert most_elasticity(2.2, 2.0) == pytest.approx(1.1375, abs=1e-4)  # ln 2.2 / ln 2
    assert most_elasticity(2.2, 1.0) is None


@given(factor, factor, elasticity, factor)
def test_volume_never_rises_with_the_price(low: float, more: float, epsilon: float, trend: float) -> None:
    cheap, dear = told(low, epsilon, trend), told(low * (1 + more), epsilon, trend)
    assert dear.volume[0] <= cheap.volume[0]


@given(st.floats(0.05, 0.95), elasticity, factor)
def test_without_limits_cheaper_tokens_raise_spend_if_and_only_if_the_elasticity_is_above_one(
    price: float, epsilon: float, trend: float
) -> None:
    change = told(price, epsilon, trend).spend[0] / told(1.0, epsilon, trend).spend[0]
    if abs(epsilon - 1.0) > 1e-6:
        assert (change > 1.0) == (epsilon > 1.0)


@given(factor, elasticity, factor, factor, factor, st.floats(1.0, 5.0))
def test_limits_are_never_exceeded(
    price: float, epsilon: float, chips: float, power: float, gain: float, markup: float
) -> None:
    done = told(price, epsilon, 2.0, gain=gain, chips=chips, power=power, most_markup=markup)
    assert done.volume[0] <= min(chips, power) * gain * (1 + 1e-12)
    assert done.volume[0] <= done.wanted[0]
    assert done.rent[0] >= 0.0
    assert done.spend[0] == pytest.approx(done.rent[0] + price * done.volume[0])


def test_bids_beyond_all_numbers_are_still_a_markup_at_most() -> None:
    """At ε 0.001 a millionth of what is wanted would go for 10^6000 times the price."""
    done = told(1.0, 0.001, trend=1e6, chips=1.0, most_markup=3.0)
    assert done.paid[0] == 3.0
