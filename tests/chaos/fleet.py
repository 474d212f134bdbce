"""A fleet of engines, a router before it, conversations held through it, and what goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.processes import START_S, STOP_S, Running, free_ports, until

from jevons.base.errors import EngineGone
from jevons.engine.contents import token_after
from jevons.engine.http_client import HttpClient, parse_url

BLOCK = 16
OUTPUT = 5
SHARED = 64  # tokens that conversations of a group begin with
TURN = 40  # tokens
RETRY_S = 0.05
# Of the mock's usual pace. What a busy machine adds to a first token is learned as the engine's own seconds: the slower
# engines are, the less of it is the machine. At four times the pace a load of 11 cost a third of the hit rate.
SPEED = 0.25
GIVE_UP_S = 60.0


class Scale(NamedTuple):
    engines: int
    talks: int
    turns: int
    running: int  # conversations at a time


class Outcome(NamedTuple):
    prompt_tokens: int
    cached_tokens: int
    wrong: int  # answers that are not what the mock says if every block is right
    failed: int  # answers that were errors, or ended in the middle
    retried: int  # requests that found nobody to take them

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens


class RouterProcess:
    """`tests.chaos.router`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        [self._port] = free_ports(1)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.router", str(self._file), str(self._port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.url, self.check = told["url"], told["check"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Pair(NamedTuple):
    fleet: Running
    router: RouterProcess
    ids: list[str]

    async def chaos(self, **what: Any) -> None:
        await post(self.fleet.at + "/chaos", what)

    async def up(self) -> int:
        """Workers that the router gives work to."""
        count: int = (await get(self.router.check + "/"))["up"]
        return count

    async def until_up(self, count: int) -> None:
        async with asyncio.timeout(START_S):
            while await self.up() != count:  # noqa: ASYNC110 — another process
                await asyncio.sleep(0.05)

    async def differences(self) -> dict[str, Any]:
        """Where the router's index and the engines' blocks differ, block by block."""
        authority = self.fleet.at.removeprefix("http://")
        held: dict[str, list[str]] = await get(self.fleet.at + "/held")
        found: dict[str, Any] = await post(
            self.router.check + "/", {f"{authority}/e/{id}": names for id, names in held.items()}
        )
        return found

    async def settle_s(self, most_s: float) -> tuple[float, dict[str, Any]]:
        """Seconds until the index is the engines' truth, and what differs if that takes more than `most_s`."""
        began_s = time.monotonic()
        while True:
            looked_s = time.monotonic() - began_s
            wrong = await self.differences()
            if not wrong or looked_s > most_s:
                return looked_s, wrong
            await asyncio.sleep(0.05)


@contextmanager
def pair(engines: int, folder: Path, blocks: int = 1024) -> Iterator[Pair]:
    """A fleet, and a router that knows all of it."""
    file = folder / f"engines-{time.monotonic_ns()}"
    options = [
        "--count",
        str(engines),
        "--port",
        "0",
        "--blocks",
        str(blocks),
        "--speed",
        str(SPEED),
        "--out",
        str(file),
    ]
    fleet = Running("mock", *options)
    try:
        router = RouterProcess(file)
        try:
            made = Pair(fleet, router, [f"{number:04}" for number in range(engines)])
            until(lambda: asyncio.run(made.up()) == engines, START_S)
            yield made
        finally:
            router.stop()
    finally:
        assert fleet.stop() == 0


async def get(url: str) -> Any:
    return await _ask("GET", url, b"")


async def post(url: str, body: Any) -> Any:
    return await _ask("POST", url, json.dumps(body).encode())


async def _ask(method: str, url: str, body: bytes) -> Any:
    base, slash, path = url.removeprefix("http://").partition("/")
    client = HttpClient(parse_url("test", f"http://{base}"))
    async with client.request(method, slash + path, body) as response:
        raw = await response.body()
        assert response.status == 200, raw
    client.close()
    return json.loads(raw)


