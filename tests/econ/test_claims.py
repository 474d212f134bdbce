"""Claims: what is computed by hand too, how verdicts are reached, and what is told where a figure is missing."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.cli.claims import findings
from jevons.config.catalog import read_catalog
from jevons.econ.claims import Computation, Estimate, Finding, Grounds, Verdict, assess, judge
from jevons.econ.claims_grounds import COMPUTATIONS
from jevons.econ.draws import Draws
from jevons.facts.claims import Claim, Stated
from jevons.facts.hardware import Confidence, Figure

CATALOG = read_catalog()
FOUND = {finding.number: finding for finding in findings(CATALOG, Draws(1000, 0))}
TEN = Stated(text="10", low=10.0, high=12.0, unit="m")


def estimate(low: float, value: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, unit="m")


def computed(number: int) -> float:
    found = FOUND[number].computed
    assert found is not None
    return found.value


def test_all_twenty_are_judged_and_every_computation_is_used() -> None:
    assert sorted(FOUND) == list(range(1, 21))
    assert {claim.computation for claim in CATALOG.claims.values()} == set(COMPUTATIONS)
    assert all(finding.computed is not None or finding.missing for finding in FOUND.values())
    assert all(finding.sources and finding.says for finding in FOUND.values())


@pytest.mark.parametrize(
    ("number", "value", "verdict"),
    [
        (3, 72 * 35e15 / 1e18, Verdict.ANOTHER),  # 2.52 dense, 3.6 sparse
        (4, 72 * 0.288, Verdict.HOLDS),  # 20.736 TB
        (5, 72 * 22.0, Verdict.ANOTHER),  # 1,584 TB/s; 260 is NVLink's
        (6, 150 / 259.2, Verdict.ANOTHER),  # 0.58; 6.8 chip for chip
        (7, 2.0 * 2 / 3, Verdict.ANOTHER),  # per year of windows of two and three
        (14, 100.0, Verdict.NOT),  # half the cost a year
        (16, 0.22, Verdict.NOT),
        (17, 1e6 * 7.8e6 / 72 / 1e9, Verdict.NOT),  # 108 billion
        (19, 116.8 / 9.65, Verdict.IN_PART),  # it loses one of two benchmarks
    ],
)
def test_what_a_pencil_gives(number: int, value: float, verdict: Verdict) -> None:
    assert computed(number) == pytest.approx(value, rel=1e-6)
    assert FOUND[number].verdict == verdict


def test_a_tenth_of_the_token_cost_would_take_15_6_times_gb300s_tokens_and_19_4_times_gb200s() -> None:
    beside = FOUND[1].beside

    assert beside["tokens/s of a chip that it takes, over GB300"].value == pytest.approx(15.6, abs=0.05)
    assert beside["tokens/s of a chip that it takes, over GB200"].value == pytest.approx(19.4, abs=0.05)
    assert beside["memory bandwidth alone, over GB200"].value == pytest.approx(1.4, abs=0.05)
    assert beside["dense FP4 alone, over GB200"].value == pytest.approx(1.8, abs=0.05)
    assert FOUND[1].verdict == Verdict.IN_PART


def test_a_rack_is_too_small_by_some_two_hundred_times() -> None:
    beside = FOUND[16].beside
    assert beside["too large by, at least"].value == pytest.approx(40e6 / 220e3)
    assert beside["too large by, at most"].value == pytest.approx(60e6 / 220e3)


@pytest.mark.parametrize("number", [18, 20])
def test_what_cannot_be_computed_says_what_is_missing(number: int) -> None:
    assert FOUND[number].computed is None
    assert FOUND[number].verdict == Verdict.UNKNOWN
    assert FOUND[number].missing


def test_a_figure_that_is_not_known_is_named() -> None:
    without = {**CATALOG.racks, "vera-rubin-nvl72": msgspec.structs.replace(CATALOG.racks["lpx"], chip="rubin")}
    found = {f.number: f for f in findings(msgspec.structs.replace(CATALOG, racks=without), Draws(200, 0))}

    assert found[16].verdict == Verdict.UNKNOWN
    assert found[16].missing == "racks.vera-rubin-nvl72.power_w is not known"


def test_the_computed_value_follows_the_catalog() -> None:
    rubin = CATALOG.chips["rubin"]
    assert rubin.fp4_flops is not None
    half = msgspec.structs.replace(rubin, fp4_flops=msgspec.structs.replace(rubin.fp4_flops, value=17.5e15))
    found = findings(msgspec.structs.replace(CATALOG, chips={**CATALOG.chips, "rubin": half}), Draws(200, 0))

    assert [f.computed.value for f in found if f.number == 3 and f.computed] == [pytest.approx(1.26)]


def test_the_same_seed_gives_the_same_verdicts_and_numbers() -> None:
    assert [*FOUND.values()] == findings(CATALOG, Draws(1000, 0))


@pytest.mark.parametrize(
    ("main", "part", "other", "verdict"),
    [
        ((9, 11, 30), None, None, Verdict.HOLDS),
        ((9, 9.6, 30), None, None, Verdict.HOLDS),  # 5 % are rounding
        ((5, 8, 30), None, None, Verdict.IN_PART),
        ((5, 8, 9), (11, 11, 11), None, Verdict.IN_PART),
        ((5, 8, 9), (2, 2, 2), (11, 11, 11), Verdict.ANOTHER),
        ((5, 8, 9), (2, 2, 2), (3, 3, 3), Verdict.NOT),
        (None, None, (3, 3, 3), Verdict.UNKNOWN),
    ],
)
def test_the_named_quantity_goes_before_its_parts_and_these_before_others(
    main: tuple[float, float, float] | None,
    part: tuple[float, float, float] | None,
    other: tuple[float, float, float] | None,
    verdict: Verdict,
) -> None:
    given = {"": main, "part": part, "other": other}
    names = {name: estimate(*values) for name, values in given.items() if values is not None}
    rule = Computation(
        uses=(),
        says="",
        main=None if main is None else (lambda of: 0.0),
        parts={"part": lambda of: 0.0} if part else {},
        others={"other": lambda of: 0.0} if other else {},
    )

    assert judge(TEN, rule, names) == verdict


@given(st.floats(0.1, 1e3), st.floats(0.0, 0.5))
def test_a_value_as_stated_always_holds(value: float, spread: float) -> None:
    claim = Claim(
        number=1,
        claim="c",
        stated=Stated(text="", low=value, high=value, unit="m"),
        by="",
        date="",
        computation="mine",
    )
    figure = Figure(
        value=value, low=value * (1 - spread), high=value * (1 + spread), source="S", confidence=Confidence.MEASURED
    )
    mine = Computation(uses=("x",), says="s", main=lambda of: of["x"])
    grounds = Grounds(figures={"x": figure}, computations={"mine": mine}, title=str, draws=Draws(100, 0))
    found: Finding = assess(claim, grounds)

    assert found.verdict == Verdict.HOLDS
    assert found.computed is not None
    assert found.computed.low <= value <= found.computed.high


def test_the_claims_are_those_that_were_collected(shared: Path) -> None:
    """Section 1 of the collected facts has a table of them, a row each."""
    section = (shared / "docs/economics.md").read_text().split("## ")[1]
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", section, flags=re.MULTILINE)

    assert [int(number) for number, _ in rows] == sorted(FOUND)


def test_figures_of_the_collected_parameters_carry_over(shared: Path) -> None:
    text = (shared / "docs/economics.md").read_text()

    assert "low: 0.25, base: 0.35, high: 0.50" in text  # custom silicon
    custom = CATALOG.economics.custom_silicon_share_2028
    assert (custom.low, custom.value, custom.high) == (0.25, 0.35, 0.50)
    for figure in ("hopper_to_blackwell_mid", "hopper_to_blackwell_high"):
        assert f"{CATALOG.evidence[figure].value:g}x" in text
    assert f"{CATALOG.evidence['asic_server_share_2026'].value:.1%}" in text
