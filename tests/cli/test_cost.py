"""`jevons cost`: a table, JSON and nothing else where asked, and what is missing instead of a guess."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from jevons.cli import main
from jevons.cli.cost import _label
from jevons.cli.plans import figure_name
from jevons.config.calibration import as_toml, read_calibration
from jevons.config.scenario import shipped
from jevons.econ.cost import Terms
from jevons.facts import catalog

H200S = ("--fleet", "2x4xh200", "--model", "llama-3.1-70b", "--traffic", "chat", "--requests", "60")
CATALOG = Path(catalog.__path__[0])
LPX = ("vr-lpx", "--requests", "200")


class Ended:
    def __init__(self, code: Any, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`jevons cost …`, in this process: compiled kernels are read once."""

    def run(*args: str, command: str = "cost") -> Ended:
        monkeypatch.setattr(sys, "argv", ["jevons", command, *args])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return Ended(code, *capsys.readouterr())

    return run


def test_a_price_that_is_given_is_not_told_as_published(cost: Any) -> None:
    given = cost(*H200S, "--usd-per-hour", "h200=1:2:3").out

    assert "8 h200, at prices as given; 60 requests" in given
    assert "an hour, as given, h200" in given
    assert "published" not in given
    assert "8 h200, owned, as published; 60 requests" in cost(*H200S).out


def test_steps_that_take_longer_by_a_calibration_of_ones_own_make_tokens_dearer(cost: Any, tmp_path: Path) -> None:
    own = read_calibration()
    effects = {name: replace(each, bandwidth=each.bandwidth / 2) for name, each in own.effects.items()}
    mine = tmp_path / "mine.toml"
    mine.write_text(as_toml(replace(own, effects=effects)))

    usual, slower = (cost(*H200S, *more, "--json").json for more in ((), ("--calibration", str(mine))))

    assert slower["output_tokens_per_s"] < usual["output_tokens_per_s"]
    assert slower["money"]["mtok"]["base"] > usual["money"]["mtok"]["base"]
    ended = cost("--report", str(tmp_path / "report.json"), "--calibration", str(mine))
    assert (ended.code, "--report and --calibration: give one of them" in ended.err) == (2, True)


def test_the_same_seed_gives_the_same_numbers_and_each_is_an_interval_around_its_base(cost: Any) -> None:
    first, second = cost(*H200S, "--json"), cost(*H200S, "--json")

    assert first.out == second.out
    money = first.json["money"]
    assert money["chip_hours"]["h200"]["base"] == 1.22
    for name in ("mtok", "mtok_input", "mtok_cached", "mtok_output", "request", "fleet_year"):
        assert 0 < money[name]["low"] < money[name]["base"] < money[name]["high"], name
    assert money["mtok_cached"]["base"] < money["mtok_input"]["base"] < money["mtok_output"]["base"]
    assert money["tornado"][0]["name"] in ("utilisation", "step_time/h200")
    assert first.json["trust"][0]["chip"] == "h200"


@pytest.mark.parametrize("name", Terms.__struct_fields__)
def test_what_prices_hang_on_is_told_in_words(name: str) -> None:
    for told in (_label(name), figure_name(name)):
        assert "_" not in told
        assert " " in told


@pytest.mark.parametrize(("basis", "usd"), [("own", 1.22), ("rent", 2.9)])
def test_whose_hours_are_priced_is_asked_for_by_name(cost: Any, basis: str, usd: float) -> None:
    assert cost(*H200S, "--json", "--basis", basis).json["money"]["chip_hours"]["h200"]["base"] == usd


def test_what_is_asked_for_over_the_year_divides_the_price_once(cost: Any) -> None:
    half, whole = (cost(*H200S, "--json", "--utilisation", share).json["money"] for share in ("0.5", "1"))

    assert half["mtok"]["base"] == pytest.approx(2 * whole["mtok"]["base"])
    assert whole["fleet_year"] == half["fleet_year"]


def test_a_finished_rehearsal_costs_what_one_now_does(cost: Any, tmp_path: Path) -> None:
    assert cost(*H200S, "--out", str(tmp_path), command="simulate").code == 0
    kept, now = cost("--report", str(tmp_path / "report.json"), "--json"), cost(*H200S, "--json")

    assert kept.json["money"] == now.json["money"]


def test_the_table_tells_base_and_interval_what_matters_and_the_trust(cost: Any) -> None:
    ended = cost(*H200S, "--site-mw", "5")

    assert ended.code == 0
    for text in (
        "an hour of h200",
        "$1.22",
        "5 %",
        "95 %",
        "chips that fit on 5 MW",
        "what matters most",
        "trust: h200",
    ):
        assert text in ended.out


def test_fleets_whose_steps_are_not_known_alike_are_not_compared_without_saying_so(cost: Any, tmp_path: Path) -> None:
    """H200 with this family was measured; steps that a scenario gives itself were not predicted at all."""
    given = tmp_path / "given.toml"
    given.write_text("""
[traffic]
kind = "chat"
requests = 60
[[fleet]]
instances = 2
blocks = 4000
prices = { per_step_s = 0.01, per_token_s = 1e-5 }
""")
    priced = ("--usd-per-hour", "prices=2")
    unlike, alike = cost(*H200S, "--against", str(given), *priced), cost(*H200S, "--against", "rag-gb300")
    same = cost(str(given), "--against", str(given), *priced)

    assert "steps are not known alike: h200 measured; of the other prices given: read the range" in unlike.out
    assert "steps are not known alike: h200 measured; of the other gb300" in alike.out
    assert "not known alike" not in same.out


