"""`jevons sweep` from the command line: which grid is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jevons.base.errors import ConfigError
from jevons.cli.sweep import command


@pytest.fixture
def swept(tmp_path: Path) -> Any:
    """The cells of a grid of twenty requests on the scenario `mocker`."""

    def run(*vary: str) -> Any:
        options = [f"--vary={each}" for each in (*vary, "traffic.requests=20")]
        more = ["--processes", "1", "--json", "--out", str(tmp_path / "grid.jsonl")]
        return json.loads(CliRunner().invoke(command, ["mocker", *options, *more], catch_exceptions=False).stdout)

    return run


def test_a_field_that_is_true_or_false_can_be_varied(swept: Any) -> None:
    cells = swept("event_replay=true,false")

    assert [cell["settings"]["event_replay"] for cell in cells] == [True, False]
    assert all(cell["report"]["requests"] == 20 for cell in cells)


def test_a_field_that_is_varied_twice_is_an_error(swept: Any) -> None:
    with pytest.raises(ConfigError, match=r"got 'seed' twice; give all of its values together"):
        swept("seed=1", "seed=2")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_is_an_error_of_its_cell_that_is_read_again(swept: Any, value: str) -> None:
    first, again = swept(f"traffic.rate={value}"), swept(f"traffic.rate={value}")

    assert f"traffic.rate: must be float, got {value!r}" in first[0]["error"]
    assert again == first


def test_a_table_that_could_not_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'jevons[parquet]'")
    files = f"--out={tmp_path / 'grid.jsonl'}", f"--parquet={tmp_path / 'no' / 'grid.parquet'}"

    with pytest.raises(ConfigError, match=r"there is no folder .*; make it first"):
        CliRunner().invoke(command, ["mocker", "--vary=seed=1", *files], catch_exceptions=False)

    assert not (tmp_path / "grid.jsonl").exists()
