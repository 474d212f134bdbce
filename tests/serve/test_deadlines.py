"""One timer for many: who ends in time is never told, who does not is told once."""

from __future__ import annotations

import asyncio

from jevons.serve.deadlines import Deadlines


def test_who_takes_too_long_is_told_in_order() -> None:
    async def run() -> list[str]:
        told: list[str] = []
        deadlines, over = Deadlines(0.05), asyncio.Event()
        for name in ("a", "b", "c"):
            deadlines.start(name, lambda name=name: told.append(name))  # type: ignore[misc]
            await asyncio.sleep(0.005)
        deadlines.end("b")
        deadlines.end("never begun")
        deadlines.start("d", over.set)
        await asyncio.wait_for(over.wait(), 5.0)
        return told

    assert asyncio.run(run()) == ["a", "c"]


def test_it_begins_anew_after_all_have_ended() -> None:
    async def run() -> None:
        deadlines = Deadlines(0.01)
        for _ in range(2):
            over = asyncio.Event()
            deadlines.start("one", lambda: None)
            deadlines.end("one")
            deadlines.start("two", over.set)
            await asyncio.wait_for(over.wait(), 5.0)

    asyncio.run(run())


def test_who_spent_some_of_its_time_before_is_due_so_much_earlier() -> None:
    async def run() -> list[str]:
        told: list[str] = []
        deadlines, over = Deadlines(60.0), asyncio.Event()
        deadlines.start("fresh", lambda: told.append("fresh"))
        deadlines.start("ended", lambda: told.append("ended"), 59.99)
        deadlines.start("late", over.set, 59.98)
        deadlines.end("ended")
        await asyncio.wait_for(over.wait(), 5.0)
        deadlines.end("fresh")
        return told

    assert asyncio.run(run()) == []
