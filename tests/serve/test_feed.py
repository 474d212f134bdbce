"""A source's events in the index, over real sockets, with batches that never arrive."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from jevons.base.ids import BlockHash
from jevons.control.intake import Intake
from jevons.control.warm import warm
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvEvent
from jevons.facts.worker import IndexMode
from jevons.kv.hashing import block_hashes
from jevons.kv.index import PrefixIndex
from jevons.serve.feed import EventsAt, feed
from jevons.wire.events import Publisher
from jevons.wire.sources import Sources

SIZE = 16
WAIT_S = 20.0


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    """Kernels are compiled before anything waits for them."""
    warm()


def live(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 3 * WAIT_S))


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 — sockets tell nobody else
            await asyncio.sleep(0.01)


class Engine:
    """A pool that stores conversations and evicts from their ends, and a network that loses some of what it says."""

    def __init__(self, seed: int, loss: float) -> None:
        self.publisher = Publisher("127.0.0.1", "kv")
        self.loss = loss
        self.copies: Counter[BlockHash] = Counter()
        self.sent = 0
        self._draw = random.Random(seed)
        self._number = 1 << 40
        self._talks: list[tuple[list[int], list[BlockHash], list[int]]] = []  # tokens, our names, its names

    async def restart(self) -> None:
        """It holds nothing, and counts from 0 at the same ports."""
        self.publisher.close()
        self.copies.clear()
        self._talks.clear()
        async with asyncio.timeout(WAIT_S):
            while self.publisher._live.closed:
                with contextlib.suppress(zmq.ZMQError):  # the old sockets are closed by another thread
                    self.publisher = Publisher("127.0.0.1", "kv", ports=self.publisher.ports)
                await asyncio.sleep(0.01)

    def work(self, batches: int) -> None:
        for _ in range(batches):
            self.tell(self._event())

    def tell(self, *events: KvEvent) -> None:
        is_lost = self._draw.random() < self.loss
        self.publisher.publish(1.0 + self.sent, events, is_lost=is_lost)
        self.sent += 1

    def _event(self) -> KvEvent:
        if len(self._talks) > 20 and self._draw.random() < 0.5:
            talk = self._draw.choice(self._talks)
            tokens, names, theirs = talk
            gone = self._draw.randint(1, len(names))
            self.copies -= Counter(names[-gone:])
            removed = BlocksRemoved(hashes=list(theirs[-gone:]))
            del names[-gone:], theirs[-gone:], tokens[-gone * SIZE :]
            if not names:
                self._talks.remove(talk)
            return removed
        if self._talks and self._draw.random() < 0.5:
            tokens, names, theirs = self._draw.choice(self._talks)
        else:
            tokens, names, theirs = talk = [], [], []
            self._talks.append(talk)
        blocks, known = self._draw.randint(1, 6), len(names)
        tokens += [self._draw.randrange(50_000) for _ in range(blocks * SIZE)]
        names[:] = block_hashes(tokens, SIZE)
        theirs += range(self._number, self._number + blocks)
        self._number += blocks
        self.copies += Counter(names[known:])
        parent = theirs[known - 1] if known else None
        return BlocksStored(
            hashes=list(theirs[known:]), parent=parent, tokens=tokens[known * SIZE :], block_size=SIZE, medium="GPU"
        )


class Router:
    """The router's side."""

    def __init__(self, engine: Engine, replays: str | None) -> None:
        self.index = PrefixIndex()
        self.holding = self.index.holding(0)
        self.intake = Intake(self.holding)
        self.at = EventsAt(engine.publisher.endpoint, replays)

    def equals(self, engine: Engine) -> bool:
        """Block by block."""
        held = [name for name, copies in engine.copies.items() if copies]
        return len(self.holding) == len(held) and all(self.holding.holds(name) for name in held)


@asynccontextmanager
async def pair(loss: float, *, replays: bool) -> AsyncIterator[tuple[Engine, Router]]:
    engine, sources = Engine(7, loss), Sources()
    router = Router(engine, engine.publisher.replay_endpoint if replays else None)
    tasks = [asyncio.create_task(feed(router.intake, sources, router.at, asyncio.Event()))]
    if replays:
        tasks.append(asyncio.create_task(engine.publisher.serve_replays()))
    try:
        yield engine, router
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sources.close()
        engine.publisher.close()


