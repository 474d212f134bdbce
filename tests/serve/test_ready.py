"""Kernels are compiled by another process, the first time."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import numba
import pytest

from jevons.serve import ready
from jevons.serve.app import cut_short


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

    async def start(*command: str, start_new_session: bool) -> _Started:
        assert command[1:] == ("-m", "jevons.control.warm")
        assert start_new_session  # a Ctrl-C ends it by us, and we compile nothing in its place
        processes.append(1)
        return _Started(code)

    monkeypatch.setattr(ready, "is_warm", lambda: compiled)
    monkeypatch.setattr(ready, "warm", lambda: warmed.append(1))
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    with caplog.at_level(logging.WARNING):
        asyncio.run(ready.ready_kernels())

    assert (processes, warmed) == (started, [1])
    assert ("ended with 3" in caplog.text) == (code == 3)


def test_a_server_that_is_told_to_stop_while_kernels_are_compiled_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, killed, warmed = asyncio.Event(), [], []

    class Compiles:
        returncode = None

        async def wait(self) -> None:
            stop.set()
            await asyncio.Event().wait()

        def kill(self) -> None:
            killed.append(1)

    async def start(*_: str, **__: bool) -> Compiles:
        return Compiles()

    async def go() -> None:
        async with cut_short(stop):
            await ready.ready_kernels()

    monkeypatch.setattr(ready, "is_warm", lambda: False)
    monkeypatch.setattr(ready, "warm", lambda: warmed.append(1))
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    asyncio.run(go())

    assert (killed, warmed) == ([1], [])


def test_what_takes_too_long_before_a_stop_is_an_error_all_the_same() -> None:
    async def go() -> None:
        async with cut_short(asyncio.Event()):
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(go())


def test_code_is_found_where_it_can_be_run_and_not_be_written() -> None:
    maps = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 11 /site/llvmlite/libllvmlite.so
7f0000001000-7f0000003000 r-xp 00001000 fe:00 11 /site/llvmlite/libllvmlite.so
7f0000003000-7f0000004000 rwxp 00003000 fe:00 11 /site/llvmlite/libllvmlite.so
7f0000005000-7f0000006000 r-xp 00000000 fe:00 12 /lib/libc.so.6
7f0000007000-7f0000008000 rw-p 00000000 00:00 0
7f0000009000-7f000000a000 r-xp 00000000 fe:00 13 /with a space/libllvmlite.so
"""
    assert ready.code_of("libllvmlite", maps) == [(0x7F0000001000, 0x7F0000003000), (0x7F0000009000, 0x7F000000A000)]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux alone")
def test_kernels_run_and_are_compiled_after_llvm_was_given_back() -> None:
    begun = llvm_bytes()
    numba.njit(lambda x: x + 1)(1)
    touched = llvm_bytes()
    ready.give_back()

    given_back = llvm_bytes()
    assert given_back < touched / 2, (begun, touched, given_back)
    assert numba.njit(lambda x: x * 2 + 1)(3) == 7


def llvm_bytes() -> int:
    """Of LLVM's program, in memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            counts = "libllvmlite" in line and " r-xp " in line
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
