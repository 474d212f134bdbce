"""Frontends that hear of each other through a hub: in order, all of it, or from the beginning again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from jevons.base.ids import RequestId, WorkerId
from jevons.control.sharing import SharingRouter
from jevons.facts.worker import WorkerFacts
from jevons.serve import siblings as module
from jevons.serve.hub import COUNTED, Hub
from jevons.serve.pages import Family, Sample, decode, encode
from jevons.serve.siblings import Siblings
from jevons.wire.gossip import HUB, Told

A = WorkerId("a")


class One:
    """A frontend without its door."""

    def __init__(self, number: int) -> None:
        self.siblings = Siblings(number, time.monotonic)
        self.router = SharingRouter("kv", hang_s=1e9, shadow_ttl_s=1.0, on_news=self.siblings.on_news)
        self.router.join(WorkerFacts(id=A, model="m", kind="openai", block_size=16))
        self.router.roster.heard(A, 0.0)

    def place(self, name: str) -> None:
        self.router.place(RequestId(name), list(range(40)), 0.0)


@asynccontextmanager
async def frontends(hub: Hub, *numbers: int) -> AsyncIterator[list[One]]:
    made = []
    for number in numbers:
        one = One(number)
        await one.siblings.connect(await hub.invite(number))
        one.siblings.share(one.router)
        made.append(one)
    yield made
    for one in made:
        one.siblings.close()
        await one.siblings.lost
    hub.close()
    for _ in range(3):  # turns of the loop in which transports are closed
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_placements_reach_all_others_and_end_there() -> None:
    async def story() -> None:
        async with frontends(Hub(), 0, 1, 2) as (one, two, three):
            one.place("x")
            two.place("y")
            await until(lambda: [f.router.open_there for f in (one, two, three)] == [1, 1, 2])
            one.router.done(RequestId("x"))
            await until(lambda: [f.router.open_there for f in (one, two, three)] == [1, 0, 1])
            assert three.siblings.counts["asked_for_everything"] == 0

    asyncio.run(story())


def test_who_comes_later_is_told_what_is_under_way() -> None:
    async def story() -> None:
        hub = Hub()
        async with frontends(hub, 0) as (one,):
            one.place("x")
            async with frontends(hub, 1) as (two,):
                await until(lambda: two.router.open_there == 1)

    asyncio.run(story())


def test_who_leaves_takes_its_placements_with_it_and_may_come_again() -> None:
    async def story() -> None:
        hub = Hub()
        async with frontends(hub, 0, 1) as (one, two):
            two.place("x")
            await until(lambda: one.router.open_there == 1)
            two.siblings._channel.close()  # as if it were killed
            await until(lambda: one.router.open_there == 0)
            async with frontends(hub, 1) as (again,):
                again.place("y")
                await until(lambda: one.router.open_there == 1)

    asyncio.run(story())


def test_news_that_were_lost_are_noticed_and_everything_is_asked_for() -> None:
    async def story() -> None:
        async with frontends(Hub(), 0, 1) as (one, two):
            one.place("x")
            await until(lambda: two.router.open_there == 1)
            one.siblings._seq += 1  # a letter that never arrives
            one.router.done(RequestId("x"))
            one.place("y")
            await until(lambda: two.siblings.counts["asked_for_everything"] == 1 and two.router.open_there == 1)

    asyncio.run(story())


def test_a_loss_with_nothing_after_it_is_noticed_too() -> None:
    async def story() -> None:
        async with frontends(Hub(), 0, 1) as (one, two):
            one.place("x")
            await until(lambda: two.router.open_there == 1)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "MOST_WAITING_BYTES", -1)
                one.router.done(RequestId("x"))
                await until(lambda: one.siblings.counts["news_lost"] > 0)
            one.siblings.reassure()
            await until(lambda: two.router.open_there == 0)
            assert two.siblings.counts["asked_for_everything"] == 1
            one.siblings.reassure()  # which changes nothing where all was heard
            two.place("y")
            await until(lambda: one.router.open_there == 1)
            assert two.siblings.counts["asked_for_everything"] == 1

    asyncio.run(story())


def test_a_hub_that_takes_nothing_costs_news_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with frontends(Hub(), 0, 1) as (one, two):
            monkeypatch.setattr(module, "MOST_WAITING_BYTES", -1)
            one.place("x")
            await until(lambda: one.siblings.counts["news_lost"] == 1)
            monkeypatch.undo()
            one.place("y")
            await until(lambda: two.router.open_there == 2)

    asyncio.run(story())


def test_questions_are_answered_by_all_that_are_there() -> None:
    async def story() -> None:
        async with frontends(Hub(), 0, 1, 2) as (one, two, three):
            for each in (one, two, three):
                each.siblings.answers["who"] = lambda body, n=each.siblings.number: b"%b %d" % (body, n)  # type: ignore[misc]
            three.siblings.answers["rare"] = lambda _: b"here"
            await until(lambda: all(len(f.siblings.peers) == 2 for f in (one, two, three)))

            assert await one.siblings.gather("who", b"is") == {1: b"is 1", 2: b"is 2"}
            assert await one.siblings.gather("rare") == {2: b"here"}
            assert await one.siblings.ask(1, "rare") is None
            assert await one.siblings.ask(9, "who", timeout_s=0.01) is None

    asyncio.run(story())


def test_who_dies_is_not_waited_for() -> None:
    async def story() -> None:
        async with frontends(Hub(), 0, 1) as (one, two):
            await until(lambda: one.siblings.peers == {1})
            two.siblings.answers["who"] = lambda _: two.siblings._channel.close() or b""  # type: ignore[func-returns-value]
            assert await one.siblings.gather("who", timeout_s=60.0) == {}

    asyncio.run(story())


def test_what_a_frontend_counted_is_not_lost_with_it() -> None:
    async def story() -> None:
        hub = Hub()
        async with frontends(hub, 0, 1) as (one, two):
            page = [Family("n", "N.", "counter", [Sample("n_total", {}, 5.0)]), Family("g", "G.", "gauge", [])]
            two.siblings.keep_page(encode(page))
            two.siblings.close()
            await until(lambda: not one.siblings.peers)
            hub.restarted()
            told = await one.siblings.ask(HUB, COUNTED)

            assert told is not None
            ended, own = decode(told)
            assert ended.samples == [Sample("n_total", {}, 5.0)]
            assert own.samples == [Sample("jevons_hub_total", {"fate": "restarts"}, 1.0)]

    asyncio.run(story())


def test_the_end_of_the_hub_is_noticed() -> None:
    async def story() -> None:
        hub = Hub()
        async with frontends(hub, 0) as (one,):
            hub.close()
            async with asyncio.timeout(10.0):
                assert await one.siblings.lost

    asyncio.run(story())


def test_a_letter_nobody_can_read_costs_nobody_else_anything() -> None:
    async def story() -> None:
        async with frontends(Hub(), 0, 1) as (one, two):
            one.siblings._post(1, Told(1, ["nonsense"]))  # type: ignore[list-item]
            one.siblings._post(HUB, Told(1, []))
            one.place("x")
            await until(lambda: two.router.open_there == 1 and two.siblings.counts["letters_unread"] == 1)

    asyncio.run(story())
