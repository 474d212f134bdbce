"""How sure it is that one fleet is cheaper than others, and what would make another the cheapest.

Prices are drawn between their bounds, and so are the step times of each kind of chip: a fleet whose steps take 1.2 × as
long needs 1.2 × the instances. What two fleets share is drawn alike for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from jevons.econ.bill import step_time
from jevons.econ.cost import ChipHour
from jevons.econ.draws import Amount, Draws, Interval, bases, high_of, interval, low_of
from jevons.facts.hardware import Figure

_WIDEST = 8.0  # a flip is looked for up to so many times a figure, and down to the same part of it
_POINTS = 801  # between: 0.5 % apart


class Rival(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet as far as its price goes."""

    name: str
    chips: dict[str, int]  # of each kind those that are paid
    fixed_usd_per_hour: float = 0.0  # electricity of those that are owned, memory tiers


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """An assumption, and where another fleet becomes the cheapest."""

    figure: str
    base: float
    at: float
    to: str  # the fleet that is cheapest then
    is_within: bool  # between the bounds of what is known


class Sureness(msgspec.Struct, frozen=True, kw_only=True):
    usd_per_hour: list[Interval]  # of each rival
    cheapest_share: list[float]  # of draws in which each is the cheapest
    flips: list[Flip]  # nearest first


def usd_per_hour(rival: Rival, hours: Mapping[str, ChipHour], of: Mapping[str, Amount]) -> Amount:
    """Dollars, for values of all figures by name."""
    chips = (hours[chip].usd(of) * count * of[f"step_time/{chip}"] for chip, count in rival.chips.items())
    return sum(chips, rival.fixed_usd_per_hour)


def figures_of(hours: Mapping[str, ChipHour], errors: Mapping[str, float | None]) -> dict[str, Figure]:
    """All that prices of fleets of these chips hang on.

    Args:
        errors: of step times of each kind of chip, at p90; None where nothing of its kind was measured.
    """
    found: dict[str, Figure] = {}
    for chip, hour in hours.items():
        found |= hour.figures
        found[f"step_time/{chip}"] = step_time(errors[chip])
    return found


def sureness(
    rivals: Sequence[Rival], hours: Mapping[str, ChipHour], figures: Mapping[str, Figure], draws: Draws
) -> Sureness:
    """Of the first rival, the cheapest at base figures, against the others."""
    drawn = {name: draws.of(name, figure) for name, figure in figures.items()}
    base = bases(figures)
    samples = [np.broadcast_to(usd_per_hour(rival, hours, drawn), draws.count) for rival in rivals]
    winners = np.argmin(samples, axis=0)
    flips = [flip for name in figures if (flip := _flip(name, rivals, hours, figures)) is not None]
    return Sureness(
        usd_per_hour=[interval(s, usd_per_hour(rival, hours, base)) for s, rival in zip(samples, rivals, strict=True)],
        cheapest_share=[float((winners == at).mean()) for at in range(len(rivals))],
        flips=sorted(flips, key=lambda flip: (abs(np.log(flip.at / flip.base)), flip.figure)),
    )


def _flip(
    name: str, rivals: Sequence[Rival], hours: Mapping[str, ChipHour], figures: Mapping[str, Figure]
) -> Flip | None:
    """The value nearest to a figure's base at which another rival is cheaper, all others at their base."""
    figure = figures[name]
    factors = np.geomspace(1 / _WIDEST, _WIDEST, _POINTS)
    of = bases(figures) | {name: figure.value * factors}
    prices = np.array([np.broadcast_to(usd_per_hour(rival, hours, of), _POINTS) for rival in rivals])
    lost = np.flatnonzero(prices.min(axis=0) < prices[0] * (1 - 1e-12))
    if not len(lost):
        return None
    at = lost[np.argmin(np.abs(np.log(factors[lost])))]
    value = float(figure.value * factors[at])
    within = low_of(figure) <= value <= high_of(figure)
    to = rivals[int(np.argmin(prices[:, at]))].name
    return Flip(figure=name, base=figure.value, at=value, to=to, is_within=within)
