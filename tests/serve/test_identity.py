"""The identity everything later leans on: in batch-invariant mode an answer does not depend on who else is served.

Fifty prompts, greedy, on the real model behind the real server: alone and in a full batch, with and without cached
prefixes, on every worker.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jevons.twin.workload import Chat, conversations

pytestmark = pytest.mark.model

PROMPTS = 50
OUTPUT = 12
TALKS = conversations(Chat(conversations=PROMPTS, turns=1, groups=5, system_tokens=70, turn_tokens=30, seed=3))


@pytest.fixture(scope="module")
def server(start: Callable[..., Any]) -> Iterator[Any]:
    # Round robin sends equal prompts to both workers in turn; small steps cut every prompt into several chunks.
    running = start("--served-name", "smol", "--invariant", "--policy", "round_robin", "--step-tokens", "48")
    yield running
    assert running.stop() == 0


def ask(server: Any, number: int, salt: str) -> tuple[list[tuple[str, float]], int, str]:
    """Tokens with their log probabilities, cached tokens, and the worker."""
    talk = TALKS[number]
    body = {
        "model": "smol",
        "messages": [{"role": "system", "content": talk.system}, {"role": "user", "content": talk.turns[0]}],
        "temperature": 0,
        "max_tokens": OUTPUT,
        "logprobs": True,
        "cache_salt": salt,
    }
    request = urllib.request.Request(server.url + "/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=300) as response:
        answer = json.loads(response.read())
    rows = answer["choices"][0]["logprobs"]["content"]
    return (
        [(row["token"], row["logprob"]) for row in rows],
        answer["usage"]["prompt_tokens_details"]["cached_tokens"],
        server.snapshot()["recent"][-1]["worker"],
    )


def test_greedy_output_is_the_same_alone_batched_cached_and_on_every_worker(server: Any) -> None:
    # One at a time with a salt of its own: nothing cached, nobody else in the batch.
    alone = [ask(server, i, salt=f"alone {i}") for i in range(PROMPTS)]
    assert {cached for _, cached, _ in alone} == {0}
    assert {worker for _, _, worker in alone} == {"w0", "w1"}

    # All at once: full batches, prompts cut wherever the budget ends, prefixes shared as they come.
    with ThreadPoolExecutor(PROMPTS) as pool:
        batched = list(pool.map(lambda i: ask(server, i, salt="together"), range(PROMPTS)))

    # Once more, shifted by one so that every prompt meets the other worker, with its prefix in the cache.
    ask(server, 0, salt="shift the turn")
    again = [ask(server, i, salt="together") for i in range(PROMPTS)]
    assert sum(cached > 0 for _, cached, _ in again) >= PROMPTS * 0.9

    expected = [rows for rows, _, _ in alone]
    assert [rows for rows, _, _ in batched] == expected
    assert [rows for rows, _, _ in again] == expected
