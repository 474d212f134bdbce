"""Requests to a server whose engine is the mock, with the answer each must have."""

from __future__ import annotations

import http.client
import json
import os
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread, current_thread, local
from typing import Any, NamedTuple

from jevons.engine.mock import next_token
from jevons.serve.tokenizer import Tokenizer

BLOCK = 16
OUTPUT = 4
TIMEOUT_S = 60.0


class Asked(NamedTuple):
    prompt: list[int]
    answer: str  # what the mock says if every block is right


class Talker:
    """Makes prompts that share prefixes, and asks them over kept-alive connections."""

    def __init__(self, model_dir: Path, prefixes: int, seed: int, tokens: int = 120) -> None:
        self.model_dir = model_dir
        self._draw = random.Random(seed)
        self._tokenizer = Tokenizer(model_dir)
        self._prefixes = [self._tokens(tokens) for _ in range(prefixes)]
        self._own = local()
        self._connections: list[tuple[Thread, http.client.HTTPConnection]] = []

    def others(self, prefixes: int) -> Talker:
        """One with other prefixes."""
        return Talker(self.model_dir, prefixes, self._draw.randrange(1 << 30))

    def close(self, *, only_ended: bool = False) -> None:
        """Close the connections, or those of threads that have ended."""
        left = []
        for thread, connection in self._connections:
            if only_ended and thread.is_alive():
                left.append((thread, connection))
            else:
                connection.close()
        self._connections = left

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(1_000, 40_000) for _ in range(count)]

    def make(self, count: int) -> list[Asked]:
        return [
            self._expected(self._draw.choice(self._prefixes) + self._tokens(self._draw.randrange(1, 40)))
            for _ in range(count)
        ]

    def make_each(self) -> list[Asked]:
        """One prompt for each prefix."""
        return [self._expected(prefix + self._tokens(20)) for prefix in self._prefixes]

    def _expected(self, prompt: list[int]) -> Asked:
        tokens = list(prompt)
        for _ in range(OUTPUT):
            tokens.append(next_token(tokens, BLOCK))
        return Asked(prompt, self._tokenizer.decode(tokens[len(prompt) :]))

    def ask(self, port: int, asked: Asked, **headers: str) -> tuple[str, int]:
        """The answer, and how many of its prompt's tokens were cached."""
        body = {"model": "smol", "prompt": asked.prompt, "max_tokens": OUTPUT, "temperature": 0}
        connection = self._connection(port)
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, answer
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    def _connection(self, port: int) -> http.client.HTTPConnection:
        """This thread's own."""
        connection: http.client.HTTPConnection | None = getattr(self._own, str(port), None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
            setattr(self._own, str(port), connection)
            self._connections.append((current_thread(), connection))
        return connection

    def check(self, port: int, asks: Sequence[Asked], parallel: int = 8) -> int:
        """Ask all; every answer must be right. Returns cached tokens."""
        with ThreadPoolExecutor(parallel) as pool:
            answers = list(pool.map(lambda asked: self.ask(port, asked), asks))
        self.close(only_ended=True)
        wrong = [i for i, (asked, (text, _)) in enumerate(zip(asks, answers, strict=True)) if text != asked.answer]
        assert wrong == []
        return sum(cached for _, cached in answers)


class Use(NamedTuple):
    """What processes have taken of the machine."""

    rss_bytes: int
    handles: int
    threads: int


def use_of(pids: Iterable[int]) -> Use:
    rss = handles = threads = 0
    for pid in pids:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        rss += int(fields["VmRSS"].split()[0]) << 10
        threads += int(fields["Threads"])
        handles += len(os.listdir(f"/proc/{pid}/fd"))
    return Use(rss, handles, threads)
