"""Pictures of `jevons demand`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jevons.charts import Axis, Band, Line, Picture, Span, lines, spans
from jevons.cli.demand_tables import Found
from jevons.cli.pictures.market import market, swings, switching
from jevons.econ.draws import Interval
from jevons.econ.outlook import Outlook, Year
from jevons.facts.hardware import Source


def pictures(found: Found, show: Sequence[str]) -> list[Picture]:
    """Args: `show`, the parts that the outlook names."""
    made: dict[str, Callable[[], list[Picture]]] = {
        "demand": lambda: _demand(found.demand),
        "market": lambda: market(found.market),
        "switching": lambda: switching(found.switching),
    }
    return [picture for name, make in made.items() if name in show for picture in make()]


def _demand(found: Outlook) -> list[Picture]:
    last = found.years[-1]
    limits = [_limits(found)] if found.setup.limits else []
    axis = Axis(label=f"spend in {last.year} over {found.setup.first}'s", unit="×")
    matters = swings("What matters most", axis, last.spend.base, found.matters)
    return [_fans(found), _spend(found), *limits, _levers(found), matters]


def notes(found: Outlook, sources: Mapping[str, Source]) -> list[str]:
    names = dict.fromkeys(f.source for f in found.parameters.values())
    titles = [f"{sources[name].title}, {sources[name].date}" if name in sources else name for name in names]
    return [
        f"A model, not a forecast: ranges hold 9 of 10 of {found.draws.count:,} draws of all parameters, seed "
        f"{found.draws.seed}; what the model leaves out is not in them.",
        f"Sources of its parameters: {'; '.join(titles)}.",
        "Levers: " + ", ".join(found.setup.levers) + ". Limits: " + (", ".join(found.setup.limits) or "none") + ".",
    ]


def _fans(found: Outlook) -> Picture:
    first = found.setup.first
    series = [
        _fan(found, "tasks", lambda year: year.tasks),
        _fan(found, "cost of a task", lambda year: year.price),
    ]
    axes = (Axis(label="year"), Axis(label=f"over {first}'s", unit="×", is_log=True))
    about = "Lines: all parameters at their base. Bands: 9 of 10 draws."
    return lines("What cheaper tokens do to demand", axes, series, about=about)


def _spend(found: Outlook) -> Picture:
    first = found.setup.first
    axes = (Axis(label="year"), Axis(label=f"spend over {first}'s", unit="×", is_log=True))
    flip = "" if found.flip is None else f" Cheaper tokens raise it from a price elasticity of {found.flip:.2f} on,"
    about = f"Band: 9 of 10 draws.{flip}" + (f" which {found.above_one:.0%} of draws are above." if flip else "")
    return lines("What is spent", axes, [_fan(found, "spend", lambda year: year.spend)], about=about)


def _fan(found: Outlook, name: str, of: Callable[[Year], Interval]) -> Line:
    years = [year.year for year in found.years]
    each = [of(year) for year in found.years]
    band = Band([interval.low for interval in each], [interval.high for interval in each])
    return Line(name=name, x=years, y=[interval.base for interval in each], bands=[band])


def _limits(found: Outlook) -> Picture:
    years = [year.year for year in found.years]
    shown = {"power": [y.limited_by_power for y in found.years], "chips": [y.limited_by_chips for y in found.years]}
    series = [Line(name=name, x=years, y=shares) for name, shares in shown.items() if name in found.setup.limits]
    axes = (Axis(label="year"), Axis(label="share of draws", is_share=True, low=0.0, high=1.0))
    return lines(
        "How often demand meets a limit", axes, series, about="In the other draws everything asked for is served."
    )


def _levers(found: Outlook) -> Picture:
    last = found.years[-1].year
    rows = [
        Span(name=f"{lever.name.replace('_', ' ')}: {what}", low=i.low, base=i.base, high=i.high)
        for lever in found.levers
        for what, i in (("price paid", lever.price), ("tasks", lever.tasks), ("spend", lever.spend))
    ]
    axis = Axis(label=f"{last} with the lever, over without it", unit="×", is_log=True)
    return spans("What each lever does", axis, rows, about="Right of 1: more of it. ● base; bar: 9 of 10 draws.")