def test_memory_below_the_chips_is_a_line_of_its_own_for_each_node(cost: Any, tmp_path: Path) -> None:
    """Three instances, two of which share a node: two nodes of 1 TB each."""
    scenario = tmp_path / "tiered.toml"
    scenario.write_text("""
model = "llama-3.1-8b"
[traffic]
kind = "chat"
requests = 60
[[fleet]]
chip = "h200"
instances = 3
tier = { name = "dram", size_bytes = 1e12, bytes_per_s = 50e9, instances = 2 }
""")
    found, told = cost(str(scenario), "--json").json["money"], cost(str(scenario)).out

    assert found["tiers"]["dram"]["size_bytes"] == 2e12
    assert 0 < found["tiers"]["dram"]["year"]["base"] < found["fleet_year"]["base"]
    assert "dram_usd_per_gb" in [swing["name"] for swing in found["tornado"]]
    assert "of that, 2 TB of dram" in told


def test_a_chip_without_a_price_is_named_and_has_a_break_even_instead(cost: Any, tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text(shipped("vr-nvl72").read_text().replace("requests = 20000", "requests = 200"))
    ended = cost(*LPX, "--against", str(small), "--json")

    assert ended.json["money"] is None
    assert ended.json["missing"] == {"lpu3": "chips.lpu3.own_usd_per_hour"}
    assert ended.json["power"] is None  # nobody published what LPUs draw
    against = ended.json["against"]
    assert against["ratio"] is None
    price = against["break_even"]["lpu3"]["base"]
    alike = cost(*LPX, "--against", str(small), "--json", "--usd-per-hour", f"lpu3={price}").json["against"]
    assert alike["ratio"]["base"] == pytest.approx(1.0)
    assert "no price: chips.lpu3.own_usd_per_hour is not known" in cost(*LPX).out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((*H200S, "--usd-per-hour", "h200"), "--usd-per-hour: must be"),
        ((*H200S, "--usd-per-hour", "h20=2"), "--usd-per-hour: 'h20' is not in the catalog"),
        ((*H200S, "--usd-per-hour", "h200=inf"), "--usd-per-hour h200: must be"),
        (
            (*H200S, "--utilisation", "50"),
            "--utilisation: must be LOW:BASE:HIGH or BASE, rising, above 0 and at most 1",
        ),
        (("--report", "no.json"), "no.json cannot be read"),
        (("vr-nvl72", "--report", "no.json"), "--report and 'vr-nvl72': give one of them"),
        (("--report", "no.json", "--rate", "5"), "--report and --rate: give one of them"),
    ],
)
def test_what_is_wrong_is_one_line(cost: Any, args: tuple[str, ...], says: str) -> None:
    ended = cost(*args)

    assert ended.code == 2
    assert says in ended.err


def value(table: str, *keys: str) -> float:
    """A figure as the file has it, read by nothing of ours."""
    found: Any = tomllib.loads((CATALOG / f"{table}.toml").read_text("utf-8"))
    for key in (*keys, "value"):
        found = found[key]
    return float(found)


def test_what_is_told_is_what_a_pencil_gives(cost: Any, tmp_path: Path) -> None:
    cost("same-vr", "--requests", "500", "--out", str(tmp_path), command="simulate")
    report = json.loads((tmp_path / "report.json").read_text())
    chips, per_s = 72, report["output_tokens"] / report["simulated_s"]
    watts, pue = value("chips", "rubin", "all_in_w"), value("economics", "pue")
    asked_per_s = per_s * value("economics", "utilisation")
    told = cost("--report", str(tmp_path / "report.json"), "--site-mw", "50", "--json").json
    money, power, site = told["money"], told["power"], told["site"]

    hour = chips * value("chips", "rubin", "own_usd_per_hour")
    assert money["fleet_year"]["base"] == pytest.approx(hour * 24 * 365)
    assert money["mtok"]["base"] == pytest.approx(hour / 3600 / asked_per_s * 1e6)
    assert power["joules_per_token"]["base"] == pytest.approx(chips * watts * pue / per_s)
    assert power["tokens_per_s_per_mw"]["base"] == pytest.approx(per_s / (chips * watts / 1e6))
    assert site["chips"]["base"] == pytest.approx(50e6 / (watts * pue))
    assert site["tokens_per_s"]["base"] == pytest.approx(50e6 / (watts * pue) * per_s / chips)
    computed = report["input_tokens"] - report["cached_tokens"]
    tokens = {"mtok_input": computed, "mtok_cached": report["cached_tokens"], "mtok_output": report["output_tokens"]}
    paid = sum(money[name]["base"] * count / 1e6 for name, count in tokens.items())
    assert paid == pytest.approx(money["mtok"]["base"] * report["output_tokens"] / 1e6)


def test_an_hour_of_a_fleet_that_is_built_is_what_a_pencil_gives(cost: Any) -> None:
    told = cost("same-vr", "--requests", "100", "--basis", "build", "--json").json
    rate, years = value("economics", "wacc"), value("economics", "life_years")
    yearly = value("racks", "vera-rubin-nvl72", "price_usd") / 72 * value("economics", "capex_overhead")
    yearly *= rate * (1 + rate) ** years / ((1 + rate) ** years - 1)  # an annuity, as schools teach it
    kw = value("chips", "rubin", "all_in_w") / 1000
    room = value("economics", "colo_usd_per_kw_month") * 12 * kw
    power = kw * value("economics", "pue") * value("economics", "usd_per_kwh")

    hours = 8760 * value("economics", "availability")
    assert told["money"]["chip_hours"]["rubin"]["base"] == pytest.approx((yearly + room) / hours + power)
