"""Kernels of KV events on their way: what changed in the pools reaches the router's index late, or never."""

from __future__ import annotations

from jevons.base.compiled import FLOAT, INT, SMALL, Records, compiled
from jevons.base.hub import view
from jevons.kv.entries import print_of
from jevons.kv.holders import drop_one, store_one


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
        h.heard += 1
        if abs(changes[at]) > h.engines_n or (h.loss > 0.0 and _chance(h.heard) < h.loss):
            at += 1  # of a tier, or lost
            continue
        if changes[at] > 0:
            store_one(h, changes[at] - 1, names[at])
        else:
            drop_one(h, -changes[at] - 1, names[at])
        at += 1
    if at == h.log_end:
        at = h.log_end = 0
    h.log_read = at
