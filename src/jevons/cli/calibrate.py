"""`jevons calibrate`."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from jevons.config.calibration import as_toml
from jevons.config.catalog import read_catalog
from jevons.config.points import read_points
from jevons.twin.calibrate import calibrate

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("calibrate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--points", "file", type=_FILE, required=True, help="CSV file of measurements.")
@click.option("--out", type=_FILE, required=True, help="TOML file to write.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
def command(file: Path, out: Path, catalog: Path | None) -> None:
    """Learn which shares of data sheets are reached, from points that were measured.

    Seven of ten points are fitted; the rest, and each chip left out in turn, tell what error to expect. A minute or two
    for each chip in the file.
    """

    def told(line: str) -> None:
        click.echo(line, err=True)

    stamp = (datetime.datetime.now(tz=datetime.UTC).date().isoformat(), f"jevons calibrate --points {file.name}")
    out.write_text(as_toml(calibrate(read_points(file), read_catalog(catalog), stamp, told)))
