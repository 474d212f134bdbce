"""Every request that was answered is in the metrics, whoever answered it."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.serve.test_http import LIMITS, Answer, answers, echo, get, post
from tests.serve.test_relay import Engine, ask, metric, run, whole

from jevons.facts.page import Asked, Page
from jevons.serve.app import Server
from jevons.serve.http import Door
from jevons.serve.mounts import Mounts
from jevons.serve.openai import refusal


async def raw(server: Server, sent: bytes) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(sent)
    [answer] = await answers(reader)
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("sent", "endpoint", "status"),
    [
        (b"GARBAGE\r\n\r\n", "other", 400),
        (get("/" + "x" * 70_000), "other", 431),
        (post("/v1/completions", b"x" * 2_000), "/v1/completions", 413),
        (post("/v1/completions", b"{", "connection: close\r\n"), "/v1/completions", 400),
    ],
)
def test_what_the_door_answers_counts(sent: bytes, endpoint: str, status: int) -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        assert (await raw(server, sent)).status == status
        row = f'jevons_requests_total{{endpoint="{endpoint}",status="{status}"}}'
        assert await metric(server, row) == 1

    run([whole], talk, max_body_bytes=1_024)


def test_a_bug_counts(caplog: pytest.LogCaptureFixture) -> None:
    def bug(asked: Asked) -> Page:
        raise ZeroDivisionError("a secret")

    async def talk(engines: list[Engine], server: Server) -> None:
        server.front.mounts = Mounts({"/bug": bug})
        [answer] = await ask(server, "/bug", None)

        assert answer.status == 500
        assert json.loads(answer.body)["error"]["message"] == "internal error: it is logged on the server"
        assert await metric(server, 'jevons_requests_total{endpoint="other",status="500"}') == 1

    run([whole], talk)
    assert "ZeroDivisionError: a secret" in caplog.text


def test_who_is_too_slow_is_told_of() -> None:
    async def main() -> None:
        door = Door(echo, refusal, LIMITS, lambda path, status: told.append((path, status)))
        await door.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"POST /a HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc")
        assert [answer.status for answer in await answers(reader)] == [408]
        writer.close()
        await door.close(0.1)

    told: list[tuple[str, int]] = []
    asyncio.run(main())
    assert told == [("/a", 408)]
