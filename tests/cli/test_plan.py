"""`jevons plan`: what is said of a plan, and of one that cannot be."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("highspy", reason="plans need HiGHS: pip install 'jevons[plan]'")

from jevons.base.errors import ConfigError
from jevons.cli import jevons
from jevons.twin.planned import Plan

USUAL = ["plan", "--model", "llama-3.1-8b", "--traffic", "rag", "--rate", "30", "--requests", "500", "--finalists", "2"]


def run(*more: str) -> Result:
    return CliRunner().invoke(jevons, [*USUAL, *more], catch_exceptions=False)


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of H100s and H200s, as --json writes it."""
    path = tmp_path_factory.mktemp("plans") / "former.json"
    path.write_text(run("--chips", "h100,h200", "--json").stdout)
    return path


def test_the_fleet_that_is_written_is_rehearsed_as_planned(former: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    told = run("--chips", "h100,h200", "--out", str(fleet)).stdout
    plan = msgspec.json.decode(former.read_bytes(), type=Plan)
    assert plan.best is not None
    assert plan.best.name in told.replace("\n", " ")
    report = CliRunner().invoke(jevons, ["simulate", str(fleet), "--json"], catch_exceptions=False).stdout
    assert msgspec.json.decode(report)["met_slo"] == pytest.approx(plan.best.met)


def test_a_plan_without_a_chip_says_why_it_is_another_one(former: Path) -> None:
    plan = msgspec.json.decode(former.read_bytes(), type=Plan)
    assert plan.best is not None
    gone = next(iter(plan.best.chips))
    told = run("--chips", "h100,h200", "--without", gone, "--against", str(former)).stdout
    assert f"because {gone} is not there now: excluded" in told
    assert "× the dollars a token" in told


def test_a_limit_that_binds_is_named_with_what_is_needed_and_what_could_be_promised(former: Path) -> None:
    told = run("--chips", "h100,h200", "--mw", "0.0028", "--half-power", "--tpot", "0.01", "--without", "h200").stdout
    assert "Nothing keeps the promise" in told
    assert "power_w: needs" in told
    assert "has 1.4 kW" in told


def test_half_of_no_limit_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--half-power: there is no limit on power"):
        run("--half-power")


def test_a_file_that_is_no_plan_is_not_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is not a plan as --json writes it"):
        run("--against", str(path))
