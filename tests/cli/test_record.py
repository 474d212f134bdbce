"""A server's record from the command line: calibrated, rehearsed, held to what was lived."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.twin.test_calibrate import POINTS
from tests.twin.test_record import lines, lived, talks, worker, write

from jevons.base.errors import ConfigError
from jevons.cli.calibrate import command as calibrate
from jevons.cli.validate import command as validate
from jevons.config.calibration import read_calibration
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


def test_a_fleet_that_is_written_elsewhere_finds_the_requests_of_the_record(record: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "fleet.toml"
    with pytest.raises(ConfigError, match=r"there is no folder .*; make it first"):
        CliRunner().invoke(calibrate, ["--record", str(record), "--out", str(out)], catch_exceptions=False)
    out.parent.mkdir()

    CliRunner().invoke(calibrate, ["--record", str(record), "--out", str(out)], catch_exceptions=False)

    assert Path(read_scenario(out).traffic.trace).samefile(record / REQUESTS)


def test_a_rehearsal_is_held_to_the_record(record: Path) -> None:
    told = CliRunner().invoke(validate, ["--record", str(record), "--json"], catch_exceptions=False)
    shown = CliRunner().invoke(validate, ["--record", str(record)], catch_exceptions=False)

    found = json.loads(told.stdout)
    assert (found["requests"], found["placed_alike"], found["first_apart"]) == (15, 15, None)
    assert "15 of 15 requests placed alike (100.0%)" in shown.stdout
    assert "TTFT p50" in shown.stdout
    assert "fitted to this record" in shown.stdout


@pytest.mark.parametrize("option", ["--catalog", "--calibration"])
def test_files_that_are_given_with_a_record_are_read(record: Path, tmp_path: Path, option: str) -> None:
    options = ["--record", str(record), option, str(tmp_path / "none.toml")]

    with pytest.raises(ConfigError, match=r"none.toml: cannot be read"):
        CliRunner().invoke(validate, options, catch_exceptions=False)


def test_points_or_a_record_not_both_nor_neither(record: Path) -> None:
    for command in (calibrate, validate):
        for options in ([], ["--record", str(record), "--points", "p.csv"]):
            with pytest.raises(ConfigError, match="either --points or --record"):
                CliRunner().invoke(command, options, catch_exceptions=False)
    with pytest.raises(ConfigError, match="needs --out"):
        CliRunner().invoke(calibrate, ["--points", "p.csv"], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"--out /nowhere/c.toml: there is no folder '/nowhere'; make it first"):
        CliRunner().invoke(calibrate, ["--points", "p.csv", "--out", "/nowhere/c.toml"], catch_exceptions=False)


def test_a_calibration_that_cannot_be_written_or_fitted_is_an_error_before_anything_is(
    record: Path, tmp_path: Path
) -> None:
    columns = "id,system,model,precision,parallelism,input_len,output_len,batch/concurrency,metric,value,unit\n"
    file, out = tmp_path / "points.csv", tmp_path / "mine.toml"
    file.write_text(columns + "a,abacus,eliza,fp8,TP1,10,10,1,TPOT,10,ms\n")
    nowhere = str(tmp_path / "nowhere" / "mine.toml")

    with pytest.raises(ConfigError, match=r"--out .*mine.toml: there is no folder '.*nowhere'; make it first"):
        CliRunner().invoke(calibrate, ["--points", str(file), "--out", nowhere], catch_exceptions=False)
    with pytest.raises(ConfigError, match="must have one that is fitted; of 1, 0 are held out, others cannot be"):
        CliRunner().invoke(calibrate, ["--points", str(file), "--out", str(out)], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"--out .*mine.toml: there is no folder"):
        CliRunner().invoke(calibrate, ["--record", str(record), "--out", nowhere], catch_exceptions=False)
    assert not out.exists()


def test_pictures_of_a_record_are_made_where_it_is_held_to_something(record: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="pictures need Plotly: pip install 'jevons[charts]'")
    options = ["--record", str(record), "--html", str(tmp_path / "page.html")]
    with pytest.raises(ConfigError, match="`jevons validate --record` shows a record"):
        CliRunner().invoke(calibrate, options, catch_exceptions=False)
    assert not (record / "fleet.toml").exists()


def test_a_calibration_is_shown_beside_what_was_held_out(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="pictures need Plotly: pip install 'jevons[charts]'")
    file, page, out = tmp_path / "points.csv", tmp_path / "page.html", tmp_path / "mine.toml"
    with file.open("w") as text:
        text.write("id,system,model,precision,parallelism,input_len,output_len,batch/concurrency,metric,value,unit\n")
        for p in POINTS:
            text.write(
                f"{p.id},{p.system},{p.model},{p.precision},{p.parallelism},{p.input_len},{p.output_len},{p.users},"
                f"{p.metric},{p.value},{p.unit}\n"
            )
    options = ["--points", str(file), "--out", str(out), "--html", str(page)]

    CliRunner().invoke(calibrate, options, catch_exceptions=False)

    shown = page.read_text()
    assert "What mine.toml predicts beside what was measured" in shown
    assert "of those never fitted, half are within" in shown
    assert "Predicted against measured: s" in shown
    assert read_calibration(out).effects
