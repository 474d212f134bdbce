"""Requests of several prompts."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from tests.processes import Jevons
from tests.serve.test_relay import Engine, ask, completion, run, whole

from jevons.serve.app import Server


def test_all_prompts_of_a_request_count_against_its_engine() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        prompts = [list(range(100)), list(range(1_000, 1_300))]
        [answer] = await ask(server, "/v1/completions", completion(prompt=prompts))

        assert answer.status == 200
        assert [outcome.prompt_tokens for outcome in server.router.snapshot().recent] == [400]
        assert len(engines[0].asked) == 1

    run([whole], talk)


@pytest.mark.model
def test_more_answers_than_one_request_gets_are_refused(server: Jevons) -> None:
    def ask(prompts: int, n: int) -> tuple[int, Any]:
        body = {"model": "smol", "prompt": [[7]] * prompts, "n": n, "max_tokens": 1}
        asked = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    status, error = ask(1_025, 2)
    assert (status, error["param"]) == (400, "prompt")
    assert "at most 2048 answers, got 1025 prompts with 2 each" in error["message"]
    status, answer = ask(5, 3)
    assert (status, len(answer["choices"])) == (200, 15)
    assert sum(worker["requests"] for worker in server.snapshot()["workers"]) == 0
