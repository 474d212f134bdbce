"""Timelines: what happens over one time, each quantity in a panel of its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from jevons.charts.curves import Line
from jevons.charts.picture import Axis, Limit, Picture, style
from jevons.charts.sheet import Drawn, Panel, Sheet

_HEIGHT_PX = 96


class Track(msgspec.Struct, frozen=True):
    """One panel: a quantity, and one line or some that share its axis."""

    y: Axis
    lines: Sequence[Line]


def timeline(title: str, x: Axis, tracks: Sequence[Track], events: Sequence[Limit] = (), about: str = "") -> Picture:
    """Tracks one above the other, with what happened as lines across all of them."""
    panels = []
    for track in tracks:
        panel = Panel(track.y, _HEIGHT_PX)
        for i, line in enumerate(track.lines):
            name = line.name if len(track.lines) > 1 else ""  # a single one is named by its axis
            more = {"line": {"color": style(i).color, "dash": style(i).dash, "width": 1.5}}
            panel.add(Drawn(x=line.x, y=line.y, style=style(i), name=name, more=more, prefers=0.3))
        panels.append(panel)
    return Sheet(x, panels, events).picture(title, about)
