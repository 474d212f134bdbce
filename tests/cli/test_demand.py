"""`jevons demand`: a table to read, JSON where asked, one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jevons.base.errors import ConfigError
from jevons.cli.demand import command
from jevons.cli.demand_tables import figure
from jevons.econ.levers import LEVERS

SMALL = """
model = "llama-3.1-8b"
[traffic]
kind = "code"
rate = 4.0
requests = 700
[[fleet]]
chip = "h100"
instances = 2
"""


def told(*args: str) -> dict[str, Any]:
    ended = CliRunner().invoke(command, [*args, "--draws", "300", "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_every_year_has_its_ranges_and_the_flip_is_told() -> None:
    found = told()["demand"]

    assert [year["year"] for year in found["years"]] == [2026, 2027, 2028, 2029, 2030]
    assert all(set(year["spend"]) == {"low", "base", "high"} for year in found["years"])
    assert found["flip"] == pytest.approx(1.0, abs=1e-6)
    assert found["parameters"]["price_elasticity"]["source"] == "NBER"


def test_a_lever_that_is_left_out_is_missing_and_tokens_stay_dearer() -> None:
    all_of, fewer = told()["demand"], told("--without", "hardware")["demand"]

    assert "hardware" not in [lever["name"] for lever in fewer["levers"]]
    assert fewer["years"][-1]["price"]["base"] > all_of["years"][-1]["price"]["base"]


def test_nothing_that_makes_tokens_cheaper_is_told_as_that() -> None:
    found = told(*(word for lever in LEVERS for word in ("--without", lever)), "--elasticity", "0.01")["demand"]

    assert (found["levers"], found["flip"]) == ([], None)
    assert found["years"][-1]["price"]["base"] == 1.0


def test_the_rebound_is_all_of_the_saving_at_one_and_less_below() -> None:
    free = ("--without-limit", "chips", "--without-limit", "power", "--elasticity")
    at_one, below, none = (
        told(*free, "1")["demand"]["rebound"],
        told(*free, "0.8")["demand"]["rebound"],
        told(*(word for lever in LEVERS for word in ("--without", lever)))["demand"]["rebound"],
    )

    assert at_one["money"]["base"] == pytest.approx(1.0)
    assert below["money"]["high"] < 1.0
    assert (below["money_above_one"], below["energy_above_one"]) == (0.0, 0.0)
    assert none is None


def test_an_elasticity_below_one_lets_every_lever_lower_spend() -> None:
    found = told("--elasticity", "0.8", "--without-limit", "chips", "--without-limit", "power")["demand"]

    assert all(lever["spend"]["high"] <= 1.0 for lever in found["levers"])
    assert found["above_one"] == 0.0


@pytest.mark.parametrize("outlook", ["jevons-2026-2030", "custom-silicon"])
def test_it_fits_eighty_columns(outlook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = CliRunner().invoke(command, [outlook, "--draws", "300"], catch_exceptions=False)

    assert "…" not in ended.output
    assert max(map(len, ended.output.splitlines())) <= 80


def test_custom_silicon_is_told_at_25_35_and_50_percent_and_takes_from_nvidia() -> None:
    cases = told("custom-silicon")["market"]["cases"]

    assert [case["custom_share_2028"] for case in cases] == [0.25, 0.35, 0.5]
    shares = [case["nvidia_share"]["base"] for case in cases]
    assert shares == sorted(shares, reverse=True)


def test_a_mixed_fleet_is_held_to_one_vendors_by_the_twin() -> None:
    mixed = told("custom-silicon", "--single", "rag-gb300", "--mixed", "rag-mixed")["switching"]["mixed"]

    assert (mixed["single"]["vendors"], mixed["mixed"]["vendors"]) == (["NVIDIA"], ["Google", "AMD"])
    assert min(mixed["single"]["met_slo"], mixed["mixed"]["met_slo"]) > 0.99
    saved = 1 - mixed["mixed"]["usd_per_mtok"]["base"] / mixed["single"]["usd_per_mtok"]["base"]
    assert mixed["saved"]["base"] == pytest.approx(saved)


def test_what_reuse_saves_is_measured_in_the_twin(tmp_path: Path) -> None:
    scenario = tmp_path / "small.toml"
    scenario.write_text(SMALL)

    found = told("--rehearse", str(scenario))
    known, measured = found["demand"]["parameters"], found["rehearsed"][0]
    tiers = {tier["tier"]: tier for tier in measured["tiers"]}

    assert 0.0 < known["reuse_cost_factor"]["value"] < 0.95
    assert known["reuse_cost_factor"]["value"] == measured["round_robin_rate"] / measured["kv_rate"]
    assert set(tiers) == {"dram", "disk"}
    assert known["tiering_chip_factor"]["value"] in [tier["chip_factor"] for tier in tiers.values()]
    for tier in tiers.values():
        assert tier["chip_factor"] == measured["kv_rate"] / tier["rate"]
        assert 0.0 < tier["memory_cost"]["low"] < tier["memory_cost"]["value"] < tier["memory_cost"]["high"]


def test_a_lever_of_its_own_tells_what_tiers_do_net_of_their_memory() -> None:
    dear = "tiering_memory_cost=0.9"
    with_, paid = told()["demand"], told("--set", dear)["demand"]
    tiering = [next(lever for lever in each["levers"] if lever["name"] == "tiering") for each in (with_, paid)]

    assert tiering[0]["price"]["base"] < 1.0 == tiering[1]["price"]["base"]
    assert "tiering" not in [lever["name"] for lever in told("--without", "tiering")["demand"]["levers"]]
    assert {"tiering_chip_factor", "tiering_memory_cost"} <= {swing["name"] for swing in with_["matters"]}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--elasticity", "2:1:3"), r"--elasticity: must be LOW:BASE:HIGH .* got '2:1:3'"),
        (("--elasticity", "-1"), r"above 0, got '-1'"),
        (("--set", "life_years=inf"), r"--set life_years: must be LOW:BASE:HIGH .* got 'inf'"),
        (
            ("--single", "rag-gb300", "--mixed", "rag-mixed", "--usd-per-hour", "gb30=2"),
            r"'gb30' is not in the catalog",
        ),
        (("--without", "magic"), r"--without: must be one of hardware, .* got 'magic'"),
        (("--set", "hyperscaler_share=0.5:0.6:1.2"), r"hyperscaler_share: is a share and must be at most 1, got 1.2"),
        (("--set", "mid_interactivity_share=0.9"), r"must be at most 1 together, got 1.05"),
        (("--set", "pue=1.2"), r"'pue' is none of them"),
        (("--mixed", "mixed"), r"--single and --mixed: give both"),
        (("--usd-per-hour", "gb300=2"), r"--usd-per-hour: prices the fleets of --single and --mixed, and neither"),
        (("--set", "wacc=0.1", "--set", "wacc=0.2"), r"--set wacc: is given twice"),
        (("--elasticity", "1000"), r"lead beyond what can be computed \(overflow .*\): price_elasticity = 1000"),
        (("--growth", "1e-300"), r"lead beyond what can be computed .*: token_demand_growth_per_year = 1e-300"),
        (("--single", "vr-nvl72", "--mixed", "mixed"), r"must have the same model and traffic"),
        (("--single", "mixed", "--mixed", "mixed"), r"mi455x.own_usd_per_hour: is not known"),
        (("nowhere",), r"outlook 'nowhere': neither a file nor one of"),
    ],
)
def test_what_is_wrong_is_one_line_that_quotes_it(args: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(command, [*args], catch_exceptions=False)


def test_a_range_of_a_file_that_does_not_hold_its_value_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[parameters.price_elasticity]\nvalue = 1.0\nlow = 2.0\nhigh = 0.5\n")

    with pytest.raises(ConfigError, match=r"mine.toml: parameters.price_elasticity: value must be from low to high, "):
        told(str(file))


def test_a_chip_of_ones_own_that_may_save_nothing_has_no_break_even(tmp_path: Path) -> None:
    """Where it costs more for the same tokens than a merchant's, no number of them pays for its design."""
    html, dear = tmp_path / "page.html", ("--set", "custom_usd_over_merchant=0.5:0.8:1.2")
    ended = CliRunner().invoke(command, ["custom-silicon", *dear, "--html", str(html)], catch_exceptions=False)

    assert "a chip of one's own may cost 1.2 times a merchant's for the same tokens: then it never pays" in ended.stdout
    assert "what matters for the break-even" not in ended.stdout
    assert told("custom-silicon", *dear)["switching"]["break_even"] is None
    assert told("custom-silicon")["switching"]["break_even"]["tokens_per_year"]["low"] > 0


def test_what_is_next_to_nothing_is_told_so() -> None:
    assert [figure(value) for value in (0.0, 3e-9, 0.000012, 0.062)] == ["0", "<0.000001", "0.000012", "0.062"]
