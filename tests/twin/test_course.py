"""The course of a rehearsal: means of parts of its time, exact however often parts were put together."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from jevons.base.compiled import Records
from jevons.config.scenario import Event, Group, Scenario, Slo, Traffic
from jevons.twin.course import PARTS, Watch, instances_up
from jevons.twin.kernel import RESULT

SLO = Slo(ttft_s=1.5, tpot_s=1.0)


def results(*rows: dict[str, Any]) -> Records:
    made = np.zeros(len(rows), RESULT)
    for i, row in enumerate(rows):
        for name, value in row.items():
            made[name][i] = value
    return made


def request(at_s: float, waits_s: float = 1.0, **other: Any) -> dict[str, Any]:
    """Arrives, waits, and is computed at once; then 10 further tokens in 8 seconds."""
    began_s = at_s + waits_s
    row = {"at_s": at_s, "admitted_s": began_s, "first_s": began_s, "done_s": began_s + 8.0, "output": 11}
    return {**row, "prompt": 100, "cached": 60, "brought": 20, **other}


def test_who_waits_runs_and_what_comes_out_is_told_of_each_part() -> None:
    watch = Watch(SLO)
    watch.add(results(request(0.0), request(1.0)))

    course = watch.course()
    part_s = course.at_s[1] - course.at_s[0]

    assert course.queued.sum() * part_s == pytest.approx(2.0, rel=1e-6)  # request-seconds
    assert course.running.sum() * part_s == pytest.approx(16.0, rel=1e-6)
    assert course.output_tokens_per_s.sum() * part_s == pytest.approx(22.0, rel=1e-6)
    assert course.good_per_s.sum() * part_s == pytest.approx(2.0, rel=1e-6)
    assert course.running[np.searchsorted(course.at_s, 5.0)] == pytest.approx(2.0)
    assert course.queued[np.searchsorted(course.at_s, 5.0)] == pytest.approx(0.0, abs=1e-9)
    assert course.hbm_share[-1] == pytest.approx(0.4)
    assert course.tier_share[-1] == pytest.approx(0.2)


def test_a_long_course_has_as_many_parts_and_loses_nothing() -> None:
    watch = Watch(SLO)
    for begins in range(0, 100_000, 1_000):
        watch.add(results(*(request(float(begins + i), waits_s=2.0) for i in range(0, 1_000, 10))))

    course = watch.course()
    part_s = course.at_s[1] - course.at_s[0]

    assert PARTS / 2 < len(course.at_s) <= PARTS
    assert course.queued.sum() * part_s == pytest.approx(20_000.0)
    assert course.running[len(course.running) // 2] == pytest.approx(0.8, rel=0.02)
    assert course.good_per_s.sum() == 0.0  # all waited longer than was promised


def test_an_answer_of_one_token_counts_where_it_comes() -> None:
    watch = Watch(SLO)
    watch.add(results(request(0.0, done_s=1.0, output=1)))

    course = watch.course()

    assert course.output_tokens_per_s.sum() * (course.at_s[1] - course.at_s[0]) == pytest.approx(1.0, rel=0.01)


def test_instances_that_fail_and_return_are_counted() -> None:
    early, late = Group(chip="h100", instances=3), Group(chip="h100", instances=2, up_after_s=10.0)
    events = [Event(20.0, "fail", 0, 2), Event(30.0, "up", 0), Event(35.0, "cap", 0, power_w=500.0)]
    scenario = Scenario(fleet=[early, late], traffic=Traffic(kind="chat"), events=events)

    assert instances_up(scenario) == [(0.0, 3), (10.0, 4), (10.0, 5), (20.0, 3), (30.0, 4)]
    assert instances_up(msgspec.structs.replace(scenario, events=[])) == [(0.0, 3), (10.0, 4), (10.0, 5)]
