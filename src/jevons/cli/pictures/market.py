"""Pictures of who sells silicon for inference, and of what it takes to leave a vendor; see `jevons demand`."""

from __future__ import annotations

from collections.abc import Sequence

from jevons.charts import Axis, Band, Line, Picture, Span, Swing, lines, spans, tornado
from jevons.cli.demand_tables import figure
from jevons.econ.draws import Interval
from jevons.econ.market import VENDORS, Market
from jevons.econ.switching import Switching
from jevons.econ.tornado import Swing as Swung

_MOST_SWINGS = 12
_LEAST = 0.005  # of the base: swings below are not shown
_RANGE = "● base; bar: 9 of 10 draws."
_YEAR = Axis(label="year")


def market(found: Market) -> list[Picture]:
    last = found.years[-1]
    usd = Axis(label=f"NVIDIA's inference silicon in {last.year}", unit="$ billion a year")
    base = last.vendors["NVIDIA"].usd.base / 1e9
    return [
        _vendors(found),
        _custom(found),
        _cases(found),
        swings("What matters for it", usd, base, found.matters, 1e-9),
    ]


def _vendors(found: Market) -> Picture:
    years = [year.year for year in found.years]
    series = [_fan(name, years, [year.vendors[name].usd.scaled(1e-9) for year in found.years]) for name in VENDORS]
    axes = (_YEAR, Axis(label="silicon for inference, its yearly cost", unit="$ billion", is_log=True))
    return lines("Who sells it", axes, series, about="Lines: base. Bands: 9 of 10 draws.")


def _custom(found: Market) -> Picture:
    years = [year.year for year in found.years]
    shown = {
        "of hyperscalers' tokens": [year.custom_of_hyperscalers for year in found.years],
        "of all tokens": [year.custom_tokens for year in found.years],
        "of all chips": [year.custom_units for year in found.years],
        "of all dollars": [year.custom_revenue for year in found.years],
    }
    series = [Line(name=name, x=years, y=[i.base for i in each]) for name, each in shown.items()]
    axes = (_YEAR, Axis(label="custom silicon's share", is_share=True, low=0.0, high=1.0))
    return lines("Four shares that are often mixed up", axes, series, about="All at base; jevons demand tells ranges.")


def _cases(found: Market) -> Picture:
    last = found.years[-1].year
    rows = [_span(f"{case.custom_share_2028:.0%} in 2028", case.nvidia_usd.scaled(1e-9)) for case in found.cases]
    axis = Axis(label=f"NVIDIA's inference silicon in {last}", unit="$ billion a year", low=0.0)
    return spans("By custom silicon's share of hyperscalers' tokens", axis, rows, about=_RANGE)


def switching(found: Switching) -> list[Picture]:
    layers = [_span(layer.name.strip(), layer.usd.scaled(1e-6)) for layer in (*found.layers, found.with_neutral)]
    axis = Axis(label="once", unit="$ million", is_log=True)
    title = f"To leave {found.chips:,} {found.chip}, layer by layer"
    return [spans(title, axis, layers, about=_RANGE), *_matters(found), *_mixed(found)]


def _matters(found: Switching) -> list[Picture]:
    even = found.break_even
    if even is None:
        return []
    tokens = Axis(label="output tokens a year, from which a chip of one's own pays", unit="trillion")
    base = even.tokens_per_year.base / 1e12
    return [swings("What matters for a chip of one's own", tokens, base, even.matters, 1e-12)]


def _mixed(found: Switching) -> list[Picture]:
    if found.mixed is None:
        return []
    both = (found.mixed.single, found.mixed.mixed)
    rows = [_span(f"{fleet.title}, {' and '.join(fleet.vendors)}", fleet.usd_per_mtok) for fleet in both]
    axis = Axis(label="a million output tokens, which pay for all", unit="$", low=0.0)
    return [spans("One vendor's fleet and a mixed one, by the twin", axis, rows, about=_RANGE)]


def swings(title: str, axis: Axis, base: float, matters: Sequence[Swung], times: float = 1.0) -> Picture:
    """A tornado of results in another unit, so many times what they are."""
    shown = [
        Swing(
            name=swing.name.replace("_", " "),
            low=figure(swing.low),
            high=figure(swing.high),
            at_low=times * swing.at_low,
            at_high=times * swing.at_high,
        )
        for swing in matters
        if times * swing.width > _LEAST * abs(base)
    ]
    return tornado(title, axis, base, shown[:_MOST_SWINGS])


def _fan(name: str, years: Sequence[int], each: Sequence[Interval]) -> Line:
    band = Band([interval.low for interval in each], [interval.high for interval in each])
    return Line(name=name, x=years, y=[interval.base for interval in each], bands=[band])


def _span(name: str, interval: Interval) -> Span:
    return Span(name=name, low=interval.low, base=interval.base, high=interval.high)
