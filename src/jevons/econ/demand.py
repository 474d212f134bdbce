"""How many tokens are wanted, at which price, and what is spent on them: an adoption trend times price to the -ε.

Quantities are of *tasks*: what users want done, counted in the tokens it takes in the first year. Where a task takes
fewer tokens later, tokens are tasks times what one then takes. All are relative to the first year, and arrays of any
shape that broadcasts: years by draws, mostly.

    wanted  = trend · price^-ε                     price of a task
    volume  = min(wanted, what chips and power can give)
    paid    = (trend / volume)^(1/ε)               what is bid for them, at most so many times the cost; the rest waits
    spend   = paid · volume
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from jevons.base.compiled import Reals

LEAST_ELASTICITY, MOST_ELASTICITY = 0.02, 6.0  # between which a flip is looked for
_HALVINGS = 60
_MOST_LOG = 700.0


class Wants(msgspec.Struct, frozen=True, kw_only=True):
    """What decides demand."""

    trend: Reals  # tasks that would be wanted at the first year's price
    elasticity: Reals  # ε > 0


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What a task takes, over the first year's."""

    cost: Reals
    chips: Reals  # seconds of accelerators
    energy: Reals
    tokens: Reals


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What there is, over what the first year's volume uses. Infinite: no limit."""

    chips: Reals
    power: Reals
    most_markup: Reals  # on the cost, while it is short; 1: all wait at cost, infinite: the highest bids have it


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Over the first year's."""

    cost: Reals  # of a task
    wanted: Reals  # tasks, at that cost
    volume: Reals  # tasks that are done
    tokens: Reals
    paid: Reals  # for a task
    spend: Reals
    rent: Reals  # of the spend: above cost, to who has capacity while it is scarce
    by_chips: Reals  # 1 where chips are what limits the volume
    by_power: Reals


class Rebound(msgspec.Struct, frozen=True):
    """What follows when a task gets cheaper by a factor."""

    volume: float
    spend: float
    tokens: float  # if it is cheaper because it takes fewer tokens


def wanted(trend: Reals, price: Reals, elasticity: Reals) -> Reals:
    """Tasks wanted at a price. Never more at a higher one, for ε > 0."""
    return np.asarray(trend * price ** (-elasticity), dtype=np.float64)


def bid(trend: Reals, volume: Reals, elasticity: Reals) -> Reals:
    """The price at which no more than so much is wanted; e^700 where it would be beyond all numbers."""
    return np.asarray(np.exp(np.minimum((np.log(trend) - np.log(volume)) / elasticity, _MOST_LOG)), dtype=np.float64)


def rebound(cheaper: float, elasticity: float) -> Rebound:
    """Volume and spend over those before, when tasks get cheaper by a factor; nothing limits them.

    Spend rises if and only if ε > 1: it is cheaper^(ε - 1). Tokens follow the same power where the saving is in tokens
    for each task. At ε 1.11, 10 times cheaper: 12.9 times the volume, 1.29 times the spend.
    """
    volume = cheaper**elasticity
    return Rebound(volume=volume, spend=volume / cheaper, tokens=volume / cheaper)


def taken_back(each: Reals, volume: Reals) -> Reals:
    """Share of a saving that more use takes back: the rebound. Above 1 more is used than before, which is Jevons'.

    Had as much been done as before, 1 - each would be saved; each · volume is used.

    Args:
        each: what a task takes over what it took; 0 where it takes no less, for nothing is saved.
        volume: tasks over those before.
    """
    saved = 1.0 - each
    more = each * (volume - 1.0)
    return np.asarray(np.divide(more, saved, out=np.zeros_like(more), where=saved > 0.0), dtype=np.float64)


def trend_without_price(growth: Reals, price_fall: Reals, elasticity: Reals) -> Reals:
    """The part of a published yearly growth that falling prices do not explain.

    Args:
        growth: factor a year that was published.
        price_fall: factor a year by which prices fell meanwhile, or fall in the same forecast. 1: count none of it.
    """
    return np.asarray(growth / price_fall**elasticity, dtype=np.float64)


def most_elasticity(growth: float, price_fall: float) -> float | None:
    """The ε above which a published growth at falling prices would leave adoption shrinking; None at steady prices."""
    return float(np.log(growth) / np.log(price_fall)) if price_fall > 1.0 else None


def outcome(wants: Wants, course: Course, limits: Limits) -> Outcome:
    """What is done and spent. What is short is bid for, up to a markup; who is left over waits."""
    want = wanted(wants.trend, course.cost, wants.elasticity)
    most_chips, most_power = limits.chips / course.chips, limits.power / course.energy
    most = np.minimum(most_chips, most_power)
    is_short = most < want
    volume = np.where(is_short, most, want)
    bids = np.minimum(bid(wants.trend, most, wants.elasticity), course.cost * limits.most_markup)
    paid = np.where(is_short, np.maximum(bids, course.cost), course.cost)
    return Outcome(
        cost=course.cost,
        wanted=want,
        volume=volume,
        tokens=volume * course.tokens,
        paid=paid,
        spend=paid * volume,
        rent=(paid - course.cost) * volume,
        by_chips=np.where(is_short & (most_chips <= most_power), 1.0, 0.0),
        by_power=np.where(is_short & (most_power < most_chips), 1.0, 0.0),
    )


def flip(spend_change: Callable[[float], float]) -> float | None:
    """The ε at which cheaper tokens begin to raise spend.

    Args:
        spend_change: of an ε, what cheaper tokens do to spend: below 0, they lower it.

    Returns:
        None: there is none, spend does the same at every ε between 0.02 and 6 (as under a binding limit, where the
        volume cannot answer).
    """
    low, high = LEAST_ELASTICITY, MOST_ELASTICITY
    if not spend_change(low) < 0.0 < spend_change(high):
        return None
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if spend_change(middle) > 0.0 else (middle, high)
    return 0.5 * (low + high)
