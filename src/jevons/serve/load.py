"""Drives any OpenAI endpoint with a workload and measures what a client sees.

Every request is streamed; times are taken when bytes arrive. TTFT is arrival to first token, ITL the gaps after it
(a chunk with several tokens counts as one gap), TPOT one value per request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from jevons.base.errors import EngineError
from jevons.base.stats import percentile
from jevons.engine.openai import Answer, OpenAIEngine

T = TypeVar("T")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Measured(msgspec.Struct):
    """One request as its client saw it. Times in seconds."""

    began_s: float
    ttft_s: float | None = None
    ended_s: float | None = None
    gaps_s: list[float] = []
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """(end − first token) / (output tokens − 1); None of fewer than two tokens."""
        if self.ttft_s is None or self.ended_s is None or self.output_tokens < 2:
            return None
        return (self.ended_s - self.began_s - self.ttft_s) / (self.output_tokens - 1)


class Targets(msgspec.Struct, frozen=True):
    """What a request must meet to count as goodput; None asks nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    @property
    def ask_nothing(self) -> bool:
        return self.ttft_s is None and self.tpot_s is None

    def met(self, m: Measured) -> bool:
        if m.error is not None or m.ttft_s is None:
            return False
        slow = self.ttft_s is not None and m.ttft_s > self.ttft_s
        tpot = m.tpot_s
        return not (slow or (self.tpot_s is not None and tpot is not None and tpot > self.tpot_s))


async def send(engine: OpenAIEngine, path: str, body: dict[str, Any]) -> Measured:
    """Send one streamed request. Never raises for what the server does: `error` tells."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    m = Measured(time.perf_counter(), gaps_s=[])
    last_s: float | None = None
    done = False
    try:
        async for event in engine.stream(path, msgspec.json.encode(body)):
            if isinstance(event, Answer):
                m.error = f"{event.status}: {event.body[:200].decode(errors='replace')}"
                break
            now_s = time.perf_counter()
            if event.text:
                m.text += event.text
                if last_s is None:
                    m.ttft_s = now_s - m.began_s
                else:
                    m.gaps_s.append(now_s - last_s)
                last_s = now_s
            if event.usage is not None:
                m.prompt_tokens = event.usage.prompt_tokens
                m.output_tokens = event.usage.completion_tokens
                m.cached_tokens = event.usage.cached_tokens
            done = done or event.is_done
    except EngineError as error:
        m.error = str(error)
    m.ended_s = time.perf_counter()
    if m.error is None and not done:
        m.error = "the stream ended in the middle"
    return m


class Talk(msgspec.Struct, frozen=True):
    """One conversation to hold: messages are sent in turn, each with all that was said before."""

    start_s: float
    system: str
    turns: Sequence[str]
    think_s: float = 0.0  # between an answer and the next turn


async def converse(
    engine: OpenAIEngine, model: str, talks: Sequence[Talk], output_tokens: int, running: int
) -> list[Measured]:
    """Hold conversations, at most `running` at a time; a turn begins when the one before is answered."""
    gate = asyncio.Semaphore(running)

    async def hold(talk: Talk) -> list[Measured]:
        async with gate:
            messages = [{"role": "system", "content": talk.system}]
            answers = []
            for number, turn in enumerate(talk.turns):
                await asyncio.sleep(talk.think_s if number else 0.0)
                messages.append({"role": "user", "content": turn})
                body = {"model": model, "messages": messages, "max_tokens": output_tokens, "temperature": 0}
                answers.append(await send(engine, CHAT, body))
                messages.append({"role": "assistant", "content": answers[-1].text})
            return answers

    held = await _at_their_times([(talk.start_s, lambda talk=talk: hold(talk)) for talk in talks])  # type: ignore[misc]
    return [m for answers in held for m in answers]


async def replay(engine: OpenAIEngine, model: str, timed: Sequence[tuple[float, list[int], int]]) -> list[Measured]:
    """Send prompts of token ids at their times: (seconds, tokens, output tokens)."""

    def one(tokens: list[int], output: int) -> Callable[[], Awaitable[Measured]]:
        body = {"model": model, "prompt": tokens, "max_tokens": output, "temperature": 0, "ignore_eos": True}
        return lambda: send(engine, COMPLETIONS, body)

    return await _at_their_times([(at_s, one(tokens, output)) for at_s, tokens, output in timed])


async def _at_their_times(timed: Sequence[tuple[float, Callable[[], Awaitable[T]]]]) -> list[T]:
    began_s = time.perf_counter()

    async def one(at_s: float, act: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
        return await act()

    return list(await asyncio.gather(*(one(at_s, act) for at_s, act in timed)))


def summary(measured: Sequence[Measured], targets: Targets) -> dict[str, Any]:
    """The record behind every table of `bench` and `demo`. Seconds and tokens; goodput is None without targets."""
    good = [m for m in measured if m.error is None]
    began = min((m.began_s for m in measured), default=0.0)
    wall_s = max((m.ended_s or m.began_s for m in measured), default=0.0) - began
    output = sum(m.output_tokens for m in good)
    prompt = sum(m.prompt_tokens for m in good)
    reported = [m for m in good if m.cached_tokens is not None]
    cached = sum(m.cached_tokens or 0 for m in reported)
    met = sum(targets.met(m) for m in measured)
    return {
        "requests": len(measured),
        "errors": len(measured) - len(good),
        "wall_s": wall_s,
        "prompt_tokens": prompt,
        "cached_tokens": cached if reported else None,
        "prefill_tokens_computed": prompt - cached if reported else None,
        "output_tokens": output,
        "output_tokens_per_s": output / wall_s if wall_s else None,
        "ttft_s": _spread([m.ttft_s for m in good if m.ttft_s is not None]),
        "itl_s": _spread([gap for m in good for gap in m.gaps_s]),
        "tpot_s": _spread([t for m in good if (t := m.tpot_s) is not None]),
        "requests_per_s": len(good) / wall_s if wall_s else None,
        "goodput_rps": met / wall_s if wall_s and not targets.ask_nothing else None,
        "first_error": next((m.error for m in measured if m.error is not None), None),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    mean = sum(values) / len(values) if values else None
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {"mean": mean, **{name: percentile(values, q) for name, q in points.items()}}
