"""jevons in front of a real vLLM: what it predicts is what vLLM reports, and vLLM's death is only an error."""

from __future__ import annotations

import random
import signal
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.vllm

MODEL = "smol"
OUTPUT_TOKENS = 16
CLIENT_S = 60.0
ROTATION_S = 1.0
WORDS = ["river", "stone", "market", "window", "autumn", "letter", "engine", "garden", "copper", "silence", "harbour"]

Outcome = dict[str, Any]
WaitUntil = Callable[[Callable[[], bool], float, str], float]


@contextmanager
def client_of(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=CLIENT_S) as client:
        yield client


@pytest.fixture
def client(door: Any) -> Iterator[openai.OpenAI]:
    with client_of(door.url) as made:
        yield made


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def asking(text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": OUTPUT_TOKENS, **more}


def cached(usage: Any) -> int:
    """Cached tokens of a usage record; vLLM leaves the details out when there are none."""
    return usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0


# The door


def test_the_official_client_chats_with_vllm_as_a_whole_and_as_a_stream(client: openai.OpenAI) -> None:
    ask = asking("What is the capital of France?")

    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))

    assert "Paris" in (whole.choices[0].message.content or "")
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_official_client_completes_with_vllm_as_a_whole_and_as_a_stream(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "The sea is", "temperature": 0, "max_tokens": OUTPUT_TOKENS}

    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True))

    assert whole.choices[0].text
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert all(c.choices and c.usage is None for c in chunks), "usage nobody asked for was sent on"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == OUTPUT_TOKENS


def test_what_vllm_refuses_reaches_the_client_as_vllm_said_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**asking("Hello", temperature=-1))


# What is predicted


class Conversation:
    """A chat that grows by a question and its answer each turn."""

    def __init__(self, number: int, system: str, salt: str | None) -> None:
        self._rng = random.Random(number)
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}]
        self._extra = {"cache_salt": salt} if salt else {}

    def turn(self, client: openai.OpenAI, number: int) -> int:
        """Ask and take the answer in; returns the cached tokens that vLLM reported to us."""
        self._messages.append({"role": "user", "content": prose(self._rng, 12 + number)})
        ask = {"model": MODEL, "messages": self._messages, "max_tokens": OUTPUT_TOKENS, "temperature": 0}
        text, reported = self._ask(client, {**ask, "extra_body": self._extra}, streamed=number % 5 != 4)
        self._messages.append({"role": "assistant", "content": text})
        return reported

    def _ask(self, client: openai.OpenAI, ask: dict[str, Any], streamed: bool) -> tuple[str, int]:
        if not streamed:
            answer = client.chat.completions.create(**ask)
            return answer.choices[0].message.content or "", cached(answer.usage)
        chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        return text, cached(chunks[-1].usage)


