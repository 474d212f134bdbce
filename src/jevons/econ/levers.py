"""What makes a task cheaper, part by part: each can be left out to see what it does.

A lever reaches a share of what is spent, growing evenly from nothing in the first year to its reach in the last; there
it multiplies what a task takes. Factors are over the first year's, shapes (years, draws).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from jevons.base.compiled import Reals
from jevons.econ.demand import Course
from jevons.econ.draws import Amount

Values: TypeAlias = Mapping[str, Amount]  # of parameters by name: numbers, or arrays over draws
Lever: TypeAlias = Callable[[Values, Reals], Course]  # of the years since the first, shape (years, 1)


def row(amount: Amount) -> Reals:
    """A parameter beside a column of years."""
    return np.atleast_1d(np.asarray(amount, dtype=np.float64))[np.newaxis, :]


def ramp(since: Reals, reach: Reals) -> Reals:
    """Evenly from 0 in the first year to `reach` in the last."""
    return np.asarray(reach * since / since.max(), dtype=np.float64)


def _cheaper(factor: Reals) -> Course:
    """A task takes so much less of chips, and of energy and money with them."""
    return Course(cost=factor, chips=factor, energy=factor, tokens=np.ones_like(factor))


def hardware(of: Values, since: Reals) -> Course:
    """Vera Rubin NVL72 in place of GB300 NVL72, as old chips reach their end of life.

    How much more it serves hangs on the interactivity: a gain in tokens/s/MW for each of three kinds of service,
    weighed by what is spent on them. Per chip it is that times the power of a chip, per dollar that over the price of
    its hour.
    """
    mid, high = row(of["mid_interactivity_share"]), row(of["high_interactivity_share"])
    shares = (1.0 - mid - high, mid, high)
    gains = (row(of[f"rubin_gain_{which}_interactivity"]) for which in ("low", "mid", "high"))
    per_token = sum(share / gain for share, gain in zip(shares, gains, strict=True))
    watts, dollars = row(of["rubin_power_ratio"]), row(of["rubin_hour_ratio"])
    share = np.clip(since / row(of["life_years"]), 0.0, 1.0)
    energy = 1.0 - share * (1.0 - per_token)
    chips = 1.0 - share * (1.0 - per_token / watts)
    cost = 1.0 - share * (1.0 - per_token / watts * dollars)
    return Course(cost=cost, chips=chips, energy=energy, tokens=np.ones_like(cost))


def reuse(of: Values, since: Reals) -> Course:
    """Prompts' KV is found again in chips' memory: requests go where it lies."""
    return _cheaper(1.0 - ramp(since, row(of["reuse_reach"])) * (1.0 - row(of["reuse_cost_factor"])))


def tiering(of: Values, since: Reals) -> Course:
    """Memory below the chips keeps KV that theirs has no room for: fewer chips serve as many, and it must be paid.

    Beside placement: the factor is of chips with KV-aware placement both times. Nobody buys memory that costs more than
    the chips it saves.
    """
    chips = row(of["tiering_chip_factor"])
    paid = chips * (1.0 + row(of["tiering_memory_cost"]))
    reached = ramp(since, row(of["tiering_reach"])) * (paid < 1.0)
    fewer = 1.0 - reached * (1.0 - chips)
    cost = 1.0 - reached * (1.0 - paid)
    return Course(cost=cost, chips=fewer, energy=fewer, tokens=np.ones_like(cost))


def compression(of: Values, since: Reals) -> Course:
    """Answers take fewer tokens (OPSDC, now CRISP): by the mix of easy and hard tasks, of mathematics alone."""
    hard = row(of["compression_hard_share"])
    saved = (1.0 - hard) * row(of["compression_easy"]) + hard * row(of["compression_hard"])
    reached = ramp(since, row(of["compression_reach"])) * saved
    factor = 1.0 - reached * row(of["answer_cost_share"])
    return Course(cost=factor, chips=factor, energy=factor, tokens=1.0 - reached)


def sparsity(of: Values, since: Reals) -> Course:
    """Dense models give way to mixtures of experts of the same size: arithmetic shrinks, memory does not."""
    factor = 1.0 - row(of["flop_bound_cost_share"]) * (1.0 - row(of["active_fraction"]))
    return _cheaper(1.0 - ramp(since, row(of["sparsity_reach"])) * (1.0 - factor))


def small_models(of: Values, since: Reals) -> Course:
    """Small models take over what they do well enough."""
    return _cheaper(1.0 - ramp(since, row(of["small_model_reach"])) * (1.0 - row(of["small_model_price"])))


NAMED: dict[str, Lever] = {
    "hardware": hardware,
    "reuse": reuse,
    "tiering": tiering,
    "compression": compression,
    "sparsity": sparsity,
    "small_models": small_models,
}
OTHER = "other"  # what is left of the published fall: later generations, software, margins
LEVERS = (*NAMED, OTHER)


def other(of: Values, since: Reals) -> Course:
    """What the named levers together leave of the published yearly fall of a token's cost; none, where they exceed it.

    Counted over all named levers, those left out as well: leaving one out loses what it gives.
    """
    published = row(of["hardware_cost_decline_per_year"]) ** -since
    named = together([lever(of, since) for lever in NAMED.values()], since)
    return _cheaper(np.minimum(1.0, published / named.cost))


def together(courses: Sequence[Course], since: Reals) -> Course:
    """All of them at once: factors multiply."""
    one = np.ones_like(since)

    def product(name: str) -> Reals:
        total = one
        for course in courses:
            total = total * getattr(course, name)
        return total

    return Course(**{name: product(name) for name in Course.__struct_fields__})


def course(of: Values, since: Reals, levers: Sequence[str]) -> Course:
    """What a task takes with these levers, over the first year's."""
    return together([other(of, since) if name == OTHER else NAMED[name](of, since) for name in levers], since)
