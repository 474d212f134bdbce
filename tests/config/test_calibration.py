"""The file of calibrated factors: it ships, it reads as it was written, and what is wrong is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from jevons.base.errors import ConfigError
from jevons.config.calibration import as_toml, read_calibration
from jevons.perf.calibration import Calibration, Effect, Error


def test_what_ships_says_where_it_comes_from_and_what_to_expect() -> None:
    shipped = read_calibration()

    assert shipped.date
    assert shipped.rule
    assert shipped.command.startswith("jevons calibrate")
    for kind in ("tpot", "ttft", "rate"):
        errors = [shipped.errors[f"{trust} {kind}"] for trust in ("measured", "transferred", "projected")]
        assert [e.p90 for e in errors] == sorted(e.p90 for e in errors)
        assert all(e.rows >= 10 for e in errors)


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    calibration = Calibration(
        title='one "quoted"',
        date="2026-11-25",
        command="jevons calibrate",
        rule="none",
        effects={"engine=vllm family=llama": Effect(rows=3, kv=0.8)},
        measured=["vllm llama h100"],
        errors={"measured tpot": Error(rows=1, median=0.1, p90=0.2)},
    )
    path = tmp_path / "own.toml"
    path.write_text(as_toml(calibration))

    assert read_calibration(path) == calibration


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = 1", "title: must be str, got 1"),
        ("title = ", "is not TOML"),
        ("[effects]\nall = { rows = 1, speed = 2.0 }", "effects[...]: has no field 'speed'"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        read_calibration(path)

    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_calibration(tmp_path / "none.toml")
