"""Each command's pictures, of small results: what is in them, and how far to trust them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from jevons.base.compiled import Records
from jevons.charts import Axis, Picture, cdf
from jevons.cli.claims import command as claims
from jevons.cli.curve import command as curve
from jevons.cli.demand import command as demand
from jevons.cli.fleet import command as fleet
from jevons.cli.pictures import bench, compare, cost, entry, site, sweep, validate
from jevons.cli.pricing import Wanted, priced
from jevons.config.catalog import read_catalog
from jevons.econ.cost import Basis
from jevons.facts.usage import GroupUsage
from jevons.perf.calibration import Trust
from jevons.serve.load import Measured, Targets
from jevons.twin.compare import compare as compared
from jevons.twin.kernel import RESULT
from jevons.twin.record import Both, Fidelity
from jevons.twin.report import GroupTrust, Report
from jevons.twin.spread import Spread
from jevons.twin.sweep import Cell
from jevons.twin.validate import Row


def report(**other: Any) -> Report:
    spread = Spread(0.1, 0.1, 0.2, 0.3)
    values: dict[str, Any] = {name: 0 for name in Report.__struct_fields__ if name not in Report.__struct_defaults__}
    spreads = dict.fromkeys(("ttft_s", "tpot_s", "itl_s", "queue_s"), spread)
    trust = [GroupTrust("h200", "measured", 0.2, "nine of ten held-out TPOTs within 20%")]
    return Report(**{**values, **spreads, "title": "", "chips": 8, "reuse_fraction": {}, "trust": trust, **other})


def cells() -> list[Cell]:
    return [
        Cell(
            {"traffic.rate": rate, "router": router, "seed": 1},
            report(goodput_per_s=rate * share, met_slo=share, output_tokens_per_s=100.0 * rate),
        )
        for rate in (10, 20, 40)
        for router, share in (("kv", 0.9), ("round_robin", 0.7))
    ]


def names_of(picture: Picture) -> list[str]:
    return [name["text"] for name in picture.names[-1].placed]


def test_a_sweep_is_shown_over_the_load_with_a_line_for_each_policy() -> None:
    goodput, met, wait, trade, speed = sweep.pictures(["router", "traffic.rate", "seed"], cells())

    assert [trace["x"] for trace in goodput.data] == [[10.0, 20.0, 40.0]] * 2
    assert [trace["y"] for trace in met.data] == [[0.9] * 3, [0.7] * 3]
    assert {"kv", "round_robin", "goodput (requests/s)"} <= set(names_of(goodput))
    assert goodput.layout["xaxis"]["title"]["text"] == "rate (sessions/s)"
    assert wait.layout["yaxis"]["type"] == "log"
    assert "● kv, □ round_robin." in trade.about
    assert speed.layout["xaxis"]["title"]["text"] == "speed of one answer (tokens/s, median)"


def test_cells_that_did_not_run_are_told_and_nothing_else_is_lost() -> None:
    some = [*cells(), Cell({"traffic.rate": 80, "router": "kv", "seed": 1}, error="router: there is none")]

    first, second, *_ = sweep.notes(some)

    assert first == "6 rehearsals, simulated, not measured."
    assert second == "1 of 7 did not run, first: router: there is none"
    assert sweep.pictures(["router"], [some[-1]]) == []


def results(longer_s: float) -> Records:
    made = np.zeros(50, RESULT)
    made["request"], made["prompt"], made["output"] = np.arange(50), 100, 10
    made["first_s"] = made["at_s"] + 0.1 + longer_s
    made["done_s"] = made["first_s"] + 0.9
    return made


def test_two_rehearsals_are_shown_as_distributions_and_request_by_request() -> None:
    a, b = results(0.0), results(0.2)

    first, each, same = compare.pictures(a, b)

    assert {"A", "B"} <= set(names_of(first))
    assert each.data[0]["x"][0] == pytest.approx(0.1)
    assert same.data[0]["x"][0] == pytest.approx(0.2)
    assert "50 were placed alike, 0 differently" in compare.notes(compared(a, b), ("x", "y"))[0]


def test_predictions_stand_beside_measurements_in_their_unit() -> None:
    rows = [
        Row(f"p{i}", "ttft", 100.0 * i, 120.0 * i, "ms", set="check" if i % 2 else "fit", trust=Trust.MEASURED)
        for i in range(1, 13)
    ]

    off, beside = validate.pictures(rows)

    assert {"fitted", "never fitted"} <= set(names_of(off))
    assert "● fitted, □ never fitted, measured. 12 points." in beside.about
    assert (beside.data[0]["x"][0], beside.data[0]["y"][0]) == (0.2, 0.24)  # seconds
    assert validate.notes(rows, "guessed")[0].startswith(
        "How far to trust it: of those never fitted, half are within 20% and nine of ten within 20%."
    )


def test_what_clients_saw_is_shown_for_each_run_beside_the_target() -> None:
    measured = [
        Measured(0.0, ttft_s=0.1 * i, ended_s=1.0 + i, gaps_s=[0.01, 0.02], output_tokens=3) for i in range(1, 9)
    ]
    failed = Measured(0.0, error="500")

    first, _, gaps = bench.pictures({"kv": [*measured, failed], "round_robin": measured}, Targets(ttft_s=3.0))

    assert {"kv", "round_robin", "target 3 s"} <= set(names_of(first))
    assert "share of requests" in names_of(first)
    assert gaps.title == "Gaps between tokens"
    assert "share of gaps" in names_of(gaps)


def test_an_outlook_shows_fans_limits_levers_and_where_figures_are_from(tmp_path: Path) -> None:
    ended = CliRunner().invoke(demand, ["--draws", "200", "--html", str(tmp_path / "it.html")], catch_exceptions=False)

    text = (tmp_path / "it.html").read_text()
    assert ended.exit_code == 0
    for words in ("What cheaper tokens do to demand", "What is spent", "What each lever does", "What matters most"):
        assert f"<h2>{words}</h2>" in text
    assert "How often demand meets a limit" in text
    assert "A model, not a forecast: ranges hold 9 of 10 of 200 draws" in text
    assert "Goldman Sachs" in text


def test_claims_stand_beside_what_is_computed(tmp_path: Path) -> None:
    file = tmp_path / "claims.html"
    ended = CliRunner().invoke(claims, ["1", "4", "--draws", "200", "--html", str(file)], catch_exceptions=False)

    text = file.read_text()
    assert ended.exit_code == 0
    assert "20.7 TB, holds" in text
    assert text.count("<details>") == 2
    assert "<b>holds: 20.7 TB</b>" in text
    assert "Sources: " in text.partition("<details>")[2]


def test_how_many_times_cheaper_is_a_curve_over_speed_beside_the_claim(tmp_path: Path) -> None:
    file = tmp_path / "curve.html"
    asked = ["gb300", "rubin", "--at", "20,60,100", "--html", str(file)]
    ended = CliRunner().invoke(curve, asked, catch_exceptions=False)

    text = file.read_text()
    assert ended.exit_code == 0
    for words in (
        "rubin over gb300",
        "claimed: 10 times",
        "by memory bandwidth, ",
        "speed for each user (tokens/s)",
    ):
        assert words in text


def test_a_price_shows_what_a_million_tokens_cost_and_what_matters() -> None:
    group = GroupUsage(
        chip="h200",
        chips={"h200": 8},
        busy_s=90.0,
        prompt_s=30.0,
        cache_share=0.3,
        energy_j=None,
        trust="measured",
        rate_p90_error=0.3,
    )
    did: dict[str, Any] = {"requests": 100, "met": 90, "simulated_s": 100.0, "input_tokens": 1_000_000}
    ran = report(**did, cached_tokens=400_000, output_tokens=100_000, groups=[group])
    found = priced(ran, read_catalog(), Wanted(basis=Basis.OWN))

    tokens, matters, hours, *_ = cost.pictures(found, str, str)
    by_name = {"same-h200": found, "other": msgspec.structs.replace(found, money=None)}
    beside, *_ = site.pictures(by_name)

    assert any(name.startswith("output tokens, which pay for everything: $") for name in names_of(tokens))
    assert matters.layout["xaxis"]["title"]["text"] == "a million output tokens that pay for<br>everything ($)"
    assert any(name.startswith("base $") for name in names_of(matters))
    assert any(name.startswith("an hour of one h200: $") for name in names_of(hours))
    assert any(name.startswith("same-h200: $") for name in names_of(beside))
    assert "other: unknown" in names_of(beside)
    assert site.notes(by_name, 50.0)[0].startswith("A site of 50 MW, cooling included; rehearsed, not measured.")


def test_a_record_is_shown_beside_its_rehearsal() -> None:
    both = Both(live=0.2, twin=0.25)
    found = Fidelity(
        requests=10,
        placed_alike=9,
        cached_alike=9,
        ttft_p50_s=both,
        ttft_p90_s=both,
        tpot_p50_s=both,
        tpot_mean_s=both,
        cached_tokens=both,
        first_apart=None,
    )

    (shown,) = validate.held_to(found)

    assert "TTFT p50: 250; □ live 200" in names_of(shown)
    assert shown.layout["xaxis"]["title"]["text"] == "time (ms)"


def test_a_long_title_of_an_axis_is_cut_into_lines_and_has_room() -> None:
    long = Axis(label="output tokens a year, from which a chip of one's own pays", unit="trillion")
    short = msgspec.structs.replace(long, label="tokens")
    layouts = [cdf("", axis, {"a": [1.0, 2.0]}).layout for axis in (long, short)]

    assert [layout["xaxis"]["title"]["text"].count("<br>") for layout in layouts] == [1, 0]
    assert layouts[0]["margin"]["b"] > layouts[1]["margin"]["b"]


def test_a_chip_is_shown_as_a_roofline_whose_corners_are_where_memory_meets_arithmetic() -> None:
    chip = read_catalog(None).chips["rubin"]

    roofline, links = entry.hardware(chip)

    assert chip.fp8_flops is not None
    corner = chip.fp8_flops.value / chip.memory_bytes_per_s.value
    flat = next(trace for trace in roofline.data if trace["name"].startswith("FP8"))
    assert flat["x"][0] == pytest.approx(corner, rel=1e-4)
    assert flat["y"] == pytest.approx([chip.fp8_flops.value] * 2, rel=1e-4)
    assert {"FP4 35 PFLOP/s", "FP8 17.5 PFLOP/s", "memory 22 TB/s"} <= set(names_of(roofline))
    assert "scale-up, one way: 1.8 TB/s (preliminary)" in names_of(links)
    assert links.about.endswith("joins 72 chips, which hold 20.7 TB.")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vera-rubin-nvl72", "rubin, memory 288 GB"),
        ("deepseek-v3", "What a sequence keeps"),
        ("economics", "price elasticity: 1.1 (0.2 to 2), measured"),
        ("nvlink5", "Chips that it joins"),
        ("cmx", "Latency is not known, and left out."),
        ("lpu3", "Not known: BF16, dense; FP4, dense;"),
    ],
)
def test_whatever_is_shown_has_a_picture_or_ranges_and_says_who_says_so(name: str, told: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(fleet, ["show", name, "--html", str(tmp_path / "page.html")])

    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert told in page
    assert "202" in page.partition("<footer>")[2].partition("</footer>")[0]  # sources have dates
