"""What a page shows of requests: those that were placed last, the last minute's times, what was reused so far.

Live it is told as things happen, in the twin of each request that is done. Times are counted in bins 5 % wide, second
by second, so a minute costs the same however much happened in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import exp, log
from typing import NamedTuple

import numpy as np

from jevons.base.compiled import Ints
from jevons.base.ids import RequestId
from jevons.facts.snapshot import Outcome
from jevons.facts.view import Going, Rates, Reuse, Times
from jevons.policy.route import GUESS_TPOT_S, GUESS_TTFT_S, Placement

SPAN_S = 60  # what "the last minute" is
SHOWN = 48  # requests
SCATTERED = 256
_LEAST_S = 1e-4
_WIDTH = log(1.05)
_BINS = 340  # up to 1,600 s
_COUNTED = ("requests", "prompt_tokens", "output_tokens")  # fields of `Rates`


class Slo(NamedTuple):
    """What is usually promised: first token, and each after it."""

    ttft_s: float = GUESS_TTFT_S
    tpot_s: float = GUESS_TPOT_S


def bin_of(seconds: float) -> int:
    return 0 if seconds <= _LEAST_S else min(int(log(seconds / _LEAST_S) / _WIDTH) + 1, _BINS - 1)


def times_of(counts: Ints, target_s: float) -> Times:
    """`counts`: see `Minute.counts`; those of several watches may be added."""
    total = int(counts.sum())
    reached = np.cumsum(counts)
    points = [float(_value(int(np.searchsorted(reached, q * total)))) if total else None for q in (0.5, 0.9, 0.99)]
    within = float(reached[bin_of(target_s)]) / total if total else None
    return Times(count=total, p50=points[0], p90=points[1], p99=points[2], within=within, target_s=target_s)


def span_s(since_s: float) -> float:
    """What rates are told over: the last minute, or since it began where that is less."""
    return max(1.0, min(SPAN_S, since_s))


class Minute:
    """How often something took how long, in the last minute."""

    def __init__(self) -> None:
        self._past: Ints = np.zeros((SPAN_S, _BINS), np.int64)
        self._now = [0] * _BINS
        self._second = 0

    def add(self, seconds: float, now_s: float, times: int = 1) -> None:
        if now_s >= self._second + 1:
            self._pass(int(now_s))
        self._now[bin_of(seconds)] += times

    def counts(self, now_s: float) -> Ints:
        """By bin."""
        if now_s >= self._second + 1:
            self._pass(int(now_s))
        counts: Ints = self._past.sum(axis=0) + np.array(self._now)
        return counts

    def times(self, now_s: float, target_s: float) -> Times:
        return times_of(self.counts(now_s), target_s)

    def _pass(self, second: int) -> None:
        """The seconds up to this one are over."""
        self._past[self._second % SPAN_S] = self._now
        for each in range(self._second + 1, min(second, self._second + SPAN_S) + 1):
            self._past[each % SPAN_S] = 0
        self._now = [0] * _BINS
        self._second = second


class Watch:
    """Told of requests as they are placed, begin to be answered and end. For one thread.

    Args:
        now_s: when it begins; all times told later are of the same clock.
    """

    def __init__(self, now_s: float, slo: Slo | None = None) -> None:
        self.began_s = now_s
        self.slo = slo or Slo()
        self.placed_count, self.finished = 0, 0
        self.ttft, self.itl = Minute(), Minute()
        self._open: dict[RequestId, Going] = {}
        self._shown: deque[Going] = deque(maxlen=SHOWN)
        self._scatter: deque[tuple[float, float]] = deque(maxlen=SCATTERED)
        self._lately: deque[tuple[int, list[int]]] = deque(maxlen=SPAN_S + 1)  # second, what `_COUNTED` came to in it
        self._reuse = {"computed": 0, "device": 0, "untold": 0}
        self._saved_s: dict[str, float] = {}  # of chips, by kind

    @property
    def under_way(self) -> int:
        return len(self._open)

    def placed(self, id: RequestId, placement: Placement, prompt_tokens: int, now_s: float) -> None:
        going = Going(
            id=id,
            placed_s=now_s - self.began_s,
            worker=placement.worker,
            decode=placement.decode,
            prompt_tokens=prompt_tokens,
            predicted_cached=placement.cached_tokens,
            predicted_ttft_s=placement.ttft_s,
            reason=placement.reason,
        )
        self.placed_count += 1
        self._open[id] = going
        self._shown.append(going)

    def first(self, id: RequestId, now_s: float) -> None:
        """The first token of it is here; only the first time counts."""
        going = self._open.get(id)
        if going is not None and going.ttft_s is None:
            going.ttft_s = now_s - self.began_s - going.placed_s
            self.ttft.add(going.ttft_s, now_s - self.began_s)

    def gap(self, seconds: float, now_s: float) -> None:
        """Two tokens of one answer came so long after each other."""
        self.itl.add(seconds, now_s - self.began_s)

    def done(self, outcome: Outcome, output_tokens: int, now_s: float) -> None:
        """A request is over, whichever way."""
        going = self._open.pop(outcome.id, None)
        if going is None:
            return
        going.cached_tokens, going.output_tokens = outcome.cached_tokens, output_tokens
        going.ttft_s, going.done_s = outcome.ttft_s, now_s - self.began_s
        self.finished += 1
        if outcome.ttft_s is not None:
            self._scatter.append((outcome.predicted_ttft_s, outcome.ttft_s))
        self._count(now_s, (1, outcome.prompt_tokens, output_tokens))
        reused = outcome.cached_tokens if outcome.reused_tokens is None else outcome.reused_tokens
        if reused is None:
            self._reuse["untold"] += outcome.prompt_tokens
        else:
            self._reuse["device"] += reused
            self._reuse["computed"] += outcome.prompt_tokens - reused
        self._saved_s[outcome.chip] = self._saved_s.get(outcome.chip, 0.0) + outcome.saved_s

    def requests(self) -> list[Going]:
        return list(self._shown)

    def scatter(self) -> list[tuple[float, float]]:
        return list(self._scatter)

    def rates(self, now_s: float) -> Rates:
        """See `span_s`."""
        since = now_s - self.began_s - SPAN_S
        sums = [0, 0, 0]
        for second, counted in self._lately:
            if second >= since:
                sums = [a + b for a, b in zip(sums, counted, strict=True)]
        over_s = span_s(now_s - self.began_s)
        return Rates(**{name: total / over_s for name, total in zip(_COUNTED, sums, strict=True)})

    def reuse(self, brought: Mapping[str, int]) -> Reuse:
        """`brought`: tokens that came from each tier below the devices, of what was cached."""
        there = self._reuse
        device = max(0, there["device"] - sum(brought.values()))
        return Reuse(computed=there["computed"], device=device, tiers=dict(brought), untold=there["untold"])

    def saved_chip_s(self) -> dict[str, float]:
        """Seconds of chips that computing what was cached would have taken, by their kind."""
        return dict(self._saved_s)

    def _count(self, now_s: float, counted: tuple[int, int, int]) -> None:
        second = int(now_s - self.began_s)
        if not self._lately or self._lately[-1][0] != second:
            self._lately.append((second, [0, 0, 0]))
        last = self._lately[-1][1]
        for i, more in enumerate(counted):
            last[i] += more


def _value(at: int) -> float:
    """The middle of a bin, in seconds."""
    return _LEAST_S * exp((at - 0.5) * _WIDTH)
