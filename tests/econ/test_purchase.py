"""Which fleet to buy, by the bound: the arithmetic by hand, and what holds of any market."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

pytest.importorskip("highspy", reason="the bound needs HiGHS: pip install 'jevons[plan]'")

from jevons.econ.purchase import Excess, Kind, Limits, Market, Needs, Offer, cheapest, excesses, needs_of

CHEAP = Kind(role="both", chips={"cheap": 4}, requests_per_s=1.0)
QUICK = Kind(role="both", chips={"quick": 2}, requests_per_s=3.0)
OFFERS = {
    "cheap": Offer(chip="cheap", usd_per_hour=1.0, power_w=500.0, capex_usd=20_000.0),
    "quick": Offer(chip="quick", usd_per_hour=5.0, power_w=1_000.0, capex_usd=50_000.0),
}

NONE = Limits()


def market(kinds: list[Kind] | None = None, rate: float = 6.0, limits: Limits = NONE, **offers: Offer) -> Market:
    return Market(
        kinds=kinds or [CHEAP, QUICK], offers=OFFERS | offers, limits=limits, requests_per_s=rate, most_kinds=2
    )


def needs(market: Market, counts: list[int]) -> Needs:
    return needs_of(market.kinds, counts, market.offers)


def test_the_cheapest_fleet_is_the_one_that_costs_least_for_each_request() -> None:
    # By hand: cheap does 1 request/s for 4 × $1 = $4; quick 3 for 2 × $5, $3.33 each: 2 quick for 6 requests/s.
    assert cheapest(market()) == [0, 2]


def test_what_is_left_over_is_served_by_what_fits() -> None:
    # 7 requests/s: 2 quick and 1 cheap at $24 beat 3 quick at $30 and 7 cheap at $28.
    assert cheapest(market(rate=7.0)) == [1, 2]


def test_pairs_serve_no_more_than_either_side() -> None:
    prefill = Kind(role="prefill", chips={"quick": 1}, requests_per_s=4.0)
    decode = Kind(role="decode", chips={"cheap": 1}, requests_per_s=2.0)
    assert cheapest(market([prefill, decode])) == [2, 3]


SPLIT = Kind(role="decode", chips={"quick": 1, "cheap": 4}, requests_per_s=6.0)


def test_an_instance_of_two_kinds_of_chips_pays_and_powers_both() -> None:
    # By hand: 1 × $5 + 4 × $1 for 6 requests/s, with 2 prefill at $5: $19; 1 kW + 4 × 0.5 kW + 2 × 1 kW.
    prefill = Kind(role="prefill", chips={"quick": 1}, requests_per_s=4.0)
    both = market([prefill, SPLIT])
    assert cheapest(both) == [2, 1]
    assert needs(both, [2, 1]) == Needs(
        usd_per_hour=19.0, power_w=5_000.0, capex_usd=230_000.0, chips={"quick": 3, "cheap": 4}
    )
    assert cheapest(market([prefill, SPLIT], limits=Limits(power_w=4_999.0))) is None
    assert cheapest(market([prefill, SPLIT], cheap=replace(OFFERS["cheap"], most=3))) is None


def test_an_instance_of_which_one_chip_is_dark_fits_no_limit_of_power() -> None:
    dark = replace(OFFERS["cheap"], power_w=None)
    prefill = Kind(role="prefill", chips={"quick": 1}, requests_per_s=4.0)
    assert cheapest(market([prefill, SPLIT], cheap=dark)) == [2, 1]
    assert cheapest(market([prefill, SPLIT], cheap=dark, limits=Limits(power_w=1e9))) is None


def test_a_budget_of_power_takes_another_chip() -> None:
    # 2 quick draw 4 kW; 6 cheap would draw 12.
    assert cheapest(market(limits=Limits(power_w=4_000.0))) == [0, 2]
    assert cheapest(market(limits=Limits(power_w=3_999.0))) is None


def test_owned_chips_cost_what_they_draw() -> None:
    owned = replace(OFFERS["cheap"], owned=24, running_usd_per_hour=0.05)
    mine = market(cheap=owned)
    counts = cheapest(mine)
    assert counts == [6, 0]
    assert needs(mine, counts).usd_per_hour == pytest.approx(24 * 0.05)
    assert needs(mine, counts).capex_usd == 0.0


def test_no_more_chips_than_there_are() -> None:
    assert cheapest(market(quick=replace(OFFERS["quick"], most=2))) == [3, 1]


def test_power_that_is_not_known_fits_no_limit() -> None:
    dark = market(limits=Limits(power_w=1e9), quick=replace(OFFERS["quick"], power_w=None))
    assert cheapest(dark) == [6, 0]


def test_a_set_of_kinds_that_was_seen_is_not_proposed_again() -> None:
    counts = cheapest(market(), without=[frozenset({1})])
    assert counts is not None
    assert counts[0] > 0


def test_the_least_power_is_another_fleet_than_the_least_dollars() -> None:
    frugal = market(quick=replace(OFFERS["quick"], usd_per_hour=7.0))  # $14 for 3 requests/s, but 667 W each
    assert cheapest(frugal) == [6, 0]
    assert cheapest(frugal, least="power_w") == [0, 2]


def test_an_excess_names_the_limit_and_by_how_much() -> None:
    found = excesses(needs(market(), [0, 2]), Limits(power_w=2_000.0, usd_per_hour=30.0), OFFERS)
    assert found == [Excess("power_w", 2_000.0, 4_000.0)]


RATES = st.floats(0.1, 20.0)
PRICES = st.floats(0.1, 20.0)


@st.composite
def markets(draw: st.DrawFn) -> Market:
    names = ["a", "b", "c"]
    offers = {
        name: Offer(
            chip=name,
            usd_per_hour=draw(PRICES),
            power_w=draw(st.floats(100.0, 3_000.0)),
            capex_usd=draw(st.floats(1e3, 1e5)),
            most=draw(st.none() | st.integers(0, 40)),
        )
        for name in names
    }
    kinds = [
        Kind(role=role, chips={name: draw(st.sampled_from([1, 2, 4]))}, requests_per_s=draw(RATES))
        for name in names
        for role in ("both", "prefill", "decode")
    ]
    kinds += [Kind(role="decode", chips={"a": 1, "b": draw(st.integers(1, 8))}, requests_per_s=draw(RATES))]
    limits = Limits(
        power_w=draw(st.none() | st.floats(1e3, 1e5)),
        usd_per_hour=draw(st.none() | st.floats(1.0, 500.0)),
        capex_usd=draw(st.none() | st.floats(1e4, 5e6)),
    )
    return Market(kinds=kinds, offers=offers, limits=limits, requests_per_s=draw(st.floats(0.5, 60.0)))


def served(market: Market, counts: list[int]) -> float:
    rates = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
    for kind, count in zip(market.kinds, counts, strict=True):
        rates[kind.role] += kind.requests_per_s * count
    return rates["both"] + min(rates["prefill"], rates["decode"])


@given(markets())
@settings(max_examples=40, deadline=None)
def test_no_budget_is_ever_exceeded_and_all_is_served(market: Market) -> None:
    counts = cheapest(market)
    if counts is None:
        return
    assert excesses(needs(market, counts), market.limits, market.offers) == []
    assert served(market, counts) >= market.requests_per_s * (1 - 1e-6)
    assert sum(count > 0 for count in counts) <= market.most_kinds


@given(markets(), st.sampled_from(["a", "b", "c"]), st.floats(1.0, 5.0))
@settings(max_examples=30, deadline=None)
def test_a_higher_price_never_makes_it_cheaper(market: Market, chip: str, factor: float) -> None:
    offer = market.offers[chip]
    dearer = replace(market, offers=market.offers | {chip: replace(offer, usd_per_hour=offer.usd_per_hour * factor)})
    before, after = cheapest(market), cheapest(dearer)
    if after is None:
        return
    assert before is not None
    assert needs(dearer, after).usd_per_hour >= needs(market, before).usd_per_hour * (1 - 1e-5)


@given(markets(), st.floats(0.3, 1.0))
@settings(max_examples=30, deadline=None)
def test_less_power_never_makes_it_cheaper(market: Market, share: float) -> None:
    limit = market.limits.power_w or 1e5
    more, less = (replace(market, limits=replace(market.limits, power_w=w)) for w in (limit, limit * share))
    before, after = cheapest(more), cheapest(less)
    if after is None:
        return
    assert before is not None
    assert needs(less, after).usd_per_hour >= needs(more, before).usd_per_hour * (1 - 1e-5)
