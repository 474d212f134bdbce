"""Curves: shares of values below each value, and anything over anything, with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from jevons.charts.picture import Axis, Limit, Numbers, Picture, Style, plain, style
from jevons.charts.sheet import Drawn, Panel, Sheet

_SHARES = np.unique(np.concatenate([np.linspace(0.0, 1.0, 301), np.linspace(0.98, 1.0, 101)]))
_HEIGHT_PX = 320


class Band(msgspec.Struct, frozen=True):
    """Between which values something lies."""

    low: Numbers
    high: Numbers


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One series over x, and bands around it, widest first."""

    name: str
    x: Numbers
    y: Numbers
    bands: Sequence[Band] = ()
    has_markers: bool = True


def cdf(
    title: str,
    x: Axis,
    series: Mapping[str, Numbers],
    limits: Sequence[Limit] = (),
    about: str = "",
    of: str = "requests",
) -> Picture:
    """What share of values is at most so much. Series without values are left out.

    Args:
        series: samples by name; of any number, a picture holds 400 quantiles of each.
        limits: targets, on the axis of values.
        of: what is counted.
    """
    panel = Panel(Axis(label=f"share of {of}", is_share=True, low=0.0, high=1.0), _HEIGHT_PX)
    kept = {name: np.asarray(values, np.float64) for name, values in series.items() if len(values)}
    if x.is_log and x.low is None:
        x = msgspec.structs.replace(x, low=_floor(kept, limits))
    for i, (name, values) in enumerate(kept.items()):
        quantiles = np.quantile(values, _SHARES)
        shown = quantiles >= x.low if x.low is not None else np.ones(len(_SHARES), bool)
        at, shares = quantiles[shown], _SHARES[shown]
        panel.add(Drawn(x=at, y=shares, style=style(i), name=name, prefers=0.6, more={"hovertemplate": _told(x, name)}))
    return Sheet(x, [panel], limits).picture(title, about)


def lines(
    title: str, axes: tuple[Axis, Axis], series: Sequence[Line], limits: Sequence[Limit] = (), about: str = ""
) -> Picture:
    """Series over x, each with bands where it has some: fans, curves, what one setting does to another.

    Args:
        axes: x and y.
        limits: values of y to be told apart.
    """
    panel = Panel(axes[1], _HEIGHT_PX)
    panel.across = list(limits)
    for i, line in enumerate(series):
        for depth, band in enumerate(line.bands):
            panel.add(_area(line, band, style(i), 0.14 + 0.12 * depth))
    for i, line in enumerate(series):
        mode = "lines+markers" if line.has_markers and len(line.x) <= 40 else "lines"
        panel.add(Drawn(x=line.x, y=line.y, style=style(i), name=line.name, mode=mode, prefers=0.95))
    return Sheet(axes[0], [panel]).picture(title, about)


def _area(line: Line, band: Band, look: Style, alpha: float) -> Drawn:
    x = np.asarray(line.x, np.float64)
    around = np.concatenate([np.asarray(band.high, np.float64), np.asarray(band.low, np.float64)[::-1]])
    red, green, blue = (int(look.color[at : at + 2], 16) for at in (1, 3, 5))
    fill = f"rgba({red},{green},{blue},{alpha:.2f})"
    return Drawn(x=np.concatenate([x, x[::-1]]), y=around, style=look, fill=fill)


def _floor(series: Mapping[str, Numbers], limits: Sequence[Limit]) -> float:
    """Where a logarithmic axis begins: a thousandth of all values may be less, and zeros have no place on it."""
    least = [float(np.quantile(v[v > 0], 0.001)) for v in map(np.asarray, series.values()) if (v > 0).any()]
    most = max([float(np.max(values)) for values in series.values()] + [limit.at for limit in limits], default=1.0)
    return max(min([*least, *(limit.at for limit in limits)], default=0.1), most / 1e5, 1e-12) / 1.1


def _told(x: Axis, name: str) -> str:
    return f"{plain(name)}: %{{y:.1%}} at most %{{x:.3~s}}{plain(x.unit)}<extra></extra>"
