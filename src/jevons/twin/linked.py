"""Traces whose requests follow each other: who comes back does so a while after the answer, however long that takes.

session_id          each request of a session follows the one before it
wait_for            it follows these, by request_id, instead
delay, tool_wait_ms milliseconds from when those are done until it arrives
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jevons.base.compiled import Ints, Records
from jevons.base.errors import ConfigError
from jevons.config.scenario import Traffic
from jevons.facts.trace import TraceRow
from jevons.twin.kernel import AFTER


class Linked(NamedTuple):
    """Requests in order of time, and who waits for whom."""

    rows: list[TraceRow]
    numbers: Ints  # of each its place in the file
    began_ms: float  # when the first one comes that waits for nobody
    leaders: list[list[int]]
    delays_ms: list[float]

    def arrays(self, copies: int, speed: float) -> tuple[Records, Ints]:
        """`kernel.AFTER` of each request, and the followers it names, for as many copies side by side."""
        followers: list[list[int]] = [[] for _ in self.rows]
        for i, found in enumerate(self.leaders):
            for leader in found:
                followers[leader].append(i)
        counts = np.array([len(found) for found in followers], np.int64)
        flat = np.array([i for found in followers for i in found], np.int64)
        copy = np.tile(np.arange(copies), len(self.rows))
        afters = np.zeros(len(self.rows) * copies, AFTER)
        afters["pending"] = np.repeat([len(found) for found in self.leaders], copies)
        afters["is_after"] = afters["pending"] > 0
        afters["delay_s"] = np.repeat(self.delays_ms, copies) / (1000.0 * speed)
        afters["count"] = np.repeat(counts, copies)
        afters["first"] = np.repeat(np.cumsum(counts) - counts, copies) + copy * len(flat)
        return afters, np.concatenate([flat * copies + c for c in range(copies)])


def link(path: Path, rows: Sequence[TraceRow], traffic: Traffic) -> Linked:
    """Put together who follows whom, within the limits of `traffic`: who follows one that is left out is too.

    Raises:
        ConfigError: a request follows one that is not there or itself, before it is done, or nobody and has no time.
    """
    for number, row in enumerate(rows, 1):
        if min(row.delay or 0.0, row.tool_wait_ms) < 0:
            raise ConfigError(
                f"trace {path}: request {number}: delay and tool_wait_ms must be at least 0, "
                f"got {row.delay or 0.0:g} and {row.tool_wait_ms:g}"
            )
    times, last_ms = [], next((row.timestamp for row in rows if row.timestamp is not None), 0.0)
    for row in rows:
        last_ms = last_ms if row.timestamp is None else row.timestamp
        times.append(last_ms)
    numbers = sorted(range(len(rows)), key=times.__getitem__)
    ordered = [rows[number] for number in numbers]
    leaders = _leaders(path, ordered, numbers)
    began_ms = min((times[numbers[i]] for i, found in enumerate(leaders) if not found), default=0.0)
    end_ms = np.inf if traffic.seconds is None else began_ms + traffic.seconds * traffic.speed * 1000.0
    most = traffic.requests or len(rows)
    kept: dict[int, int] = {}
    for i in _in_turn(path, leaders, numbers):
        in_time = bool(leaders[i]) or times[numbers[i]] <= end_ms
        if in_time and len(kept) < most and all(leader in kept for leader in leaders[i]):
            kept[i] = len(kept)
    return Linked(
        [ordered[i] for i in kept],
        np.array([numbers[i] for i in kept], np.int64),
        began_ms,
        [[kept[leader] for leader in leaders[i]] for i in kept],
        [_delay_ms(ordered, i, leaders[i]) for i in kept],
    )


def _leaders(path: Path, rows: Sequence[TraceRow], numbers: Sequence[int]) -> list[list[int]]:
    """Whom each request follows."""
    by_id: dict[str, int] = {}
    for i, row in enumerate(rows):
        if row.request_id and by_id.setdefault(row.request_id, i) != i:
            raise ConfigError(f"trace {path}: request {numbers[i] + 1}: request_id {row.request_id!r} is there twice")
    before: dict[str | int, int] = {}
    found: list[list[int]] = []
    for i, row in enumerate(rows):
        missing = [id for id in row.wait_for if id not in by_id]
        if missing:
            raise ConfigError(f"trace {path}: request {numbers[i] + 1}: waits for {missing[0]!r}, which is not there")
        leaders = sorted({by_id[id] for id in row.wait_for})
        if row.session_id is not None:
            if not leaders and row.session_id in before:
                leaders = [before[row.session_id]]
            before[row.session_id] = i
        if not leaders and row.timestamp is None:
            raise ConfigError(f"trace {path}: request {numbers[i] + 1}: follows nobody and has no timestamp; give one")
        found.append(leaders)
    return found


def _in_turn(path: Path, leaders: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[int]:
    """All requests, each after those it follows, in their order where that allows it."""
    pending = [len(found) for found in leaders]
    followers: list[list[int]] = [[] for _ in leaders]
    for i, found in enumerate(leaders):
        for leader in found:
            followers[leader].append(i)
    turn, ready = list[int](), [i for i, count in enumerate(pending) if not count]  # a heap: it is sorted
    while ready:
        turn.append(heappop(ready))
        for follower in followers[turn[-1]]:
            pending[follower] -= 1
            if not pending[follower]:
                heappush(ready, follower)
    if len(turn) < len(leaders):
        stuck = next(i for i, count in enumerate(pending) if count)
        raise ConfigError(f"trace {path}: request {numbers[stuck] + 1}: waits for itself, by way of others")
    return turn


def _delay_ms(rows: Sequence[TraceRow], i: int, leaders: Sequence[int]) -> float:
    """From when those it follows are done; where that is not told, from one time to the next."""
    row = rows[i]
    if row.delay is not None or len(leaders) != 1:
        return (row.delay or 0.0) + row.tool_wait_ms
    began_ms = rows[leaders[0]].timestamp
    known = row.timestamp is not None and began_ms is not None
    return (max(0.0, row.timestamp - began_ms) if known else 0.0) + row.tool_wait_ms  # type: ignore[operator]
