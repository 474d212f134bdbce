"""What memory below the chips' costs: by hand, who pays it, and that it is no free lunch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jevons.config.catalog import read_catalog
from jevons.config.prices import make_bill, read_price
from jevons.econ.bill import Bill
from jevons.econ.cost import Basis
from jevons.econ.draws import Draws, bases
from jevons.econ.quote import money
from jevons.econ.tiers import figures_of, usd_per_hour
from jevons.facts.usage import GroupUsage, Usage

CATALOG = read_catalog()
MONEY = {"wacc": 0.10, "life_years": 2.0}
GROUP = GroupUsage(
    chip="h200",
    chips={"h200": 8},
    busy_s=60.0,
    prompt_s=15.0,
    cache_share=0.4,
    energy_j=None,
    trust="given",
    rate_p90_error=None,
)


def usage(**tiers: float) -> Usage:
    return Usage(
        seconds=100.0,
        requests=500,
        met=400,
        input_tokens=100_000,
        cached_tokens=60_000,
        output_tokens=20_000,
        groups=[replace(GROUP, tier_bytes=tiers)],
    )


def bill(of: Usage) -> Bill:
    return make_bill(of, CATALOG, Basis.OWN, dict([read_price("h200=2")]))


def test_memory_that_is_bought_is_paid_back_with_interest() -> None:
    """2 TB at $8 a GB are $16,000; at 10 % over 2 years 9,219.05 a year, $1.052 an hour."""
    assert usd_per_hour("dram", 2e12, MONEY | {"dram_usd_per_gb": 8.0}) == pytest.approx(9_219.05 / 8760, abs=1e-5)
    assert usd_per_hour("disk", 2e12, MONEY | {"flash_usd_per_gb": 0.4}) == pytest.approx(460.95 / 8760, abs=1e-5)


def test_an_object_store_is_paid_by_the_month() -> None:
    """73 TB at 2 ct a GB are $1,460 a month: $2 in each of its 730 hours."""
    assert usd_per_hour("remote", 73e12, {"object_usd_per_gb_month": 0.02}) == pytest.approx(2.0)


@pytest.mark.parametrize(("tier", "names"), [("dram", 3), ("disk", 3), ("remote", 1)])
def test_each_price_has_a_source_and_a_range(tier: str, names: int) -> None:
    figures = figures_of(tier, CATALOG.economics)

    assert len(figures) == names
    for figure in figures.values():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
        assert figure.source in CATALOG.sources


def test_a_tier_is_a_line_of_the_bill_that_all_tokens_pay_alike() -> None:
    """1,000 GB of DRAM beside eight chips at $2; half of the time asked for, 120,000 tokens in 100 s pay it."""
    plain, tiered = bill(usage()), bill(usage(dram=1e12))
    base = bases(tiered.figures())
    hour = usd_per_hour("dram", 1e12, base)

    assert plain.usd_per_hour(base) == pytest.approx(16.0)
    assert tiered.usd_per_hour(base) == pytest.approx(16.0 + hour)
    each = float(hour * 100 / 3600 / 0.5 / 120_000 * 1e6)
    for name in ("usd_per_mtok_cached", "usd_per_mtok_input", "usd_per_mtok_output"):
        assert getattr(tiered, name)(base) - getattr(plain, name)(base) == pytest.approx(each), name
    assert tiered.tier_usd_per_year("dram", base) == pytest.approx(hour * 8760)
    assert money(tiered, Draws(100)).tiers["dram"].size_bytes == 1e12
    assert money(plain, Draws(100)).tiers == {}


def test_a_tier_of_instances_that_start_and_stop_is_the_part_of_the_year_that_they_pay() -> None:
    """There for a quarter of the time: of chips and of memory a quarter is paid, and nothing else is."""
    plain, tiered = (
        bill(replace(of, groups=[replace(each, paid_share=0.25) for each in of.groups]))
        for of in (usage(), usage(dram=1e12))
    )
    base = bases(tiered.figures())

    assert tiered.tier_usd_per_year("dram", base) == pytest.approx(tiered.usd_per_year(base) - plain.usd_per_year(base))


def test_at_break_even_chips_are_cheaper_by_what_the_tier_costs() -> None:
    plain, tiered = bill(usage()), bill(usage(dram=1e12))
    base = bases(tiered.figures())
    prices = [float(each.break_even_usd_per_hour("h200", plain.usd_per_mtok, base)) for each in (plain, tiered)]

    assert prices[0] == pytest.approx(2.0)
    assert prices[1] == pytest.approx(2.0 - float(usd_per_hour("dram", 1e12, base)) / 8)


@settings(max_examples=40, deadline=None)
@given(
    tier=st.sampled_from(["dram", "disk", "remote"]),
    size=st.floats(1e9, 1e15),
    more=st.floats(1.0, 10.0),
    dearer=st.floats(1.0, 10.0),
)
def test_tokens_never_get_cheaper_with_more_or_dearer_memory_and_pay_the_whole(
    tier: str, size: float, more: float, dearer: float
) -> None:
    small, large = bill(usage(**{tier: size})), bill(usage(**{tier: size * more}))
    base = bases(small.figures())
    price = next(name for name in figures_of(tier, CATALOG.economics) if "usd" in name)
    dear = {**base, price: base[price] * dearer}

    for name in ("usd_per_mtok", "usd_per_mtok_cached", "usd_per_mtok_input", "usd_per_mtok_output"):
        cost = getattr(small, name)
        assert getattr(large, name)(base) >= cost(base) * (1 - 1e-12)
        assert cost(dear) >= cost(base) * (1 - 1e-12)
    of = small.usage
    paid = small.usd_per_mtok_input(base) * (of.input_tokens - of.cached_tokens)
    paid = paid + small.usd_per_mtok_cached(base) * of.cached_tokens
    paid = paid + small.usd_per_mtok_output(base) * of.output_tokens
    assert paid == pytest.approx(small.usd_per_mtok(base) * of.output_tokens)
