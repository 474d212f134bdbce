"""Pictures: what they show is what was given, every figure is one that Plotly knows, names stand apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jevons.charts import (
    Axis,
    Band,
    Limit,
    Line,
    Picture,
    Point,
    Span,
    Swing,
    Track,
    cdf,
    lines,
    scatter,
    spans,
    stacked,
    timeline,
    tornado,
)
from jevons.charts.labels import Name, place, text_px
from jevons.charts.picture import STYLES, Names

SECONDS = Axis(label="time to first token", unit="s", is_log=True)
MONEY = Axis(label="cost", unit="$/Mtoken")
SHARE = Axis(label="share of prompt tokens", is_share=True, low=0.0, high=1.0)
YEARS, TOKENS = Axis(label="year"), Axis(label="volume", unit="tokens", is_log=True)


def latencies() -> Picture:
    random = np.random.default_rng(0)
    series = {"kv": random.lognormal(-2.0, 0.5, 1_000), "round robin": random.lognormal(-1.0, 0.7, 1_000)}
    return cdf("Latencies", SECONDS, series, [Limit(1.0, "SLO 1 s")])


def fan() -> Picture:
    x = [2026.0, 2027.0, 2028.0]
    up = Line(name="cheap", x=x, y=[1e15, 3e15, 9e15], bands=[Band([1e15, 2e15, 4e15], [1e15, 4e15, 2e16])])
    return lines("Demand", (YEARS, TOKENS), [up, Line(name="dear", x=x, y=[1e15, 1.1e15, 1.2e15])])


def fronts() -> Picture:
    points = [Point(name=f"p{i}", x=x, y=y, group="ab"[i % 2]) for i, (x, y) in enumerate([(1, 9), (2, 4), (3, 5)])]
    return scatter("Fleets", (MONEY, SECONDS), points, better=("low", "low"))


def what_matters() -> Picture:
    swings = [
        Swing(name="life", low="4 years", high="6 years", at_low=0.6, at_high=0.45),
        Swing(name="utilisation", low="30 %", high="80 %", at_low=0.9, at_high=0.4),
    ]
    return tornado("What matters", MONEY, 0.5, swings)


def course() -> Picture:
    x = np.linspace(0, 10, 50)
    both = [Line(name="running", x=x, y=x * 3), Line(name="queued", x=x, y=x)]
    tracks = [
        Track(Axis(label="requests", low=0.0), both),
        Track(Axis(label="up"), [Line(name="up", x=x, y=x * 0 + 4)]),
    ]
    return timeline("Course", Axis(label="simulated time", unit="s"), tracks, [Limit(4.0, "fail 2")])


def intervals() -> Picture:
    rows = [Span(name="a", low=0.1, base=0.2, high=0.4, stated=0.3), Span(name="b", low=0.2, base=None, high=0.3)]
    return spans("Cost", MONEY, rows)


def parts() -> Picture:
    return stacked("Reuse", SHARE, {"kv": {"computed": 0.4, "hbm": 0.6}, "random": {"computed": 0.9, "hbm": 0.1}})


ALL = (latencies, fan, fronts, what_matters, course, intervals, parts)


@pytest.mark.parametrize("draw", ALL)
def test_plotly_knows_every_word_of_a_figure(draw: Callable[[], Picture]) -> None:
    import plotly.graph_objects as go

    picture = draw()

    for names in picture.names:
        go.Figure({"data": picture.data, "layout": {**picture.layout, "annotations": names.placed}})


@pytest.mark.parametrize(
    ("draw", "title"),
    [
        (latencies, "time to first token"),
        (what_matters, "cost ($/Mtoken)"),
        (course, "simulated time (s)"),
        (parts, "share of prompt tokens"),
    ],
)
def test_axes_say_what_they_are_in_which_unit(draw: Callable[[], Picture], title: str) -> None:
    axes = {key: axis for key, axis in draw().layout.items() if key.startswith("xaxis")}

    assert title in [axis["title"]["text"] for axis in axes.values() if "title" in axis]


def test_ticks_of_a_logarithmic_axis_tell_the_unit() -> None:
    texts = latencies().layout["xaxis"]["ticktext"]

    assert "100 ms" in texts
    assert "1 s" in texts


def test_series_differ_in_more_than_colour() -> None:
    for part in ("dash", "symbol", "glyph", "pattern"):
        assert len({getattr(style, part) for style in STYLES}) == len(STYLES)
    dashes = [trace["line"]["dash"] for trace in latencies().data]
    assert dashes == ["solid", "dash"]


def test_a_distribution_passes_through_its_quantiles() -> None:
    values = np.arange(1, 1_001) / 100.0
    (trace,) = cdf("", Axis(label="t", unit="s"), {"a": values}).data

    assert np.interp(0.5, trace["y"], trace["x"]) == pytest.approx(5.005, rel=1e-3)
    assert (trace["x"][0], trace["x"][-1]) == (0.01, 10.0)


def test_a_distribution_of_zeros_has_a_logarithmic_axis_too() -> None:
    picture = cdf("", SECONDS, {"queue": np.zeros(5), "none": np.zeros(0)})

    assert all(np.isfinite(picture.layout["xaxis"]["range"]))
    assert len(picture.data) == 1


def test_only_what_nothing_beats_is_joined() -> None:
    joined = fronts().data[0]

    assert (joined["x"], joined["y"]) == ([1.0, 2.0], [9.0, 4.0])
    assert joined["line"]["shape"] == "hv"


def test_the_widest_swing_comes_first_and_tells_both_values() -> None:
    picture = what_matters()
    rows = [name["text"] for name in picture.names[-1].placed if name["yref"] == "y"]

    assert rows == ["utilisation: ■\u00a030 %   ▨\u00a080 %", "life: ■\u00a04 years   ▨\u00a06 years"]
    assert (picture.data[0]["base"], picture.data[0]["x"]) == ([0.5], [pytest.approx(0.4)])


def test_what_is_unknown_is_a_range_and_says_so() -> None:
    rows = [name["text"] for name in intervals().names[-1].placed if name["yref"] == "y"]

    assert rows == ["a: $0.2 ($0.1 to $0.4); □ stated $0.3", "b: $0.2 to $0.3"]


def test_parts_say_their_share_and_are_hatched_apart() -> None:
    picture = parts()

    assert "computed 40.0%" in [name["text"] for name in picture.names[0].placed]
    assert [bar["marker"]["pattern"]["shape"] for bar in picture.data[:2]] == ["", "/"]


def test_names_of_others_are_no_markup() -> None:
    (trace,) = cdf("", SECONDS, {"<a href='x'>": [1.0, 2.0]}).data

    assert trace["name"] == "&lt;a href='x'&gt;"


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_names_stand_apart(draw: Callable[[], Picture], at: int) -> None:
    picture = draw()
    names = picture.names[at]
    boxes = [_box(name, picture, names) for name in names.placed]

    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            assert not ((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all())


def test_a_name_that_may_go_does_not_cover_another() -> None:
    path = np.array([[0.5, 0.5]])
    names = [Name("a rather long name", path), Name("b", path, may_go=True)]
    block = np.array([[x, y] for x in np.linspace(0, 1, 60) for y in (0.3, 0.4, 0.6, 0.7)])

    placed = place(names, [block], 120.0, 60.0)

    assert [p.name for p in placed] == [0]


def test_a_point_in_a_crowd_is_named_from_afar() -> None:
    crowd = [Point(name=f"chip {i}", x=1 + i / 50, y=1 + i / 50, group="a") for i in range(8)]
    picture = scatter("Chips", (MONEY, MONEY), [*crowd, Point(name="far", x=5, y=5, group="a")])

    named = {name["text"]: name for name in picture.names[-1].placed}

    assert {f"chip {i}" for i in range(8)} <= set(named)
    assert any(name["showarrow"] for name in named.values())


def _box(name: dict[str, Any], picture: Picture, names: Names) -> Any:
    """Of an annotation, in pixels from the bottom left of the whole plotting area."""
    inner_px = names.height_px - picture.layout["margin"]["t"] - picture.layout["margin"]["b"]
    axis = picture.layout["yaxis" + name["yref"].removesuffix(" domain")[1:]]
    low, high = (share * inner_px for share in axis["domain"])
    share = name["y"]
    if not name["yref"].endswith("domain"):
        share = (share - axis["range"][0]) / (axis["range"][1] - axis["range"][0])
    width, height = text_px(name["text"])
    x = (
        name["x"] * names.width_px
        + name["xshift"]
        - {"left": 0.0, "center": 0.5, "right": 1.0}[name["xanchor"]] * width
    )
    y = low + share * (high - low) + name["yshift"]
    y -= {"bottom": 0.0, "middle": 0.5, "top": 1.0}[name["yanchor"]] * height
    return np.array([x, y, x + width, y + height])


def test_names_of_points_need_not_keep_clear_of_lines_that_nobody_draws() -> None:
    axes = (Axis(label="speed"), Axis(label="cost", low=0.0))
    at = [(51.0, 1.67), (55.0, 1.15), (55.7, 1.15), (55.9, 1.32), (66.1, 1.46), (66.4, 1.63)]
    points = [Point(name=f"fleet {i}: 1 × 8a8 b200 decode + 5", x=x, y=y) for i, (x, y) in enumerate(at)]

    drawn = scatter("fleets", axes, points, better=("high", "low"))

    assert {point.name for point in points} <= {name["text"] for name in drawn.names[-1].placed}
