"""The course of a rehearsal over its time, in bounded memory however long it is and however many requests it has.

Time is cut into 512 parts; when it runs out of them, neighbours are put together and each part is twice as long. What
rises and falls is kept as sums of its steps and of their times, which can be put together, and give its mean in each
part exactly.
"""

from __future__ import annotations

import msgspec
import numpy as np

from jevons.base.compiled import Ints, Reals, Records
from jevons.config.scenario import Scenario, Slo
from jevons.twin.spread import Distribution

PARTS = 512
_FIRST_PART_S = 2.0**-8
_NEAR = 9  # parts that shares are taken over
# What rises and falls; then what is counted where it happens.
_LEVELS = ("queued", "running", "output_tokens_per_s")
_COUNTS = ("output", "good", "prompt", "cached", "brought")


class Course(msgspec.Struct, frozen=True):
    """Means of the parts of a rehearsal's time, [parts] each. Shares are of prompt tokens, NaN where few are."""

    at_s: Reals  # the middle of each part
    queued: Reals  # requests
    running: Reals
    output_tokens_per_s: Reals
    good_per_s: Reals  # requests done that met the whole SLO
    hbm_share: Reals  # of requests done: tokens found in the chips' memory
    tier_share: Reals  # ... brought from below it


class Watch:
    """Takes a rehearsal's results, `twin.kernel.RESULT`, as they come: see `twin.run.OnResults`."""

    def __init__(self, slo: Slo) -> None:
        self._slo, self._part_s, self._last_s = slo, _FIRST_PART_S, 0.0
        self._steps = {name: np.zeros((2, PARTS)) for name in _LEVELS}  # sums of steps, and of steps × their times
        self._counts = {name: np.zeros(PARTS) for name in _COUNTS}
        self.seen = {name: Distribution() for name in ("TTFT", "TPOT", "queue")}  # seconds

    def add(self, results: Records) -> None:
        if not len(results):
            return
        r = results
        self._make_room(float(r["done_s"].max()))
        output, took_s = r["output"].astype(np.float64), r["done_s"] - r["first_s"]
        ttft_s, tpot_s = r["first_s"] - r["at_s"], took_s / np.maximum(output - 1, 1)
        self.seen["TTFT"].add(ttft_s)
        self.seen["TPOT"].add(tpot_s[output > 1])
        self.seen["queue"].add(r["admitted_s"] - r["at_s"])
        ones = np.ones(len(r))
        self._rise("queued", r["at_s"], r["admitted_s"], ones)
        self._rise("running", r["admitted_s"], r["done_s"], ones)
        # The first token comes at once, the others evenly.
        rate = (output - 1) / np.where(took_s > 0, took_s, 1.0)
        self._rise("output_tokens_per_s", r["first_s"], r["done_s"], np.where(took_s > 0, rate, 0.0))
        self._count("output", r["first_s"], np.where(took_s > 0, np.minimum(output, 1), output))
        is_good = (ttft_s <= self._slo.ttft_s) & (tpot_s <= self._slo.tpot_s)
        for name, amount in (("good", is_good), *((name, r[name]) for name in ("prompt", "cached", "brought"))):
            self._count(name, r["done_s"], amount)

    def course(self) -> Course:
        """Up to the part of the last answer."""
        count = int(self._last_s / self._part_s) + 1
        ends = self._part_s * np.arange(1.0, count + 1)
        level = {name: self._mean(name, ends) for name in _LEVELS}
        each = {name: counts[:count] for name, counts in self._counts.items()}
        # A few long prompts would make shares jump from part to part; the last ones tell of nothing but themselves.
        near = {name: _near(each[name]) for name in ("prompt", "cached", "brought")}
        prompt = np.where(near["prompt"] > 0.1 * near["prompt"].mean(), near["prompt"], np.nan)
        return Course(
            at_s=ends - self._part_s / 2,
            queued=level["queued"],
            running=level["running"],
            output_tokens_per_s=level["output_tokens_per_s"] + each["output"] / self._part_s,
            good_per_s=each["good"] / self._part_s,
            hbm_share=(near["cached"] - near["brought"]) / prompt,
            tier_share=near["brought"] / prompt,
        )

    def _mean(self, name: str, ends: Reals) -> Reals:
        steps, moments = self._steps[name][:, : len(ends)]
        before = np.concatenate([[0.0], np.cumsum(steps)[:-1]])
        return np.asarray(np.maximum(before + (steps * ends - moments) / self._part_s, 0.0))

    def _rise(self, name: str, from_s: Reals, until_s: Reals, by: Reals) -> None:
        sums = self._steps[name]
        for at_s, step in ((from_s, by), (until_s, -by)):
            at = self._part(at_s)
            sums[0] += np.bincount(at, step, PARTS)
            sums[1] += np.bincount(at, step * at_s, PARTS)

    def _count(self, name: str, at_s: Reals, amount: Reals) -> None:
        self._counts[name] += np.bincount(self._part(at_s), amount, PARTS)

    def _part(self, at_s: Reals) -> Ints:
        return np.asarray((at_s / self._part_s).astype(np.int64))

    def _make_room(self, last_s: float) -> None:
        self._last_s = max(self._last_s, last_s)
        while self._last_s >= PARTS * self._part_s:
            self._part_s *= 2
            self._steps = {name: np.array([_halved(row) for row in sums]) for name, sums in self._steps.items()}
            self._counts = {name: _halved(counts) for name, counts in self._counts.items()}


def _near(sums: Reals) -> Reals:
    """Of each part with those around it."""
    return np.convolve(sums, np.ones(_NEAR))[_NEAR // 2 : _NEAR // 2 + len(sums)]


def _halved(sums: Reals) -> Reals:
    return np.concatenate([sums.reshape(-1, 2).sum(axis=1), np.zeros(PARTS // 2)])


def instances_up(scenario: Scenario) -> list[tuple[float, int]]:
    """How many instances are up from when on, in order of time; the first from 0."""
    late = [group.up_after_s for group in scenario.fleet for _ in range(group.instances)]
    up = {i for i, up_after_s in enumerate(late) if up_after_s == 0}
    changes = [(up_after_s, True, {i}) for i, up_after_s in enumerate(late) if up_after_s > 0]
    for event in scenario.events:
        if event.what != "cap":
            changes.append((event.at_s, event.what == "up", set(range(event.first, event.first + event.count))))
    found = [(0.0, len(up))]
    for at_s, is_up, whom in sorted(changes, key=lambda change: change[0]):
        up = up | whom if is_up else up - whom
        found.append((at_s, len(up)))
    return found
