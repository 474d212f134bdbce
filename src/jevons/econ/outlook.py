"""Demand year by year: the parts of `demand` and `levers` together, with ranges, the flip and what matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.base.errors import UnknownFigure
from jevons.econ.curve import GUESS_INTERACTIVITY, Served, gains
from jevons.econ.demand import (
    LEAST_ELASTICITY,
    Course,
    Limits,
    Outcome,
    Wants,
    flip,
    most_elasticity,
    outcome,
    taken_back,
    trend_without_price,
)
from jevons.econ.draws import Amount, Draws, Interval, bases, high_of, interval, low_of
from jevons.econ.levers import Values, course, row
from jevons.econ.tornado import Swing, tornado
from jevons.facts.demand import DemandFigures
from jevons.facts.economics import Bounds, Economics
from jevons.facts.hardware import Chip, Confidence, Figure
from jevons.facts.llm import Llm

Reading = Literal["sheet", "perf", "between", "vendor"]
Limit = Literal["chips", "power"]
_OWN = (
    "price_elasticity",
    "token_demand_growth_per_year",
    "hardware_cost_decline_per_year",
    "life_years",
    "utilisation",
    "custom_silicon_share_2028",
    "wacc",
    "capex_overhead",
)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Which years, which levers, which limits."""

    first: int
    last: int
    levers: tuple[str, ...]
    limits: tuple[Limit, ...]

    @property
    def since(self) -> Reals:
        """Years since the first, shape (years, 1)."""
        return np.arange(self.last - self.first + 1, dtype=np.float64)[:, np.newaxis]


class Year(msgspec.Struct, frozen=True, kw_only=True):
    """Over the first year's, but for shares."""

    year: int
    price: Interval  # cost of a task
    paid: Interval  # for a task: above its cost where limits bind
    tasks: Interval
    tokens: Interval  # of answers
    spend: Interval
    rent_share: Interval  # of the spend, above cost
    limited_by_chips: float  # share of draws
    limited_by_power: float


class LeverEffect(msgspec.Struct, frozen=True, kw_only=True):
    """What one lever does in the last year: all levers, over all but this one."""

    name: str
    price: Interval
    tasks: Interval
    spend: Interval


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """The rebound in the last year: shares of what all levers save that more use takes back, were there no limits.

    Under one, what is used is the limit's size whatever is saved: all is taken back, and says nothing of demand.
    """

    money: Interval  # at cost
    energy: Interval
    money_above_one: float  # share of draws, in which more is spent than without the levers
    energy_above_one: float


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What `jevons demand` finds."""

    title: str
    setup: Setup
    draws: Draws
    years: list[Year]
    levers: list[LeverEffect]
    flip: float | None  # ε at which the levers begin to raise spend, without limits
    flip_within_limits: float | None  # ... with them; None: at no ε
    limits_raise_spend: bool | None  # where there is no flip: what cheaper tokens do at every ε
    above_one: float  # share of draws with an elasticity above 1
    rebound: Taken | None  # None: no lever
    adoption_per_year: Interval  # growth left when falling prices are taken out of the published one
    most_elasticity: float | None  # above which that would be below 1
    matters: list[Swing]  # of the last year's spend
    parameters: dict[str, Figure]


def parameters(
    economics: Economics, demand: DemandFigures, chips: Mapping[str, Chip], served: Served, reading: Reading
) -> dict[str, Figure]:
    """All figures that an outlook hangs on, by name; those of the hardware curve by whom one believes.

    Args:
        served: the model for which chips are compared, and that dense models give way to.

    Raises:
        UnknownFigure: a chip's figure is missing, or one of the chips cannot serve so fast.
    """
    found = {name: getattr(economics, name) for name in _OWN} | demand.figures()
    for name in ("compression_easy", "compression_hard"):
        found[name] = middle(getattr(economics, name))
    old, new = chips["gb300"], chips["rubin"]
    watts, hours = ratio(new, old, "all_in_w"), ratio(new, old, "own_usd_per_hour")
    for which, chip_gain in gains(served, new, old).items():
        name = f"rubin_gain_{which}_interactivity"
        by: dict[Reading, Figure] = {
            "sheet": sheet_gain(old, new),
            "perf": predicted(chip_gain, watts.value, GUESS_INTERACTIVITY[which]),
            "vendor": getattr(economics, name),
        }
        found[name] = believed(by, reading)
    found["active_fraction"] = active_fraction(served.model)
    return found | {"rubin_power_ratio": watts, "rubin_hour_ratio": hours}


def active_fraction(model: Llm) -> Figure:
    """Share of a mixture's parameters that a token uses; 1 of a dense model."""
    active = model.params if model.active_params is None else model.active_params
    return Figure(value=active / model.params, source=model.source, confidence=Confidence.DERIVED)


