"""The usage of streams: asked of every engine, told to clients who asked for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.serve.test_relay import EVENTS, STREAM, Engine, complete, metric, run, streams

from jevons.serve.app import Server


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": False, "continuous_usage_stats": True}, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True),
    ],
)
def test_the_router_learns_what_was_cached_whatever_the_client_wants_to_know(options: Any, told: bool) -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server, stream=True, stream_options=options)

        assert answer.body == (STREAM if told else b"".join([*EVENTS[:2], EVENTS[3]]))
        assert answer.headers["x-accel-buffering"] == "no"  # or nginx keeps it back
        asked = json.loads(engines[0].asked[0].body)["stream_options"]
        assert asked == (options if told else {"include_usage": True})
        assert await metric(server, "jevons_cached_tokens_total") == 4

    run([streams], talk)
