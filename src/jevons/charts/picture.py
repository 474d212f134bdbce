"""What a picture is, and what all of them share: axes with units, styles that differ in more than colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from jevons.base.units import si

Numbers = Sequence[float] | np.ndarray[Any, np.dtype[Any]]
Plain = dict[str, Any]  # a part of a figure, in Plotly's words


class Style(msgspec.Struct, frozen=True):
    """How one series looks. `ink` is for its name: dark enough to be read on white."""

    color: str
    ink: str
    dash: str
    symbol: str
    glyph: str  # the symbol in a text
    pattern: str


# Okabe and Ito's colours (2008), without yellow, which white swallows.
STYLES = (
    Style("#0072B2", "#005a8c", "solid", "circle", "●", ""),
    Style("#D55E00", "#a34800", "dash", "square-open", "□", "/"),
    Style("#009E73", "#006e50", "dot", "diamond", "◆", "x"),
    Style("#000000", "#000000", "dashdot", "x-thin-open", "✕", "."),
    Style("#CC79A7", "#964a74", "longdash", "triangle-up-open", "△", "\\"),
    Style("#56B4E9", "#1d719f", "longdashdot", "star", "★", "-"),
    Style("#E69F00", "#8a5f00", "2px,5px", "pentagon-open", "⬠", "+"),
)
INK, FAINT, GRID = "#222222", "#666666", "#e8e8e8"
FONT_PX, CHAR_PX, LINE_PX = 12, 7.4, 16  # characters as wide as in the widest of common fonts
# Of the plotting area: names are placed for a telephone, for half a screen and for a screen.
NARROW_PX, MIDDLE_PX, WIDE_PX = 270, 460, 710
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 58, 18, 30, 48


def style(i: int) -> Style:
    return STYLES[i % len(STYLES)]


# Ticks in a decade of a logarithmic axis that has more than so many decades.
_STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (2.5, (1.0,)),
    (1.5, (1.0, 3.0)),
    (1.0, (1.0, 2.0, 5.0)),
    (0.5, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (0.0, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)),
)


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """What is along an axis. Values are in `unit`; low and high are where it begins and ends, None: as its data do."""

    label: str
    unit: str = ""
    is_log: bool = False
    is_share: bool = False  # values of 0 to 1 read as percents
    low: float | None = None
    high: float | None = None

    @property
    def title(self) -> str:
        """With the unit, where ticks do not tell it."""
        return f"{self.label} ({self.unit})" if self.unit and not self.has_unit_ticks else self.label

    @property
    def has_unit_ticks(self) -> bool:
        """Ticks read '10 ms', '1 s': short ones, of a logarithmic axis."""
        return self.is_log and 0 < len(self.unit) <= 3


class Limit(msgspec.Struct, frozen=True):
    """A value that a picture shows as a line across, such as a target."""

    at: float
    name: str


class Names(msgspec.Struct, frozen=True):
    """What is written in a picture, placed for a plotting area at least so wide; annotations in Plotly's words."""

    width_px: int
    height_px: int  # of the whole picture at that width
    placed: list[Plain]


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: `data` and `layout` in Plotly's words, with names for windows of several widths, narrowest first."""

    title: str
    about: str  # a sentence below it: how to read it
    data: list[Plain]
    layout: Plain
    names: list[Names]


class Scale(msgspec.Struct, frozen=True):
    """An axis with both ends."""

    axis: Axis
    low: float
    high: float

    def place(self, values: Numbers) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Where values lie, as a share of the axis."""
        low, high = self.in_words(self.low), self.in_words(self.high)
        at = np.asarray(values, np.float64)
        if self.axis.is_log:
            at = np.log10(np.maximum(at, self.low * 1e-3))
        return np.asarray((at - low) / (high - low))

    def in_words(self, value: float) -> float:
        """As Plotly wants a place on this axis: of a logarithmic one the exponent."""
        return float(np.log10(max(value, 1e-300))) if self.axis.is_log else float(value)

    def told(self) -> Plain:
        """The axis in Plotly's words."""
        told: Plain = {
            "range": [figure(self.in_words(self.low)), figure(self.in_words(self.high))],
            "type": "log" if self.axis.is_log else "linear",
            "gridcolor": GRID,
            "zeroline": False,
            "linecolor": "#999999",
            "ticks": "outside",
            "ticklen": 4,
            "tickcolor": "#999999",
            "exponentformat": "SI",
            "tickangle": 0,
            "nticks": 7,
            "fixedrange": True,
        }
        if self.axis.is_share:
            told["tickformat"] = ".0%"
        if self.axis.is_log:
            ticks = self._ticks()
            unit = self.axis.unit if self.axis.has_unit_ticks else ""
            unit = "$" if self.axis.unit.startswith("$") else unit
            told |= {"tickmode": "array", "tickvals": ticks, "ticktext": [read(tick, unit) for tick in ticks]}
        return told

    def _ticks(self) -> list[float]:
        """Of a logarithmic axis: decades, every other one of many; 1, 2, 5 where there are few."""
        first, last = int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high)))
        decades = np.log10(self.high / self.low)
        steps = next(steps for most, steps in _STEPS if decades > most)
        every = 1 + (last - first) // 7
        found = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
        return [float(f"{each:.3g}") for each in found if self.low * 0.999 <= each <= self.high * 1.001]


def scale(axis: Axis, values: Sequence[Numbers]) -> Scale:
    """The axis from its data: to both ends of it and a little further, from 0 where that is near."""
    finite = [np.asarray(each, np.float64) for each in values]
    kept = np.concatenate([each[np.isfinite(each)] for each in finite]) if finite else np.zeros(0)
    if axis.is_log:
        kept = kept[kept > 0]
    if not len(kept):
        kept = np.array([1.0 if axis.is_log else 0.0])
    low, high = float(kept.min()), float(kept.max())
    low = low if axis.low is None else axis.low
    high = high if axis.high is None else axis.high
    if axis.is_log:
        pad = max((high / low) ** 0.04, 1.05)
        return Scale(axis, low if axis.low is not None else low / pad, high if axis.high is not None else high * pad)
    if axis.low is None and 0 <= low <= 0.5 * high:
        low = 0.0
    pad = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    low = low if axis.low is not None or low == 0 else low - pad
    return Scale(axis, low, high if axis.high is not None else high + pad)


def read(value: float, unit: str) -> str:
    """A value as a tick or a name tells it: '10 ms', '$0.5', '1 k'."""
    if unit.startswith("$"):
        shown = f"{value:,.3g}" if abs(value) < 1e3 else f"{value:,.0f}" if abs(value) < 1e5 else si(value, "").strip()
        return f"${shown}{unit[1:]}"
    if unit in ("", "×") and (value == 0 or 1e-3 <= abs(value) < 1e4):
        return f"{value:,.3g}{unit}" if abs(value) < 1e3 else f"{value:,.0f}{unit}"
    return si(value, unit).strip()


def figure(value: float) -> float | None:
    """Six figures are more than anybody sees, and keep pages small; None is a gap."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def figures(values: Numbers) -> list[float | None]:
    return [figure(float(value)) for value in values]


def plain(text: str) -> str:
    """Text of others in a figure: Plotly would take <b> and the like for its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
