"""Placements for another gateway's sessions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from jevons.base.ids import WorkerId
from jevons.control.router import Router
from jevons.facts.worker import WorkerFacts
from jevons.serve.admission import Admission
from jevons.serve.call import Placements
from jevons.serve.headers import HOLD, SESSION
from jevons.serve.http import Request
from jevons.serve.metrics import Metrics
from jevons.serve.place import Desk
from jevons.serve.prompts import Prompts, Served, pseudo_encoder


class Told:
    """A reply that keeps what is sent."""

    body = b""

    def send(self, status: int, body: bytes) -> None:
        self.body = body


def test_a_session_goes_on_where_it_was_placed() -> None:
    router, prompts = Router(), Prompts()
    metrics = Metrics(router)
    for id in ("a", "b"):
        router.join(WorkerFacts(id=WorkerId(id), model="m", kind="openai"))
        router.roster.heard(WorkerId(id), 0.0)
    prompts.serve(Served("m", pseudo_encoder(), None))
    admission = Admission(router, Placements(router, metrics, lambda: 1.0), metrics)
    desk = Desk(router, prompts, metrics, admission, lambda worker: None)

    async def first(prompt: list[int], **headers: str) -> Any:
        request, reply = Request(), Told()
        request.headers, request.body = headers, json.dumps({"model": "m", "prompt": prompt}).encode()
        await desk.place(request, reply)  # type: ignore[arg-type]
        return json.loads(reply.body)["workers"][0]

    async def main() -> None:
        there = await first(list(range(4_000)), **{SESSION: "s", HOLD: "60"})
        desk.close()

        goes_on = await first(list(range(4_100)), **{SESSION: "s"})
        assert (goes_on["worker"], goes_on["cached_tokens"]) == (there["worker"], 4_000)
        assert (await first(list(range(4_100)), **{SESSION: "another"}))["cached_tokens"] == 0

    asyncio.run(main())
