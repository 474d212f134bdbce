"""`jevons calibrate`."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from jevons.base.errors import ConfigError
from jevons.base.units import count, milliseconds
from jevons.cli.pictures import Files, check_folder, files, picture_options, write
from jevons.config import scenario
from jevons.config.calibration import as_toml
from jevons.config.catalog import Catalog, read_catalog
from jevons.config.points import Point, read_points
from jevons.perf.calibration import Calibration
from jevons.twin.calibrate import calibrate
from jevons.twin.record import Fitted, read_record, scenario_of, together
from jevons.twin.validate import validate

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("calibrate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--points", type=_FILE, help="CSV file of measurements.")
@click.option("--record", type=_FOLDER, multiple=True, help="Folder of `jevons serve --record`; several of one fleet.")
@click.option("--out", type=_FILE, help="TOML file to write; of a record, fleet.toml in its folder by default.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="That fit points side by side."
)
@picture_options
def command(
    points: Path | None, record: tuple[Path, ...], out: Path | None, catalog: Path | None, processes: int, **pages: Any
) -> None:
    """Learn how fast hardware is from what was measured on it.

    From points, the shares of data sheets that are reached: seven of ten are fitted; the rest, and each chip left out
    in turn, tell what error to expect. A minute or two for each chip in the file.

    From a record, the fleet that served: a scenario for `jevons simulate`, its step times fitted to the steps its
    workers reported.
    """
    if (points is None) == (not record):
        raise ConfigError("calibrate: give either --points or --record")
    shown = files(pages["html"], pages["png"])
    check_folder("--out", out)
    if record:
        if shown:
            raise ConfigError("--html and --png: of --points; `jevons validate --record` shows a record")
        _from_record(record, out or record[0] / "fleet.toml")
        return
    assert points is not None, "one of them is given"
    if out is None:
        raise ConfigError("calibrate: --points needs --out, the file to write")
    stamp = (datetime.datetime.now(tz=datetime.UTC).date().isoformat(), f"jevons calibrate --points {points.name}")
    measured, known = read_points(points), read_catalog(catalog)
    found = calibrate(measured, known, stamp, _told, processes)
    write("--out", out, as_toml(found).encode())
    click.echo(f"Wrote {out}: jevons simulate SCENARIO --calibration {out}")
    if shown:
        _show(measured, known, found, out, shown)


def _show(points: Sequence[Point], catalog: Catalog, found: Calibration, out: Path, shown: Files) -> None:
    from jevons.cli.pictures.validate import notes, pictures

    rows = validate(points, catalog, found)
    shown.write(f"What {out.name} predicts beside what was measured", notes(rows, out.name), pictures(rows))


def _from_record(folders: Sequence[Path], out: Path) -> None:
    made, fits = scenario_of(together([read_record(folder) for folder in folders]))
    if out.parent.resolve() != folders[0].resolve():  # a trace is looked for beside its scenario
        requests = str((folders[0] / made.traffic.trace).resolve())
        made = replace(made, traffic=replace(made.traffic, trace=requests))
    write("--out", out, scenario.as_toml(made).encode())
    for fitted in fits:
        _told(_says(fitted))
    click.echo(f"Wrote {out}: jevons simulate {out}")


def _says(f: Fitted) -> str:
    p = f.prices
    return (
        f"{', '.join(f.workers)}: {count(f.steps)} steps: {milliseconds(p.per_step_s)} each, "
        f"{milliseconds(p.per_token_s)} a prompt token, {milliseconds(p.per_decode_s)} a decode; "
        f"half of the steps within {f.off_p50:.0%}, nine of ten within {f.off_p90:.0%}, all together {f.off_sum:+.1%}"
    )


def _told(line: str) -> None:
    click.echo(line, err=True)
