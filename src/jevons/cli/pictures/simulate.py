"""Pictures of `jevons simulate`."""

from __future__ import annotations

import numpy as np

from jevons.base.units import count, si
from jevons.charts import Axis, Limit, Line, Picture, Track, cdf, stacked, timeline
from jevons.charts.picture import Numbers
from jevons.cli.scalings import scalings
from jevons.config.scenario import Scenario
from jevons.twin.course import Course, Watch, instances_up
from jevons.twin.report import Report

_MOST_LABELS = 12  # of lines across all tracks: more would hide each other
_LONG_S = 3 * 3600.0  # a rehearsal beyond it is told in hours
_SHARES = (np.arange(2000) + 0.5) / 2000


def pictures(scenario: Scenario, report: Report, watch: Watch) -> list[Picture]:
    return [_latencies(scenario, report, watch), _course(scenario, report, watch.course()), _reuse(report)]


def notes(report: Report) -> list[str]:
    """How far to trust it, and what ran."""
    told = dict.fromkeys(f"{each.chip}: {each.trust}; {each.note}" for each in report.trust)
    trust = [f"How far to trust it: {each}." for each in told]
    return [
        f"A rehearsal of {count(report.requests)} requests on {count(report.instances)} instances of "
        f"{count(report.chips)} chips, simulated, not measured.",
        *trust,
        *scalings(report),
        "Figures of hardware, each with its source: jevons fleet show NAME.",
    ]


def _latencies(scenario: Scenario, report: Report, watch: Watch) -> Picture:
    slo = scenario.slo
    limits = [
        Limit(slo.ttft_s, f"SLO: TTFT {si(slo.ttft_s, 's')}"),
        Limit(slo.tpot_s, f"SLO: TPOT {si(slo.tpot_s, 's')}"),
    ]
    series = {name: seen.quantiles(_SHARES) for name, seen in watch.seen.items() if seen.count}
    about = (
        f"TTFT: arrival to first token. TPOT: each further token. Queue: arrival until it is computed. "
        f"{report.met_slo:.1%} of requests met both targets."
    )
    return cdf("How long requests took", Axis(label="time", unit="s", is_log=True), series, limits, about)


def _course(scenario: Scenario, report: Report, course: Course) -> Picture:
    ups = report.up or instances_up(scenario)
    end_s = float(course.at_s[-1])
    unit, of_unit = ("h", 3600.0) if end_s > _LONG_S else ("s", 1.0)
    times = [at / of_unit for at in (*(at for at, _ in ups if at <= end_s), end_s)]
    shown = course.at_s / of_unit
    counts = [up for at, up in ups if at <= end_s]

    def track(label: str, **lines: object) -> Track:
        made = [
            Line(name=name.replace("_", " "), x=shown, y=np.asarray(y), has_markers=False) for name, y in lines.items()
        ]
        return Track(Axis(label=label, low=0.0), made)

    tracks = [
        track("requests", running=course.running, queued=course.queued),
        track("output tokens/s", tokens=course.output_tokens_per_s),
        track("requests/s done within the SLO", good=course.good_per_s),
        _reused(course, shown),
        Track(Axis(label="instances up", low=0.0), [_steps("up", times, counts)]),
    ]
    events = [Limit(c.at_s / of_unit, f"{c.before} → {c.wanted} {c.role}") for c in report.changes if c.at_s <= end_s]
    events = events if len(events) <= _MOST_LABELS else []
    events += [
        Limit(e.at_s / of_unit, f"{e.what} {e.count}" + (f", {e.power_w:g} W" if e.power_w else ""))
        for e in scenario.events
        if e.at_s <= end_s
    ]
    about = "Each point is the mean of a short part of the time."
    if len(report.changes) > _MOST_LABELS:
        about += f" Instances started or stopped {len(report.changes)} times; why is told at the end."
    return timeline("The fleet over time", Axis(label="simulated time", unit=unit, low=0.0), tracks, events, about)


def _steps(name: str, times: list[float], values: list[int]) -> Line:
    """A line with corners: each value from its time until the next; one more time than values."""
    return Line(name=name, x=np.repeat(times, 2)[1:-1], y=np.repeat(values, 2), has_markers=False)


def _reused(course: Course, shown: Numbers) -> Track:
    lines = [Line(name="in HBM", x=shown, y=course.hbm_share, has_markers=False)]
    if np.nansum(course.tier_share) > 0:
        lines.append(Line(name="from the tier below", x=shown, y=course.tier_share, has_markers=False))
    return Track(Axis(label="prompt tokens found", is_share=True, low=0.0, high=1.0), lines)


def _reuse(report: Report) -> Picture:
    reused = {f"found in {tier}": share for tier, share in report.reuse_fraction.items() if share > 0}
    row = {"computed": max(0.0, 1.0 - sum(reused.values())), **reused}
    axis = Axis(label="share of prompt tokens", is_share=True, low=0.0, high=1.0)
    about = f"The router predicted {report.predicted_reuse:.1%} to be found."
    return stacked("Where prompt tokens came from", axis, {f"{count(report.input_tokens)} prompt tokens": row}, about)
