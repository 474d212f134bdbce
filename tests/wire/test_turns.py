from __future__ import annotations

import asyncio

import pytest

from jevons.wire import turns
from jevons.wire.turns import SLICE_S, in_slices


def test_other_work_goes_on_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, now_s = list[str](), 0.0
    monkeypatch.setattr(turns, "perf_counter", lambda: now_s)

    async def sweep() -> None:
        nonlocal now_s
        async for item in in_slices("abcd"):
            seen.append(item)
            now_s += 0.6 * SLICE_S

    async def other() -> None:
        seen.append("other")

    async def both() -> None:
        await asyncio.gather(sweep(), other())

    asyncio.run(both())
    assert seen == ["a", "b", "other", "c", "d"]
