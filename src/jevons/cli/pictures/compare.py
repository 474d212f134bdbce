"""Pictures of `jevons compare`."""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import Reals, Records
from jevons.base.units import count
from jevons.charts import Axis, Limit, Picture, cdf
from jevons.twin.compare import Comparison


def pictures(a: Records, b: Records) -> list[Picture]:
    """Of requests that both have."""
    common = min(len(a), len(b))
    a, b = a[:common], b[:common]
    first = Axis(label="time to first token", unit="s", is_log=True)
    each = Axis(label="time per further token", unit="s", is_log=True)
    return [
        cdf("First tokens", first, {"A": _ttft(a), "B": _ttft(b)}),
        cdf("Further tokens", each, {"A": _tpot(a), "B": _tpot(b)}),
        _differences(a, b),
    ]


def notes(found: Comparison, names: tuple[str, str]) -> list[str]:
    both = found.placed_alike.requests, found.placed_differently.requests
    return [
        f"A: {names[0]}. B: {names[1]}. Rehearsals of the same {count(sum(both))} requests, simulated, not measured; "
        f"{count(both[0])} were placed alike, {count(both[1])} differently.",
        "How far to trust each: report.json in its folder.",
    ]


def _differences(a: Records, b: Records) -> Picture:
    longer_s = _ttft(b) - _ttft(a)
    differ = (a["worker"] != b["worker"]) | (a["decode_on"] != b["decode_on"])
    low, high = (float(end) for end in np.quantile(longer_s, [0.01, 0.99]))
    axis = Axis(label="first token later in B than in A", unit="s", low=min(low, -1e-3), high=max(high, 1e-3))
    series = {"placed alike": longer_s[~differ], "placed differently": longer_s[differ]}
    about = "Left of the line a request was quicker in B. One in a hundred on each side is left out."
    return cdf("The same request in both", axis, series, [Limit(0.0, "as long")], about)


def _ttft(rows: Records) -> Reals:
    return np.asarray(rows["first_s"] - rows["at_s"])


def _tpot(rows: Records) -> Reals:
    several = rows[rows["output"] > 1]
    return np.asarray((several["done_s"] - several["first_s"]) / (several["output"] - 1))
