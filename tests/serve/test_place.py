"""Placements as a gateway of somebody else's asks for them, over HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest
from tests.processes import until

pytestmark = pytest.mark.model


def post(server: Any, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(server.url + path, data, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def talk(words: str) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"role": "user", "content": words * 40}], "max_tokens": 1, "temperature": 0}


def requests_of(server: Any) -> dict[str, int]:
    return {worker["id"]: worker["requests"] for worker in server.snapshot()["workers"]}


def test_the_worker_that_has_a_prompt_comes_first_and_the_answer_is_as_told(server: Any) -> None:
    asked = talk("tell me of the winds ")
    post(server, "/v1/chat/completions", asked)
    holder = server.snapshot()["recent"][-1]["worker"]
    until(lambda: post(server, "/v1/place", asked)["workers"][0]["cached_tokens"] >= 160, 5.0)  # its events are here

    warm = post(server, "/v1/place", asked)

    assert warm["id"] is None
    assert (warm["model"], warm["policy"]) == ("smol", "kv")
    assert warm["workers"][0]["worker"] == holder
    assert {worker["worker"] for worker in warm["workers"]} == set(requests_of(server))
    assert warm["workers"][0]["cached_tokens"] == (warm["prompt_tokens"] - 1) // 16 * 16
    assert warm["workers"][0]["ttft_s"] < warm["workers"][1]["ttft_s"]
    assert "tokens cached" in warm["workers"][0]["reason"]
    answer = post(server, "/v1/chat/completions", asked)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == warm["workers"][0]["cached_tokens"]


def test_advice_counts_nothing(server: Any) -> None:
    before = server.snapshot()["placements"]
    for _ in range(5):
        post(server, "/v1/place", {"model": "smol", "prompt": "nothing comes of it"})

    assert server.snapshot()["placements"] == before
    assert set(requests_of(server).values()) == {0}


def test_token_ids_are_a_prompt(server: Any) -> None:
    advice = post(server, "/v1/place", {"model": "smol", "prompt": list(range(100, 150))})

    assert advice["prompt_tokens"] == 50


def test_what_is_held_counts_until_it_is_told_to_be_over(server: Any) -> None:
    prompt = {"model": "smol", "prompt": list(range(1_000, 1_400))}
    first = post(server, "/v1/place", prompt, {"x-jevons-hold-s": "60"})
    worker = first["workers"][0]["worker"]
    assert requests_of(server)[worker] == 1
    second = post(
        server, "/v1/place", {"model": "smol", "prompt": list(range(2_000, 2_400))}, {"x-jevons-hold-s": "60"}
    )
    assert second["workers"][0]["worker"] != worker  # the first is busy

    assert post(server, "/v1/placed", {"id": first["id"], "event": "first_token", "cached_tokens": 0}) == {}
    assert requests_of(server)[worker] == 1
    assert post(server, "/v1/placed", {"id": first["id"], "event": "done"}) == {}
    assert post(server, "/v1/placed", {"id": second["id"], "event": "done"}) == {}

    assert set(requests_of(server).values()) == {0}
    recent = server.snapshot()["recent"][-2:]
    assert [outcome["cached_tokens"] for outcome in recent] == [0, None]
    assert recent[0]["ttft_s"] > 0
    status, error = post(server, "/v1/placed", {"id": first["id"], "event": "done"})
    assert status == 404
    assert "is not held: it is over" in error["message"]


def test_a_gateway_that_never_comes_back_leaves_no_worker_busy(server: Any) -> None:
    assert post(server, "/v1/place", {"model": "smol", "prompt": "gone"}, {"x-jevons-hold-s": "0.2"})["id"]
    assert sum(requests_of(server).values()) == 1

    until(lambda: sum(requests_of(server).values()) == 0, 5.0)
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as page:
        assert b"jevons_placements_expired_total 1.0" in page.read()


def test_of_a_list_each_sees_those_before_it(server: Any) -> None:
    bodies = [{"model": "smol", "prompt": list(range(start, start + 400))} for start in (3_000, 4_000)]
    first, second = post(server, "/v1/place", bodies, {"x-jevons-hold-s": "60"})
    assert first["workers"][0]["worker"] != second["workers"][0]["worker"]  # the first is busy by then
    assert sum(requests_of(server).values()) == 2

    for answer in (first, second):
        assert post(server, "/v1/placed", {"id": answer["id"], "event": "done"}) == {}


def test_of_a_list_with_a_wrong_body_nothing_is_placed(server: Any) -> None:
    before = server.snapshot()["placements"]
    bodies = [{"model": "smol", "prompt": "a"}, {"model": "other", "prompt": "b"}]
    status, error = post(server, "/v1/place", bodies, {"x-jevons-hold-s": "60"})

    assert (status, error["message"][:28]) == (404, "[1]: model: 'other' is not s")
    assert server.snapshot()["placements"] == before


LATE = {"x-slo-ttft-ms": "1"}  # as the real model always is


def test_a_promise_that_would_be_missed_is_dealt_with_as_behind_our_own_door(server: Any) -> None:
    prompt = {"model": "smol", "prompt": list(range(5_000, 5_400))}
    for more in ({}, {"x-jevons-hold-s": "60"}):
        status, error = post(server, "/v1/place", prompt, {**LATE, "x-slo-miss": "refuse", **more})
        assert (status, error["code"]) == (429, "too_late")
        assert post(server, "/v1/place", prompt, LATE)["downgraded"] is False
        downgraded = post(server, "/v1/place", prompt, {**LATE, "x-slo-miss": "downgrade", **more})
        assert downgraded["downgraded"] is True

    assert sum(requests_of(server).values()) == 1
    post(server, "/v1/placed", {"id": downgraded["id"], "event": "done"})
    waits = {"x-slo-miss": "queue", "x-jevons-hold-s": "60", "x-slo-queue-s": "0.2"}
    status, error = post(server, "/v1/place", prompt, {**LATE, **waits})
    assert (status, error["code"]) == (429, "too_late")
    in_time = post(server, "/v1/place", prompt, {"x-slo-ttft-ms": "60000", **waits})
    post(server, "/v1/placed", {"id": in_time["id"], "event": "done"})
    [alone] = post(server, "/v1/place", [prompt], {**LATE, "x-slo-miss": "refuse", "x-jevons-hold-s": "60"})
    assert (alone["error"]["code"], sum(requests_of(server).values())) == ("too_late", 0)


def test_several_prompts_count_together(server: Any) -> None:
    prompts = {"model": "smol", "prompt": [list(range(6_000, 6_100)), list(range(7_000, 7_300))]}
    advice = post(server, "/v1/place", prompts, {"x-jevons-hold-s": "60"})

    assert advice["prompt_tokens"] == 400
    worker = advice["workers"][0]["worker"]
    assert server.worker(worker)["queued_tokens"] == 400
    post(server, "/v1/placed", {"id": advice["id"], "event": "done"})


def test_what_the_engine_counted_is_heard(server: Any) -> None:
    prompt = {"model": "smol", "prompt": list(range(8_000, 8_200))}
    held = post(server, "/v1/place", prompt, {"x-jevons-hold-s": "60"})
    counts = {"cached_tokens": 50, "prompt_tokens": 100, "completion_tokens": 7}
    before = output_tokens(server)
    assert post(server, "/v1/placed", {"id": held["id"], "event": "first_token"}) == {}
    assert post(server, "/v1/placed", {"id": held["id"], "event": "first_token"}) == {}
    assert post(server, "/v1/placed", {"id": held["id"], "event": "done", **counts}) == {}

    assert server.snapshot()["recent"][-1]["reused_tokens"] == 100  # of the 200 that we count
    assert output_tokens(server) == before + 7


def output_tokens(server: Any) -> float:
    lines = server.get("/metrics").decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("jevons_output_tokens_total"))


def test_what_is_held_for_a_client_that_leaves_meanwhile_is_let_go(server: Any) -> None:
    bodies = [{"model": "smol", "prompt": list(range(start, start + 50))} for start in range(9_000, 10_024)]
    body = json.dumps(bodies).encode()
    head = f"POST /v1/place HTTP/1.1\r\nhost: x\r\nx-jevons-hold-s: 3600\r\ncontent-length: {len(body)}\r\n\r\n"
    before = server.snapshot()["placements"]
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + body)
        until(lambda: server.snapshot()["placements"] > before, 20.0)

    assert server.snapshot()["placements"] < before + 1_024
    until(lambda: sum(requests_of(server).values()) == 0, 10.0)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("/v1/place", [{"model": "smol", "prompt": "a"}], {}, 400, "x-jevons-hold-s: must be told with a list"),
        ("/v1/place", [{"model": "smol"}], {"x-jevons-hold-s": "9"}, 400, "[0]: "),
        ("/v1/place", [1] * 1025, {"x-jevons-hold-s": "9"}, 400, "at most 1024"),
        ("/v1/place", {"model": "smol"}, {}, 400, "prompt"),
        ("/v1/place", b"{", {}, 400, ""),
        ("/v1/place", {"model": "other", "prompt": "a"}, {}, 404, "model: 'other' is not served here; there is smol"),
        ("/v1/place", {"model": "smol", "prompt": "a"}, {"x-jevons-hold-s": "long"}, 400, "x-jevons-hold-s: must be"),
        ("/v1/place", {"model": "smol", "prompt": "a"}, LATE | {"x-slo-miss": "queue"}, 400, "goes with x-jevons-hold"),
        (
            "/v1/place",
            [],
            LATE | {"x-slo-miss": "queue", "x-jevons-hold-s": "9"},
            400,
            "x-slo-miss: queue goes with one",
        ),
        ("/v1/placed", {"id": "x", "event": "late"}, {}, 400, "event"),
        ("/v1/placed", {"id": "x", "event": "done", "cached_tokens": 9, "prompt_tokens": 8}, {}, 400, "got 9 of 8"),
        ("/v1/placed", {"id": "x", "event": "first_token", "completion_tokens": 9}, {}, 400, "completion_tokens: goes"),
        ("/v1/placed", {"id": "x", "event": "done", "more": 1}, {}, 400, "more"),
        ("/v1/placed", {"id": "x", "event": "done", "cached_tokens": -1}, {}, 400, "`int` >= 0"),
        ("/v1/placed", {"id": "x", "event": "done", "cached_tokens": 10**30}, {}, 400, "`int` <= 2147483647"),
    ],
)
def test_what_is_wrong_is_said(
    server: Any, path: str, body: Any, headers: dict[str, str], status: int, says: str
) -> None:
    found, error = post(server, path, body, headers)

    assert found == status
    assert says in error["message"]
