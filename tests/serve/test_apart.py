"""What keeps caches apart goes all the way, from the client's request to an engine's events and back."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.processes import READ_S, START_S, Jevons, Running, read, until

PROMPT = 200  # tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jevons]:
    """Before two engines that serve a model and two adapters of it."""
    file: Path = tmp_path_factory.mktemp("apart") / "engines"
    names = ["--served-name", "base", "--adapter", "poet", "--adapter", "clerk"]
    fleet = Running("mock", "--count", "2", "--port", "0", "--speed", "20", "--out", str(file), *names)
    running = Jevons("--engine", f"@{file}")
    until(lambda: len(running.healthy()) == 2, START_S)
    yield running
    assert running.stop() == 0
    assert fleet.stop() == 0


def ask(server: Jevons, first: int, **asked: Any) -> tuple[int, str]:
    """Cached tokens of a prompt, and who answered."""
    body = {"model": "base", "prompt": list(range(first, first + PROMPT)), "max_tokens": 2, **asked}
    request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=READ_S) as answer:
        told = json.load(answer)
        return told["usage"]["prompt_tokens_details"]["cached_tokens"], answer.headers["x-jevons-worker"]


def heard(server: Jevons) -> int:
    return sum(worker["held_blocks"] for worker in server.snapshot()["workers"])


def told(server: Jevons, first: int, **asked: Any) -> str:
    """Who answered this the first time, once its events are here."""
    before = heard(server)
    cached, worker = ask(server, first, **asked)
    assert cached == 0
    until(lambda: heard(server) == before + PROMPT // 16, 5.0)
    return worker


def predicted(server: Jevons) -> tuple[int, int]:
    """Cached tokens of the last request: as predicted, as reported."""
    last = server.snapshot()["recent"][-1]
    return last["predicted_cached_tokens"], last["cached_tokens"]


def test_an_adapter_s_prompts_go_where_its_blocks_are_and_share_nothing_with_others(server: Jevons) -> None:
    of_poet, of_base, of_clerk = (told(server, 1_000, model=name) for name in ("poet", "base", "clerk"))

    for name, worker in (("poet", of_poet), ("base", of_base), ("clerk", of_clerk)):
        assert ask(server, 1_000, model=name) == (192, worker)
        assert predicted(server) == (192, 192)


def test_a_salt_s_prompts_go_where_its_blocks_are_and_share_nothing_with_others(server: Jevons) -> None:
    workers = {salt: told(server, 3_000, cache_salt=salt) for salt in ("red", "blue")}

    for salt, worker in workers.items():
        assert ask(server, 3_000, cache_salt=salt) == (192, worker)
        assert predicted(server) == (192, 192)
    assert ask(server, 3_000)[0] == 0
    assert predicted(server) == (0, 0)


def test_an_adapter_and_a_salt_keep_apart_together(server: Jevons) -> None:
    worker = told(server, 5_000, model="poet", cache_salt="red")

    assert ask(server, 5_000, model="poet", cache_salt="red") == (192, worker)
    for other in ({"model": "poet"}, {"cache_salt": "red"}, {"model": "clerk", "cache_salt": "red"}):
        assert ask(server, 5_000, **other)[0] == 0


def test_adapters_are_models_of_their_own_to_clients(server: Jevons) -> None:
    rows = json.loads(read(server.url + "/v1/models"))["data"]

    assert {row["id"] for row in rows} == {"base", "poet", "clerk"}
    ask(server, 7_000, model="clerk")
    loaded = [worker["adapters"] for worker in server.snapshot()["workers"]]
    assert any("clerk" in names for names in loaded)
