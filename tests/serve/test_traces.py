"""A request is found again: in its engine's logs, in traces, and by who was refused."""

from __future__ import annotations

import json

from tests.serve.test_counts import raw
from tests.serve.test_http import post
from tests.serve.test_relay import Engine, busy, completion, dies, run, whole

from jevons.serve.app import Server
from jevons.serve.headers import read_trace

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CLOSE = "connection: close\r\n"


def test_an_engine_is_told_the_clients_name_and_trace() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        told = f"x-request-id: mine-7\r\ntraceparent: {PARENT}\r\ntracestate: a=1,b=2\r\ncookie: secret\r\n{CLOSE}"
        answer = await raw(server, post("/v1/completions", completion(), told))

        headers = engines[0].asked[0].headers
        assert (headers["x-request-id"], headers["traceparent"], headers["tracestate"]) == ("mine-7", PARENT, "a=1,b=2")
        assert "cookie" not in headers
        assert answer.headers["x-request-id"] != "mine-7"

        answer = await raw(server, post("/v1/completions", completion(), CLOSE))
        assert engines[0].asked[1].headers["x-request-id"] == answer.headers["x-request-id"]
        assert "traceparent" not in engines[0].asked[1].headers

    run([whole], talk)


def test_another_engine_gets_another_name_of_the_same() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await raw(server, post("/v1/completions", completion(), "x-request-id: mine\r\n" + CLOSE))

        assert answer.status == 200
        assert [engine.asked[0].headers["x-request-id"] for engine in engines] == ["mine", "mine-1"]

    run([dies, whole], talk)


def test_a_name_that_is_none_is_not_passed_on() -> None:
    assert read_trace({"x-request-id": "a" * 600, "traceparent": "", "tracestate": "\xe9"}) == ("", "")
    assert read_trace({}) == ("", "")


def test_who_is_refused_can_name_the_request() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        late = await raw(server, post("/v1/completions", completion(prompt=[-1]), CLOSE))
        assert (late.status, len(late.headers["x-request-id"])) == (400, 24)
        assert json.loads(late.body)["error"]["param"] == "prompt"
        full = await raw(server, post("/v1/completions", completion(), CLOSE))
        assert (full.status, len(full.headers["x-request-id"])) == (503, 24)

    run([busy], talk)
