"""Buy what is there, or wait for what comes: dollars a million tokens over some years, with what is paid meanwhile.

    buy now          own(now) for all months
    rent, then buy   rent(now) until the later chips are there, own(later) from then on
    wait             nothing until then, and nobody is served; own(later) from then on

An owned hour is an annuity: what a chip is worth at the end of its life is in it, what it would fetch before is not.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from jevons.econ.cost import ChipHour
from jevons.econ.draws import Amount, Draws, Interval, Result
from jevons.econ.rivals import Flip, Rival, sureness, usd_per_hour
from jevons.facts.hardware import Figure

DELAY = "delay_months"
BUY_NOW, RENT_THEN_BUY, DO_WITHOUT = "buy now", "rent, then buy", "wait"


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Two fleets that serve the same: one that can be had now, one that can be had later."""

    now: Rival
    later: Rival
    own: dict[str, ChipHour]  # of all chips of both
    rent: dict[str, ChipHour]  # of those of `now`; empty where nobody is known to rent them
    months: float  # that are looked at
    output_tokens_per_hour: float


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    usd_per_million_tokens: Interval
    cheapest_share: float  # of draws
    served: float  # share of all tokens that are asked for over the months


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Cheapest first, of those that serve all; who waits unserved is last."""

    now: str
    later: str
    months: float
    delay_months: Figure
    choices: list[Choice]
    flips: list[Flip]


def answer(waiting: Waiting, figures: Mapping[str, Figure], draws: Draws) -> Answer:
    """What each choice costs, how sure that is, and which assumption flips it.

    Args:
        figures: all that prices hang on, and `delay_months`.
    """
    base = {name: figure.value for name, figure in figures.items()}
    costs = _costs(waiting)
    alike = sorted((name for name in costs if name != DO_WITHOUT), key=lambda name: float(costs[name](base)))
    sure = sureness({name: costs[name] for name in alike}, figures, draws)
    without = sureness({DO_WITHOUT: costs[DO_WITHOUT]}, figures, draws)
    found = [
        Choice(name=name, usd_per_million_tokens=cost, cheapest_share=share, served=1.0)
        for name, cost, share in zip(alike, sure.costs, sure.cheapest_share, strict=True)
    ]
    unserved = min(figures[DELAY].value, waiting.months) / waiting.months
    found.append(
        Choice(name=DO_WITHOUT, usd_per_million_tokens=without.costs[0], cheapest_share=0.0, served=1.0 - unserved)
    )
    return Answer(
        now=waiting.now.name,
        later=waiting.later.name,
        months=waiting.months,
        delay_months=figures[DELAY],
        choices=found,
        flips=sure.flips,
    )


def _costs(waiting: Waiting) -> dict[str, Result]:
    """Dollars a million tokens that are served."""
    each = 1e6 / waiting.output_tokens_per_hour

    def owned(rival: Rival, of: Mapping[str, Amount]) -> Amount:
        return usd_per_hour(rival, waiting.own, of) * each

    def rented_first(of: Mapping[str, Amount]) -> Amount:
        share = np.minimum(of[DELAY], waiting.months) / waiting.months
        rent = usd_per_hour(waiting.now, waiting.rent, of) * each
        meanwhile: Amount = share * rent + (1.0 - share) * owned(waiting.later, of)
        return meanwhile

    costs: dict[str, Result] = {BUY_NOW: lambda of: owned(waiting.now, of)}
    if waiting.rent or not waiting.now.chips:
        costs[RENT_THEN_BUY] = rented_first
    return costs | {DO_WITHOUT: lambda of: owned(waiting.later, of)}
