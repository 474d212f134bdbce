"""A rehearsal watched from piece to piece is the same rehearsal."""

from __future__ import annotations

import msgspec
import pytest

from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import Event, Scenario, make_scenario
from jevons.facts.view import HEALTHS, View
from jevons.twin.run import simulate
from jevons.twin.watch import VERSION, Watched

CATALOG, CALIBRATION = read_catalog(), read_calibration()
PRICES = {"per_step_s": 0.005, "per_token_s": 1e-4, "per_decode_s": 1e-4}


def scenario(router: str = "kv", **more: object) -> Scenario:
    group = {"instances": 3, "blocks": 512, "block_size": 16, "prices": PRICES}
    traffic = {"kind": "chat", "rate": 2.0, "requests": 60}
    return make_scenario({"title": "T", "fleet": [group], "traffic": traffic, "router": router, **more}, "here")


def watched(made: Scenario, pause_s: float = 0.5) -> tuple[Watched, list[View]]:
    watch = Watched(made, CATALOG, CALIBRATION)
    return watch, [watch.view() for _ in watch.going(pause_s)]


@pytest.mark.parametrize("router", ["kv", "round_robin"])
def test_being_watched_changes_nothing(router: str) -> None:
    watch, views = watched(scenario(router))
    report = watch.report(0.0, 0.0)

    alone = simulate(scenario(router), CATALOG, CALIBRATION)

    told = ("requests", "met", "cached_tokens", "output_tokens", "simulated_s", "iterations", "utilisation", "itl_s")
    assert [getattr(report, name) for name in told] == [getattr(alone, name) for name in told]
    assert report.ttft_s.p99 == alone.ttft_s.p99
    assert len(views) > 5


def test_its_view_is_that_of_a_live_server() -> None:
    watch, views = watched(scenario())
    end = watch.view()

    assert not views[-1].is_over
    assert end.is_over
    assert [view.now_s for view in views[:3]] == [0.5, 1.0, 1.5]
    assert end.finished == 60
    assert any(view.under_way for view in views)
    assert any(sum(view.workers.running) for view in views)
    assert end.workers.who is not None
    assert end.workers.who.blocks == [512] * 3
    assert all(0 <= held <= 512 for held in end.workers.held)
    assert watch.view(VERSION).workers.who is None
    assert "believed cached" in end.requests[-1].reason
    assert end.reuse.computed + end.reuse.device == watch.report(0.0, 0.0).input_tokens
    assert msgspec.json.decode(msgspec.json.encode(end), type=View) == end


def test_who_fails_is_shown_as_down() -> None:
    made = msgspec.structs.replace(scenario(), events=[Event(at_s=2.0, what="fail", first=1)])

    _, views = watched(made)

    assert [HEALTHS[h] for h in views[0].workers.health] == ["up"] * 3
    assert [HEALTHS[h] for h in views[-1].workers.health] == ["up", "down", "up"]
