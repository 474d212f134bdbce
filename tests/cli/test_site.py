"""`jevons site`, and the scenarios it is for: one model and one promise on five makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jevons.cli import main
from jevons.cli.site import SAME
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import read_scenario, shipped
from jevons.twin.run import simulate


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["jevons", "site", *args])
        main()
        return capsys.readouterr().out

    return run


def short(folder: Path, *names: str) -> list[Path]:
    """The same for ten seconds."""
    for name in names:
        (folder / name).write_text(shipped(name).read_text().replace("seconds = 150", "seconds = 10"))
    return [folder / name for name in names]


def test_the_same_model_is_asked_the_same_under_the_same_promise() -> None:
    scenarios = [read_scenario(shipped(name)) for name in SAME]

    assert len({(s.model, s.weights, s.kv_bits, s.slo, s.traffic.kind, s.traffic.seconds) for s in scenarios}) == 1


@pytest.mark.parametrize("name", SAME)
def test_each_keeps_it_for_nearly_all_at_the_rate_it_names(name: str) -> None:
    """In its first 15 seconds, while sessions still build up; `docs/measurements.md` has the whole."""
    wanted = read_scenario(shipped(name), {"traffic.seconds": 15.0})

    assert simulate(wanted, read_catalog(), read_calibration()).met_slo >= 0.99


def test_twice_the_power_holds_twice_the_chips_and_what_has_no_price_is_said(site: Any, tmp_path: Path) -> None:
    args = (*(str(path) for path in short(tmp_path, "same-mi355x", "same-vr-lpx")), "--json")
    small, large = (json.loads(site("--mw", mw, *args)) for mw in ("10", "20"))

    assert large[0]["priced"]["site"]["chips"]["base"] == pytest.approx(2 * small[0]["priced"]["site"]["chips"]["base"])
    assert small[0]["priced"]["site"]["chips"]["base"] == pytest.approx(10e6 / (2090 * 1.2))
    assert small[1]["priced"]["site"] is None
    assert small[1]["priced"]["missing"] == {"lpu3": "chips.lpu3.own_usd_per_hour"}


def test_the_table_has_a_row_for_each_and_says_how_far_to_trust_it(site: Any, tmp_path: Path) -> None:
    (small,) = short(tmp_path, "same-mi355x")
    out = site(str(small), "--usd-per-hour", "mi355x=1:2:3")

    for text in ("A site of 50 MW", "million $", "trust: mi355x"):
        assert text in out
    assert msgspec.json.decode(site(str(small), "--json"))[0]["priced"]["money"] is not None


def test_what_economics_hang_on_is_shown_with_its_sources(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jevons", "fleet", "show", "economics"])
    main()
    out = capsys.readouterr().out

    for text in ("wacc", "0.07–0.14", "assumed", "lpx_rack_usd", "not known", "Uptime Institute"):
        assert text in out


def test_fleets_whose_files_have_one_name_are_told_apart(site: Any, tmp_path: Path) -> None:
    paths = []
    for name in ("same-vr", "same-mi355x"):
        (tmp_path / name).mkdir()
        (path,) = short(tmp_path / name, name)
        paths.append(str(path.rename(path.parent / "fleet.toml")))
    html = tmp_path / "site.html"
    out = site(*paths, "--json", "--html", str(html))

    assert [each["scenario"] for each in json.loads(out)] == paths
    assert all(path in html.read_text() for path in paths)
