"""A small version of `bench/live_twin.py`: the real model serves twice, the twin of the first rehearses the second."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jevons.config import make
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.engine.openai import OpenAIEngine
from jevons.engine.specs import parse_spec
from jevons.serve.app import serving
from jevons.serve.load import Measured, Talk, converse
from jevons.twin.record import read_record, read_requests, rehearse, scenario_of
from jevons.twin.workload import Chat, conversations

pytestmark = pytest.mark.model

# One after another, each about 2 s: where two run at once, which worker is idle first can be a matter of milliseconds.
# The bench has them overlap. Who is new goes where less is held, who shares a system prompt to where that is.
TALKS, TURNS, THINK_S, APART_S, OUTPUT_TOKENS = 5, 3, 0.1, 4.0, 8
CHAT = Chat(conversations=TALKS, turns=TURNS, groups=2, system_tokens=200, turn_tokens=30, seed=11)


async def hold(record: Path, model_dir: Path) -> list[Measured]:
    settings = make({"model": str(model_dir), "kv_bytes": 64 << 20, "port": 0, "record": str(record)}, "test")
    talks = [Talk(i * APART_S, talk.system, talk.turns, THINK_S) for i, talk in enumerate(conversations(CHAT))]
    async with serving(settings, model_dir) as server:
        await server.ready(90.0, workers=2)
        engine = OpenAIEngine(parse_spec(server.url))
        try:
            name = next(iter(await engine.models()))
            return await converse(engine, name, talks, OUTPUT_TOKENS, TALKS)
        finally:
            engine.close()


def test_the_twin_of_one_run_places_the_next_as_it_was_placed(model_dir: Path, tmp_path: Path) -> None:
    for run in ("first", "second"):
        answers = asyncio.run(hold(tmp_path / run, model_dir))
        assert [answer.error for answer in answers] == [None] * (TALKS * TURNS)
    scenario, _ = scenario_of(read_record(tmp_path / "first"))

    found = rehearse(tmp_path / "second", scenario, read_catalog(), read_calibration())

    assert (found.requests, found.placed_alike, found.cached_alike) == (15, 15, 15), found
    rows = read_requests(tmp_path / "second")
    assert {row.worker for row in rows} == {"w0", "w1"}
    assert sum(bool(row.wait_for) for row in rows) == TALKS * (TURNS - 1)
