"""A server's record from the command line: calibrated, rehearsed, held to what was lived."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.twin.test_record import lines, lived, talks, worker, write

from jevons.base.errors import ConfigError
from jevons.cli.calibrate import command as calibrate
from jevons.cli.validate import command as validate
from jevons.config.scenario import read_scenario
from jevons.facts.trace import REQUESTS
from jevons.twin.record import read_record, scenario_of


@pytest.fixture
def record(tmp_path: Path) -> Path:
    folder = write(tmp_path / "r", [worker("w0"), worker("w1")])
    scenario, _ = scenario_of(read_record(folder))
    (folder / REQUESTS).write_bytes(lines(*lived(scenario, folder, talks(5, 3))))
    return folder


def test_a_record_becomes_a_fleet_beside_it(record: Path) -> None:
    ended = CliRunner().invoke(calibrate, ["--record", str(record)], catch_exceptions=False)

    assert ended.exit_code == 0
    assert "w0, w1: 400 steps" in ended.stderr
    assert read_scenario(record / "fleet.toml").fleet[0].names == ["w0", "w1"]


def test_a_rehearsal_is_held_to_the_record(record: Path) -> None:
    told = CliRunner().invoke(validate, ["--record", str(record), "--json"], catch_exceptions=False)
    shown = CliRunner().invoke(validate, ["--record", str(record)], catch_exceptions=False)

    found = json.loads(told.stdout)
    assert (found["requests"], found["placed_alike"], found["first_apart"]) == (15, 15, None)
    assert "15 of 15 requests placed alike (100.0%)" in shown.stdout
    assert "TTFT p50" in shown.stdout
    assert "fitted to this record" in shown.stdout


def test_points_or_a_record_not_both_nor_neither(record: Path) -> None:
    for command in (calibrate, validate):
        for options in ([], ["--record", str(record), "--points", "p.csv"]):
            with pytest.raises(ConfigError, match="either --points or --record"):
                CliRunner().invoke(command, options, catch_exceptions=False)
    with pytest.raises(ConfigError, match="needs --out"):
        CliRunner().invoke(calibrate, ["--points", "p.csv"], catch_exceptions=False)
