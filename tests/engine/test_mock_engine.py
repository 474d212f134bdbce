"""Engines without a model: their timing is a pace's, everything else is as in a real one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests import jumping

from jevons.base.errors import CapacityError, EngineGone
from jevons.base.ids import BlockHash, RequestId
from jevons.control.intake import Intake
from jevons.engine.contents import token_after
from jevons.engine.mock_engine import GONE, Faults, MockEngine, MockFacts
from jevons.facts.event import KvPayload
from jevons.facts.request import Sampling, Step, Work
from jevons.kv.hashing import block_hashes
from jevons.kv.index import PrefixIndex
from jevons.perf.measured import Prices
from jevons.perf.pace import pace_of
from jevons.wire.sources import Sources

BLOCK = 4
PRICES = Prices(per_step_s=0.01, per_token_s=0.001, per_token_context_s=0.0, per_decode_s=0.002)


class Asked(NamedTuple):
    """A request's answer, and when each of its tokens came."""

    tokens: list[int]
    times_s: list[float]
    cached_tokens: int
    finish: str


@asynccontextmanager
async def engine(blocks: int = 64, step_tokens: int = 32, replays: int = 10_000) -> AsyncIterator[MockEngine]:
    facts = MockFacts(
        id="e", model="m", blocks=blocks, block_size=BLOCK, step_tokens=step_tokens, replay_batches=replays
    )
    context = zmq.asyncio.Context()
    made = MockEngine(facts, pace_of(PRICES), "127.0.0.1", context)
    await made.start()
    try:
        yield made
    finally:
        made.close()
        context.destroy(linger=0)


async def ask(made: MockEngine, prompt: Sequence[int], output: int, id: str = "r") -> Asked:
    steps: asyncio.Queue[Step] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    times: list[float] = []

    def told(step: Step) -> None:
        times.append(loop.time())
        steps.put_nowait(step)

    made.submit(Work(RequestId(id), list(prompt), output, Sampling(), []), told)
    tokens: list[int] = []
    cached = 0
    while True:
        step = await steps.get()
        tokens += step.tokens
        cached = step.cached_tokens if step.cached_tokens is not None else cached
        if step.finish is not None:
            return Asked(tokens, times, cached, step.finish)


def answer_to(prompt: Sequence[int], output: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(output):
        tokens.append(token_after(tokens, BLOCK))
    return tokens[len(prompt) :]


def with_engine(use: Callable[[MockEngine], Coroutine[Any, Any, None]], **facts: int) -> None:
    async def run() -> None:
        async with engine(**facts) as made:
            await use(made)

    jumping.run(run())


def test_a_request_takes_what_the_pace_says() -> None:
    async def use(made: MockEngine) -> None:
        began_s = asyncio.get_running_loop().time()
        asked = await ask(made, range(10), 3)

        prompt_s, decode_s = 0.01 + 10 * 0.001, 0.01 + 0.002
        wanted = [began_s + prompt_s + n * decode_s for n in range(3)]
        assert asked.times_s == pytest.approx(wanted)

    with_engine(use)


def test_requests_side_by_side_share_steps() -> None:
    async def use(made: MockEngine) -> None:
        await asyncio.gather(ask(made, range(100, 110), 5, "a"), ask(made, range(200, 210), 5, "b"))

        assert made.counts["steps"] == 6  # the first began before the second came
        assert made.counts["output_tokens"] == 10

    with_engine(use)


def test_a_slow_engine_takes_as_much_longer() -> None:
    async def use(made: MockEngine) -> None:
        made.faults.slowdown = 3.0
        began_s = asyncio.get_running_loop().time()
        asked = await ask(made, range(10), 1)

        assert asked.times_s == pytest.approx([began_s + 3 * 0.02])

    with_engine(use)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=12))
def test_every_answer_is_as_if_nothing_were_shared(asks: list[tuple[int, int, int]]) -> None:
    async def use(made: MockEngine) -> None:
        prompts = [[first * 1_000 + i % 25 for i in range(length)] for first, length, _ in asks]
        answers = await asyncio.gather(*(ask(made, prompt, asks[i][2], str(i)) for i, prompt in enumerate(prompts)))

        assert [a.tokens for a in answers] == [answer_to(p, asks[i][2]) for i, p in enumerate(prompts)]

    with_engine(use, blocks=12, step_tokens=7)  # so few that sequences are preempted and blocks evicted


def test_a_prompt_asked_again_finds_its_blocks() -> None:
    async def use(made: MockEngine) -> None:
        first, second = await ask(made, range(21), 1), await ask(made, range(21), 1)

        assert (first.cached_tokens, second.cached_tokens) == (0, 20)
        assert first.tokens == second.tokens
        assert block_hashes(list(range(21)), BLOCK) == made.held()

    with_engine(use)


