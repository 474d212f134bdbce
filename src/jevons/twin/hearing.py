"""Kernels of KV events on their way: what changed in the pools reaches the router's index late, by a replay, or never.

    log ──(lag)──▶ heard ──▶ index
            └──▶ lost: withheld, and with it all that its engine says from then on
                     └── the next event that is heard shows the gap: a replay is asked for, and brings it all in order

So does the live intake (`control.intake`), by the numbers of batches. The question and the answer travel as long as an
event does, each. A replay holds what was said before it was asked for: what is lost after that is in the next one.
Without replays, what is lost is never heard of, and all else at its time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Records, compiled
from jevons.base.hub import Hub, view
from jevons.kv.ahead import fetch_ahead
from jevons.kv.entries import print_of
from jevons.kv.holders import drop_one, store_one

WITHHELD = np.dtype(
    [
        ("name", np.int64),
        ("at_s", np.float64),
        ("change", np.int32),  # 1 stored, -1 removed
        ("is_lost", np.int32),
        ("next", np.int32),  # of the engine's; of one given back, the next such one
        ("unused", np.int32),
    ]
)
# What an engine has said from a gap on; empty: there is none.
GAP = np.dtype([("first", np.int32), ("last", np.int32), ("asked_s", np.float64)])  # infinite: no replay is asked for


def hearing_arrays(engines: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: of so many engines nothing is on its way."""
    gaps = np.zeros(engines, GAP)
    gaps["first"], gaps["asked_s"] = -1, np.inf
    arrays = {
        "withheld": np.zeros(0, WITHHELD),
        "gaps": gaps,
        "asked": np.zeros(engines, np.int32),  # engines whose replays are on their way, a ring in order of asking
    }
    numbers: dict[str, int | float] = {
        "heard": 0,  # KV events, and what was drawn before the first
        "withheld_used": 0,  # ever
        "withheld_spare": -1,  # the first of those given back
        "withheld_spares": 0,  # how many are
        "asked_first": 0,
        "asked_count": 0,
        # What a run does not change
        "lag_s": 0.0,  # until the router hears of a block
        "loss": 0.0,  # share of that which is lost on the way
        "replays": 0,
    }
    return arrays, numbers


@compiled
def unheard(h: Records) -> int:
    """Changes that may still reach the index."""
    return int(h.log_end - h.log_read + h.withheld_used - h.withheld_spares)


@compiled
def can_withhold(h: Records, more: int) -> bool:
    """Whether there is room for all that is on its way, and so many changes more."""
    return bool(not h.replays or h.withheld_n - h.withheld_used + h.withheld_spares >= h.log_end - h.log_read + more)


def grow_withheld(hub: Hub, more: int) -> None:
    """Room for all that is on its way, and so many changes more."""
    if not can_withhold(hub.record[0], more):
        hub.grow("withheld", 2 * len(hub["withheld"]) + int(hub.number("log_end") - hub.number("log_read")) + more)


@compiled
def _chance(number: int) -> float:
    """A number of [0, 1) drawn from a number, so that a replay draws the same."""
    return float((print_of(number) >> 11) & ((1 << 53) - 1)) / float(1 << 53)


@compiled
def hear(h: Records, now_s: float) -> None:
    """What changed in the pools long enough ago reaches the index."""
    if not h.uses_index:
        h.log_read = h.log_end = 0
        return
    names, changes = view(h.log_name, h.log_name_n, INT), view(h.log_change, h.log_change_n, SMALL)
    at_s, at = view(h.log_at_s, h.log_at_s_n, FLOAT), h.log_read
    while at < h.log_end and at_s[at] + h.lag_s <= now_s:
        fetch_ahead(h, names[: h.log_end], at)
        h.heard += 1
        if abs(changes[at]) <= h.engines_n:  # others are of a tier
            is_lost = h.loss > 0.0 and _chance(h.heard) < h.loss
            if h.replays:
                _take_in_order(h, changes[at], names[at], at_s[at], is_lost)
            elif not is_lost:
                _apply(h, changes[at], names[at])
        at += 1
    if at == h.log_end:
        at = h.log_end = 0
    h.log_read = at
    if h.replays:
        _take_replays(h, now_s)


@compiled
def _apply(h: Records, change: int, name: int) -> None:
    if change > 0:
        store_one(h, change - 1, name)
    else:
        drop_one(h, -change - 1, name)


@compiled
def _take_in_order(h: Records, change: int, name: int, at_s: float, is_lost: bool) -> None:
    """An event behind a gap waits for its replay."""
    _take_replays(h, at_s + h.lag_s)
    engine = abs(change) - 1
    gap = view(h.gaps, h.gaps_n, GAP)[engine]
    if gap.first < 0 and not is_lost:
        _apply(h, change, name)
        return
    _withhold(h, gap, (name, at_s, 1 if change > 0 else -1, is_lost))
    if not is_lost and gap.asked_s == np.inf:
        _ask(h, engine, at_s + h.lag_s)


@compiled
def _withhold(h: Records, gap: Records, event: tuple[int, float, int, bool]) -> None:
    withheld, at = view(h.withheld, h.withheld_n, WITHHELD), h.withheld_spare
    if at >= 0:
        h.withheld_spare = withheld[at].next
        h.withheld_spares -= 1
    else:
        at = h.withheld_used
        h.withheld_used += 1
    own = withheld[at]
    own.name, own.at_s, own.change, own.is_lost = event
    own.next = -1
    if gap.first < 0:
        gap.first = at
    else:
        withheld[gap.last].next = at
    gap.last = at


@compiled
def _ask(h: Records, engine: int, now_s: float) -> None:
    view(h.gaps, h.gaps_n, GAP)[engine].asked_s = now_s
    view(h.asked, h.asked_n, SMALL)[(h.asked_first + h.asked_count) % h.asked_n] = engine
    h.asked_count += 1


@compiled
def _take_replays(h: Records, now_s: float) -> None:
    """Those that have come by then."""
    while h.asked_count > 0:
        engine = view(h.asked, h.asked_n, SMALL)[h.asked_first]
        come_s = view(h.gaps, h.gaps_n, GAP)[engine].asked_s + 2.0 * h.lag_s
        if come_s > now_s:
            return
        h.asked_first = (h.asked_first + 1) % h.asked_n
        h.asked_count -= 1
        _take_replay(h, engine, come_s)


@compiled
def _take_replay(h: Records, engine: int, now_s: float) -> None:
    """A replay closes the gap, or brings what came before the next one; that is asked for if it shows by now."""
    gap, withheld = view(h.gaps, h.gaps_n, GAP)[engine], view(h.withheld, h.withheld_n, WITHHELD)
    at, asked_s = gap.first, gap.asked_s
    while at >= 0 and not (withheld[at].is_lost and withheld[at].at_s > asked_s):
        own = withheld[at]
        after = own.next
        _apply(h, own.change * (engine + 1), own.name)
        own.next, h.withheld_spare = h.withheld_spare, at
        h.withheld_spares += 1
        at = after
    gap.first, gap.asked_s = at, np.inf
    while at >= 0 and withheld[at].is_lost:
        at = withheld[at].next
    if at >= 0:
        _ask(h, engine, now_s)
