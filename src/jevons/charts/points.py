"""Points: one thing against another, the best of them joined to a front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from jevons.charts.picture import Axis, Picture, Style, read, style
from jevons.charts.sheet import Drawn, Panel, Sheet

Better = tuple[Literal["low", "high"], Literal["low", "high"]]
_HEIGHT_PX = 420
_FRONT = Style("#999999", "#666666", "solid", "circle", "", "")


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One thing. `group` says how it looks; `name` stands beside it where there is room, `told` is for who points."""

    name: str
    x: float
    y: float
    group: str = ""
    told: str = ""


def scatter(
    title: str,
    axes: tuple[Axis, Axis],
    points: Sequence[Point],
    *,
    better: Better | None = None,
    is_mirrored: bool = False,
    about: str = "",
) -> Picture:
    """Points in groups.

    Args:
        axes: x and y.
        better: which way x and y are better; those that none beats in both are joined, and named first.
        is_mirrored: with a line where both are equal, such as predicted against measured.
    """
    panel = Panel(axes[1], _HEIGHT_PX)
    groups = list(dict.fromkeys(point.group for point in points))
    best = front(points, better) if better is not None else []
    if best:
        kept = [points[i] for i in best]
        # As stairs: between two of them nothing is known to be had.
        panel.add(
            Drawn(x=[p.x for p in kept], y=[p.y for p in kept], style=_FRONT, more=_stairs(better), may_hide=True)
        )
    for i, group in enumerate(groups):
        of = [point for point in points if point.group == group]
        panel.add(_dots(of, axes, style(i)))
    if is_mirrored:
        ends = [min(min(p.x, p.y) for p in points), max(max(p.x, p.y) for p in points)]
        panel.add(Drawn(x=ends, y=ends, style=_FRONT, name="as measured", prefers=1.0))
    about = f"{_key(groups)} {about}".strip()
    looks = {group: style(i) for i, group in enumerate(groups)}
    order = [*best, *(i for i in range(len(points)) if i not in best)]
    for i in order:
        point = points[i]
        if point.name:
            single = Drawn(
                x=[point.x], y=[point.y], style=looks[point.group], name=point.name, mode="", may_go=True, may_lead=True
            )
            panel.add(single)
    return Sheet(axes[0], [panel]).picture(title, about)


def front(points: Sequence[Point], better: Better) -> list[int]:
    """Which points no other beats in both, by x."""
    signs = [1.0 if way == "low" else -1.0 for way in better]
    order = sorted(range(len(points)), key=lambda i: (signs[0] * points[i].x, signs[1] * points[i].y, i))
    found: list[int] = []
    for i in order:
        if not found or signs[1] * points[i].y < signs[1] * points[found[-1]].y:
            found.append(i)
    return sorted(found, key=lambda i: points[i].x)


def _key(groups: Sequence[str]) -> str:
    """How groups look, in words: names of points already stand beside them."""
    told = [f"{style(i).glyph} {group}" for i, group in enumerate(groups) if group]
    return ", ".join(told) + "." if told else ""


def _stairs(better: Better | None) -> dict[str, object]:
    shape = "hv" if better in (("low", "low"), ("low", "high")) else "vh"
    return {"line": {"color": _FRONT.color, "width": 1.5, "shape": shape}, "hoverinfo": "skip"}


def _dots(points: Sequence[Point], axes: tuple[Axis, Axis], look: Style) -> Drawn:
    texts = [point.told or _told(point, axes) for point in points]
    x, y = np.array([p.x for p in points]), np.array([p.y for p in points])
    is_many = len(points) > 60
    marker = {"color": look.color, "symbol": look.symbol, "size": 5 if is_many else 9, "line": {"width": 1.5}}
    more = {"marker": marker | ({"opacity": 0.6} if is_many else {})}
    return Drawn(x=x, y=y, style=look, mode="markers", texts=texts, more=more)


def _told(point: Point, axes: tuple[Axis, Axis]) -> str:
    values = ", ".join(f"{a.label} {read(v, a.unit)}" for a, v in zip(axes, (point.x, point.y), strict=True))
    return f"{point.name}: {values}" if point.name else values
