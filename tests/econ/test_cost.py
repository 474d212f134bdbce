"""What an hour and a million tokens cost: by hand, beside what was published, and how it must move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.base.errors import UnknownFigure
from jevons.config.catalog import read_catalog
from jevons.econ.cost import (
    Basis,
    Terms,
    build_usd_per_hour,
    capital_recovery,
    chip_hour,
    usd_per_million_tokens,
)
from jevons.econ.draws import Draws, bases, interval_of
from jevons.econ.power import joules_per_token, racks_within, tokens_per_s_per_mw

CATALOG = read_catalog()
TERMS = {"capex_overhead": 1.15, "life_years": 5.0, "wacc": 0.08, "availability": 1.0}
SITE = {"colo_usd_per_kw_month": 0.0, "pue": 1.0, "usd_per_kwh": 0.07}


def terms(**changed: float) -> Terms:
    return Terms(**{**TERMS, **SITE, **changed})


def test_a_dollar_is_paid_back_with_interest() -> None:
    """1000 at 10 % over 2 years: 576.19 a year, for 576.19 / 1.1 + 576.19 / 1.21 = 1000."""
    assert capital_recovery(0.10, 2.0) * 1000 == pytest.approx(576.19, abs=0.005)


def test_vera_rubin_built_costs_what_is_published() -> None:
    """$7.8M / 72 · 1.15 at 8 % over 5 years is 3.56 an hour, 3.3 kW at 7 ct 0.23: 3.79; 3.61 is 4.8 % less."""
    capital = build_usd_per_hour(capex_usd=7.8e6 / 72, power_kw=0.0, terms=terms())
    whole = build_usd_per_hour(capex_usd=7.8e6 / 72, power_kw=3.3, terms=terms())

    assert capital == pytest.approx(3.56, abs=0.005)
    assert whole == pytest.approx(3.79, abs=0.005)
    published = CATALOG.chips["rubin"].own_usd_per_hour
    assert published is not None
    assert published.value == pytest.approx(whole, rel=0.05)


def test_gb200_built_costs_what_is_published() -> None:
    """$3.75M / 72 · 1.15 at 10 % over 5 years is 1.80 an hour, 1.87 kW at 7 ct 0.13: 1.93; 1.86 is 3.8 % less."""
    built = build_usd_per_hour(capex_usd=3.75e6 / 72, power_kw=1.87, terms=terms(wacc=0.10))

    published = CATALOG.chips["gb200"].own_usd_per_hour
    assert published is not None
    assert built == pytest.approx(1.93, abs=0.005)
    assert published.value == pytest.approx(built, rel=0.05)


def test_rooms_cost_every_month_and_hours_that_are_lost_make_the_others_dearer() -> None:
    """2 kW at 100 a month are 2400 a year: 0.274 an hour, 0.304 where one of ten is lost."""
    alone = {"capex_usd": 0.0, "power_kw": 2.0}
    room = terms(colo_usd_per_kw_month=100.0, usd_per_kwh=0.0)

    assert build_usd_per_hour(**alone, terms=room) == pytest.approx(2400 / 8760)
    lost = terms(colo_usd_per_kw_month=100.0, usd_per_kwh=0.0, availability=0.9)
    assert build_usd_per_hour(**alone, terms=lost) == pytest.approx(2400 / 8760 / 0.9)


def test_a_million_tokens() -> None:
    """3.60 an hour at 1,000 tokens/s is 1 a million; half asked for, 2."""
    assert usd_per_million_tokens(usd_per_hour=3.6, tokens_per_s=1000.0) == pytest.approx(1.0)
    assert usd_per_million_tokens(usd_per_hour=3.6, tokens_per_s=1000.0, utilisation=0.5) == pytest.approx(2.0)


def test_power() -> None:
    assert joules_per_token(power_w=2000.0, tokens_per_s=500.0) == 4.0
    assert tokens_per_s_per_mw(tokens_per_s=500.0, power_w=2000.0) == 250_000.0
    assert racks_within(site_w=50e6, rack_w=220e3, pue=1.2) == 189  # 189.39
    assert racks_within(site_w=1.2 * 440e3, rack_w=220e3, pue=1.2) == 2


def test_an_hour_owned_is_what_was_published_and_dearer_electricity_adds_its_difference() -> None:
    hour = chip_hour(Basis.OWN, "rubin", CATALOG.chips["rubin"], None, CATALOG.economics)
    base = bases(hour.figures)

    assert hour.usd(base) == pytest.approx(3.61)
    assert hour.usd({**base, "usd_per_kwh": 0.18}) == pytest.approx(3.61 + 3.3 * 1.2 * 0.10)


def test_an_hour_rented_does_not_ask_for_power() -> None:
    hour = chip_hour(Basis.RENT, "rubin", CATALOG.chips["rubin"], None, CATALOG.economics)

    assert list(hour.figures) == ["rent_usd_per_hour/rubin"]
    assert hour.usd(bases(hour.figures)) == 8.5


def test_built_by_the_rack() -> None:
    """CRF(10 %, 4) = 0.31547: 7.8M / 72 · 1.15 · CRF + 130 · 12 · 3.3 = 44,450 a year, / 8760 / 0.97, + 3.3 · 0.096."""
    chip, rack = CATALOG.chips["rubin"], CATALOG.racks["vera-rubin-nvl72"]
    hour = chip_hour(Basis.BUILD, "rubin", chip, rack, CATALOG.economics)

    assert hour.usd(bases(hour.figures)) == pytest.approx(44_450 / 8760 / 0.97 + 0.3168, abs=0.005)


@pytest.mark.parametrize(
    ("basis", "chip", "says"),
    [
        (Basis.OWN, "trainium3", "chips.trainium3.own_usd_per_hour: is not known"),
        (Basis.RENT, "lpu3", "chips.lpu3.rent_usd_per_hour: is not known"),
        (Basis.BUILD, "mi355x", "chips.mi355x.price_usd: is not known"),
    ],
)
def test_what_nobody_published_is_named_and_not_guessed(basis: Basis, chip: str, says: str) -> None:
    with pytest.raises(UnknownFigure) as caught:
        chip_hour(basis, chip, CATALOG.chips[chip], None, CATALOG.economics)

    assert says in str(caught.value)


def test_units_cannot_be_mixed_up_by_their_order() -> None:
    with pytest.raises(TypeError):
        usd_per_million_tokens(1000.0, 3.6)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Terms(1.15, 5.0, 0.08, 1.0, 0.0, 1.0, 0.07)  # type: ignore[call-arg]


SHARES = st.floats(0.05, 1.0)
MONEY = st.floats(1.0, 1e7)


@settings(max_examples=60, deadline=None)
@given(
    capex=MONEY,
    power=st.floats(0.1, 300.0),
    wacc=st.floats(0.01, 0.3),
    life=st.floats(1.0, 10.0),
    colo=st.floats(0.0, 300.0),
    up=st.floats(1.0, 3.0),
)
def test_nothing_that_gets_dearer_makes_an_hour_cheaper(
    capex: float, power: float, wacc: float, life: float, colo: float, up: float
) -> None:
    usual = {"wacc": wacc, "life_years": life, "colo_usd_per_kw_month": colo}

    def hour(capex_usd: float = capex, power_kw: float = power, **changed: float) -> float:
        return float(build_usd_per_hour(capex_usd=capex_usd, power_kw=power_kw, terms=terms(**{**usual, **changed})))

    least = hour() * (1 - 1e-12)
    assert hour(capex_usd=capex * up) >= least
    assert hour(power_kw=power * up) >= least
    for name in ("wacc", "colo_usd_per_kw_month"):
        assert hour(**{name: usual[name] * up}) >= least
    for name in ("capex_overhead", "pue", "usd_per_kwh"):
        assert hour(**{name: {**TERMS, **SITE}[name] * up}) >= least
    for name in ("life_years", "availability"):
        assert hour(**{name: {**TERMS, **usual}[name] / up}) >= least


@settings(max_examples=40, deadline=None)
@given(usd=MONEY, rate=st.floats(1.0, 1e6), share=SHARES, more=st.floats(1.0, 10.0))
def test_tokens_get_cheaper_the_more_are_asked_for(usd: float, rate: float, share: float, more: float) -> None:
    def cost(**changed: float) -> float:
        of = {"usd_per_hour": usd, "tokens_per_s": rate, "utilisation": share, **changed}
        return float(usd_per_million_tokens(**of))

    assert cost(utilisation=share / more) >= cost() >= cost(tokens_per_s=rate * more)
    assert cost(usd_per_hour=usd * more) >= cost()


@pytest.mark.parametrize("basis", [Basis.OWN, Basis.BUILD])
@pytest.mark.parametrize("name", ["all_in_w/gb200", "usd_per_kwh", "pue"])
def test_more_power_costs_more_in_every_draw(basis: Basis, name: str) -> None:
    hour = chip_hour(basis, "gb200", CATALOG.chips["gb200"], CATALOG.racks["gb200-nvl72"], CATALOG.economics)
    dear = {"pue": np.full(50, 1.3), "usd_per_kwh": np.full(50, 0.1)}
    drawn = {key: Draws(50).of(key, figure) for key, figure in hour.figures.items()} | dear
    more = drawn | {name: drawn[name] * 1.1}

    assert np.all(hour.usd(more) > hour.usd(drawn))


def test_what_is_published_as_a_bare_price_has_the_range_that_such_prices_have() -> None:
    hour = chip_hour(Basis.RENT, "gb300", CATALOG.chips["gb300"], None, CATALOG.economics)

    found = interval_of(hour.usd, hour.figures, Draws())
    assert 5.0 * 0.65 < found.low < found.base == 5.0 < found.high < 5.0 * 2.0
