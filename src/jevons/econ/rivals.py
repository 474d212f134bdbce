"""How sure it is that one choice is cheaper than others, and what would make another the cheapest.

Prices are drawn between their bounds, and so are the step times of each kind of chip: a fleet whose steps take 1.2 × as
long needs 1.2 × the instances. What two choices share is drawn alike for both.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.econ.bill import STEP_TIME, step_time
from jevons.econ.cost import ChipHour
from jevons.econ.draws import Amount, Draws, Interval, Result, bases, high_of, interval, low_of
from jevons.facts.hardware import Figure

_WIDEST = 8.0  # a flip is looked for up to so many times a figure, and down to the same part of it
_POINTS = 801  # between: 0.5 % apart


class Rival(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet as far as its price goes."""

    name: str
    chips: dict[str, int]  # of each kind those that are paid
    fixed_usd_per_hour: float = 0.0  # electricity of those that are owned, memory tiers


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """An assumption, and where another choice becomes the cheapest."""

    figure: str
    base: float
    at: float
    to: str  # the choice that is cheapest then
    is_within: bool  # between the bounds of what is known


class Sureness(msgspec.Struct, frozen=True, kw_only=True):
    costs: list[Interval]  # of each choice, in their order
    cheapest_share: list[float]  # of draws in which each is the cheapest
    flips: list[Flip]  # nearest first


def usd_per_hour(rival: Rival, hours: Mapping[str, ChipHour], of: Mapping[str, Amount]) -> Amount:
    """Dollars, for values of all figures by name."""
    chips = (hours[chip].usd(of) * count * of[STEP_TIME + chip] for chip, count in rival.chips.items())
    return sum(chips, rival.fixed_usd_per_hour)


def figures_of(hours: Mapping[str, ChipHour], errors: Mapping[str, float | None]) -> dict[str, Figure]:
    """All that prices of fleets of these chips hang on.

    Args:
        errors: of the throughput of each kind of chip, at p90; None where nothing of its kind was measured.
    """
    found: dict[str, Figure] = {}
    for chip, hour in hours.items():
        found |= hour.figures
        found[STEP_TIME + chip] = step_time(errors[chip])
    return found


def sureness(choices: Mapping[str, Result], figures: Mapping[str, Figure], draws: Draws) -> Sureness:
    """Of the first choice, the cheapest at base figures, against the others."""
    drawn: dict[str, Amount] = {name: draws.of(name, figure) for name, figure in figures.items()}
    base = bases(figures)
    samples = [np.broadcast_to(cost(drawn), draws.count) for cost in choices.values()]
    winners = np.argmin(samples, axis=0)
    flips = [flip for name in figures if (flip := _flip(name, choices, figures)) is not None]
    return Sureness(
        costs=[interval(s, cost(base)) for s, cost in zip(samples, choices.values(), strict=True)],
        cheapest_share=[float((winners == at).mean()) for at in range(len(choices))],
        flips=sorted(flips, key=lambda flip: (abs(np.log(flip.at / flip.base)), flip.figure)),
    )


def _flip(name: str, choices: Mapping[str, Result], figures: Mapping[str, Figure]) -> Flip | None:
    """The value nearest to a figure's base at which another choice is cheaper, all others at their base."""
    figure = figures[name]
    factors: Reals = np.geomspace(1 / _WIDEST, _WIDEST, _POINTS)
    of = bases(figures) | {name: figure.value * factors}
    costs = np.array([np.broadcast_to(cost(of), _POINTS) for cost in choices.values()])
    lost = np.flatnonzero(costs.min(axis=0) < costs[0] * (1 - 1e-12))
    if not len(lost):
        return None
    at = lost[np.argmin(np.abs(np.log(factors[lost])))]
    value = float(figure.value * factors[at])
    within = low_of(figure) <= value <= high_of(figure)
    to = list(choices)[int(np.argmin(costs[:, at]))]
    return Flip(figure=name, base=figure.value, at=value, to=to, is_within=within)
