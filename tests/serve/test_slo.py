"""Requests that say what they promise themselves, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.processes import Jevons

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def slow(start: Callable[..., Jevons]) -> Iterator[Jevons]:
    """One worker that computes 500 prompt tokens a second, and has told so by its first steps."""
    running = start("--served-name", "smol", "--workers", "1", "--mock-tokens-per-s", "500")
    for head in (0, 1):
        assert ask(running, head)[0] == 200
    yield running
    assert running.stop() == 0


def ask(server: Jevons, head: int, **headers: str) -> tuple[int, Any, Any]:
    """Of 500 tokens that no other prompt begins with."""
    body = {"model": "smol", "prompt": [head, *range(100, 599)], "max_tokens": 1}
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
    status, error, headers = ask(slow, 8, x_slo_tpot_ms="0.001", x_slo_miss="refuse")

    assert (status, error["code"]) == (429, "too_late")
    assert "x-slo-tpot-ms: 0.001 ms would be missed, a token after the first is predicted to take" in error["message"]
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


def test_a_header_that_means_nothing_is_an_error(slow: Jevons) -> None:
    status, error, _ = ask(slow, 7, x_slo_ttft_ms="soon")

    assert status == 400
    assert "x-slo-ttft-ms: must be milliseconds above 0, at most 3600000, got 'soon'" in error["message"]
