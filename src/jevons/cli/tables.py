"""Tables of measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jevons.base.units import count, milliseconds

_ENDLESS = 10_000  # columns of a terminal that no cell fills

_ROWS: tuple[tuple[str, str, str], ...] = (
    ("requests", "requests", "count"),
    ("errors", "errors", "count"),
    ("wall time", "wall_s", "seconds"),
    ("prompt tokens", "prompt_tokens", "count"),
    ("  cached", "cached_tokens", "count"),
    ("  computed", "prefill_tokens_computed", "count"),
    ("output tokens/s", "output_tokens_per_s", "count"),
    ("TTFT p50", "ttft_s.p50", "ms"),
    ("TTFT p90", "ttft_s.p90", "ms"),
    ("TTFT p99", "ttft_s.p99", "ms"),
    ("ITL p50", "itl_s.p50", "ms"),
    ("ITL p99", "itl_s.p99", "ms"),
    ("TPOT p50", "tpot_s.p50", "ms"),
    ("requests/s", "requests_per_s", "rate"),
    ("goodput, requests/s", "goodput_rps", "rate"),
)


def measured_table(title: str, columns: Mapping[str, Mapping[str, Any]], extra: Mapping[str, list[str]] = {}) -> Table:
    """One column for each record of `serve.load.summary`, then further columns of ready text, row by row."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in (*columns, *extra):
        table.add_column(name, justify="right", no_wrap=True)
    for i, (label, key, kind) in enumerate(_ROWS):
        if key == "goodput_rps" and all(_at(record, key) is None for record in columns.values()):
            continue  # nobody asked for targets
        cells = [_cell(_at(record, key), kind) for record in columns.values()]
        table.add_row(label, *cells, *(texts[i] for texts in extra.values()))
    return table


def savings(base: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """For each row: how many times better `ours` is, where that can be said."""
    lower = {"wall_s", "prefill_tokens_computed", "ttft_s.p50", "ttft_s.p90", "ttft_s.p99"}
    lower |= {"itl_s.p50", "itl_s.p99", "tpot_s.p50"}
    higher = {"cached_tokens", "output_tokens_per_s", "requests_per_s", "goodput_rps"}
    texts = []
    for _, key, _ in _ROWS:
        a, b = _at(base, key), _at(ours, key)
        ratio = (a / b if key in lower else b / a) if a and b and key in lower | higher else None
        texts.append(f"{ratio:.2f} ×" if ratio is not None else "")
    return texts


def show(table: Table, console: Console | None = None) -> None:
    """Print it; columns that do not wrap are never cut: half a figure is another figure.

    Where the terminal is narrower than these and the longest words, it is the terminal that breaks the lines.
    """
    console = console or Console()
    endless = console.options.update(width=_ENDLESS)
    for column in table.columns:
        sizes = [Measurement.get(console, endless, cell) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    least = Measurement.get(console, endless, table).minimum
    if least > console.width:
        table.width = least
    console.print(table, crop=False)


def _at(record: Mapping[str, Any], key: str) -> Any:
    value: Any = record
    for part in key.split("."):
        value = value[part]
    return value


def _cell(value: float | None, kind: str) -> str:
    if value is None:
        return "unknown"
    match kind:
        case "ms":
            return milliseconds(value)
        case "seconds":
            return f"{value:.1f} s"
        case "rate":
            return f"{value:.2f}"
    return count(value)
