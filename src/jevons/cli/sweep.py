"""`jevons sweep`."""

from __future__ import annotations

import os
from math import isfinite
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.base.units import milliseconds
from jevons.cli.pictures import files, picture_options
from jevons.cli.scenarios import tell_of_compiling
from jevons.config.scenario import shipped
from jevons.twin.sweep import Cell, Known, Value, check_parquet, grid, kept, sweep, write_parquet

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("sweep", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario")
@click.option(
    "--vary",
    multiple=True,
    required=True,
    help="NAME=VALUE,VALUE…, a field of the scenario by dotted name, such as traffic.rate=10,20,40 or "
    "fleet.0.instances=4,8. Again for more.",
)
@click.option("--out", type=_FILE, required=True, help="JSON lines: one a cell; those with results are not run again.")
@click.option("--processes", type=click.IntRange(1), help="On this machine; one for each core by default.")
@click.option("--ray", help="Address of a Ray cluster instead, whose nodes have jevons and the files.")
@click.option("--parquet", type=_FILE, help="Write all cells here too, a row each.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option("--calibration", type=_FILE, help="TOML file of `jevons calibrate` instead of what ships.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON list on standard output.")
def command(
    scenario: str,
    vary: tuple[str, ...],
    out: Path,
    processes: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Rehearse SCENARIO once for every combination of values, in parallel processes or on a Ray cluster."""
    if processes is not None and given["ray"]:
        raise ConfigError("sweep: give either --processes, on this machine, or --ray")
    shown = files(given["html"], given["png"])
    if given["parquet"] is not None:
        check_parquet(given["parquet"])
    varied = _grid(vary)
    path = Path(scenario) if Path(scenario).exists() else shipped(scenario)
    on: int | str = given["ray"] or processes or os.cpu_count() or 1
    if not given["ray"] and tell_of_compiling():
        on = 1  # or each would
    known = Known(given["catalog"], given["calibration"])
    total, there = len(grid(varied)), len(kept(path, varied, out, known))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("cells", total=total, completed=there)
        cells = sweep(
            path,
            varied,
            out,
            on=on,
            known=known,
            on_cell=lambda cell: progress.advance(task),
        )
    if given["parquet"] is not None:
        write_parquet(cells, given["parquet"])
    if shown:
        from jevons.cli.pictures.sweep import notes, pictures

        shown.write(f"{path.stem}: {' × '.join(varied)}", notes(cells), pictures(list(varied), cells))
    if as_json:
        click.echo(msgspec.json.encode(cells))
        return
    Console().print(_table(list(varied), cells))


def _grid(vary: tuple[str, ...]) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    for name, values in map(_varied, vary):
        if name in found:
            raise ConfigError(f"--vary: must name each field once, got {name!r} twice; give all of its values together")
        found[name] = values
    return found


def _varied(text: str) -> tuple[str, list[Value]]:
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise ConfigError(f"--vary: must be NAME=VALUE,VALUE…, such as traffic.rate=10,20, got {text!r}")
    return name, [_value(value) for value in values.split(",")]


def _value(text: str) -> Value:
    """A number, `true` or `false`; else the text. What JSON has no number for (nan, inf) is text: its cell says so."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if kind is int or isfinite(value) else text
    return text


def _table(names: list[str], cells: list[Cell]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in (*names, "TTFT p50", "p99", "TPOT p50", "good/s", "reused"):
        table.add_column(head, justify="right")
    for cell in cells:
        settings = [str(cell.settings[name]) for name in names]
        r = cell.report
        if r is None:
            table.add_row(*settings, cell.error)
            continue
        times = (milliseconds(value) for value in (r.ttft_s.p50, r.ttft_s.p99, r.tpot_s.p50))
        table.add_row(*settings, *times, f"{r.goodput_per_s:,.1f}", f"{sum(r.reuse_fraction.values()):.1%}")
    return table
