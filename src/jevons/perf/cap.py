"""Chips that may draw less than they could: arithmetic slows down, memory does not.

Dynamic power goes with the cube of the clock, for the voltage follows it, and what a chip draws idle cannot be saved:

    clock = ((cap − idle) / (1 − idle))^(1/3)      both as shares of the TDP

An H100 of 700 W held to 350 computes prompts at 0.74 of its clock by this, so in 1.34 × the time where arithmetic is
all of it. Splitwise measured 1.30 × for prompts and no change for tokens (arXiv 2311.18677, its profiles at 8f99e7d):
decodes wait for memory, whose clock is left alone.
"""

from __future__ import annotations

import msgspec

from jevons.perf.energy import GUESS_IDLE_SHARE
from jevons.perf.roofline import Engine


def clock_share(cap: float) -> float:
    """Of the full clock, for chips that may draw `cap` of their TDP, above what they draw idle."""
    assert cap > GUESS_IDLE_SHARE, "who sets a cap knows that idle chips draw something"
    return float(min(1.0, (cap - GUESS_IDLE_SHARE) / (1.0 - GUESS_IDLE_SHARE)) ** (1 / 3))


def capped(engine: Engine, power_w: float) -> Engine:
    """The same on chips that may draw so many watts each. Their TDP is known."""
    assert engine.chip.tdp_w is not None, "who sets a cap knows the TDP"
    clock = clock_share(power_w / engine.chip.tdp_w.value)
    shares = engine.shares
    slower = {"compute": shares.compute * clock, "attention": shares.attention * clock}
    return msgspec.structs.replace(engine, shares=msgspec.structs.replace(shares, **slower))
