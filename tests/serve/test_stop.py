"""The server stops: who is still answered when the time for that is over is told so, and counted."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
from collections.abc import Callable

import pytest
from tests.processes import Jevons
from tests.serve.test_http import Answer, answers
from tests.serve.test_relay import EVENTS, Engine, Serve, completion, message, server_of, until

from jevons.serve.app import Server
from jevons.serve.call import COMPLETIONS
from jevons.serve.http import EVENT_STREAM, Door, Reply, Request
from jevons.serve.openai import refusal


async def begins(request: Request, reply: Reply) -> None:
    reply.start(200, EVENT_STREAM, first=EVENTS[0])
    await asyncio.sleep(60)


async def hangs(request: Request, reply: Reply) -> None:
    await asyncio.sleep(60)


async def stopped(serve: Serve, stream: bool, *, lost: bool = False) -> tuple[bytes, Server, list[Engine]]:
    """What a client is told of an answer that does not end, when the server stops.

    Args:
        lost: its engine is gone by then, and another one is waited for.
    """

    async def is_asked() -> bool:
        return bool(engines[0].asked)

    async with asyncio.timeout(60):
        async with server_of([serve], drain_s=0.1) as (engines, server):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
            writer.write(message(COMPLETIONS, completion(stream=stream), close=False))
            await until(is_asked)
            if stream:
                await reader.readuntil(b"\n\n")
            if lost:
                await engines[0].door.close(0.0)
            told = asyncio.create_task(reader.read())
        writer.close()
        return await told, server, engines


def test_a_stream_ends_with_an_error_event_and_the_end_of_its_message() -> None:
    raw, server, engines = asyncio.run(stopped(begins, stream=True))

    assert b"server: is stopping" in raw
    assert b'"code":"stopping"' in raw
    assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    metrics = server.front.metrics
    assert metrics.requests.labels(COMPLETIONS, "503").value == 1
    assert metrics.left.labels().value == 0
    assert metrics.cut.labels(next(iter(server.fleet.attached))).value == 1
    assert engines[0].left == 1  # its work was stopped


@pytest.mark.parametrize("lost", [False, True])
def test_an_answer_that_had_not_begun_is_refused_until_later(lost: bool) -> None:
    raw, server, _ = asyncio.run(stopped(hangs, stream=False, lost=lost))

    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1" in head
    assert b"\r\nconnection: close" in head
    assert json.loads(body)["error"]["code"] == "stopping"
    assert server.front.metrics.requests.labels(COMPLETIONS, "503").value == 1
    assert server.front.metrics.left.labels().value == 0


def test_an_answer_in_time_says_that_its_connection_closes() -> None:
    async def slow(request: Request, reply: Reply) -> None:
        begun.set()
        await asyncio.sleep(0.05)
        reply.send(200, b"{}")

    async def main() -> list[Answer]:
        door = Door(slow, refusal)
        await door.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(2 * message("/", None, close=False))
        await begun.wait()
        await door.close(5.0)
        found = await answers(reader)
        writer.close()
        return found

    begun = asyncio.Event()
    first, last = asyncio.run(main())
    assert (first.status, first.headers.get("connection")) == (200, None)
    assert (last.status, last.headers["connection"]) == (200, "close")


@pytest.mark.model
def test_a_stream_of_our_own_workers_ends_alike(start: Callable[..., Jevons]) -> None:
    running = start("--served-name", "smol", "--workers", "1", "--mock-tokens-per-s", "500", "--drain-s", "0.1")
    body = {"model": "smol", "prompt": "hello", "stream": True, "max_tokens": 4_000, "ignore_eos": True}
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    connection.request("POST", COMPLETIONS, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    response.readline()
    running.process.send_signal(signal.SIGTERM)
    rest = response.read()  # raises IncompleteRead where the connection was cut

    assert b"server: is stopping" in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    connection.close()
    assert running.stop() == 0
