"""Many requests that wait in front."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.serve.test_counts import raw
from tests.serve.test_http import post
from tests.serve.test_relay import Engine, completion, run, whole

from jevons.serve.admission import LOOK_S
from jevons.serve.app import Server

WAITS = "x-slo-ttft-ms: 1\r\nx-slo-miss: queue\r\nx-slo-queue-s: 1\r\nconnection: close\r\n"


def test_all_that_wait_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        admission, looks = server.front.admission, []

        def look() -> None:
            looks.append(time.monotonic())
            once()

        once = admission.look
        monkeypatch.setattr(admission, "look", look)
        prompt = list(range(4_000))  # no worker is believed to compute it in a millisecond
        sent = post("/v1/completions", completion(prompt=prompt), WAITS)
        found = await asyncio.gather(*(raw(server, sent) for _ in range(40)))

        assert [answer.status for answer in found] == [429] * 40
        assert 1 < len(looks) <= (looks[-1] - looks[0]) / LOOK_S + 2
        assert not engines[0].asked

    run([whole], talk)
