"""`jevons demand`: a table to read, JSON where asked, one line for what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from jevons.base.errors import ConfigError
from jevons.cli.demand import command


def told(*args: str) -> dict[str, Any]:
    ended = CliRunner().invoke(command, [*args, "--draws", "300", "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(ended.output)
    return found


def test_every_year_has_its_ranges_and_the_flip_is_told() -> None:
    found = told()

    assert [year["year"] for year in found["years"]] == [2026, 2027, 2028, 2029, 2030]
    assert all(set(year["spend"]) == {"low", "base", "high"} for year in found["years"])
    assert found["flip"] == pytest.approx(1.0, abs=1e-6)
    assert found["parameters"]["price_elasticity"]["source"] == "NBER"


def test_a_lever_that_is_left_out_is_missing_and_tokens_stay_dearer() -> None:
    all_of, fewer = told(), told("--without", "hardware")

    assert "hardware" not in [lever["name"] for lever in fewer["levers"]]
    assert fewer["years"][-1]["price"]["base"] > all_of["years"][-1]["price"]["base"]


def test_an_elasticity_below_one_lets_every_lever_lower_spend() -> None:
    found = told("--elasticity", "0.8", "--without-limit", "chips", "--without-limit", "power")

    assert all(lever["spend"]["high"] <= 1.0 for lever in found["levers"])
    assert found["above_one"] == 0.0


def test_it_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = CliRunner().invoke(command, ["--draws", "300"], catch_exceptions=False)

    assert "…" not in ended.output
    assert max(map(len, ended.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--elasticity", "2:1:3"), r"--elasticity: must be LOW:BASE:HIGH .* got '2:1:3'"),
        (("--elasticity", "-1"), r"above 0, got '-1'"),
        (("--without", "magic"), r"--without: must be one of hardware, .* got 'magic'"),
        (("--set", "pue=1.2"), r"'pue' is none of them"),
        (("nowhere",), r"outlook 'nowhere': neither a file nor one of"),
    ],
)
def test_what_is_wrong_is_one_line_that_quotes_it(args: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(command, [*args], catch_exceptions=False)
