"""The first turn of a made-up conversation, asked greedily, and its answer token by token."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from jevons.twin.workload import Conversation


def ask(url: str, talk: Conversation, max_tokens: int, **more: Any) -> dict[str, Any]:
    body = {
        "model": "smol",
        "messages": [{"role": "system", "content": talk.system}, {"role": "user", "content": talk.turns[0]}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": True,
        **more,
    }
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=300) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def rows(answer: dict[str, Any]) -> list[tuple[str, float]]:
    """Its tokens with their log-probabilities."""
    return [(row["token"], row["logprob"]) for row in answer["choices"][0]["logprobs"]["content"]]
