"""How long the turns of an event loop are, and what was at work in the longest: for benches of a server.

    python bench/turns.py

A turn is the time between two looks of a timer of 1 ms, as CPU of the loop's thread: what a neighbour on the machine
takes is not in it. From LONG_S on, samples tell where it was, a thousand a second. What the garbage collector took is
told apart. Alone it measures itself: an empty loop, and one that is held up for 20 ms. Linux only; one per process.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections import Counter
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

TICK_S = 0.001
LONG_S = 0.002
OVER_S = 0.005  # what no turn should be
SHOWN = 5


class Turn(NamedTuple):
    cpu_s: float
    gc_s: float
    places: list[tuple[str, int]]  # and samples

    def __str__(self) -> str:
        at = "; ".join(f"{count} × {place}" for place, count in self.places) or "not sampled"
        collector = f", {self.gc_s * 1e3:.1f} of it garbage collection" if self.gc_s > 0.0005 else ""
        return f"{self.cpu_s * 1e3:.1f} ms{collector}: {at}"


class Told(NamedTuple):
    """Since `begin`. Milliseconds; `wall_ms` is the longest with what neighbours took."""

    turns: int
    p99_ms: float
    max_ms: float
    over_5_ms: int
    wall_ms: float
    collections_ms: list[float]  # the longest of each generation
    worst: list[str]

    def __str__(self) -> str:
        passes = " / ".join(f"{ms:.1f}" for ms in self.collections_ms)
        return (
            f"{self.turns:,} turns: p99 {self.p99_ms:.1f}, max {self.max_ms:.1f} ms CPU ({self.wall_ms:.0f} ms wall), "
            f"{self.over_5_ms} over 5 ms; longest pass of the garbage collector by generation {passes} ms"
        )


class Turns:
    """Of the running loop, since `begin`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._collecting_s = 0.0
        signal.signal(signal.SIGALRM, self._sample)
        signal.siginterrupt(signal.SIGALRM, False)
        self.begin()

    def begin(self) -> None:
        self._cpu: list[float] = []
        self._wall_most_s = 0.0
        self._passes_s = [0.0, 0.0, 0.0]
        if self._collected not in gc.callbacks:
            gc.callbacks.append(self._collected)
        self._worst: list[Turn] = []
        if self._timer is not None:
            self._timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
        self.skip()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)
        if self._timer is not None:
            self._timer.cancel()

    def skip(self) -> None:
        """What was computed since the last turn does not count: it was ours."""
        self._seen: Counter[str] = Counter()
        self._gc_s = 0.0
        self._wall_s, self._cpu_s = time.perf_counter(), time.thread_time()

    def told(self) -> Told:
        cpu = np.array(self._cpu or [0.0])
        return Told(
            turns=len(self._cpu),
            p99_ms=float(np.percentile(cpu, 99)) * 1e3,
            max_ms=float(cpu.max()) * 1e3,
            over_5_ms=int((cpu > OVER_S).sum()),
            wall_ms=self._wall_most_s * 1e3,
            collections_ms=[s * 1e3 for s in self._passes_s],
            worst=[str(turn) for turn in self._worst],
        )

    def _tick(self) -> None:
        wall_s, cpu_s = time.perf_counter() - self._wall_s, time.thread_time() - self._cpu_s
        self._wall_most_s = max(self._wall_most_s, wall_s - TICK_S)
        self._cpu.append(cpu_s)
        if cpu_s > LONG_S and (len(self._worst) < SHOWN or cpu_s > self._worst[-1].cpu_s):
            seen, self._seen = self._seen, Counter()  # samples may come at any time
            self._worst.append(Turn(cpu_s, self._gc_s, seen.most_common(3)))
            self._worst = sorted(self._worst, reverse=True)[:SHOWN]
        self.skip()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        if time.thread_time() - self._cpu_s > LONG_S / 2:
            self._seen[_place(frame)] += 1

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        now_s = time.thread_time()
        if phase == "start":
            self._collecting_s = now_s
            return
        took_s, generation = now_s - self._collecting_s, int(info["generation"])
        self._gc_s += took_s
        self._passes_s[generation] = max(self._passes_s[generation], took_s)


def _place(frame: FrameType | None) -> str:
    """Of ours: what was called first, and the line that was reached last."""
    ours = []
    while frame is not None:
        code = frame.f_code
        if "jevons" in code.co_filename or "zmq" in code.co_filename:
            ours.append((code.co_qualname, f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"))
        frame = frame.f_back
    if not ours:
        return "elsewhere"
    first, (last, line) = ours[-1][0], ours[0]
    return f"{last} ({line})" if first == last else f"{first} → {last} ({line})"


async def measure() -> None:
    turns = Turns()
    await asyncio.sleep(1.0)
    print(turns.told())
    turns.begin()
    until_s = time.thread_time() + 0.02
    while time.thread_time() < until_s:
        pass
    await asyncio.sleep(0.1)
    told = turns.told()
    turns.end()
    print(told, *told.worst, sep="\n  ")


if __name__ == "__main__":
    asyncio.run(measure())
