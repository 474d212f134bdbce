"""Iterations that are alike, as one event: how long so many take, and how many have begun.

Iteration k takes t0 + k t1 + k² t2, a parabola through the first, the middle and the last.
"""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import FLOAT, Records, compiled
from jevons.base.hub import view
from jevons.perf.pace import step_s

ITL_BINS = 2048
_ITL_LOW_S, _ITL_RATIO = 1e-6, 0.01  # bins of 1 % from a microsecond on


@compiled
def time_of(e: Records, steps: int) -> float:
    """Seconds of the first `steps` iterations of the event under way."""
    n = float(steps)
    return float(n * e.t0 + e.t1 * (n * (n - 1.0)) / 2.0 + e.t2 * ((n - 1.0) * n * (2.0 * n - 1.0)) / 6.0)


@compiled
def begun_by(e: Records, now_s: float) -> int:
    """Iterations of the event under way that have begun by then, at least one."""
    low, high = 1, e.steps
    while low < high:
        middle = (low + high) // 2
        if e.began_s + time_of(e, middle) > now_s:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def cut_off(e: Records, now_s: float) -> None:
    """A jump under way ends with the iteration that is under way now."""
    if e.steps > 1:
        e.steps = begun_by(e, now_s)
        e.ends_s = e.began_s + time_of(e, e.steps)


@compiled
def fit_jump(h: Records, e: Records) -> None:
    """How long each iteration takes of an event without prompts, from the first, which is known."""
    steps = e.steps
    if steps > 2:
        last = float(steps - 1)
        half = np.floor(last / 2.0)
        half_s = step_s(h, e.pace, 0.0, 0.0, e.decodes, e.context + e.decodes * half)
        last_s = step_s(h, e.pace, 0.0, 0.0, e.decodes, e.context + e.decodes * last)
        e.t2 = ((last_s - e.t0) / last - (half_s - e.t0) / half) / (last - half)
        e.t1 = (last_s - e.t0) / last - e.t2 * last
    elif steps == 2:
        e.t1 = step_s(h, e.pace, 0.0, 0.0, e.decodes, e.context + e.decodes) - e.t0


@compiled
def itl_s(at: int) -> float:
    """The middle of a bin of gaps, seconds."""
    return float(_ITL_LOW_S * np.exp((at + 0.5) * _ITL_RATIO))


@compiled
def count_gaps(h: Records, e: Records) -> None:
    """Each decode of the iterations just over waited as long as they took."""
    count_gap(h, time_of(e, e.steps) / e.steps, e.steps * e.decodes)


@compiled
def count_gap(h: Records, seconds: float, count: int) -> None:
    """So many tokens came so long after those before them."""
    at = int(np.log(max(seconds, _ITL_LOW_S) / _ITL_LOW_S) / _ITL_RATIO)
    view(h.itl, h.itl_n, FLOAT)[min(at, ITL_BINS - 1)] += count


@compiled
def count_gap_before(h: Records, e: Records, last_s: float) -> None:
    """Of one decode of the iterations just over, the token before the first of them came elsewhere, at `last_s`."""
    count_gap(h, time_of(e, e.steps) / e.steps, -1)
    count_gap(h, e.began_s + e.t0 - last_s, 1)
