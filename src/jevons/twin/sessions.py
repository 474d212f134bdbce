"""Made-up sessions: who asks, is answered, thinks or runs a tool, and asks again with everything said before.

A session's prompts begin with what its group shares (a system prompt, a repository, a set of documents) and grow by
what is said. Lengths and pauses are log-normal, starts are Poisson at a rate that may swing. The same seed gives
the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from jevons.base.compiled import Ints, Records
from jevons.base.errors import ConfigError
from jevons.config.scenario import Traffic
from jevons.twin.kernel import ARRIVAL

_BATCH = 2_048  # sessions made at once
_BLOCK = 512
_GROUP_IDS, _SESSION_IDS = 1 << 39, 1 << 14  # ids of a group's blocks begin at the first; a session has so many


class Kind(msgspec.Struct, frozen=True):
    """What sessions are like. GUESS, but for `agents`: fitted to what Mooncake published of its tool agents."""

    groups: int  # share a prefix within
    shared_tokens: float  # of that prefix, mean
    turns: float  # mean, geometric
    input_tokens: float  # of one turn, mean
    output_tokens: float
    spread: float  # of the logarithm of lengths
    pause_s: float  # from a request to the next of its session, mean


KINDS = {
    "chat": Kind(200, 400, 4.0, 350, 300, 0.9, 40.0),
    "rag": Kind(400, 3_000, 1.5, 1_200, 250, 0.7, 30.0),
    "code": Kind(300, 6_000, 6.0, 900, 180, 1.0, 25.0),
    "agents": Kind(60, 2_600, 1.8, 3_250, 182, 0.8, 12.0),
    "documents": Kind(20, 300, 1.0, 12_000, 700, 0.6, 1.0),
    "video": Kind(50, 300, 1.6, 30_000, 220, 0.5, 60.0),
}
_DAY_S = 86_400.0


def sessions(traffic: Traffic, seed: int) -> Iterator[tuple[Records, Ints]]:
    """Requests in order of time, in pieces, for ever or until `traffic` says.

    Raises:
        ConfigError: no such kind.
    """
    if traffic.kind not in KINDS:
        raise ConfigError(f"traffic.kind: must be one of {', '.join(KINDS)}, got {traffic.kind!r}")
    if traffic.requests is None and traffic.seconds is None:
        raise ConfigError("traffic: made-up sessions never end: give requests (`--requests`) or seconds")
    kind, draw = KINDS[traffic.kind], np.random.default_rng(seed)
    shared = _lengths(draw, kind.groups, kind.shared_tokens, kind.spread)
    start_s, first, held = 0.0, 0, _Turns.none()
    while traffic.seconds is None or start_s <= traffic.seconds:
        starts = _starts(draw, traffic, start_s)
        turns = _make(draw, kind, shared, starts, first)
        start_s, first = float(starts[-1]), first + len(starts)
        held = held.with_(turns)
        ready = held.before(start_s)
        held = held.after(start_s)
        if len(ready.at_s):
            yield ready.as_piece(shared)
    if len(held.at_s):
        yield held.as_piece(shared)


def _starts(draw: Any, traffic: Traffic, start_s: float) -> Any:
    """When the next sessions start, from a Poisson process whose rate follows the shape (by thinning)."""
    top = {"steady": 1.0, "bursts": 4.0, "diurnal": 1.6}[traffic.shape]
    at = start_s + np.cumsum(draw.exponential(1.0 / (traffic.rate * top), _BATCH * 2))
    if traffic.shape == "diurnal":
        level = 1.0 + 0.6 * np.sin(2 * np.pi * (at / _DAY_S - 0.375))
    elif traffic.shape == "bursts":
        level = np.where((at % 120.0) < 20.0, 4.0, 0.4)  # a sixth of the time four times the mean
    else:
        level = np.ones(len(at))
    kept = at[draw.random(len(at)) * top < level]
    return kept if len(kept) else at[-1:]


def _lengths(draw: Any, count: int, mean: float, spread: float) -> Any:
    drawn = draw.lognormal(np.log(mean) - spread**2 / 2, spread, count)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


class _Turns:
    """Requests, one entry each."""

    def __init__(self, **columns: Any) -> None:
        self.at_s = columns["at_s"]
        self.columns = columns

    @classmethod
    def none(cls) -> _Turns:
        names = ("session", "group", "prompt", "output")
        return cls(at_s=np.zeros(0), **{name: np.zeros(0, np.int64) for name in names})

    def with_(self, other: _Turns) -> _Turns:
        joined = {name: np.concatenate([column, other.columns[name]]) for name, column in self.columns.items()}
        order = np.argsort(joined["at_s"], kind="stable")
        return _Turns(**{name: column[order] for name, column in joined.items()})

    def before(self, at_s: float) -> _Turns:
        return _Turns(**{name: column[self.at_s <= at_s] for name, column in self.columns.items()})

    def after(self, at_s: float) -> _Turns:
        return _Turns(**{name: column[self.at_s > at_s] for name, column in self.columns.items()})

    def as_piece(self, shared: Any) -> tuple[Records, Ints]:
        c = self.columns
        requests = np.zeros(len(self.at_s), ARRIVAL)
        for name in ("at_s", "prompt", "output"):
            requests[name] = c[name]
        counts = (c["prompt"] + c["output"]) // _BLOCK + 1
        ends = np.cumsum(counts)
        requests["ids"], requests["count"] = ends - counts, counts
        block = np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
        common = np.repeat(shared[c["group"]] // _BLOCK, counts)
        own = np.repeat(c["session"], counts) * _SESSION_IDS + block
        group = _GROUP_IDS + np.repeat(c["group"], counts) * _SESSION_IDS + block
        return requests, np.where(block < common, group, own)


def _make(draw: Any, kind: Kind, shared: Any, starts: Any, first: int) -> _Turns:
    """All turns of sessions that start then."""
    count = len(starts)
    turns = draw.geometric(1.0 / kind.turns, count)
    session = np.repeat(np.arange(count), turns)
    number = np.arange(len(session)) - np.repeat(np.cumsum(turns) - turns, turns)
    inputs = _lengths(draw, len(session), kind.input_tokens, kind.spread)
    outputs = _lengths(draw, len(session), kind.output_tokens, kind.spread)
    pauses = draw.lognormal(np.log(kind.pause_s) - kind.spread**2 / 2, kind.spread, len(session))
    pauses[number == 0] = 0.0
    group = draw.integers(0, kind.groups, count)[session]
    begins = np.repeat(np.cumsum(turns) - turns, turns)
    said, paused = np.cumsum(inputs + outputs), np.cumsum(pauses)
    before = said - inputs - outputs
    prompt = shared[group] + before - before[begins] + inputs
    at_s = starts[session] + paused - paused[begins]
    keep = prompt + outputs < _SESSION_IDS * _BLOCK // 2
    columns = {"at_s": at_s, "session": session + first, "group": group, "prompt": prompt, "output": outputs}
    return _Turns(**{name: column[keep] for name, column in columns.items()})
