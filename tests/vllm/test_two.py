"""Two real vLLM servers behind one jevons: one is restarted under load, and no client has an error."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import openai
import pytest
from tests.vllm.conftest import SERVED, Door, Vllm

pytestmark = pytest.mark.vllm

CLIENTS = 6
OUTPUT_TOKENS = 48
CLIENT_S = 120.0
UP_S = 60.0
WORDS = ["river", "stone", "market", "window", "autumn", "letter", "engine", "garden", "copper", "silence", "harbour"]

WaitUntil = Callable[[Callable[[], bool], float, str], float]


class Turn(NamedTuple):
    """One question and what came of it."""

    messages: Any
    text: str
    tokens: int
    finish: str | None


class Client:
    """Holds one conversation after another, until told to stop."""

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        self._url, self._stop = url, stop
        self._rng = random.Random(number)
        self.turns: list[Turn] = []
        self.errors: list[Exception] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with openai.OpenAI(base_url=self._url + "/v1", api_key="none", max_retries=0, timeout=CLIENT_S) as client:
            while not self._stop.is_set():
                messages = [{"role": "system", "content": self._prose(60)}]
                for _ in range(4):
                    messages = [*messages, {"role": "user", "content": self._prose(12)}]
                    try:
                        turn = ask(client, messages)
                    except openai.OpenAIError as error:
                        self.errors.append(error)
                        return
                    self.turns.append(turn)
                    messages = [*messages, {"role": "assistant", "content": turn.text}]

    def _prose(self, words: int) -> str:
        return " ".join(self._rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def ask(client: openai.OpenAI, messages: Any) -> Turn:
    chunks: Any = client.chat.completions.create(
        model=SERVED,
        messages=messages,
        max_tokens=OUTPUT_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    text, finish, tokens = "", None, 0
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return Turn(messages, text, tokens, finish)


@pytest.fixture(scope="module")
def both(launch_vllm: Callable[..., Vllm]) -> list[Vllm]:
    return [launch_vllm(), launch_vllm(core=1)]


@pytest.fixture
def door(both: list[Vllm], wait_until: WaitUntil) -> Iterator[Door]:
    running = Door(*(word for vllm in both for word in ("--engine", vllm.attach)))
    wait_until(lambda: up(running) == 2, UP_S, "both engines are up, their index exact")
    yield running
    running.stop()


def up(door: Door) -> int:
    return sum(w["health"] == "up" and w["index"] == "exact" for w in door.snapshot()["workers"])


def outcomes(door: Door) -> dict[str, Any]:
    return {outcome["id"]: outcome for outcome in door.recent()}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_one_of_two_is_restarted_under_load_without_a_client_error(
    both: list[Vllm], door: Door, wait_until: WaitUntil, measured: list[str], how: signal.Signals
) -> None:
    stop = threading.Event()
    clients = [Client(door.url, number, stop) for number in range(CLIENTS)]
    seen: dict[str, Any] = {}

    def turns() -> int:
        seen.update(outcomes(door))
        return sum(len(client.turns) for client in clients)

    for client in clients:
        client.thread.start()
    try:
        wait_until(lambda: turns() >= 4 * CLIENTS, CLIENT_S, "the load runs")
        wait_until(lambda: both[0].running() >= 2, CLIENT_S, "streams run on the one that is to end")
        both[0].signal(how)
        both[0].reap()
        both[0].start()
        both[0].await_health()
        wait_until(lambda: up(door) == 2, UP_S, "both are up again")
        before = turns()
        wait_until(lambda: turns() >= before + 4 * CLIENTS, CLIENT_S, "both serve")
    finally:
        stop.set()
        for client in clients:
            client.thread.join(CLIENT_S)

    done = [turn for client in clients for turn in client.turns]
    right = [o for o in seen.values() if o["predicted_cached_tokens"] == o["cached_tokens"]]
    told = [o for o in seen.values() if o["cached_tokens"] is not None]
    measured.append(
        f"one of two vLLM ended by {how.name} and started again: {len(done)} streams, "
        f"{sum(len(c.errors) for c in clients)} errors; cached tokens as predicted for {len(right)} of {len(told)}"
    )
    assert [error for client in clients for error in client.errors] == []
    assert {turn.finish for turn in done} == {"length"}
    assert {turn.tokens for turn in done} == {OUTPUT_TOKENS}
    assert len(right) >= 0.95 * len(told)
    assert {o["worker"] for o in told} == {w["id"] for w in door.snapshot()["workers"]}