def test_a_request_that_could_never_fit_is_refused() -> None:
    async def use(made: MockEngine) -> None:
        with pytest.raises(CapacityError, match="holds at most 256"):
            await ask(made, range(300), 1)

    with_engine(use)


def test_a_client_that_left_frees_its_blocks() -> None:
    async def use(made: MockEngine) -> None:
        left = asyncio.create_task(ask(made, range(20), 1000 // BLOCK))
        await asyncio.sleep(0.1)
        made.cancel(RequestId("r"))
        left.cancel()

        assert made.load == (0, 0, 0.0)
        assert (await ask(made, range(500, 510), 2, "other")).tokens == answer_to(range(500, 510), 2)

    with_engine(use)


def test_nobody_else_is_given_the_ports_of_an_engine_that_is_down() -> None:
    async def use(made: MockEngine) -> None:
        made.crash()
        for endpoint in made.endpoints:
            with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
                other.bind(("127.0.0.1", int(endpoint.rpartition(":")[2])))

    with_engine(use)


def test_a_crash_tells_who_waits_and_a_restart_holds_nothing() -> None:
    async def use(made: MockEngine) -> None:
        before, endpoints = await ask(made, range(20), 1), made.endpoints
        waiting = asyncio.create_task(ask(made, range(300, 340), 50, "waiting"))
        await asyncio.sleep(0.05)
        made.crash()
        assert (await waiting).finish == GONE
        with pytest.raises(EngineGone):
            await ask(made, range(20), 1)
        await made.start()

        assert made.endpoints == endpoints
        assert made.held() == []
        assert (await ask(made, range(20), 1)).tokens == before.tokens

    with_engine(use)


def test_an_engine_that_hangs_goes_on_when_it_is_let() -> None:
    async def use(made: MockEngine) -> None:
        made.faults.hangs = True
        asked = asyncio.create_task(ask(made, range(10), 1))
        await asyncio.sleep(60.0)
        assert not asked.done()
        made.faults.hangs = False

        assert (await asked).tokens == answer_to(range(10), 1)

    with_engine(use)


class Heard:
    """A router's side of an engine's events."""

    def __init__(self, made: MockEngine) -> None:
        self.holding = PrefixIndex().holding(0)
        self.intake = Intake(self.holding)
        self.made = made
        self.sources = Sources()

    def has_exactly(self, names: Sequence[BlockHash]) -> bool:
        return len(self.holding) == len(names) and all(self.holding.holds(name) for name in names)

    async def until_replayed(self) -> None:
        at, start = self.made.endpoints[1], self.intake.begin_replay()
        complete = await self.sources.replay(at, start, 5.0, self.intake.on_replayed)
        self.intake.on_replay_end(complete=complete)


@asynccontextmanager
async def hearing(made: MockEngine) -> AsyncIterator[Heard]:
    heard = Heard(made)
    try:
        yield heard
    finally:
        heard.sources.close()


async def work_hard(made: MockEngine) -> None:
    for n in range(30):
        await ask(made, [n % 7 * 100 + i for i in range(8 + n)], 3)


def test_its_events_tell_what_it_holds() -> None:
    async def run() -> None:  # a real clock: messages take their time
        async with engine(blocks=40) as made, hearing(made) as heard:
            await work_hard(made)
            await heard.until_replayed()

            assert heard.has_exactly(made.held())
            assert made.counts["batches_lost"] == 0

    asyncio.run(run())


def test_lost_batches_are_not_sent_but_can_be_replayed() -> None:
    async def run() -> None:
        async with engine(blocks=40) as made, hearing(made) as heard:
            seen: list[KvPayload] = []

            source = heard.sources.listen(made.endpoints[0], seen.append, lambda: None)
            await asyncio.sleep(0.2)  # a subscription takes a moment to hold
            made.faults.event_loss = 0.5
            await work_hard(made)
            made.faults.event_loss = 0.0
            await ask(made, range(5_000, 5_020), 1)  # its batch comes after all the others
            async with asyncio.timeout(5.0):
                while not seen or seen[-1].seq != made.counts["batches"] - 1:  # noqa: ASYNC110 — a few looks
                    await asyncio.sleep(0.01)
            await heard.until_replayed()
            source.close()

            assert made.counts["batches_lost"] > 0
            assert len(seen) == made.counts["batches"] - made.counts["batches_lost"]
            assert heard.has_exactly(made.held())

    asyncio.run(run())


def test_late_batches_stay_in_order() -> None:
    async def run() -> None:
        async with engine() as made:
            made.faults = Faults(event_lag_s=0.3)
            await ask(made, range(20), 1)
            made.faults = Faults()
            await ask(made, range(100, 120), 1)
            assert made.counts["batches"] == 0
            await asyncio.sleep(0.5)

            assert made.counts["batches"] == 2
            async with hearing(made) as heard:
                await heard.until_replayed()
                assert heard.has_exactly(made.held())

    asyncio.run(run())
