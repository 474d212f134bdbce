"""Pictures: plain numbers in, figures that Plotly draws and pages that hold them out. No file is touched here.

A figure is told in Plotly's words as plain data, so nothing of Plotly is imported until a page needs its program.
Names stand beside what they name, not in a legend; series differ in dashes and markers besides colours.
"""

from __future__ import annotations

from jevons.charts.bars import Span, Swing, spans, stacked, tornado
from jevons.charts.curves import Band, Line, cdf, lines
from jevons.charts.page import Card, page
from jevons.charts.picture import Axis, Limit, Picture
from jevons.charts.points import Point, scatter
from jevons.charts.timeline import Track, timeline

__all__ = [
    "Axis",
    "Band",
    "Card",
    "Limit",
    "Line",
    "Picture",
    "Point",
    "Span",
    "Swing",
    "Track",
    "cdf",
    "lines",
    "page",
    "scatter",
    "spans",
    "stacked",
    "timeline",
    "tornado",
]
