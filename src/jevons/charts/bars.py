"""Bars that lie: what each parameter does to a result, what a value may be, what a whole consists of.

The name of a row stands above its bar, so long ones need no margin and are read on a telephone too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import msgspec
import numpy as np

from jevons.charts.picture import (
    CHAR_PX,
    LEFT_PX,
    LINE_PX,
    MIDDLE_PX,
    NARROW_PX,
    WIDE_PX,
    Axis,
    Limit,
    Picture,
    Plain,
    Style,
    read,
    style,
)
from jevons.charts.sheet import Drawn, Panel, Sheet

_BAR = 0.36  # of a row
_TALL = 1.8  # rows high, with names below the bars
_LOW, _HIGH = style(0), style(1)


class Swing(msgspec.Struct, frozen=True, kw_only=True):
    """What one parameter does to a result: its two values as people read them, and the result at each alone."""

    name: str
    low: str
    high: str
    at_low: float
    at_high: float


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What a value may be. None: not known. `stated` is what somebody else says of it."""

    name: str
    low: float | None
    base: float | None
    high: float | None
    stated: float | None = None
    stated_as: str = "stated"
    stated_high: float | None = None  # the most of what was stated, where that is a range
    is_told: bool = True  # values stand behind the name
    brief: str = ""  # the name on a telephone, where the whole is too long


def tornado(title: str, x: Axis, base: float, swings: Sequence[Swing], about: str = "") -> Picture:
    """The result where one parameter alone is at its low or its high value, the widest first."""
    rows = sorted(swings, key=lambda s: (-abs(s.at_high - s.at_low), s.name))
    names = [f"{swing.name}: ■\u00a0{swing.low}   ▨\u00a0{swing.high}" for swing in rows]
    panel = _rows(names, above=0.4)
    for i, swing in enumerate(rows):
        at = float(-i)
        for value, look in ((swing.at_low, _LOW), (swing.at_high, _HIGH)):
            panel.add(_bar(at, min(base, value), abs(value - base), look))
        panel.above(at + _BAR / 2, names[i])
    reading = "Each bar: that parameter alone at its low (■ plain) or its high value (▨ hatched), all others at base."
    return Sheet(x, [panel], [Limit(base, f"base {read(base, x.unit)}")]).picture(title, f"{reading} {about}".strip())


def spans(title: str, x: Axis, rows: Sequence[Span], limits: Sequence[Limit] = (), about: str = "") -> Picture:
    """Intervals with their base values (●), and what was stated or measured beside them (□)."""
    names = [f"{row.name}: {_told(row, x)}" if row.is_told else row.name for row in rows]
    briefs = [row.brief or name for row, name in zip(rows, names, strict=True)]
    panel = _rows(names, row_px=36, above=0.5 if limits else 0.0, briefs=briefs)
    for i, row in enumerate(rows):
        at = float(-i)
        if row.low is not None and row.high is not None:
            thick = {"line": {"color": _LOW.color, "width": 7}, "opacity": 0.45}
            panel.add(Drawn(x=[row.low, row.high], y=[at, at], style=_LOW, more=thick))
        if row.stated is not None and row.stated_high is not None:
            panel.add(Drawn(x=[row.stated, row.stated_high], y=[at, at], style=_HIGH))
        for value, look in ((row.base, _LOW), (row.stated, _HIGH), (row.stated_high, _HIGH)):
            if value is not None:
                panel.add(Drawn(x=[value], y=[at], style=look, mode="markers", texts=[f"{read(value, x.unit)}"]))
        panel.above(at + _BAR / 2, names[i], row.brief)
    return Sheet(x, [panel], limits).picture(title, about)


def stacked(title: str, x: Axis, rows: Mapping[str, Mapping[str, float]], about: str = "") -> Picture:
    """What wholes consist of: a bar for each row, a part for each name, told below it."""
    panel = _rows(list(rows), _TALL)
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    for i, (name, row) in enumerate(rows.items()):
        at, left = -_TALL * i, 0.0
        for part, value in row.items():
            look = style(parts.index(part))
            panel.add(_bar(at, left, value, look))
            told = f"{part} {value:.1%}" if x.is_share else f"{part} {read(value, x.unit)}"
            # Below its middle, else along it, else a line lower
            under = np.repeat([at - _BAR / 2, at - _BAR / 2 - 0.38], 9)
            along = np.tile(left + value * np.linspace(0.0, 1.0, 9), 2)
            panel.add(Drawn(x=along, y=under, style=look, name=told, mode="", prefers=0.25, is_below=True))
            left += value
        panel.above(at + _BAR / 2, name)
    return Sheet(x, [panel]).picture(title, about)


def _rows(
    names: Sequence[str], tall: float = 1.0, row_px: int = 46, above: float = 0.0, briefs: Sequence[str] = ()
) -> Panel:
    """Room for rows with names above them, of as many lines as the longest has in a window so wide.

    Args:
        briefs: names on a telephone, where they differ.
    """
    shown = {NARROW_PX: briefs or names, MIDDLE_PX: names, WIDE_PX: names}
    lines = {
        width_px: max((len(wrap(name, int((width_px + LEFT_PX) / CHAR_PX))) for name in shown[width_px]), default=1)
        for width_px in (NARROW_PX, MIDDLE_PX, WIDE_PX)
    }
    heights = {width_px: float(row_px + LINE_PX * (count - 1)) for width_px, count in lines.items()}
    high = _BAR / 2 + above + max((LINE_PX * lines[width_px] + 6) / heights[width_px] for width_px in lines)
    panel = Panel(Axis(label="", low=-tall * (len(names) - 1) - (1.0 if tall > 1 else 0.4), high=high), row_px)
    panel.has_ticks, panel.row_px = False, heights
    panel.height_px = panel.height_at(WIDE_PX)
    return panel


def _bar(at: float, left: float, width: float, look: Style) -> Drawn:
    pattern = {"shape": look.pattern, "bgcolor": look.color, "fgcolor": "#ffffff", "size": 6, "solidity": 0.35}
    bar: Plain = {
        "type": "bar",
        "orientation": "h",
        "x": [width],
        "y": [at],
        "base": [left],
        "width": [_BAR],
        "marker": {"color": look.color, "pattern": pattern, "line": {"color": "#ffffff", "width": 1}},
        "hoverinfo": "skip",
    }
    corners = [left, left + width, left + width, left, left, left + width]  # round it and across: all is covered
    edges = [at - _BAR / 2, at - _BAR / 2, at + _BAR / 2, at + _BAR / 2, at, at]
    return Drawn(x=corners, y=edges, style=look, bar=bar)


def _told(row: Span, x: Axis) -> str:
    """The unit stands at the axis."""
    unit = "$" if x.unit.startswith("$") else ""
    told = "unknown" if row.base is None else read(row.base, unit)
    if row.low is not None and row.high is not None:
        between = f"{read(row.low, unit)} to {read(row.high, unit)}"
        told = between if row.base is None else f"{told} ({between})"
    return told if row.stated is None else f"{told}; □ {row.stated_as} {read(row.stated, unit)}"
