"""Requests that say what they promise themselves, over HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from tests.processes import Jevons, until

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def slow(start: Callable[..., Jevons]) -> Iterator[Jevons]:
    """One worker that computes 500 prompt tokens a second, and has told so by its first steps."""
    running = start("--served-name", "smol", "--workers", "1", "--mock-tokens-per-s", "500")
    for head in (0, 1):
        assert ask(running, head)[0] == 200
    yield running
    assert running.stop() == 0


def ask(server: Jevons, head: int, tokens: int = 500, **headers: str) -> tuple[int, Any, Any]:
    """Of so many tokens, that no other prompt begins with."""
    body = {"model": "smol", "prompt": [head, *range(100, 99 + tokens)], "max_tokens": 1}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    url, data = server.url + "/v1/completions", json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json", **names})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"], error.headers


def refused(server: Jevons) -> float:
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("jevons_refused_late_total"))


def test_a_request_that_would_be_late_and_wants_to_know_is_refused(slow: Jevons) -> None:
    before = refused(slow)
    status, error, headers = ask(slow, 2, x_slo_ttft_ms="100", x_slo_miss="refuse")

    assert (status, error["code"]) == (429, "too_late")
    assert "x-slo-ttft-ms: 100 ms would be missed, the first token is predicted after" in error["message"]
    assert 1 <= int(headers["retry-after"]) <= 3
    assert {worker["requests"] for worker in slow.snapshot()["workers"]} == {0}
    assert refused(slow) == before + 1


def test_tokens_that_would_come_too_slowly_are_refused_alike(slow: Jevons) -> None:
    status, error, headers = ask(slow, 8, x_slo_tpot_ms="0.25", x_slo_miss="refuse")

    assert (status, error["code"]) == (429, "too_late")
    assert "x-slo-tpot-ms: 0.25 ms would be missed, a token after the first is predicted to take" in error["message"]
    assert int(headers["retry-after"]) >= 1
    assert ask(slow, 8, x_slo_tpot_ms="60000", x_slo_miss="refuse")[0] == 200


def test_one_that_will_be_in_time_is_answered(slow: Jevons) -> None:
    assert ask(slow, 3, x_slo_ttft_ms="60000", x_slo_miss="refuse")[0] == 200


def test_one_that_rather_waits_is_answered_late(slow: Jevons) -> None:
    assert ask(slow, 4, x_slo_ttft_ms="100")[0] == 200


def test_what_is_cached_is_in_time_where_the_rest_is_not(slow: Jevons) -> None:
    assert ask(slow, 5)[0] == 200
    assert ask(slow, 5, x_slo_ttft_ms="400", x_slo_miss="refuse")[0] == 200
    assert ask(slow, 6, x_slo_ttft_ms="400", x_slo_miss="refuse")[0] == 429


@contextmanager
def busy(server: Jevons, head: int) -> Iterator[None]:
    """With 2,000 tokens before all others: four seconds."""
    with ThreadPoolExecutor() as threads:
        long = threads.submit(ask, server, head, 2_000)
        until(lambda: server.snapshot()["workers"][0]["queued_tokens"] > 1_000, 10.0)
        yield
        assert long.result()[0] == 200


def test_one_that_may_wait_is_placed_once_its_promise_would_be_kept(slow: Jevons) -> None:
    with busy(slow, 20), ThreadPoolExecutor() as threads:
        waits = threads.submit(ask, slow, 21, x_slo_ttft_ms="2500", x_slo_miss="queue", x_tenant_id="patient")
        until(lambda: slow.snapshot()["gate"]["waiting"] == 1, 10.0)
        assert {worker["requests"] for worker in slow.snapshot()["workers"]} == {1}
        assert waits.result()[0] == 200

    assert slow.snapshot()["gate"]["waiting"] == 0
    tenants = {tenant["id"]: tenant for tenant in slow.snapshot()["gate"]["tenants"]}
    assert tenants["patient"]["placements"] == 1
    assert tenants["patient"]["device_s"] == pytest.approx(1.0, rel=0.5)  # 500 tokens at 500 a second


def test_one_that_has_waited_for_as_long_as_it_may_is_refused(slow: Jevons) -> None:
    with busy(slow, 22):
        status, error, told = ask(slow, 23, x_slo_ttft_ms="1500", x_slo_miss="queue", x_slo_queue_s="0.3")

    assert (status, error["code"]) == (429, "too_late")
    assert int(told["retry-after"]) >= 1
    assert slow.snapshot()["gate"]["waiting"] == 0


def test_promises_that_nobody_can_keep_hold_up_no_others(slow: Jevons) -> None:
    vain: dict[str, Any] = {"x_slo_ttft_ms": "1", "x_slo_miss": "queue", "x_slo_queue_s": "3", "x_tenant_id": "hasty"}
    with ThreadPoolExecutor(16) as threads:
        late = [threads.submit(lambda head: ask(slow, head, **vain), 40 + i) for i in range(12)]
        until(lambda: slow.snapshot()["gate"]["waiting"] == 12, 10.0)

        queued: dict[str, Any] = {"x_slo_ttft_ms": "60000", "x_slo_miss": "queue", "x_slo_queue_s": "1"}
        assert ask(slow, 60, 20, x_tenant_id="hasty", **queued)[0] == 200
        assert ask(slow, 61, 20, x_tenant_id="calm", **queued)[0] == 200
        assert {each.result()[0] for each in late} == {429}


def test_a_client_that_leaves_the_queue_is_not_placed_after_all(slow: Jevons) -> None:
    with busy(slow, 24):
        with socket.create_connection(("127.0.0.1", slow.port)) as client:
            body = json.dumps({"model": "smol", "prompt": [25, *range(100, 599)], "max_tokens": 1}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            client.sendall(f"{head}x-slo-ttft-ms: 2500\r\nx-slo-miss: queue\r\n\r\n".encode() + body)
            until(lambda: slow.snapshot()["gate"]["waiting"] == 1, 10.0)
        until(lambda: slow.snapshot()["gate"]["waiting"] == 0, 10.0)
        placements = slow.snapshot()["placements"]
    assert slow.snapshot()["placements"] == placements


def test_one_that_would_rather_go_after_others_is_served_without_its_promise(slow: Jevons) -> None:
    status, _, headers = ask(slow, 26, x_slo_ttft_ms="100", x_slo_miss="downgrade")

    assert (status, headers["x-jevons-downgraded"]) == (200, "1")
    assert "x-jevons-downgraded" not in ask(slow, 27, x_slo_ttft_ms="60000", x_slo_miss="downgrade")[2]


def test_prompts_of_a_higher_priority_go_before_those_that_came_first(slow: Jevons) -> None:
    done: list[int] = []

    def first_done(head: int, priority: str) -> None:
        assert ask(slow, head, x_priority=priority)[0] == 200
        done.append(head)

    with busy(slow, 30), ThreadPoolExecutor() as threads:
        for waiting, (head, priority) in enumerate(((31, "5"), (32, "5"), (33, "-1")), 2):
            threads.submit(first_done, head, priority)
            until(lambda: slow.snapshot()["workers"][0]["requests"] == waiting, 10.0)  # noqa: B023
    assert done == [33, 31, 32]


def test_a_header_that_means_nothing_is_an_error(slow: Jevons) -> None:
    status, error, _ = ask(slow, 7, x_slo_ttft_ms="soon")

    assert status == 400
    assert "x-slo-ttft-ms: must be milliseconds from 1 to 3600000, got 'soon'" in error["message"]
