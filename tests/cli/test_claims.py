"""`jevons claims`: a table to read, a list of records where asked, one line for what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from jevons.base.errors import ConfigError
from jevons.cli.claims import command

DOCS = Path(__file__).parents[2] / "docs"


def test_json_is_a_list_of_records_with_claim_stated_computed_verdict_and_sources() -> None:
    ended = CliRunner().invoke(command, ["--draws", "200", "--json"], catch_exceptions=False)

    found = json.loads(ended.output)
    assert len(found) == 20
    assert all({"claim", "stated", "computed", "verdict", "sources"} <= set(record) for record in found)
    assert all(record["computed"] is None or record["computed"]["unit"] for record in found)


def test_a_claim_by_number_tells_all_that_was_computed_and_its_sources() -> None:
    ended = CliRunner().invoke(command, ["5", "--draws", "200"], catch_exceptions=False)

    assert "NVLink of all chips, both directions: 259 TB/s" in ended.output
    assert "memory of one chip: 22 TB/s" in ended.output
    assert "source: NVIDIA developer blog on the Rubin GPU architecture" in ended.output


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ended = CliRunner().invoke(command, ["--draws", "200"], catch_exceptions=False)

    assert "…" not in ended.output
    assert max(map(len, ended.output.splitlines())) <= columns


def test_a_claim_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match="there is none of number 21; there are 1 to 20"):
        CliRunner().invoke(command, ["21"], catch_exceptions=False)


def test_what_the_documents_say_of_rubins_gain_is_what_is_computed() -> None:
    ended = CliRunner().invoke(command, ["1", "--draws", "100", "--json"], catch_exceptions=False)
    beside = json.loads(ended.output)[0]["beside"]
    computed = [beside[f"at {speed} interactivity, perf"]["value"] for speed in ("low", "mid", "high")]
    told = re.search(r"\((\S+), (\S+) and (\S+) × for a dollar", (DOCS / "economics.md").read_text("utf-8"))

    assert told is not None
    assert [float(value) for value in told.groups()] == [float(f"{value:.2g}") for value in computed]
