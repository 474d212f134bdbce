"""64 engines and a router, real sockets: what lost events, restarted engines and a killed router cost.

A thousand of them: tests/chaos/test_fleet.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos import fleet

SCALE = fleet.Scale(engines=64, talks=96, turns=10, running=32)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> fleet.Outcome:
    return fleet.undisturbed(SCALE, tmp_path_factory.mktemp("calm"))


def test_lost_events_cost_next_to_nothing_and_are_found(tmp_path: Path, calm: fleet.Outcome) -> None:
    assert fleet.some_events_are_lost(SCALE, tmp_path, calm).retried == 0


def test_restarted_engines_cost_what_they_held_and_no_client_an_error(tmp_path: Path, calm: fleet.Outcome) -> None:
    assert fleet.some_engines_are_restarted(SCALE, tmp_path, calm).retried == 0


def test_a_killed_router_comes_back_knowing(tmp_path: Path, calm: fleet.Outcome) -> None:
    assert fleet.the_router_is_killed(SCALE, tmp_path, calm).failed == 0
