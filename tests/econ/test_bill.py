"""What the tokens of a fleet cost: by hand, in sum, and what is not counted twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jevons.base.errors import ConfigError, UnknownFigure
from jevons.config.catalog import read_catalog
from jevons.config.prices import make_bill, read_price, unpriced
from jevons.econ.bill import Bill, step_time
from jevons.econ.cost import Basis
from jevons.econ.draws import Draws, bases, interval_of
from jevons.facts.hardware import Figure
from jevons.facts.usage import GroupUsage, Usage

CATALOG = read_catalog()
GROUP = GroupUsage(
    chip="rubin",
    chips={"rubin": 10},
    busy_s=60.0,
    prompt_s=15.0,
    cache_share=0.4,
    energy_j=None,
    trust="transferred",
    rate_p90_error=0.5,
)


def usage(*groups: GroupUsage, cached: int = 60_000) -> Usage:
    return Usage(
        seconds=100.0,
        requests=500,
        met=400,
        input_tokens=100_000,
        cached_tokens=cached,
        output_tokens=20_000,
        groups=list(groups) or [GROUP],
    )


def bill(of: Usage, *prices: str) -> Bill:
    return make_bill(of, CATALOG, Basis.OWN, dict(read_price(text) for text in prices))


def test_an_instance_costs_what_it_was_paid_for() -> None:
    """10 chips at $3.60, there for a quarter of the time; they draw nothing else of the time, and room is for all."""
    always, partly = bill(usage(), "rubin=3.6"), bill(usage(replace(GROUP, paid_share=0.25)), "rubin=3.6")
    base = bases(always.figures())

    assert partly.usd_per_hour(base) == pytest.approx(9.0)
    assert partly.usd_per_mtok(base) == pytest.approx(always.usd_per_mtok(base) / 4)
    assert partly.joules_per_output_token(base) == pytest.approx(always.joules_per_output_token(base) / 4)
    assert partly.it_w(base) == always.it_w(base)
    assert partly.break_even_usd_per_hour("rubin", always.usd_per_mtok, base) == pytest.approx(4 * 3.6)


def test_who_pays_for_what_by_hand() -> None:
    """10 chips at $3.60 are $1 in 100 s; half of that is asked for, so all costs count double: $2.

    Memory is a quarter of the price, 0.4 of it holds what may be asked again: $0.20 for 120,000 tokens, cached or not.
    A quarter of computing was prompts: $0.45 for 40,000 tokens, $1.35 for 20,000 of output.
    """
    it = bill(usage(), "rubin=3.6")
    base = bases(it.figures())

    assert it.usd_per_hour(base) == pytest.approx(36.0)
    assert it.usd_per_mtok_cached(base) == pytest.approx(0.20 / 0.12)
    assert it.usd_per_mtok_input(base) == pytest.approx(0.20 / 0.12 + 0.45 / 0.04)
    assert it.usd_per_mtok_output(base) == pytest.approx(0.20 / 0.12 + 1.35 / 0.02)
    assert it.usd_per_mtok(base) == pytest.approx(2.0 / 0.02)
    assert it.usd_per_request(base) == pytest.approx(2.0 / 500)
    assert it.usd_per_good_request(base) == pytest.approx(2.0 / 400)
    assert it.usd_per_year(base) == pytest.approx(36.0 * 8760)


def test_power_by_hand() -> None:
    """10 chips of 3.3 kW at PUE 1.2 give 200 tokens/s: 198 J each, and 6,061 tokens/s from a megawatt of IT."""
    it = bill(usage())
    base = bases(it.figures())

    assert it.joules_per_output_token(base) == pytest.approx(33_000 * 1.2 / 200)
    assert it.tokens_per_s_per_mw(base) == pytest.approx(200 / 0.033)


SHARES = st.floats(0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(prompts=SHARES, cache=SHARES, cached=st.integers(0, 99_000), price=st.floats(0.1, 20.0), up=st.floats(1.0, 5.0))
def test_tokens_of_all_kinds_pay_the_whole_and_a_dearer_hour_makes_none_cheaper(
    prompts: float, cache: float, cached: int, price: float, up: float
) -> None:
    group = replace(GROUP, prompt_s=60.0 * prompts, cache_share=cache, trust="given")
    of = usage(group, cached=cached)
    it, dear = (bill(of, f"rubin={usd}") for usd in (price, price * up))
    base, dearer = bases(it.figures()), bases(dear.figures())
    computed = of.input_tokens - cached
    paid = it.usd_per_mtok_input(base) * computed + it.usd_per_mtok_output(base) * of.output_tokens
    paid = paid + it.usd_per_mtok_cached(base) * cached

    assert paid == pytest.approx(it.usd_per_mtok(base) * of.output_tokens)
    for name in ("usd_per_mtok", "usd_per_mtok_input", "usd_per_mtok_output", "usd_per_request"):
        assert getattr(dear, name)(dearer) >= getattr(it, name)(base) * (1 - 1e-12)


def test_how_busy_the_rehearsal_was_is_no_factor_on_top_of_what_is_asked_for() -> None:
    idle = replace(GROUP, busy_s=20.0, prompt_s=5.0)
    busy, less = bill(usage()), bill(usage(idle))

    assert busy.usd_per_mtok(bases(busy.figures())) == less.usd_per_mtok(bases(less.figures()))


def test_nine_of_ten_draws_of_step_times_lie_within_the_error_of_what_was_held_out() -> None:
    drawn = Draws(40_000).of("step_time/rubin", step_time(0.5))

    assert np.quantile(drawn, 0.95) < 1.5 + 0.05
    assert np.quantile(drawn, 0.05) > 1 / 1.5 - 0.05
    assert step_time(None).high > step_time(0.67).high > step_time(0.1).high  # type: ignore[operator]


def test_slower_steps_need_more_of_their_own_group_alone() -> None:
    other = replace(GROUP, chip="gb200", chips={"gb200": 20}, trust="given")
    it = bill(usage(GROUP, other), "rubin=1", "gb200=2")
    base = bases(it.figures())

    assert it.usd_per_hour(base) == pytest.approx(50.0)
    assert it.usd_per_hour({**base, "step_time/rubin": 1.5}) == pytest.approx(55.0)


def test_groups_of_one_chip_whose_steps_are_known_unlike_well_do_not_share_their_error() -> None:
    apart = replace(GROUP, chips={"rubin": 5, "lpu3": 50}, rate_p90_error=None)
    steps = [name for name in bill(usage(GROUP, apart), "lpu3=1").figures() if name.startswith("step_time")]

    assert steps == ["step_time/rubin", "step_time/rubin+lpu3, never measured"]


def test_what_two_fleets_share_does_not_blur_their_ratio() -> None:
    cheap, dear = bill(usage(), "rubin=1"), bill(usage(), "rubin=2")
    figures = cheap.figures() | dear.figures()
    ratio = interval_of(lambda of: cheap.usd_per_mtok(of) / (2 * cheap.usd_per_mtok(of)), figures, Draws(200))
    alone = interval_of(cheap.usd_per_mtok, cheap.figures(), Draws(200))

    assert (ratio.low, ratio.base, ratio.high) == (0.5, 0.5, 0.5)
    assert alone.high > 2 * alone.low


def test_at_its_break_even_price_a_fleet_costs_what_the_other_does() -> None:
    """10 Rubins at $3.61 beside 40 LPUs: 720,000 tokens an hour, half of them asked for, at $150 a million: $54."""
    of = usage(replace(GROUP, chips={"rubin": 10, "lpu3": 40}))
    lacking = make_bill(of, CATALOG, Basis.OWN, {}, lacks=("lpu3",))
    wanted = 150.0
    base = bases(lacking.figures())
    price = float(lacking.break_even_usd_per_hour("lpu3", lambda _: wanted, base))
    priced = bill(of, f"lpu3={price}")

    assert price == pytest.approx((54.0 - 36.1) / 40)
    assert priced.usd_per_mtok(bases(priced.figures())) == pytest.approx(wanted)


def test_what_has_no_price_is_named() -> None:
    of = usage(replace(GROUP, chips={"lpu3": 4, "prices": 1}))

    assert unpriced(of, CATALOG, Basis.OWN, {}) == {"lpu3": "chips.lpu3.own_usd_per_hour", "prices": "chips.prices"}
    with pytest.raises(UnknownFigure):
        bill(of, "lpu3=0.3")
    assert bill(of, "lpu3=0.3", "prices=10:20:30").hours["prices"].figures["given_usd_per_hour/prices"].high == 30.0


@pytest.mark.parametrize(
    "text", ["rubin", "rubin=", "=3", "rubin=3:2:1", "rubin=1:2", "rubin=-1", "rubin=a", "rubin=nan"]
)
def test_a_price_must_read_as_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--usd-per-hour.*: must be .*BASE"):
        read_price(text)


def test_a_price_alone_has_no_range() -> None:
    chip, price = read_price("lpu3=0.5")

    assert (chip, price.low, price.value, price.high) == ("lpu3", 0.5, 0.5, 0.5)
    assert isinstance(price, Figure)
