"""Engines that list several models."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from tests.serve import test_relay
from tests.serve.test_relay import Engine, ask, complete, run, until, whole

from jevons.serve.app import Server
from jevons.serve.openai import models_body


def lists(monkeypatch: pytest.MonkeyPatch, *rows: dict[str, Any]) -> None:
    """What engines answer when they are asked for their models."""
    monkeypatch.setattr(test_relay, "MODELS", json.dumps({"data": rows}).encode())


async def served(server: Server) -> list[str]:
    [page] = await ask(server, "/v1/models", None)
    return [row["id"] for row in json.loads(page.body)["data"]]


def test_all_names_of_a_model_are_served_and_share_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        async def are_there() -> bool:
            return await served(server) == ["other", "stub"]

        await until(are_there)
        prompt = list(range(4_000))
        for name in ("stub", "other"):
            assert (await complete(server, model=name, prompt=prompt)).status == 200

        assert [json.loads(asked.body)["model"] for asked in engines[0].asked] == ["stub", "other"]
        first, second = server.router.snapshot().recent
        assert first.predicted_cached_tokens == 0
        assert second.predicted_cached_tokens > 3_900

    lists(monkeypatch, {"id": "stub", "root": "/models/a"}, {"id": "other", "root": "/models/a"})
    run([whole], talk)


def test_what_is_not_served_of_an_engine_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        assert await served(server) == ["stub"]
        assert (await complete(server, model="b")).status == 404

    lists(monkeypatch, {"id": "stub", "root": "/models/a"}, {"id": "b", "root": "/models/b"}, {"id": "c"})
    with caplog.at_level(logging.WARNING):
        run([whole], talk)
    assert "lists several models: of it stub is served, not b, c" in caplog.text


def test_a_context_that_is_not_known_is_not_told_as_none() -> None:
    rows = json.loads(models_body({"a": 0, "b": 8}))["data"]
    assert "max_model_len" not in rows[0]
    assert rows[1]["max_model_len"] == 8