class Talks:
    """Conversations in groups with a prefix of their own; each turn has all that was said before."""

    def __init__(self, at: Pair, scale: Scale, seed: int = 1) -> None:
        self._at = at
        self._scale = scale
        self._draw = random.Random(seed)
        self._client = HttpClient(parse_url("test", at.router.url))
        self._gate = asyncio.Semaphore(scale.running)
        self._left_to_half = scale.talks * scale.turns // 2
        self._half = asyncio.Event()
        self._told = Outcome(0, 0, 0, 0, 0)

    async def hold(self, at_half: Callable[[], Awaitable[None]] | None = None) -> Outcome:
        """Hold all; do something once half of the requests are answered."""
        groups = [self._tokens(SHARED) for _ in range(max(1, self._scale.talks // 8))]
        starts = [[*groups[number % len(groups)], *self._tokens(TURN)] for number in range(self._scale.talks)]
        turns = [[self._tokens(TURN) for _ in range(self._scale.turns)] for _ in starts]

        async def chaos() -> None:
            await self._half.wait()
            if at_half is not None:
                await at_half()

        await asyncio.gather(chaos(), *(self._talk(start, turn) for start, turn in zip(starts, turns, strict=True)))
        self._client.close()
        return self._told

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(1_000, 1 << 20) for _ in range(count)]

    async def _talk(self, prompt: list[int], turns: list[list[int]]) -> None:
        async with self._gate:
            for turn in turns:
                prompt = [*prompt, *turn]
                prompt += await self._turn(prompt)
                self._left_to_half -= 1
                if self._left_to_half == 0:
                    self._half.set()

    async def _turn(self, prompt: list[int]) -> list[int]:
        """The answer's tokens, as they should be."""
        tokens = list(prompt)
        for _ in range(OUTPUT):
            tokens.append(token_after(tokens, BLOCK))
        right = tokens[len(prompt) :]
        body = {"model": "mock", "prompt": prompt, "max_tokens": OUTPUT, "temperature": 0}
        until_s, retried = time.monotonic() + GIVE_UP_S, 0
        while True:
            status, answer = await self._answer(json.dumps(body).encode())
            if status or time.monotonic() > until_s:
                break
            retried = 1
            await asyncio.sleep(RETRY_S)
        self._book(len(prompt), right, answer if status == 200 else None, retried)
        return right

    async def _answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status 0: nobody took it."""
        try:
            async with self._client.request("POST", "/v1/completions", body) as response:
                raw = await response.body()
        except EngineGone:
            return 0, {}
        if response.status in (404, 503):  # the router has just started: it has met no engine yet
            return 0, {}
        return response.status, json.loads(raw)

    def _book(self, prompt_tokens: int, right: list[int], answer: dict[str, Any] | None, retried: int) -> None:
        t = self._told
        if answer is None:
            self._told = t._replace(failed=t.failed + 1, retried=t.retried + retried)
            return
        text = "".join(f" w{token}" for token in right)
        self._told = Outcome(
            prompt_tokens=t.prompt_tokens + prompt_tokens,
            cached_tokens=t.cached_tokens + answer["usage"]["prompt_tokens_details"]["cached_tokens"],
            wrong=t.wrong + (answer["choices"][0]["text"] != text),
            failed=t.failed,
            retried=t.retried + retried,
        )


# What goes wrong: for tests of 64 engines, and of a thousand by hand

MOST_LOST = 0.02  # of the hit rate
SETTLE_S = 2.0


def undisturbed(scale: Scale, folder: Path) -> Outcome:
    async def run(at: Pair) -> Outcome:
        return await Talks(at, scale).hold()

    return _measured(scale, folder, None, run)


def some_events_are_lost(scale: Scale, folder: Path, calm: Outcome) -> Outcome:
    """One batch of events in a hundred, all the time."""

    async def run(at: Pair) -> Outcome:
        await at.chaos(faults={"event_loss": 0.01})
        outcome = await Talks(at, scale).hold()
        state = await get(at.fleet.at + "/state")
        assert sum(engine["counts"].get("batches_lost", 0) for engine in state.values()) > 0
        return outcome

    return _measured(scale, folder, calm, run)


def some_engines_are_restarted(scale: Scale, folder: Path, calm: Outcome) -> Outcome:
    """One in five, at once, under load; half of them so soon that nobody may have seen them away."""

    async def run(at: Pair) -> Outcome:
        soon, later = at.ids[::10], at.ids[5::10]

        async def restart() -> None:
            await at.chaos(do="restart", engines=soon)
            await at.chaos(do="crash", engines=later)
            await asyncio.sleep(1.0)
            await at.chaos(do="start", engines=later)

        outcome = await Talks(at, scale).hold(restart)
        await at.until_up(scale.engines)
        return outcome

    return _measured(scale, folder, calm, run)


def the_router_is_killed(scale: Scale, folder: Path, calm: Outcome) -> Outcome:
    """And started again, under load."""

    async def run(at: Pair) -> Outcome:
        async def kill() -> None:
            at.router.kill()
            await asyncio.to_thread(at.router.start)

        outcome = await Talks(at, scale).hold(kill)
        assert outcome.retried > 0
        await at.until_up(scale.engines)
        return outcome

    return _measured(scale, folder, calm, run)


def _measured(
    scale: Scale, folder: Path, calm: Outcome | None, run: Callable[[Pair], Coroutine[Any, Any, Outcome]]
) -> Outcome:
    """What came of `run`, held to an undisturbed one, and the index to the engines' truth."""
    with pair(scale.engines, folder) as at:
        outcome = asyncio.run(run(at))
        settled_s, wrong = asyncio.run(at.settle_s(2 * SETTLE_S))
    told = f"hit rate {outcome.hit_rate:.2%}, index right after {settled_s:.2f} s, {outcome.retried} asked again"
    print(told)
    assert (outcome.wrong, outcome.failed) == (0, 0), f"{outcome.wrong} wrong, {outcome.failed} failed; {told}"
    assert calm is None or outcome.hit_rate >= calm.hit_rate - MOST_LOST, told
    assert wrong == {}, f"known, held, missing of some of {len(wrong)}: {dict(list(wrong.items())[:4])}"
    assert settled_s <= SETTLE_S
    return outcome