def middle(bounds: Bounds) -> Figure:
    """Bounds as a figure with its base in the middle: for a mean over many tasks, which lies somewhere between."""
    return Figure(
        value=0.5 * (bounds.low + bounds.high),
        low=bounds.low,
        high=bounds.high,
        source=bounds.source,
        confidence=Confidence.DERIVED,
        note=f"middle of what was published; {bounds.note}",
    )


def ratio(new: Chip, old: Chip, name: str) -> Figure:
    """One chip's figure over another's, with the range of both. Raises UnknownFigure."""
    over, under = getattr(new, name), getattr(old, name)
    if over is None or under is None:
        raise UnknownFigure(f"chips: {name} of the chips that are compared")
    return Figure(
        value=over.value / under.value,
        low=low_of(over) / high_of(under),
        high=high_of(over) / low_of(under),
        source=over.source,
        confidence=Confidence.DERIVED,
        note=f"{name} of the new chip over the old one's",
    )


def sheet_gain(old: Chip, new: Chip) -> Figure:
    """Tokens/s/MW that data sheets alone promise: by memory bandwidth, FP8 and FP4 rates over power, least to most."""
    watts = ratio(new, old, "all_in_w").value
    gains = sorted(ratio(new, old, name).value / watts for name in ("memory_bytes_per_s", "fp8_flops", "fp4_flops"))
    note = "memory bandwidth, dense FP8 and dense FP4 of Rubin over GB300's, over power"
    return Figure(value=gains[1], low=gains[0], high=gains[2], source="DER", confidence=Confidence.DERIVED, note=note)


def believed(figures: Mapping[Reading, Figure], reading: Reading) -> Figure:
    """A gain by whom one believes. Between: the middle, by ratio, of our prediction and the vendor's chart.

    It ranges over all that data sheets, our prediction and the chart say.
    """
    if reading != "between":
        return figures[reading]
    ends = [end for figure in figures.values() for end in (low_of(figure), high_of(figure))]
    return Figure(
        value=float(np.sqrt(figures["perf"].value * figures["vendor"].value)),
        low=min(ends),
        high=max(ends),
        source=figures["vendor"].source,
        confidence=Confidence.ASSUMED,
        note="the middle, by ratio, of what perf predicts and the vendor's chart; it ranges over both and data sheets",
    )


def predicted(chip_gain: float, watts: float, speed: float) -> Figure:
    """Tokens/s/MW by our own model of both chips, decoding at so many tokens/s for each user."""
    note = f"perf, for users of {speed:.0f} tokens/s each, with shares of data sheets that all chips reach alike"
    return Figure(value=chip_gain / watts, source="OURS", confidence=Confidence.DERIVED, note=note)


def rehearse(of: Values, setup: Setup, levers: Sequence[str] | None = None) -> Outcome:
    """One course of the years for each draw of the parameters, shape (years, draws)."""
    since = setup.since
    wants = Wants(trend=adoption(of) ** since, elasticity=row(of["price_elasticity"]))
    way = course(of, since, setup.levers if levers is None else levers)
    return outcome(wants, _shaped(way), limits_of(of, setup))


def adoption(of: Values) -> Reals:
    """Growth a year of what would be wanted if prices stood still."""
    return trend_without_price(
        row(of["token_demand_growth_per_year"]),
        row(of["trend_price_decline_per_year"]),
        row(of["price_elasticity"]),
    )


def limits_of(of: Values, setup: Setup) -> Limits:
    """What can be served: the first year's reserve, growing with chips and power."""
    reserve = np.maximum(1.0, row(of["most_utilisation"]) / row(of["utilisation"]))
    endless = np.full((len(setup.since), 1), np.inf)

    def growing(limit: Limit, name: str) -> Reals:
        return reserve * row(of[name]) ** setup.since if limit in setup.limits else endless

    return Limits(
        chips=growing("chips", "supply_growth_per_year"),
        power=growing("power", "power_growth_per_year"),
        most_markup=row(of["most_markup"]),
    )