async def work(engine: Engine, batches: int) -> None:
    """In portions, as steps make them."""
    for _ in range(batches // 20):
        engine.work(20)
        await asyncio.sleep(0.002)


def test_with_replays_one_lost_batch_in_a_hundred_leaves_the_index_equal_to_the_engine() -> None:
    async def test() -> None:
        async with pair(0.01, replays=True) as (engine, router):
            engine.work(200)  # before anybody listens
            await work(engine, 2_000)
            engine.loss = 0.0
            engine.tell()  # what arrives tells of all that was lost before it
            await until(lambda: router.equals(engine) and not router.intake.awaits_replay)

            assert router.intake.mode is IndexMode.EXACT
            assert router.intake.counts["gap"] > 0
            assert router.intake.counts["lost_batches"] == 0

    live(test)


def test_an_engine_that_restarts_is_known_anew() -> None:
    async def test() -> None:
        async with pair(0.0, replays=True) as (engine, router):
            await work(engine, 200)
            await until(lambda: router.equals(engine))
            engine.publisher._next = 0  # it counts from 0 again, and holds nothing
            engine.publisher._kept.clear()
            engine.copies.clear()
            engine._talks.clear()
            await work(engine, 60)

            await until(lambda: router.equals(engine) and not router.intake.awaits_replay)
            assert (router.intake.mode, router.intake.counts["restart"]) == (IndexMode.EXACT, 1)

    live(test)


@pytest.mark.parametrize("says", [0, 60, 400])
def test_an_engine_that_restarts_on_its_ports_is_known_anew_though_nothing_it_says_arrives(says: int) -> None:
    async def test() -> None:
        async with pair(0.0, replays=True) as (engine, router):
            await work(engine, 200)
            await until(lambda: router.equals(engine) and not router.intake.awaits_replay)
            await engine.restart()
            answers = asyncio.create_task(engine.publisher.serve_replays())
            engine.loss = 1.0
            engine.work(says)

            await until(lambda: router.equals(engine) and not router.intake.awaits_replay)
            assert (router.intake.mode, router.intake.counts["restart"]) == (IndexMode.EXACT, 1)
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)

    live(test)


def test_who_did_not_answer_a_replay_is_asked_again_though_nothing_more_comes(monkeypatch: Any) -> None:
    monkeypatch.setattr("jevons.serve.feed.REPLAY_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with pair(0.0, replays=False) as (engine, router):
            engine.work(100)  # before anybody listens
            engine.loss = 0.0
            router.at = EventsAt(engine.publisher.endpoint, engine.publisher.replay_endpoint)
            sources = Sources()
            task = asyncio.create_task(feed(router.intake, sources, router.at, asyncio.Event()))
            await until(lambda: router.intake.awaits_replay)
            await until(lambda: not router.intake.awaits_replay)
            assert not router.equals(engine)
            answers = asyncio.create_task(engine.publisher.serve_replays())

            await until(lambda: router.equals(engine))
            for each in (task, answers):
                each.cancel()
            await asyncio.gather(task, answers, return_exceptions=True)
            sources.close()

    live(test)


def test_a_payload_that_is_garbage_degrades_its_source_and_nothing_else() -> None:
    async def test() -> None:
        async with pair(0.0, replays=True) as (engine, router):
            await work(engine, 100)
            await until(lambda: router.equals(engine))
            live_socket = engine.publisher._live
            live_socket.send_multipart([b"kv", engine.publisher._next.to_bytes(8, "big"), b"\xc1garbage"])
            live_socket.send_multipart([b"kv", b"short", msgspec.msgpack.encode([0.0, [], 0])])
            engine.publisher._next += 1
            await work(engine, 100)

            await until(lambda: router.equals(engine))
            assert (router.intake.mode, router.intake.counts["malformed"]) == (IndexMode.DEGRADED, 2)
            engine.copies.clear()
            engine._talks.clear()
            engine.tell(AllCleared())
            await work(engine, 40)
            await until(lambda: router.equals(engine))
            assert router.intake.mode is IndexMode.EXACT

    live(test)


def test_a_port_that_is_taken_is_tried_again(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr("jevons.serve.feed.LISTEN_AGAIN_S", 0.05)

    async def test() -> None:
        context = zmq.asyncio.Context()
        taken: zmq.Socket[bytes] = zmq.Context.shadow(context.underlying).socket(zmq.SUB)
        port = taken.bind_to_random_port("tcp://*")
        sources, intake = Sources(), Intake(PrefixIndex().holding(0))
        task = asyncio.create_task(feed(intake, sources, EventsAt(f"tcp://*:{port}", None), asyncio.Event()))
        await until(lambda: "Address already in use" in caplog.text)
        taken.close(linger=0)
        await until(lambda: len(sources) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(sources) == 0
        sources.close()
        context.destroy(linger=0)

    live(test)
