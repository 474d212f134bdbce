"""One timer for all who may take equally long: who comes first is due first. Who comes late has one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LITTLE = 0.01  # of the time that all have: so much more may one have that spent it before it came here


class Deadlines:
    def __init__(self, after_s: float) -> None:
        """`after_s`: how long each may take."""
        self._after_s = after_s
        self._due: dict[object, tuple[float, Callable[[], None]]] = {}  # in order
        self._timer: asyncio.TimerHandle | None = None
        self._late: dict[object, asyncio.TimerHandle] = {}  # of those whose time had begun before

    def start(self, one: object, on_due: Callable[[], None], spent_s: float = 0.0) -> None:
        """`on_due` is called unless `one` ends in time. `spent_s`: of its time that is gone already."""
        loop = asyncio.get_running_loop()
        if spent_s > _LITTLE * self._after_s:
            self._late[one] = loop.call_later(max(0.0, self._after_s - spent_s), self._look_at, one, on_due)
            return
        self._due[one] = loop.time() + self._after_s, on_due
        if self._timer is None:
            self._timer = loop.call_later(self._after_s, self._look)

    def end(self, one: object) -> None:
        self._due.pop(one, None)
        timer = self._late.pop(one, None)
        if timer is not None:
            timer.cancel()

    def _look(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        for one, (due_s, on_due) in list(self._due.items()):
            if due_s > loop.time():
                self._timer = loop.call_later(due_s - loop.time(), self._look)
                return
            del self._due[one]
            on_due()

    def _look_at(self, one: object, on_due: Callable[[], None]) -> None:
        del self._late[one]
        on_due()
