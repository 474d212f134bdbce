"""Pictures of `jevons fleet list`."""

from __future__ import annotations

from jevons.base.units import si
from jevons.charts import Axis, Picture, Point, Span, scatter, spans
from jevons.config.catalog import Catalog
from jevons.facts.hardware import Chip, Figure


def pictures(catalog: Catalog) -> list[Picture]:
    return [_roofs(catalog), _memories(catalog), *_hours(catalog)]


def notes() -> list[str]:
    return [
        "FLOP/s are dense. Figures are data sheets', not what engines reach; how far predictions from them are off: "
        "jevons validate.",
        "Each figure's source, date and confidence: jevons fleet show NAME.",
    ]


def _roofs(catalog: Catalog) -> Picture:
    points = []
    for name, chip in catalog.chips.items():
        flops = chip.fp8_flops or chip.bf16_flops
        if flops is not None:
            width = "FP8" if chip.fp8_flops is not None else "BF16"
            points.append(_point(name, chip, flops, chip.memory_bytes_per_s, width))
    axes = (
        Axis(label="FP8, dense", unit="FLOP/s", is_log=True),
        Axis(label="memory bandwidth", unit="B/s", is_log=True),
    )
    about = (
        "Each point is one chip, with BF16 where it has no FP8. Prompts are limited by arithmetic, answers by memory."
    )
    return scatter("What chips can do at most", axes, points, about=about)


def _memories(catalog: Catalog) -> Picture:
    points = [_point(name, c, c.memory_bytes, c.memory_bytes_per_s, c.memory) for name, c in catalog.chips.items()]
    axes = (
        Axis(label="memory", unit="B", is_log=True),
        Axis(label="memory bandwidth", unit="B/s", is_log=True),
    )
    return scatter("How much they hold, and how quickly it is read", axes, points, about="Each point is one chip.")


def _hours(catalog: Catalog) -> list[Picture]:
    rows = [
        Span(
            name=f"{name}, owned",
            low=None if own is None else own.low,
            base=None if own is None else own.value,
            high=None if own is None else own.high,
            stated=None if rent is None else rent.value,
            stated_as="rented",
        )
        for name, chip in catalog.chips.items()
        for own, rent in [(chip.own_usd_per_hour, chip.rent_usd_per_hour)]
        if own is not None or rent is not None
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: (-(row.stated or row.base or 0.0), row.name))
    axis = Axis(label="one chip for an hour", unit="$", low=0.0)
    about = "● owned, all costs in; □ rented. Of chips that are not here no price is known."
    return [spans("What an hour costs", axis, rows, about=about)]


def _point(name: str, chip: Chip, x: Figure, y: Figure, of: str) -> Point:
    told = f"{name}: {of}, {si(x.value, '')} ({x.confidence}), {si(y.value, 'B/s')} ({y.confidence})"
    return Point(name=name, x=x.value, y=y.value, group=chip.vendor, told=told)