def conversations(seed: int) -> list[Conversation]:
    """Ten: two system prompts, four conversations each; two more with the first prompt, salted apart."""
    rng = random.Random(seed)
    systems = [prose(rng, 150), prose(rng, 90)]
    salts = [None] * 8 + ["tenant a", "tenant b"]
    return [Conversation(100 * seed + i, systems[(i // 4) % 2], salt) for i, salt in enumerate(salts)]


def play(door: Any, chats: list[Conversation], rounds: int, parallel: int, wait_until: WaitUntil) -> list[Outcome]:
    """Play `rounds` turns of every conversation, `parallel` at a time; returns the outcome of each request."""
    outcomes: list[Outcome] = []
    with client_of(door.url) as client, ThreadPoolExecutor(parallel) as pool:
        for number in range(rounds):
            turns = partial(pool.map, partial(Conversation.turn, client=client, number=number), chats)
            outcomes += round_of(door, turns, len(chats), wait_until)
    return outcomes


def round_of(door: Any, turns: Callable[[], Iterator[int]], count: int, wait_until: WaitUntil) -> list[Outcome]:
    """Play one round of `count` turns; returns their outcomes now, for `/snapshot` keeps the last 64 requests only."""
    before = {outcome["id"] for outcome in door.recent()}

    def fresh() -> list[Outcome]:
        return [outcome for outcome in door.recent() if outcome["id"] not in before]

    reported = sorted(turns())
    wait_until(lambda: len(fresh()) == count, 5.0, "the round's outcomes are there")
    assert sorted(outcome["cached_tokens"] for outcome in fresh()) == reported, "jevons and we heard vLLM unlike"
    return fresh()


def fill(client: openai.OpenAI) -> None:
    """Leave vLLM no free block, so that all that follows evicts something."""
    for number in range(5):
        rng = random.Random(f"filler {number}")
        prompt = [rng.randrange(1000, 40_000) for _ in range(1500)]
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)


def are_equal(outcome: Outcome) -> bool:
    return bool(outcome["predicted_cached_tokens"] == outcome["cached_tokens"])


def said(outcomes: list[Outcome]) -> list[str]:
    """What the run showed, line by line."""
    timed = [o for o in outcomes[len(outcomes) // 5 :] if o["ttft_s"] is not None]  # it has to learn first
    errors_s = [abs(o["predicted_ttft_s"] - o["ttft_s"]) for o in timed]
    unlike = [f"{o['predicted_cached_tokens']} for {o['cached_tokens']}" for o in outcomes if not are_equal(o)]
    return [
        f"cached tokens: predicted == reported for {len(outcomes) - len(unlike)} of {len(outcomes)} requests, "
        f"{sum(bool(o['cached_tokens']) for o in outcomes)} of them hits; unlike: {', '.join(unlike) or 'none'}",
        f"TTFT: median {statistics.median(o['ttft_s'] for o in timed):.3f} s; prediction off by "
        f"{statistics.median(errors_s):.3f} s at the median, {statistics.quantiles(errors_s, n=10)[-1]:.3f} s at p90",
    ]


def test_cached_tokens_predicted_are_those_vllm_reports(
    door: Any, client: openai.OpenAI, wait_until: WaitUntil, measured: list[str]
) -> None:
    fill(client)

    outcomes = play(door, conversations(1), rounds=10, parallel=3, wait_until=wait_until)

    counts = door.attached()["event_counts"]
    measured += [*said(outcomes), f"KV events: {counts}"]
    assert len(outcomes) == 100
    assert sum(bool(o["cached_tokens"]) for o in outcomes) >= 80, "a workload without hits proves nothing"
    assert counts["removed"] > 0, "nor one without evictions"
    assert sum(map(are_equal, outcomes)) >= 95


def test_of_requests_one_after_another_every_prediction_holds(
    door: Any, client: openai.OpenAI, wait_until: WaitUntil, measured: list[str]
) -> None:
    fill(client)

    outcomes = play(door, conversations(2), rounds=3, parallel=1, wait_until=wait_until)

    measured += [f"one after another: {line}" for line in said(outcomes)]
    assert sum(map(are_equal, outcomes)) == len(outcomes) == 30


def test_a_jevons_started_anew_knows_what_a_warm_vllm_holds(
    vllm: Any, open_door: Callable[..., Any], wait_until: WaitUntil
) -> None:
    ask = asking(prose(random.Random("warm"), 200))
    first = open_door(vllm.attach)
    with client_of(first.url) as client:
        client.chat.completions.create(**ask)
    wait_until(lambda: len(first.recent()) == 1, 5.0, "the outcome is there")
    known = first.attached()["held_blocks"]
    first.stop()

    second = open_door(vllm.attach)
    rebuilt = second.attached()["held_blocks"]
    with client_of(second.url) as client:
        client.chat.completions.create(**ask)

    wait_until(lambda: len(second.recent()) == 1, 5.0, "the outcome is there")
    (outcome,) = second.recent()
    assert rebuilt == known
    assert outcome["predicted_cached_tokens"] == outcome["cached_tokens"] > 0


def test_without_kv_events_the_index_is_approximate_and_a_repeated_prompt_is_expected_to_be_cached(
    vllm: Any, open_door: Callable[..., Any], wait_until: WaitUntil
) -> None:
    door = open_door(vllm.url, "approximate")
    ask = asking(prose(random.Random("approximate"), 200))

    with client_of(door.url) as client:
        for _ in range(2):
            client.chat.completions.create(**ask)

    wait_until(lambda: len(door.recent()[-2:]) == 2, 5.0, "both outcomes are there")
    first, again = door.recent()[-2:]
    assert first["predicted_cached_tokens"] == 0
    # Its blocks are finer than vLLM's: it may expect up to one of vLLM's more.
    assert 0 <= again["predicted_cached_tokens"] - again["cached_tokens"] < 32
    assert again["cached_tokens"] > 0


# What goes wrong


def test_a_client_that_leaves_in_the_middle_frees_vllm(
    vllm: Any, client: openai.OpenAI, wait_until: WaitUntil, measured: list[str]
) -> None:
    ask = asking("Tell me a long story.", max_tokens=1800, extra_body={"ignore_eos": True})
    with client.chat.completions.create(**ask, stream=True) as stream:
        for _, _chunk in zip(range(3), stream, strict=False):
            pass
        wait_until(lambda: vllm.running() == 1, 5.0, "vLLM runs the request")

    took_s = wait_until(lambda: vllm.running() == 0, 5.0, "vLLM runs nothing any more")

    measured.append(f"client gone: vLLM runs nothing after {took_s:.2f} s")


def test_a_vllm_that_is_killed_leaves_the_rotation_within_a_second_and_returns_within_one(
    vllm: Any, door: Any, client: openai.OpenAI, wait_until: WaitUntil, measured: list[str]
) -> None:
    ask = asking(prose(random.Random("killed"), 200))
    stream = client.chat.completions.create(**{**ask, "max_tokens": 1000}, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))

    try:
        vllm.signal(signal.SIGKILL)
        left_s = wait_until(lambda: door.attached()["health"] != "up", 5.0, "it left the rotation")
        vllm.reap()
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(**ask)
        held = door.attached()["held_blocks"]
    finally:
        vllm.start()
        vllm.await_health()
    returned_s = wait_until(lambda: door.is_up("exact"), 5.0, "it is used again, its index exact")
    for _ in range(2):
        client.chat.completions.create(**ask)

    wait_until(lambda: len(door.recent()[-2:]) == 2, 5.0, "both outcomes are there")
    cold, warm = door.recent()[-2:]
    measured.append(f"vLLM killed: out of the rotation after {left_s:.2f} s, back {returned_s:.2f} s after it was up")
    assert refused.value.status_code in (502, 503)
    assert isinstance(refused.value.body, dict)
    assert {"message", "type", "param", "code"} <= refused.value.body.keys()
    assert held == 0
    assert door.process.poll() is None
    assert cold["predicted_cached_tokens"] == cold["cached_tokens"] == 0
    assert warm["predicted_cached_tokens"] == warm["cached_tokens"] > 0
    assert left_s < ROTATION_S
    assert returned_s < ROTATION_S


def test_a_vllm_that_hangs_leaves_the_rotation_within_a_second_and_returns_with_all_it_held(
    vllm: Any, door: Any, client: openai.OpenAI, wait_until: WaitUntil, measured: list[str]
) -> None:
    client.chat.completions.create(**asking(prose(random.Random("hung"), 200)))
    held = door.attached()["held_blocks"]

    stream = client.chat.completions.create(**{**asking("Tell a story."), "stream": True, "max_tokens": 400})
    try:
        next(iter(stream))
        vllm.signal(signal.SIGSTOP)  # with something to do: of one at rest nobody asks that soon
        left_s = wait_until(lambda: door.attached()["health"] == "suspect", 5.0, "it left the rotation")
    finally:
        vllm.signal(signal.SIGCONT)
        stream.close()
    returned_s = wait_until(lambda: door.is_up("exact"), 5.0, "it is used again")

    measured.append(f"vLLM hung: out of the rotation after {left_s:.2f} s, back {returned_s:.2f} s after it went on")
    assert door.attached()["held_blocks"] >= held > 0
    assert left_s < ROTATION_S
    assert returned_s < ROTATION_S
