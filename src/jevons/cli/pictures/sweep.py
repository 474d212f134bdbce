"""Pictures of `jevons sweep`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jevons.base.units import count, milliseconds
from jevons.charts import Axis, Line, Picture, Point, lines, scatter
from jevons.twin.report import Report
from jevons.twin.sweep import Cell

_LOADS = ("traffic.rate", "traffic.speed", "traffic.copies")  # what people turn up first of all

Ran = list[tuple[Cell, Report]]


def pictures(names: Sequence[str], cells: Sequence[Cell]) -> list[Picture]:
    """Over the setting that is turned up, a line for each combination of the others; then what is traded for what."""
    ran = [(cell, cell.report) for cell in cells if cell.report is not None]
    if not ran:
        return []
    names = [name for name in names if len({cell.settings[name] for cell in cells}) > 1]
    x = _turned(names, ran)
    found = [] if x is None else _over(x, [name for name in names if name != x], ran)
    others = [name for name in names if name != x]
    return [*found, _reactive(others, names, ran), _interactive(others, names, ran)]


def notes(cells: Sequence[Cell]) -> list[str]:
    """How far to trust it, and which cells are missing."""
    ran = [cell.report for cell in cells if cell.report is not None]
    told = dict.fromkeys(f"{t.chip}: {t.trust}; {t.note}" for report in ran for t in report.trust)
    failed = [cell for cell in cells if cell.report is None]
    missing = [f"{count(len(failed))} of {count(len(cells))} did not run, first: {failed[0].error}"] if failed else []
    return [
        f"{count(len(ran))} rehearsals, simulated, not measured.",
        *missing,
        *(f"How far to trust it: {each}." for each in told),
        "Figures of hardware, each with its source: jevons fleet show NAME.",
    ]


def _turned(names: Sequence[str], ran: Ran) -> str | None:
    """The setting for the x axis: a load, else the first that is a number of several values."""
    for name in sorted(names, key=lambda name: name not in _LOADS):
        values = {cell.settings[name] for cell, _ in ran}
        if len(values) > 1 and not any(isinstance(value, str) for value in values):
            return name
    return None


def _over(x: str, others: Sequence[str], ran: Ran) -> list[Picture]:
    values = [float(cell.settings[x]) for cell, _ in ran]
    is_wide = min(values) > 0 and max(values) >= 8 * min(values)
    axis = Axis(label=_label(x), unit=_UNITS.get(x, ""), is_log=is_wide)
    shown: list[tuple[str, Axis, Callable[[Report], float], str]] = [
        (
            "What is served in time",
            Axis(label="goodput", unit="requests/s", low=0.0),
            lambda r: r.goodput_per_s,
            "Requests done in a second that met their whole SLO.",
        ),
        (
            "How many are served in time",
            Axis(label="requests that met the SLO", is_share=True, low=0.0, high=1.0),
            lambda r: r.met_slo,
            "",
        ),
        (
            "How long the first token takes",
            Axis(label="TTFT, 99th percentile", unit="s", is_log=True),
            lambda r: r.ttft_s.p99,
            "One request in a hundred waits longer.",
        ),
    ]
    return [lines(title, (axis, y), _series(x, others, ran, value), about=about) for title, y, value, about in shown]


def _series(x: str, others: Sequence[str], ran: Ran, value: Callable[[Report], float]) -> list[Line]:
    found: dict[str, list[tuple[float, float]]] = {}
    for cell, report in ran:
        at = (float(cell.settings[x]), value(report))
        found.setdefault(_named(others, cell), []).append(at)
    return [Line(name=name, x=[p[0] for p in sorted(at)], y=[p[1] for p in sorted(at)]) for name, at in found.items()]


def _reactive(others: Sequence[str], names: Sequence[str], ran: Ran) -> Picture:
    points = [
        _point(others, names, cell, report, report.ttft_s.p99, report.goodput_per_s)
        for cell, report in ran
        if report.ttft_s.p99 > 0
    ]
    axes = (
        Axis(label="TTFT, 99th percentile", unit="s", is_log=True),
        Axis(label="goodput", unit="requests/s", low=0.0),
    )
    about = "Up and to the left is better; the grey line joins those that none beats in both."
    return scatter("Served in time against the wait", axes, points, better=("low", "high"), about=about)


def _interactive(others: Sequence[str], names: Sequence[str], ran: Ran) -> Picture:
    points = [
        _point(others, names, cell, report, 1.0 / report.tpot_s.p50, report.output_tokens_per_s / report.chips)
        for cell, report in ran
        if report.tpot_s.p50 > 0
    ]
    axes = (
        Axis(label="speed of one answer", unit="tokens/s, median"),
        Axis(label="output of one chip", unit="tokens/s", low=0.0),
    )
    about = "Up and to the right is better; the grey line joins those that none beats in both."
    return scatter("Throughput against interactivity", axes, points, better=("high", "high"), about=about)


def _point(others: Sequence[str], names: Sequence[str], cell: Cell, r: Report, x: float, y: float) -> Point:
    did = f"{r.goodput_per_s:,.1f} requests/s in time ({r.met_slo:.0%}), TTFT p99 {milliseconds(r.ttft_s.p99)}"
    rest = [name for name in names if name not in others]
    return Point(
        name=_named(rest, cell) or _named(names, cell),
        x=x,
        y=y,
        group=_named(others, cell),
        told=f"{_named(names, cell)}: {did}",
    )


def _named(names: Sequence[str], cell: Cell) -> str:
    """What is told of a cell: words as they are, numbers with what they are of."""
    values = [(name, cell.settings[name]) for name in names]
    return ", ".join(v if isinstance(v, str) else f"{_label(n)} {v:g}" for n, v in values)


_UNITS = {"traffic.rate": "sessions/s", "traffic.speed": "× of the trace", "slo.ttft_s": "s", "slo.tpot_s": "s"}


def _label(name: str) -> str:
    """'traffic.rate' → 'rate', 'fleet.0.instances' → 'instances'."""
    return name.rpartition(".")[2].removesuffix("_s").replace("_", " ")
