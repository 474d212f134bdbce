"""When an attached engine is looked at."""

from __future__ import annotations

import asyncio

import pytest
from tests import jumping

from jevons.base.ids import WorkerId
from jevons.control.roster import Roster
from jevons.facts.worker import Health
from jevons.serve.pulse import PROBE_S, REST_S, Pulse
from jevons.wire.turns import Turnstile

HANG_S = 0.8
ENGINE = WorkerId("e")


class Watched:
    """An engine that answers as told, the clock moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.answers = True
        self.probes = 0
        self.roster = Roster(HANG_S)
        self.pulse = Pulse(ENGINE, self.roster, lambda: self.now_s)
        self.pulse.heard()

    async def pass_s(self, seconds: float) -> None:
        prober = asyncio.create_task(self._probe())
        await asyncio.sleep(0)
        for _ in range(round(seconds / 0.1)):
            self.now_s += 0.1
            self.pulse.look()
            await asyncio.sleep(0)
            self.roster.suspects(self.now_s)
        prober.cancel()

    async def _probe(self) -> None:
        while True:
            await self.pulse.due()
            self.probes += 1
            if self.answers:
                self.pulse.heard()

    @property
    def health(self) -> Health:
        return self.roster.health(ENGINE)


def test_an_engine_at_rest_is_asked_seldom_and_stays_up() -> None:
    watched = Watched()
    asyncio.run(watched.pass_s(20 * REST_S))

    assert 20 <= watched.probes <= 41
    assert watched.health is Health.UP


def test_who_works_is_asked_often_unless_it_is_heard_of() -> None:
    watched = Watched()
    watched.pulse.asked()
    asyncio.run(watched.pass_s(6.0))
    asked = watched.probes
    for _ in range(60):
        watched.pulse.is_heard = True
        asyncio.run(watched.pass_s(0.1))

    assert asked >= 6.0 / (PROBE_S + 0.1) - 1
    assert watched.probes == asked
    assert watched.health is Health.UP


def test_silence_counts_from_when_something_is_asked() -> None:
    watched = Watched()
    watched.answers = False
    asyncio.run(watched.pass_s(1.5))
    before = watched.health
    watched.pulse.asked()
    asyncio.run(watched.pass_s(HANG_S))
    assert (before, watched.health) == (Health.UP, Health.UP)
    asyncio.run(watched.pass_s(0.3))

    assert watched.health is Health.SUSPECT


def test_an_engine_that_hangs_at_rest_is_noticed_too() -> None:
    watched = Watched()
    watched.answers = False
    asyncio.run(watched.pass_s(REST_S + HANG_S + 0.3))

    assert watched.health is Health.SUSPECT


def test_it_settles_once_after_each_time_something_was_asked() -> None:
    settled: list[float] = []
    watched = Watched()
    watched.pulse = Pulse(ENGINE, watched.roster, lambda: watched.now_s, lambda: settled.append(watched.now_s))
    for _ in range(3):
        for _ in range(4):  # one request soon after the other
            watched.pulse.asked()
            asyncio.run(watched.pass_s(0.2))
            watched.pulse.rests()
            asyncio.run(watched.pass_s(0.2))
        asyncio.run(watched.pass_s(3.0))

    assert len(settled) == 3


def test_a_probe_can_be_asked_for() -> None:
    async def run() -> int:
        watched = Watched()
        waiting = asyncio.create_task(watched.pulse.due())
        await asyncio.sleep(0)
        watched.pulse.wake()
        await waiting
        watched.pulse.wake()  # nobody waits: nothing happens
        return 1

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_turnstile_lets_one_pass_in_each_turn_of_the_loop(cancelled: bool) -> None:
    async def run() -> list[int]:
        turns, passed, turn = Turnstile(), list[int](), 0

        async def one() -> None:
            await turns.pass_through()
            passed.append(turn)

        tasks = [asyncio.create_task(one()) for _ in range(5)]
        await asyncio.sleep(0)
        if cancelled:
            tasks[2].cancel()
        while not all(task.done() for task in tasks):
            turn += 1
            await asyncio.sleep(0)
        return passed

    passed = jumping.run(run())
    assert len(passed) == len(set(passed)) == (4 if cancelled else 5)


def test_the_last_that_an_engine_said_does_not_bring_it_back() -> None:
    watched = Watched()
    watched.pulse.asked()
    watched.pulse.is_heard = True
    watched.roster.gone(ENGINE)
    asyncio.run(watched.pass_s(0.1))

    assert watched.health is Health.DOWN
    assert not watched.pulse.is_heard
