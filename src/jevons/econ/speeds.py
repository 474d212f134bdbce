"""What a million tokens cost at which speed for each user, on one chip and on another.

How much cheaper a generation is, is no number but a curve: where users are slow, chips compare by their rates, and
where the older one comes to the end of what it can do, the newer one is cheaper by any factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.econ.bill import STEP_TIME, step_time
from jevons.econ.cost import ChipHour, usd_per_million_tokens
from jevons.econ.draws import Amount, Draws, Interval, bases
from jevons.facts.hardware import Figure
from jevons.perf.frontier import Point, at_least, rates_at

COMMON = f"{STEP_TIME}all chips"
# Of the variance of predictions' errors, what all chips have in common where they are predicted with the same shares of
# their data sheets: half. GUESS: what was held out does not tell them apart.
GUESS_COMMON = 0.5


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A model on one kind of chip."""

    chip: str
    points: list[Point]
    hour: ChipHour
    rate_p90_error: float | None

    def figures(self) -> dict[str, Figure]:
        """Its errors: those of its own, and those it has in common with others; unmeasured it has its own alone."""
        error = self.rate_p90_error
        if error is None:
            return self.hour.figures | {f"{STEP_TIME}{self.chip}": step_time(None)}
        own, common = (_part(error, part) for part in (1.0 - GUESS_COMMON, GUESS_COMMON))
        return self.hour.figures | {f"{STEP_TIME}{self.chip}": step_time(own), COMMON: step_time(common)}

    def usd_per_mtok(self, interactivity: float, of: Mapping[str, Amount]) -> Reals:
        """Infinite where it is not so fast. Steps that take longer slow users and chips alike."""
        longer = np.asarray(of[f"{STEP_TIME}{self.chip}"] * of.get(COMMON, 1.0), dtype=np.float64)
        rates = rates_at(self.points, interactivity * longer) / longer
        usd = np.broadcast_to(np.asarray(self.hour.usd(of), dtype=np.float64), rates.shape)
        found = np.full(rates.shape, np.inf)
        reached = rates > 0
        found[reached] = usd_per_million_tokens(usd_per_hour=usd[reached], tokens_per_s=rates[reached])
        return found


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What one chip offers at one speed; a million tokens at full load. None: it is not so fast."""

    mtok: Interval | None
    reach: float  # share of draws in which it is so fast
    chips: int | None  # that run one copy
    users: int | None  # of it
    rate: float | None  # tokens/s of one chip


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """All chips at one speed."""

    interactivity: float  # tokens/s for each user
    offers: dict[str, Offer]
    cheaper: dict[str, Interval | None]  # how many times the last chip is, than each other; None: not both are so fast


def prices_at(sides: Sequence[Side], speeds: Sequence[float], draws: Draws) -> list[Step]:
    """Prices at each speed; the last side beside each other.

    Draws of one name go up and down together for all sides, each as far as its own figure of that name goes.
    """
    values = [_values(side.figures(), draws) for side in sides]
    return [_step(sides, speed, values) for speed in speeds]


_Values = tuple[Mapping[str, Amount], Mapping[str, Amount]]  # of figures by name: at their base, and drawn


def _values(figures: Mapping[str, Figure], draws: Draws) -> _Values:
    return bases(figures), {name: draws.of(name, figure) for name, figure in figures.items()}


def _step(sides: Sequence[Side], speed: float, values: Sequence[_Values]) -> Step:
    costs = {
        side.chip: (float(side.usd_per_mtok(speed, base)), side.usd_per_mtok(speed, drawn))
        for side, (base, drawn) in zip(sides, values, strict=True)
    }
    last, last_drawn = costs[sides[-1].chip]
    cheaper: dict[str, Interval | None] = {}
    for side in sides[:-1]:
        theirs, theirs_drawn = costs[side.chip]
        both = np.isfinite(last_drawn)
        ratios = theirs_drawn[both] / last_drawn[both]
        cheaper[side.chip] = _interval(ratios, theirs / last) if np.isfinite([theirs, last]).all() else None
    return Step(
        interactivity=speed,
        offers={side.chip: _offer(side, speed, *costs[side.chip]) for side in sides},
        cheaper=cheaper,
    )


def _offer(side: Side, speed: float, cost: float, drawn: Reals) -> Offer:
    best, reach = at_least(side.points, speed), float(np.isfinite(drawn).mean())
    if best is None:
        return Offer(mtok=None, reach=reach, chips=None, users=None, rate=None)
    return Offer(mtok=_interval(drawn, cost), reach=reach, chips=best.group.chips, users=best.users, rate=best.rate)


def _part(p90_error: float, of_variance: float) -> float:
    """One of two independent factors whose product has such an error."""
    return float((1.0 + p90_error) ** np.sqrt(of_variance) - 1.0)


def _interval(samples: Reals, base: float) -> Interval:
    """Of what may be infinite: whole draws, none between two."""
    low, high = np.quantile(samples, (0.05, 0.95), method="nearest")
    return Interval(float(low), base, float(high))
