"""A picture being drawn: panels one above the other over one x axis, each with curves, points and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import msgspec
import numpy as np

from jevons.charts.labels import Name, Placed, Places, evenly, place, text_px
from jevons.charts.picture import (
    BOTTOM_PX,
    CHAR_PX,
    FAINT,
    FONT_PX,
    INK,
    LEFT_PX,
    LINE_PX,
    MIDDLE_PX,
    NARROW_PX,
    RIGHT_PX,
    TOP_PX,
    WIDE_PX,
    Axis,
    Limit,
    Names,
    Numbers,
    Picture,
    Plain,
    Scale,
    Style,
    figures,
    plain,
    scale,
)

_NAME: Plain = {"align": "left", "showarrow": False, "borderpad": 0, "bgcolor": "rgba(255,255,255,0.75)"}


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """One series of a panel. `mode` is "lines", "markers", "lines+markers" or "" for a name alone."""

    x: Numbers
    y: Numbers
    style: Style
    name: str = ""
    mode: str = "lines"
    prefers: float = 0.5
    may_go: bool = False
    may_lead: bool = False
    fill: str = ""
    texts: Sequence[str] = ()  # of its points, for who points at them
    more: Plain = {}
    bar: Plain = {}  # drawn as this instead of as a curve
    may_hide: bool = False  # names may cover it
    is_below: bool = False  # its name stands below it, nowhere else


class Row(msgspec.Struct, frozen=True):
    """A name above a value of y, and a shorter one for a telephone, if there is one."""

    at: float
    name: str
    brief: str = ""

    def told(self, width_px: int) -> str:
        """Cut into lines."""
        return _in_lines(self.brief if self.brief and width_px == NARROW_PX else self.name, width_px)


class Panel:
    """One pair of axes."""

    def __init__(self, y: Axis, height_px: int, *, has_ticks: bool = True) -> None:
        self.y, self.height_px, self.has_ticks = y, height_px, has_ticks
        self.drawn: list[Drawn] = []
        self.across: list[Limit] = []  # values of y that are told apart
        self.row_px: Mapping[int, float] = {}  # where it has rows: of one, by the width that names are placed for
        self.rows: list[Row] = []  # names that begin at the left edge, above a value of y

    def add(self, drawn: Drawn) -> None:
        self.drawn.append(drawn)

    def height_at(self, width_px: int) -> int:
        """Higher in a narrow window, where names of rows have more lines."""
        if not self.row_px:
            return self.height_px
        return round(self.row_px[width_px] * ((self.y.high or 0.0) - (self.y.low or 0.0)))

    def above(self, y: float, name: str, brief: str = "") -> None:
        self.rows.append(Row(y, name, brief))


class Sheet:
    """Draws panels into a picture."""

    def __init__(self, x: Axis, panels: Sequence[Panel], along: Sequence[Limit] = ()) -> None:
        self._panels, self._along = panels, along
        listed = [d for panel in panels for d in panel.drawn]
        self._x = scale(x, [*(d.x for d in listed), [limit.at for limit in along]])
        self._gap_px = TOP_PX
        self._inner_px = sum(panel.height_px for panel in panels) + self._gap_px * (len(panels) - 1)
        self._data: list[Plain] = []
        self._shapes: list[Plain] = []
        self._axes: Plain = {}
        together = self._x.axis.title.replace(" (", "\u00a0(")  # a unit never stands alone in a line
        self._title = _in_lines(together, NARROW_PX).replace("\u00a0", " ")
        self._bottom_px = BOTTOM_PX + LINE_PX * self._title.count("<br>")
        gaps_px = self._gap_px * (len(panels) - 1) + TOP_PX + self._bottom_px
        self._names = [
            Names(width_px, sum(panel.height_at(width_px) for panel in panels) + gaps_px, [])
            for width_px in (NARROW_PX, MIDDLE_PX, WIDE_PX)
        ]

    def picture(self, title: str, about: str) -> Picture:
        top_px = 0
        for i, panel in enumerate(self._panels):
            self._draw(i, panel, top_px)
            top_px += panel.height_px + self._gap_px
        layout = {
            "margin": {"l": LEFT_PX, "r": RIGHT_PX, "t": TOP_PX, "b": self._bottom_px},
            "paper_bgcolor": "#ffffff",
            "plot_bgcolor": "#ffffff",
            "font": {"size": FONT_PX, "color": INK},
            "showlegend": False,
            "hovermode": "closest",
            "dragmode": False,
            "barmode": "overlay",
            "shapes": self._shapes,
            **self._axes,
        }
        return Picture(title=title, about=about, data=self._data, layout=layout, names=self._names)

    def _draw(self, i: int, panel: Panel, top_px: int) -> None:
        y = scale(panel.y, [*(d.y for d in panel.drawn), [limit.at for limit in panel.across]])
        number = "" if i == 0 else str(i + 1)
        top = 1 - top_px / self._inner_px
        is_last = i == len(self._panels) - 1
        told = {"text": self._title, "standoff": 8, "font": {"size": FONT_PX}}
        title = {"title": told} if is_last else {"showticklabels": False}
        across = {"anchor": f"y{number}", "showgrid": False, **title}
        self._axes[f"xaxis{number}"] = self._x.told() | across | ({} if i == 0 else {"matches": "x"})
        self._axes[f"yaxis{number}"] = y.told() | {
            "domain": [max(0.0, round(top - panel.height_px / self._inner_px, 6)), round(top, 6)],
            "nticks": max(3, panel.height_px // 45),
            "visible": panel.has_ticks,
        }
        self._limits(panel, number)
        self._data.extend(_trace(d, number) for d in panel.drawn if d.mode)
        for names in self._names:
            names.placed.append(_heading(panel.y.title, number))
            names.placed.extend(_row(row, names.width_px) for row in panel.rows)
            names.placed.extend(self._named(i, panel, y, names.width_px))

    def _limits(self, panel: Panel, number: str) -> None:
        x, y = f"x{number}", f"y{number}"
        line = {"color": FAINT, "width": 1, "dash": "dot"}
        for limit in self._along:
            at = {"x0": limit.at, "x1": limit.at, "y0": 0, "y1": 1}
            self._shapes.append({"type": "line", "xref": x, "yref": f"{y} domain", "line": line, **at})
        for limit in panel.across:
            at = {"x0": 0, "x1": 1, "y0": limit.at, "y1": limit.at}
            self._shapes.append({"type": "line", "xref": f"{x} domain", "yref": y, "line": line, **at})

    def _named(self, i: int, panel: Panel, y: Scale, width_px: int) -> list[Plain]:
        """Names of this panel, placed."""
        number = "" if i == 0 else str(i + 1)
        wanted: list[tuple[Name, str]] = []
        for limit in self._along if i == 0 else ():
            path = np.column_stack([np.full(9, self._x.place([limit.at])[0]), np.linspace(1, 0, 9)])
            wanted.append((Name(plain(limit.name), path, 0.0), FAINT))
        for limit in panel.across:
            path = np.column_stack([np.linspace(0, 1, 25), np.full(25, y.place([limit.at])[0])])
            wanted.append((Name(plain(limit.name), path, 0.0), FAINT))
        covered = [part for d in panel.drawn if not d.may_hide for part in self._inked(d, y)]
        covered += [name.path for name, _ in wanted]
        covered += [np.array([[self._x.place([at.at])[0], share] for share in (0.0, 1.0)]) for at in self._along]
        height_px = panel.height_at(width_px)
        taken = [_row_box(row, y, width_px, height_px) for row in panel.rows]
        named = [d for d in panel.drawn if d.name]
        wanted += [
            (Name(_label(d, width_px), self._stops(d, y), d.prefers, d.may_go, d.is_below, d.may_lead), d.style.ink)
            for d in named
        ]
        found = place([name for name, _ in wanted], covered, width_px, height_px, taken)
        return [
            {
                "text": wanted[p.name][0].text,
                "font": {"color": wanted[p.name][1], "size": FONT_PX},
                "xref": f"x{number} domain",
                "yref": f"y{number} domain",
                "x": round(p.at[0], 5),
                "y": round(p.at[1], 5),
                "xanchor": p.x_anchor,
                "yanchor": p.y_anchor,
                **_NAME,
                **_off(p),
            }
            for p in found
        ]

    def _inked(self, d: Drawn, y: Scale) -> list[Places]:
        """What names should not cover of it: points that no line joins stand alone."""
        if not d.mode and not d.bar:
            return []
        path = self._path(d, y)
        return [path[i : i + 1] for i in range(len(path))] if d.mode == "markers" else [path]

    def _stops(self, d: Drawn, y: Scale) -> Places:
        """Where a name of it may stand: anywhere along a line."""
        path = self._path(d, y)
        return evenly(path, 40) if "lines" in d.mode else path

    def _path(self, d: Drawn, y: Scale) -> Places:
        """In shares of the panel, without what lies outside or is missing."""
        path = np.column_stack([self._x.place(d.x), y.place(d.y)])
        kept = path[np.isfinite(path).all(axis=1) & (path >= -1e-6).all(axis=1) & (path <= 1 + 1e-6).all(axis=1)]
        return kept if len(kept) else np.array([[0.5, 0.5]])


def _heading(text: str, number: str) -> Plain:
    """The y axis's title, level and above it: nobody has to turn the head."""
    return {
        "text": plain(text),
        "font": {"color": INK, "size": FONT_PX},
        "xref": f"x{number} domain",
        "yref": f"y{number} domain",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": 8 - LEFT_PX,
        "yshift": 9,
        "showarrow": False,
    }


