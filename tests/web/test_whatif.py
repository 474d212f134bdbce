"""What a what-if asks, and the fleet and trace it is rehearsed with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jevons.base.errors import ConfigError, RequestError
from jevons.base.ids import RequestId, WorkerId
from jevons.config.catalog import read_catalog
from jevons.config.scenario import as_toml, read_scenario
from jevons.control.lived import Answered, Lived, LivedWorker
from jevons.facts.page import Asked
from jevons.facts.trace import REQUESTS, RecordedWorker
from jevons.perf.measured import Prices
from jevons.policy.route import Placement
from jevons.twin.run import simulate
from jevons.web import whatif
from jevons.web.whatif import WhatIf, as_it_is, write_trace

PRICES = Prices(per_step_s=0.005, per_token_s=1e-4, per_token_context_s=0.0, per_decode_s=1e-4)
CATALOG = read_catalog()


def row(id: str, at_ms: float, wait_for: str | None = None) -> Answered:
    return Answered(
        id=RequestId(id),
        prompt_tokens=64,
        output_tokens=4,
        placement=Placement(WorkerId("w0"), "kv", 0.001, 0, ""),
        cached_tokens=None,
        arrived_s=at_ms / 1e3,
        first_s=None,
        done_s=0.02,
        leader=None if wait_for is None else (RequestId(wait_for), 0.01),
        blocks=bytes(range(32)),
        left=None,
    )


def worker(
    id: str, blocks: int | None = 64, block_size: int | None = 16, model: str = "m", role: str = "both"
) -> LivedWorker:
    told = RecordedWorker("kv", id, model, "openai", role, 2048, block_size, blocks)
    return LivedWorker(told, PRICES, "", 1)


def lived(*workers: LivedWorker, rows: tuple[Answered, ...] = (row("a", 5_000.0), row("b", 5_100.0, "a"))) -> Lived:
    return Lived("kv", list(workers), list(rows))


class Quiet:
    def __init__(self, lived: Lived) -> None:
        self._lived = lived

    def lived(self, seconds: float) -> Lived:
        return self._lived


def ask(lived: Lived, body: Any, content_type: str = "application/json") -> Any:
    asked = Asked("POST", "", msgspec.json.encode(body), content_type)
    return msgspec.json.decode(asyncio.run(WhatIf(Quiet(lived), CATALOG)(asked)).body)


def test_requests_that_frontends_did_not_tell_are_said_to_be_missing() -> None:
    told = ask(lived(worker("w0"))._replace(silent=2), {"policy": "random"})

    assert "Of 2 frontends that did not answer in time, requests are missing." in told["notes"]


def test_a_rehearsal_ends_with_the_one_beside_it_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    async def rehearse(folder: Path, run: Any) -> msgspec.Raw:
        if not run.file:
            raise RequestError("what-if: the rehearsal failed", status=422)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(run.file)
        raise AssertionError("it waits for ever")

    monkeypatch.setattr(whatif, "_rehearse", rehearse)

    async def asked() -> None:
        body = msgspec.json.encode({"fleet": "1xh100", "model": "llama-3.1-8b"})
        with pytest.raises(RequestError, match="the rehearsal failed"):
            await WhatIf(Quiet(lived(worker("w0"))), CATALOG)(Asked("POST", "", body, "application/json"))
        assert ended == ["now.toml"]

    asyncio.run(asked())


def test_a_trace_begins_with_its_first_request_and_waits_for_nobody_who_is_not_in_it(tmp_path: Path) -> None:
    write_trace(tmp_path, [row("a", 5_000.0), row("b", 5_100.0, "a"), row("c", 5_200.0, "gone")])

    rows = [msgspec.json.decode(line) for line in (tmp_path / REQUESTS).read_bytes().splitlines()]

    assert [r["timestamp"] for r in rows] == [0.0, 100.0, 200.0]
    assert [r.get("wait_for", []) for r in rows] == [[], ["a"], []]
    assert "delay" not in rows[2]


def test_a_fleet_as_it_is_can_be_rehearsed(tmp_path: Path) -> None:
    now = lived(worker("w0"), worker("w1", block_size=None))
    write_trace(tmp_path, now.answered)
    (tmp_path / "now.toml").write_text(as_toml(as_it_is(now, None)))
    from jevons.config.calibration import read_calibration

    report = simulate(read_scenario(tmp_path / "now.toml"), CATALOG, read_calibration())

    assert (report.requests, report.instances) == (2, 2)


def test_more_workers_are_of_each_kind_in_proportion() -> None:
    scenario = as_it_is(lived(worker("a"), worker("b"), worker("c"), worker("d", blocks=128)), 8, "random")

    assert [group.instances for group in scenario.fleet] == [6, 2]
    assert scenario.router == "random"


@pytest.mark.parametrize(
    ("now", "asked", "instances"),
    [
        ([worker("a", role="prefill"), worker("b", role="decode")], 3, [2, 1]),
        ([worker("a", blocks=64), worker("b", blocks=65), worker("c", blocks=66)], 2, [1, 1]),
        ([worker("a", blocks=64), worker("b", blocks=65), worker("c", blocks=66)], 4, [2, 1, 1]),
        ([worker("a", role="prefill"), *(worker(f"b{n}", role="decode") for n in range(9))], 2, [1, 1]),
        ([worker("a", role="prefill"), *(worker(f"b{n}", role="decode") for n in range(9))], 10_000, [1_000, 9_000]),
    ],
)
def test_as_many_workers_are_rehearsed_as_are_asked_for(
    now: list[LivedWorker], asked: int, instances: list[int]
) -> None:
    scenario = as_it_is(lived(*now), asked)

    assert [group.instances for group in scenario.fleet] == instances
    assert {group.role for group in scenario.fleet} == {each.worker.role for each in now}


def test_fewer_workers_than_there_are_roles_are_refused() -> None:
    now = lived(worker("a", role="prefill"), worker("b", role="decode"))

    with pytest.raises(ConfigError, match="workers: must be at least 2, one for each role there is, got 1"):
        as_it_is(now, 1)


@pytest.mark.parametrize(
    ("workers", "why"),
    [
        ([worker("w0", blocks=None)], "pool of worker w0"),
        ([worker("w0", block_size=None)], "pool of worker w0"),
        ([worker("w0"), worker("w1", model="n")], "several"),
    ],
)
def test_what_is_not_known_of_a_fleet_is_said(workers: list[LivedWorker], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        as_it_is(lived(*workers), None)


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"fleet": "8xh100; rm -rf /", "model": "m"}, 400, "fleet"),
        ({"fleet": "--help", "model": "m"}, 400, "fleet"),
        ({"fleet": "8xh100"}, 400, "give both"),
        ({"fleet": "8xh100", "model": "../../etc"}, 400, "model"),
        ({"fleet": "8xh100", "model": "m", "workers": 3}, 400, "give one"),
        ({"policy": "best"}, 400, "must be one of kv"),
        ({"minutes": 100}, 400, "minutes"),
        ({"minute": 1}, 400, "minute"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_started(body: Any, status: int, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        ask(lived(worker("w0")), body)

    assert caught.value.status == status


def test_a_form_of_another_site_starts_nothing() -> None:
    with pytest.raises(RequestError) as caught:
        ask(lived(worker("w0")), {}, "text/plain")

    assert caught.value.status == 415


def test_without_traffic_there_is_nothing_to_rehearse() -> None:
    with pytest.raises(RequestError, match="no request was answered"):
        ask(lived(worker("w0"), rows=()), {})


def test_choices_are_those_of_the_catalog() -> None:
    page = asyncio.run(WhatIf(Quiet(lived()), CATALOG)(Asked("GET")))

    told = msgspec.json.decode(page.body)
    assert "kv" in told["policies"]
    assert "h200" in told["chips"]
    assert "llama-3.1-8b" in told["models"]
