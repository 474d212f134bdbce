"""Kernels are compiled by another process, the first time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from jevons.serve import ready


class _Started:
    """A process that ends at once."""

    def __init__(self, code: int) -> None:
        self.returncode = code

    async def wait(self) -> int:
        return self.returncode


@pytest.mark.parametrize(("compiled", "code", "started"), [(True, 0, []), (False, 0, [1]), (False, 3, [1])])
def test_another_process_compiles_what_is_not_compiled_and_ours_is_ready_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiled: bool, code: int, started: list[int]
) -> None:
    processes, warmed = [], []

    async def start(*command: str) -> _Started:
        assert command[1:] == ("-m", "jevons.control.warm")
        processes.append(1)
        return _Started(code)

    monkeypatch.setattr(ready, "is_warm", lambda: compiled)
    monkeypatch.setattr(ready, "warm", lambda: warmed.append(1))
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    with caplog.at_level(logging.WARNING):
        asyncio.run(ready.ready_kernels())

    assert (processes, warmed) == (started, [1])
    assert ("ended with 3" in caplog.text) == (code == 3)