def _off(p: Placed) -> Plain:
    """How far a name is from its point; a thin line leads there where it is not beside it."""
    if not p.is_led:
        return {"xshift": p.x_shift, "yshift": p.y_shift}
    arrow = {"showarrow": True, "arrowhead": 0, "arrowwidth": 0.8, "arrowcolor": "#999999", "standoff": 5}
    return {**arrow, "ax": p.x_shift, "ay": -p.y_shift}


def _label(d: Drawn, width_px: int) -> str:
    """Its name; a point's may take two lines where it would go from edge to edge."""
    return _in_lines(d.name, width_px * 2 // 3) if d.may_lead else plain(d.name)


def _in_lines(text: str, width_px: int) -> str:
    """Cut where it is too long for the window."""
    return "<br>".join(plain(part) for part in wrap(text, int((width_px + LEFT_PX) / CHAR_PX)))


def _row_box(row: Row, y: Scale, width_px: int, height_px: int) -> Places:
    """Left, bottom, right, top in pixels."""
    width, height = text_px(row.told(width_px))
    bottom = float(y.place([row.at])[0]) * height_px + 1
    return np.array([8 - LEFT_PX, bottom, 8 - LEFT_PX + width, bottom + height])


def _row(row: Row, width_px: int) -> Plain:
    at = {"x": 0, "y": row.at, "xref": "x domain", "yref": "y", "xanchor": "left", "yanchor": "bottom"}
    return at | {"text": row.told(width_px), "xshift": 8 - LEFT_PX, "yshift": 1, **_NAME}


def _trace(d: Drawn, number: str) -> Plain:
    axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
    if d.bar:
        return d.bar | axes
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": figures(d.x),
        "y": figures(d.y),
        "mode": d.mode,
        "name": plain(d.name),
        **axes,
        "hoverlabel": {"namelength": -1},
        "cliponaxis": "markers" not in d.mode,
    }
    if "lines" in d.mode:
        trace["line"] = {"color": d.style.color, "width": 2, "dash": d.style.dash}
    if "markers" in d.mode:
        trace["marker"] = {"color": d.style.color, "symbol": d.style.symbol, "size": 8, "line": {"width": 1.5}}
    if d.fill:
        trace |= {"fill": "toself", "fillcolor": d.fill, "line": {"width": 0}, "hoverinfo": "skip"}
    if d.texts:
        trace |= {"text": [plain(text) for text in d.texts], "hovertemplate": "%{text}<extra></extra>"}
    return trace | d.more
