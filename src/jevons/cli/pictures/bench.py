"""Pictures of `jevons bench` and `jevons demo`: what clients saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jevons.base.units import si
from jevons.charts import Axis, Limit, Picture, cdf
from jevons.serve.load import Measured, Targets

_OF = {"ITL": "gaps"}  # what is counted, where it is not requests


def pictures(runs: Mapping[str, Sequence[Measured]], targets: Targets) -> list[Picture]:
    """Distributions of each run, by its name; of requests that did not fail."""
    good = {name: [m for m in run if m.error is None] for name, run in runs.items()}
    first = {name: [m.ttft_s for m in run if m.ttft_s is not None] for name, run in good.items()}
    each = {name: [tpot for m in run if (tpot := m.tpot_s) is not None] for name, run in good.items()}
    gaps = {name: [gap for m in run for gap in m.gaps_s] for name, run in good.items()}
    shown = (
        ("Time to first token", "TTFT", first, targets.ttft_s, "From sending a request to its first token."),
        ("Time per further token", "TPOT", each, targets.tpot_s, "A mean for each request."),
        ("Gaps between tokens", "ITL", gaps, None, "Each gap counts; tokens that come together have none between."),
    )
    return [
        cdf(title, Axis(label=label, unit="s", is_log=True), values, _limit(target), about, _OF.get(label, "requests"))
        for title, label, values, target, about in shown
        if any(values.values())
    ]


def _limit(target: float | None) -> list[Limit]:
    return [] if target is None else [Limit(target, f"target {si(target, 's')}")]
