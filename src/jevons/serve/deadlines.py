"""One timer for all who may take equally long: who comes first is due first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadlines:
    def __init__(self, after_s: float) -> None:
        """`after_s`: how long each may take."""
        self._after_s = after_s
        self._due: dict[object, tuple[float, Callable[[], None]]] = {}  # in order
        self._timer: asyncio.TimerHandle | None = None

    def start(self, one: object, on_due: Callable[[], None]) -> None:
        """`on_due` is called unless `one` ends in time."""
        loop = asyncio.get_running_loop()
        self._due[one] = loop.time() + self._after_s, on_due
        if self._timer is None:
            self._timer = loop.call_later(self._after_s, self._look)

    def end(self, one: object) -> None:
        self._due.pop(one, None)

    def _look(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        for one, (due_s, on_due) in list(self._due.items()):
            if due_s > loop.time():
                self._timer = loop.call_later(due_s - loop.time(), self._look)
                return
            del self._due[one]
            on_due()
