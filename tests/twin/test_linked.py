"""Requests that follow others arrive a while after those are done, whatever that took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jevons.base.errors import ConfigError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import Traffic, make_scenario
from jevons.twin.arrivals import arrivals
from jevons.twin.run import simulate

CATALOG, CALIBRATION = read_catalog(), read_calibration()
PRICES = {"per_step_s": 0.01, "per_token_s": 0.001, "per_decode_s": 0.002}
GROUP = {"instances": 2, "prices": PRICES, "blocks": 400, "block_size": 16, "step_tokens": 128, "engine": "jevons"}


def row(id: str, **more: Any) -> dict[str, Any]:
    return {"request_id": id, "input_length": 64, "output_length": 4, "block_size": 16, "hash_ids": [1, 2, 3], **more}


def written(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return file


def rehearse(file: Path, group: dict[str, Any] | None = None, **traffic: Any) -> Any:
    """Results in the order of the file."""
    table = {"fleet": [{**GROUP, **(group or {})}], "traffic": {"trace": str(file), **traffic}}
    pieces: list[Any] = []
    simulate(make_scenario(table, "test"), CATALOG, CALIBRATION, on_results=lambda found: pieces.append(found.copy()))
    results = np.concatenate(pieces)
    return results[np.argsort(results["request"], kind="stable")]


def test_the_next_of_a_session_comes_after_the_answer_and_a_pause(tmp_path: Path) -> None:
    rows = [row("a", timestamp=0, session_id="s"), row("b", session_id="s", delay=500), row("c", timestamp=100)]

    a, b, c = rehearse(written(tmp_path, *rows))

    assert b["at_s"] == pytest.approx(a["done_s"] + 0.5)
    assert c["at_s"] == pytest.approx(0.1)


def test_who_waits_for_two_comes_after_the_later(tmp_path: Path) -> None:
    rows = [
        row("a", timestamp=0, output_length=2),
        row("b", timestamp=5, output_length=90),
        row("c", wait_for=["a", "b"], delay=10, tool_wait_ms=20),
    ]

    a, b, c = rehearse(written(tmp_path, *rows))

    assert c["at_s"] == pytest.approx(max(a["done_s"], b["done_s"]) + 0.03)


def test_a_slower_fleet_is_asked_later(tmp_path: Path) -> None:
    file = written(tmp_path, row("a", timestamp=0), row("b", wait_for=["a"], delay=1_000))
    slow = {"prices": {name: 10 * value for name, value in PRICES.items()}}

    assert rehearse(file, slow)["at_s"][1] > rehearse(file)["at_s"][1] + 0.5


def test_rows_may_be_in_any_order_and_keep_their_numbers(tmp_path: Path) -> None:
    rows = [row("b", wait_for=["a"], delay=7, timestamp=900), row("c", timestamp=400), row("a", timestamp=0)]

    b, c, a = rehearse(written(tmp_path, *rows))

    assert (a["at_s"], c["at_s"]) == (0.0, 0.4)
    assert b["at_s"] == pytest.approx(a["done_s"] + 0.007)


def test_who_stands_before_those_it_follows_comes_after_them(tmp_path: Path) -> None:
    rows = [
        row("c", wait_for=["b"], delay=5),
        row("b", wait_for=["a"], delay=7, timestamp=100),
        row("a", timestamp=300),
        row("d", timestamp=200),
    ]

    c, b, a, d = rehearse(written(tmp_path, *rows))

    assert (a["at_s"], d["at_s"]) == pytest.approx((0.1, 0.0))  # the first that comes at its time is at 0
    assert b["at_s"] == pytest.approx(a["done_s"] + 0.007)
    assert c["at_s"] == pytest.approx(b["done_s"] + 0.005)


def test_the_first_request_need_not_be_one_that_others_follow(tmp_path: Path) -> None:
    alone = {"timestamp": 0, "input_length": 64, "output_length": 4}
    rows = [alone, row("", timestamp=1, session_id="s", output_length=90), row("", session_id="s", delay=20)]

    _, first, second = rehearse(written(tmp_path, *rows))

    assert second["at_s"] == pytest.approx(first["done_s"] + 0.02)


def test_who_follows_others_when_some_came_already_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jevons.twin.arrivals._READ_BYTES", 64)
    alone = {"timestamp": 0, "input_length": 64, "output_length": 4}
    file = written(tmp_path, alone, alone, row("", timestamp=1, session_id="s"))

    with pytest.raises(ConfigError, match="request 3: follows others or may be followed"):
        list(arrivals(Traffic(trace=str(file)), 0))


def test_copies_follow_their_own(tmp_path: Path) -> None:
    file = written(tmp_path, row("a", timestamp=0), row("b", wait_for=["a"], delay=10), row("c", wait_for=["b"]))

    results = rehearse(file, copies=3)

    assert results["request"].tolist() == list(range(9))  # as of a trace where nobody follows anybody
    assert np.allclose(results["at_s"][3:6], results["done_s"][:3] + 0.01)


def test_limits_leave_out_who_follows_what_is_left_out(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        row("a", timestamp=0),
        row("b", timestamp=5_000),
        row("c", wait_for=["b"], timestamp=5_500),
        row("d", wait_for=["a"], timestamp=6_000),
    )

    assert len(rehearse(file, seconds=2.0)) == 2  # a and d
    assert len(rehearse(file, requests=2)) == 2  # a and b
    assert len(rehearse(file, requests=3)) == 3


def test_a_delay_that_is_not_told_is_the_time_between(tmp_path: Path) -> None:
    rows = [row("a", timestamp=100, session_id=7), row("b", timestamp=350, session_id=7)]

    a, b = rehearse(written(tmp_path, *rows))

    assert b["at_s"] == pytest.approx(a["done_s"] + 0.25)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("a", wait_for=["x"])], "request 1: waits for 'x', which is not there"),
        ([row("a", timestamp=0), row("a", timestamp=1)], "request 2: request_id 'a' is there twice"),
        ([row("a", timestamp=0), row("b")], "request 2: follows nobody and has no timestamp"),
        ([row("a", wait_for=["b"]), row("b", wait_for=["a"])], "waits for itself, by way of others"),
        ([row("a", timestamp=0), row("b", wait_for=["a"], input_length=-1)], "request 2: -1 tokens in"),
        ([row("a", timestamp=0), row("b", wait_for=["a"], delay=-5)], "request 2: delay and tool_wait_ms must be at"),
    ],
)
def test_who_cannot_be_followed_is_an_error(tmp_path: Path, rows: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        list(arrivals(Traffic(trace=str(written(tmp_path, *rows))), 0))


def test_a_prefix_in_the_making_is_waited_for(tmp_path: Path) -> None:
    """Our own engine computes a prompt that two ask for at once a single time; others may do otherwise."""
    ids = list(range(1, 41))
    rows = [row(name, timestamp=0, input_length=640, hash_ids=ids) for name in "ab"]

    first, second = rehearse(written(tmp_path, *rows), {"instances": 1})

    assert first["cached"] == 0
    assert second["cached"] == 624  # all but the block with its last token
    assert second["admitted_s"] > 0


def test_prices_give_the_seconds_they_say(tmp_path: Path) -> None:
    file = written(tmp_path, row("a", timestamp=0, input_length=100, output_length=5, hash_ids=[]))

    (only,) = rehearse(file)

    assert only["first_s"] == pytest.approx(0.01 + 100 * 0.001)
    assert only["done_s"] - only["first_s"] == pytest.approx(4 * 0.012)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blocks": None}, "blocks: must be given with prices"),
        ({"chip": "h100"}, "must have one of chip, polynomial and prices"),
        ({"step_scale": 2.0}, "step_scale: has no effect with prices"),
    ],
)
def test_prices_that_contradict_are_an_error(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_scenario({"fleet": [{**GROUP, **change}], "traffic": {"kind": "chat"}}, "test")


def test_a_request_of_an_open_trace_without_a_time_is_an_error(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": 9, "output_length": 1}, {"input_length": 9, "output_length": 1}]

    with pytest.raises(ConfigError, match="request 2: has no timestamp; give one"):
        list(arrivals(Traffic(trace=str(written(tmp_path, *rows))), 0))
