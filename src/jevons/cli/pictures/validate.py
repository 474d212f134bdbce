"""Pictures of `jevons validate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jevons.base.units import count
from jevons.charts import Axis, Limit, Picture, Point, Span, cdf, scatter, spans
from jevons.twin.record import Fidelity
from jevons.twin.validate import Row, errors

_FEWEST = 10  # points of one unit that are worth a picture
_UNITS = {"ms": ("s", 1e-3), "USD/Mtok": ("$/Mtoken", 1.0)}  # as a picture has them
_PARTS = {"fit": "fitted", "check": "never fitted"}


def pictures(rows: Sequence[Row]) -> list[Picture]:
    """Predicted against measured, for each unit; then how far predictions are off."""
    ran = [row for row in rows if row.predicted is not None]
    counts = Counter(row.unit for row in ran)
    units = [unit for unit, times in counts.most_common() if times >= _FEWEST]
    return [*_off(ran), *(_beside([row for row in ran if row.unit == unit], unit) for unit in units)]


def notes(rows: Sequence[Row], calibration: str) -> list[str]:
    """What the points are, and what was not predicted."""
    off = errors([row for row in rows if row.set == "check"])
    held = (
        f"of those never fitted, half are within {off.median:.0%} and nine of ten within {off.p90:.0%}. "
        if (off.median is not None and off.p90 is not None)
        else ""
    )
    left = sum(row.predicted is None for row in rows)
    return [
        f"How far to trust it: {held}{count(left)} of {count(len(rows))} points could not be predicted; the command "
        f"tells why.",
        f"Shares of data sheets: {calibration}. Each point's source is in its row of the CSV file.",
    ]


def _beside(rows: Sequence[Row], unit: str) -> Picture:
    shown, times = _UNITS.get(unit, (unit, 1.0))
    points = [
        Point(
            name="",
            x=times * row.measured,
            y=times * (row.predicted or 0.0),
            group="fitted" if row.set == "fit" else f"never fitted, {row.trust}",
            told=f"{row.id}: {row.metric}: measured {row.measured:.4g}, predicted {row.predicted:.4g} {unit}",
        )
        for row in sorted(rows, key=lambda row: (row.set != "fit", str(row.trust)))
    ]
    axes = (Axis(label="measured", unit=shown, is_log=True), Axis(label="predicted", unit=shown, is_log=True))
    told = f"{count(len(rows))} points."
    return scatter(f"Predicted against measured: {shown}", axes, points, is_mirrored=True, about=told)


def _off(rows: Sequence[Row]) -> list[Picture]:
    axis = Axis(label="off by, as a share of what was measured", is_share=True, low=0.0, high=1.0)
    limits = [Limit(0.1, "aims: 10%"), Limit(0.2, "to 20%")]  # docs/measurements.md: by kind
    by_set = {name: [row.error for row in rows if row.set == key] for key, name in _PARTS.items()}
    checks = [row for row in rows if row.set == "check"]
    kinds = sorted({str(row.trust) for row in checks})
    by_trust = {kind: [row.error for row in checks if str(row.trust) == kind] for kind in kinds}
    about = "What is off by more than all of it is beyond the right edge."
    found = [cdf("How far predictions are off", axis, by_set, limits, about, "points")]
    if len([kind for kind in by_trust.values() if kind]) > 1:
        about = "Measured: of a chip, engine and family of models with measurements of their own; see docs/design.md."
        found.append(cdf("… of what was never fitted, by trust", axis, by_trust, limits, about, "points"))
    return found


def held_to(found: Fidelity) -> list[Picture]:
    """Of a record: what was lived, beside its rehearsal."""
    rows = [
        Span(name=name, low=None, base=each.twin * 1e3, high=None, stated=each.live * 1e3, stated_as="live")
        for name, each in found.times.items()
    ]
    if not rows:
        return []
    about = "● rehearsed, □ as it was lived."
    return [spans("The twin beside the record", Axis(label="time", unit="ms", low=0.0), rows, about=about)]
