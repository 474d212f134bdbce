"""What is predicted of measured points, beside what was measured; what cannot be predicted keeps its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, median

import msgspec

from jevons.base.stats import percentile
from jevons.config.catalog import Catalog
from jevons.config.points import Point
from jevons.perf.calibration import Calibration, Trust, look_up
from jevons.twin.names import Unpredicted
from jevons.twin.points import Case, case_of, is_check
from jevons.twin.predict import Predictor


class Row(msgspec.Struct, frozen=True):
    """One point. Exactly one of `predicted` and `reason` says something."""

    id: str
    metric: str
    measured: float
    predicted: float | None
    unit: str
    reason: str = ""
    set: str = "fit"  # or "check": never fitted, by the rule of `is_check`
    kind: str = ""  # what it is a measurement of: "TPOT dense", "TPOT MoE", "TTFT", "throughput", …
    trust: Trust | None = None  # in the shares that it was predicted with

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        assert self.predicted is not None, "asked of what was predicted"
        return abs(self.predicted - self.measured) / self.measured


class Errors(msgspec.Struct, frozen=True):
    """Of one group of points; shares of what was measured. None where nothing was predicted."""

    points: int
    predicted: int
    mape: float | None
    median: float | None
    p90: float | None


def validate(points: Iterable[Point], catalog: Catalog, calibration: Calibration) -> list[Row]:
    """Predict every point. About 10 ms each, a second where thousands of users were served."""
    predictor = Predictor(catalog)
    return [_row(point, catalog, calibration, predictor) for point in points]


def errors(rows: Sequence[Row]) -> Errors:
    """How far off they are, all together."""
    off = [row.error for row in rows if row.predicted is not None]
    if not off:
        return Errors(len(rows), 0, None, None, None)
    return Errors(len(rows), len(off), mean(off), median(off), percentile(off, 0.9))


def groups(points: Sequence[Point], rows: Sequence[Row]) -> dict[str, list[Row]]:
    """What was never fitted, as a whole and by kind; then all rows, and by metric, system and model."""
    checks = [row for row in rows if row.set == "check"]
    found = {"check": checks}
    for kind in sorted({row.kind for row in checks if row.kind}):
        found[f"check: {kind}"] = [row for row in checks if row.kind == kind]
    found["fit"] = [row for row in rows if row.set == "fit"]
    found["all"] = list(rows)
    for key in ("metric", "system", "model"):
        for name in dict.fromkeys(getattr(point, key) for point in points):
            group = [row for point, row in zip(points, rows, strict=True) if getattr(point, key) == name]
            found[f"{key}: {name}"] = group
    return found


def kind_of(case: Case, catalog: Catalog) -> str:
    """What a case measures, as goals are set for it."""
    if case.what == "tpot":
        return "TPOT dense" if catalog.models[case.model].moe is None else "TPOT MoE"
    if case.what == "ttft":
        return "TTFT"
    if case.what == "step":
        return "one step"
    return case.derived or "throughput"


def _row(point: Point, catalog: Catalog, calibration: Calibration, predictor: Predictor) -> Row:
    part = "check" if is_check(point) else "fit"
    try:
        case = case_of(point, catalog)
        found = look_up(calibration, case.key)
        value, kind = predictor.value(case, found.shares), kind_of(case, catalog)
    except Unpredicted as reason:
        return Row(point.id, point.metric, point.value, None, point.unit, str(reason), part)
    return Row(point.id, point.metric, point.value, value, point.unit, "", part, kind, found.trust)
