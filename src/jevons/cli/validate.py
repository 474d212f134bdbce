"""`jevons validate`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.config.catalog import read_catalog
from jevons.config.points import Point, read_points
from jevons.twin.validate import Errors, Row, errors, validate

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("validate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--points", "file", type=_FILE, required=True, help="CSV file of measurements.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(file: Path, catalog: Path | None, as_json: bool) -> None:
    """How far predictions are off, on points that were measured.

    Nothing is calibrated on them: what is predicted follows from data sheets and guessed shares of them.
    """
    points = read_points(file)
    rows = validate(points, read_catalog(catalog))
    if as_json:
        summary = {name: errors(group) for name, group in _groups(points, rows).items()}
        click.echo(msgspec.json.encode({"rows": rows, "summary": summary}))
        return
    console = Console()
    console.print(_table(_groups(points, rows)))
    reasons = Counter(re.sub(r"'[^']*'|[\d.]+", "…", row.reason) for row in rows if row.reason)
    for reason, count in reasons.most_common():
        console.print(f" {count} not predicted: {reason}", markup=False, highlight=False)


def _groups(points: list[Point], rows: list[Row]) -> dict[str, list[Row]]:
    """All, and by metric, system and model."""
    groups: dict[str, list[Row]] = {"all": rows}
    for key in ("metric", "system", "model"):
        for name in dict.fromkeys(getattr(point, key) for point in points):
            group = [row for point, row in zip(points, rows, strict=True) if getattr(point, key) == name]
            groups[f"{key}: {name}"] = group
    return groups


def _table(groups: dict[str, list[Row]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in ("points", "predicted", "MAPE", "median", "p90"):
        table.add_column(head, justify="right")
    for name, group in groups.items():
        found = errors(group)
        if found.predicted:
            table.add_row(name, *_cells(found))
    return table


def _cells(e: Errors) -> list[str]:
    shares = ["" if share is None else f"{share:.1%}" for share in (e.mape, e.median, e.p90)]
    return [str(e.points), f"{e.predicted / e.points:.0%}", *shares]
