"""Pictures of `jevons fleet show`: what a chip or a rack can do at most, and how surely each figure is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from jevons.base.units import si
from jevons.charts import Axis, Limit, Line, Picture, Span, lines, spans
from jevons.facts.economics import Bounds
from jevons.facts.hardware import Chip, Figure, KvStore
from jevons.facts.llm import Llm

_WIDTHS = (("FP4", "fp4_flops"), ("FP8", "fp8_flops"), ("BF16", "bf16_flops"))
_LINKS = (
    ("memory", "memory_bytes_per_s"),
    ("scale-up, one way", "scale_up_bytes_per_s"),
    ("network, one way", "scale_out_bytes_per_s"),
)
_BATCHED = 1e5  # FLOP for each byte: more than any product of matrices in a model has


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A figure as people read it."""

    label: str
    figure: Figure | Bounds
    read: Callable[[float], str]


def hardware(chip: Chip, count: int = 1) -> list[Picture]:
    """Of one chip, or so many of a rack: a roofline, then what its memory and its links bring."""
    return [_roofline(chip, count), _links(chip, count)]


def sequence(model: Llm) -> Picture:
    """How a model's memory grows with what it has read."""
    tokens = np.unique(np.geomspace(256, model.context_tokens, 33).astype(int))
    kv = [model.kv_bytes(int(count)) for count in tokens]
    weights = model.weight_bytes()
    axes = (
        Axis(label="context of one sequence", unit="tokens", is_log=True),
        Axis(label="memory", unit="B", is_log=True),
    )
    series = [Line(name="KV of one sequence, 16 bit", x=tokens, y=kv, has_markers=False)]
    limits = [Limit(weights, f"weights, {si(weights, 'B')} as {model.weights}")]
    share = f"{kv[-1] / weights:.2g} of the weights"
    about = f"At {model.context_tokens:,} tokens one sequence keeps {si(kv[-1], 'B')}: {share}."
    return lines("What a sequence keeps", axes, series, limits, about)


def bringing(store: KvStore) -> list[Picture]:
    """How long a store takes to bring so much to one chip."""
    if store.bytes_per_s is None:
        return []
    sizes = np.geomspace(1e6, 1e12, 37)
    latency_s = 0.0 if store.latency_s is None else store.latency_s.value
    axes = (Axis(label="brought", unit="B", is_log=True), Axis(label="time", unit="s", is_log=True))
    rate = store.bytes_per_s.value
    line = Line(name=si(rate, "B/s"), x=sizes, y=latency_s + sizes / rate, has_markers=False)
    about = "Latency is not known, and left out." if store.latency_s is None else "Latency included."
    return [lines("How long it takes to bring it to one chip", axes, [line], about=about)]


def joined(chips: Mapping[str, Chip]) -> list[Picture]:
    """What a fabric gives each of the chips that it joins."""
    rows = [
        Span(
            name=f"{name}: {si(rate.value, 'B/s')} ({rate.confidence})",
            low=None,
            base=rate.value,
            high=None,
            is_told=False,
        )
        for name, chip in chips.items()
        if (rate := chip.scale_up_bytes_per_s) is not None
    ]
    axis = Axis(label="scale-up of one chip, one way", unit="B/s", is_log=True)
    return [spans("Chips that it joins", axis, rows)] if rows else []


def ranges(known: Sequence[Known]) -> list[Picture]:
    """Figures of which more than one value is told, over their base; where only bounds are known, over their middle."""
    rows = [_span(each) for each in known if each.figure.low is not None and each.figure.high is not None]
    if not rows:
        return []
    ends = [value for row in rows for value in (row.low, row.high) if value is not None]
    axis = Axis(label="over the base value", unit="×", is_log=max(ends) > 2 * min(ends))
    about = "Figures that have a range. ● base; without it only bounds are known, shown over their middle."
    return [spans("Between which bounds it lies", axis, rows, about=about)]


def sources(known: Sequence[Known], title: Callable[[str], str]) -> list[str]:
    """What each source says, how surely.

    Args:
        title: of a source's name.
    """
    told: dict[tuple[str, str], list[str]] = {}
    for each in known:
        base = f" {each.read(each.figure.value)}" if isinstance(each.figure, Figure) else ""
        told.setdefault((title(each.figure.source), str(each.figure.confidence)), []).append(each.label + base)
    return [f"{source} ({confidence}): {'; '.join(figures)}." for (source, confidence), figures in told.items()]


def _span(known: Known) -> Span:
    figure, read = known.figure, known.read
    assert figure.low is not None
    assert figure.high is not None
    base = figure.value if isinstance(figure, Figure) else None
    over = (figure.low * figure.high) ** 0.5 if base is None else base
    told = "base unknown" if base is None else read(base)
    return Span(
        name=f"{known.label}: {told} ({read(figure.low)} to {read(figure.high)}), {figure.confidence}",
        low=figure.low / over,
        base=None if base is None else 1.0,
        high=figure.high / over,
        is_told=False,
    )


def _roofline(chip: Chip, count: int) -> Picture:
    rate = chip.memory_bytes_per_s.value * count
    roofs = {name: figure.value * count for name, key in _WIDTHS if (figure := getattr(chip, key)) is not None}
    corners = {name: flops / rate for name, flops in roofs.items()}
    most = max(corners.values(), default=1.0)
    series = [
        Line(name=f"{name} {si(flops, 'FLOP/s')}", x=[corners[name], _BATCHED], y=[flops, flops], has_markers=False)
        for name, flops in roofs.items()
    ]
    slope = np.array([1.0, most])
    series.append(Line(name=f"memory {si(rate, 'B/s')}", x=slope, y=slope * rate, has_markers=False))
    axes = (
        Axis(label="arithmetic for each byte read", unit="FLOP/B", is_log=True),
        Axis(label="dense arithmetic", unit="FLOP/s", is_log=True),
    )
    told = ", ".join(f"{name} {corner:,.0f}" for name, corner in corners.items())
    about = (
        f"Left of a corner memory limits, right of it arithmetic; corners at {told} FLOP for each byte. "
        "By data sheets: engines reach less."
    )
    return lines("Roofline", axes, series, about=about)


def _links(chip: Chip, count: int) -> Picture:
    rows = []
    for label, key in _LINKS:
        figure: Figure | None = getattr(chip, key)
        rate = None if figure is None else figure.value * count
        holds = f", {si(chip.memory_bytes.value * count, 'B')} of {chip.memory}" if label == "memory" else ""
        told = "not known" if rate is None or figure is None else f"{si(rate, 'B/s')} ({figure.confidence})"
        rows.append(Span(name=f"{label}{holds}: {told}", low=None, base=rate, high=None, is_told=False))
    reach = ""
    if chip.domain_size is not None and chip.scale_up_bytes_per_s is not None:
        domain = chip.domain_size.value
        held = si(chip.memory_bytes.value * domain, "B")
        reach = f" Scale-up joins {domain:,.0f} chips, which hold {held}."
    axis = Axis(label="bytes a second", unit="B/s", is_log=True)
    return spans("Memory and links", axis, rows, about=f"Each step to the left is what leaving the chip costs.{reach}")
