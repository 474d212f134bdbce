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

from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.points import read_points
from jevons.perf.calibration import NOTHING
from jevons.twin.validate import Errors, Row, errors, groups, validate

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("validate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--points", "file", type=_FILE, required=True, help="CSV file of measurements.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option("--calibration", type=_FILE, help="TOML file of `jevons calibrate` instead of what ships.")
@click.option("--uncalibrated", is_flag=True, help="From data sheets and guessed shares of them alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(file: Path, catalog: Path | None, calibration: Path | None, uncalibrated: bool, as_json: bool) -> None:
    """How far predictions are off, on points that were measured.

    Three of ten points are never fitted, by a hash of what was run: those are "check". What cannot be predicted is
    listed with its reason.
    """
    points = read_points(file)
    rows = validate(points, read_catalog(catalog), NOTHING if uncalibrated else read_calibration(calibration))
    found = groups(points, rows)
    if as_json:
        summary = {name: errors(group) for name, group in found.items()}
        click.echo(msgspec.json.encode({"rows": rows, "summary": summary}))
        return
    console = Console()
    console.print(_table(found))
    reasons = Counter(re.sub(r"'[^']*'|[\d.]+", "…", row.reason) for row in rows if row.reason)
    for reason, count in reasons.most_common():
        console.print(f" {count} not predicted: {reason}", markup=False, highlight=False)


def _table(found: dict[str, list[Row]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in ("points", "predicted", "MAPE", "median", "p90"):
        table.add_column(head, justify="right")
    for name, group in found.items():
        off = errors(group)
        if off.predicted:
            table.add_row(name, *_cells(off))
    return table


def _cells(e: Errors) -> list[str]:
    shares = ["" if share is None else f"{share:.1%}" for share in (e.mape, e.median, e.p90)]
    return [str(e.points), f"{e.predicted / e.points:.0%}", *shares]