def _shaped(way: Course) -> Course:
    """All four as wide as the widest."""
    names = Course.__struct_fields__
    wide = np.broadcast_arrays(*(getattr(way, name) for name in names))
    return Course(**dict(zip(names, wide, strict=True)))


def look_ahead(title: str, figures: Mapping[str, Figure], setup: Setup, draws: Draws) -> Outlook:
    """The whole outlook; the same seed, the same numbers."""
    drawn: Values = {name: draws.of(name, figure) for name, figure in figures.items()}
    base: Values = bases(figures)
    samples, plain = rehearse(drawn, setup), rehearse(base, setup)
    within = None if not setup.limits else flip(lambda e: _spend_change(base, setup, e))
    return Outlook(
        title=title,
        setup=setup,
        draws=draws,
        years=[_year(setup.first + i, i, samples, plain) for i in range(len(setup.since))],
        levers=[_effect(name, drawn, base, setup) for name in setup.levers],
        flip=flip(lambda e: _spend_change(base, msgspec.structs.replace(setup, limits=()), e)),
        flip_within_limits=within,
        limits_raise_spend=None if within is not None else _spend_change(base, setup, LEAST_ELASTICITY) > 0.0,
        above_one=float(np.mean(np.asarray(drawn["price_elasticity"]) > 1.0)),
        rebound=_taken(drawn, base, msgspec.structs.replace(setup, limits=())) if setup.levers else None,
        adoption_per_year=interval(adoption(drawn)[0], float(adoption(base)[0, 0])),
        most_elasticity=most_elasticity(
            figures["token_demand_growth_per_year"].value, figures["trend_price_decline_per_year"].value
        ),
        matters=tornado(lambda of: float(rehearse(of, setup).spend[-1, 0]), figures),
        parameters=dict(figures),
    )


def _spend_change(base: Values, setup: Setup, elasticity: float) -> float:
    """What all levers together do to the last year's spend, at an elasticity, the adoption held: in logarithms.

    The adoption is that of the base elasticity: what is asked is how buyers answer, not how the past is to be read.
    """
    trend = adoption(base) ** setup.since
    wants = Wants(trend=trend, elasticity=np.full((1, 1), elasticity))
    limits = limits_of(base, setup)
    with_, without = (
        outcome(wants, _shaped(course(base, setup.since, levers)), limits).spend[-1, 0] for levers in (setup.levers, ())
    )
    return float(np.log(with_ / without))


def _taken(drawn: Values, base: Values, setup: Setup) -> Taken:
    def shares(of: Values) -> tuple[Reals, Reals]:
        volume = rehearse(of, setup).volume[-1] / rehearse(of, setup, ()).volume[-1]
        way = _shaped(course(of, setup.since, setup.levers))
        money, energy = (taken_back(*np.broadcast_arrays(each[-1], volume)) for each in (way.cost, way.energy))
        return money, energy

    wide, plain = shares(drawn), shares(base)
    money, energy = (interval(a, float(b[0])) for a, b in zip(wide, plain, strict=True))
    above = [float(np.mean(each > 1.0)) for each in wide]
    return Taken(money=money, energy=energy, money_above_one=above[0], energy_above_one=above[1])


def _year(year: int, i: int, samples: Outcome, plain: Outcome) -> Year:
    def of(name: str) -> Interval:
        return interval(getattr(samples, name)[i], float(getattr(plain, name)[i, 0]))

    return Year(
        year=year,
        price=of("cost"),
        paid=of("paid"),
        tasks=of("volume"),
        tokens=of("tokens"),
        spend=of("spend"),
        rent_share=interval(samples.rent[i] / samples.spend[i], float(plain.rent[i, 0] / plain.spend[i, 0])),
        limited_by_chips=float(samples.by_chips[i].mean()),
        limited_by_power=float(samples.by_power[i].mean()),
    )


def _effect(name: str, drawn: Values, base: Values, setup: Setup) -> LeverEffect:
    rest = [lever for lever in setup.levers if lever != name]

    def change(of: Values) -> dict[str, Amount]:
        all_of, fewer = rehearse(of, setup), rehearse(of, setup, rest)
        return {key: getattr(all_of, key)[-1] / getattr(fewer, key)[-1] for key in ("paid", "volume", "spend")}

    wide, plain = change(drawn), change(base)
    paid, volume, spend = (interval(wide[key], float(np.asarray(plain[key])[0])) for key in ("paid", "volume", "spend"))
    return LeverEffect(name=name, price=paid, tasks=volume, spend=spend)
