"""Work in portions, so that an event loop with thousands of sources never stands for long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

SLICE_S = 0.001  # at most, and one item more, before the event loop does something else


async def in_slices(items: Iterable[T]) -> AsyncIterator[T]:
    """Each of them, with other work in between whenever SLICE_S have gone by."""
    ends_s = perf_counter() + SLICE_S
    for item in items:
        yield item
        if perf_counter() > ends_s:
            await asyncio.sleep(0)
            ends_s = perf_counter() + SLICE_S


class Turnstile:
    """Lets one pass in each turn of the event loop: a thousand at once would hold up everybody's streams."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def pass_through(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_soon(self._open)
        await turn

    def _open(self) -> None:
        turn = self._waiting.popleft()
        if not turn.done():
            turn.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._open)
