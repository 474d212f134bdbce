"""Instances that start and stop in a rehearsal: what is asked of them is done, and no more of them is paid for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jevons.base.errors import ConfigError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import as_toml, make_scenario, read_scenario, shipped
from jevons.twin.run import Run, simulate
from jevons.twin.watch import Watched

CATALOG, CALIBRATION = read_catalog(), read_calibration()
PRICES = {"per_step_s": 0.05, "per_token_s": 0.001, "per_decode_s": 0.005}
GROUP = {"instances": 4, "blocks": 2_000, "prices": PRICES, "up_after_s": 120.0}
DAY = {"kind": "chat", "shape": "diurnal", "rate": 0.05, "seconds": 86_400.0}
SLO = {"ttft_s": 5.0, "tpot_s": 0.12}


def scenario(traffic: dict[str, Any] = DAY, fleet: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    table = {"fleet": fleet or [GROUP], "traffic": traffic, "slo": SLO, "scaling": {}, **more}
    return make_scenario({name: value for name, value in table.items() if value is not None}, "of a test")


def run(wanted: Any) -> tuple[Run, Any]:
    pieces: list[Any] = []
    made = Run(wanted, CATALOG, CALIBRATION, on_results=lambda results: pieces.append(results.copy()))
    made.go()
    return made, np.concatenate(pieces)


def test_over_a_day_fewer_instance_hours_keep_the_promise() -> None:
    scaled = simulate(scenario(scaling={"hold_s": 1_800.0}), CATALOG, CALIBRATION)
    fixed = simulate(scenario(scaling=None, fleet=[GROUP | {"up_after_s": 0.0}]), CATALOG, CALIBRATION)

    assert scaled.requests == fixed.requests
    assert scaled.output_tokens == fixed.output_tokens
    assert scaled.met_slo > 0.99
    assert scaled.instance_hours < 0.65 * fixed.instance_hours
    assert fixed.instance_hours == pytest.approx(4 * fixed.simulated_s / 3_600)
    assert fixed.groups[0].paid_share == 1.0
    assert scaled.groups[0].paid_share == pytest.approx(scaled.instance_hours / 4 / (scaled.simulated_s / 3_600))


def test_each_start_and_stop_is_told_with_its_reason() -> None:
    report = simulate(scenario(DAY | {"seconds": 40_000.0}), CATALOG, CALIBRATION)

    before = 4
    for change in report.changes:
        assert (change.role, change.before) == ("both", before)
        before = change.wanted
    assert len(report.changes) > 1
    rises = [change for change in report.changes if change.wanted > change.before]
    assert rises
    assert all("computing needs" in change.reason or "memory needs" in change.reason for change in report.changes)


def test_starting_and_draining_are_paid_too() -> None:
    report = simulate(scenario(DAY | {"seconds": 40_000.0}), CATALOG, CALIBRATION)

    ends_s = [*(at_s for at_s, _ in report.up[1:]), report.simulated_s]
    up_s = sum(up * (end_s - at_s) for (at_s, up), end_s in zip(report.up, ends_s, strict=True))
    starts = sum(max(0, after - before) for (_, before), (_, after) in zip(report.up, report.up[1:], strict=False))
    assert starts > 0
    assert report.instance_hours * 3_600 > up_s
    assert report.instance_hours * 3_600 <= 4 * report.simulated_s


def test_what_arrives_by_chance_starts_and_stops_little_when_looks_are_remembered() -> None:
    steady = {"kind": "chat", "rate": 0.05, "seconds": 20_000.0}

    changes = {
        hold_s: len(simulate(scenario(steady, scaling={"hold_s": hold_s}), CATALOG, CALIBRATION).up)
        for hold_s in (0.0, 3_600.0)
    }

    assert changes[3_600.0] * 5 < changes[0.0]


def test_who_is_stopped_has_an_empty_pool_and_every_request_is_answered() -> None:
    made, results = run(scenario(DAY | {"seconds": 12_000.0}))

    report = made.report(0.0, 0.0)
    assert report.up[-1][1] < 4
    assert np.array_equal(np.sort(results["request"]), np.arange(report.requests))
    engines, pools = made.hub["engines"], made.hub["pools"]
    stopped = engines["up"] == 0
    assert stopped.any()
    assert (pools["blank"] == pools["blocks"])[: len(engines)][stopped].all()


def test_each_role_of_a_fleet_that_is_split_has_its_own_number() -> None:
    split = [GROUP | {"role": "prefill", "instances": 3}, GROUP | {"role": "decode"}]

    made, results = run(scenario(DAY | {"seconds": 30_000.0}, split))

    report = made.report(0.0, 0.0)
    assert np.array_equal(np.sort(results["request"]), np.arange(report.requests))
    assert (results["decode_on"] >= 3).any()
    assert all(group.paid_share < 1.0 for group in report.groups)


def test_a_watched_rehearsal_tells_of_hours_that_are_paid() -> None:
    watched = Watched(scenario(DAY | {"seconds": 12_000.0}), CATALOG, CALIBRATION)
    for _ in watched.going(1_000.0):
        pass

    view = watched.view()
    assert view.chip_s["prices"] < 4 * view.now_s
    assert view.workers.health.count(view.workers.health[-1]) < 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"scaling": {"least": 5}}, r"scaling.least: must be at most fleet\[0\].instances, 4, got 5"),
        ({"fleet": [GROUP, GROUP]}, "scaling: must have one group of each role, got both, both"),
        ({"events": [{"at_s": 1, "what": "drain", "first": 0}]}, "events: must be 'cap' where scaling decides"),
        ({"scaling": {"every_s": 0.0}}, "every_s"),
    ],
)
def test_what_cannot_be_scaled_is_told(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        scenario(**more)


def test_a_scenario_that_scales_as_usual_still_does_when_it_is_written_down() -> None:
    assert "[scaling]" in as_toml(scenario())


def test_the_day_that_ships_differs_from_the_one_it_is_compared_with_by_scaling_alone() -> None:
    day, fixed = read_scenario(shipped("day")), read_scenario(shipped("day-fixed"))

    assert (day.model, day.weights, day.traffic, day.slo) == (fixed.model, fixed.weights, fixed.traffic, fixed.slo)
    assert day.fleet[0].instances == fixed.fleet[0].instances
    assert fixed.scaling is None
    assert day.scaling is not None
