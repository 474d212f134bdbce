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

from jevons.base.errors import ConfigError
from jevons.base.units import count, milliseconds
from jevons.cli.pictures import Files, files, picture_options
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.points import read_points
from jevons.config.scenario import read_scenario
from jevons.perf.calibration import NOTHING
from jevons.twin.record import Fidelity, read_record, rehearse, scenario_of
from jevons.twin.validate import Errors, Row, errors, groups, validate

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("validate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--points", "file", type=_FILE, help="CSV file of measurements.")
@click.option("--record", type=_FOLDER, help="Folder of `jevons serve --record`: rehearse what it lived through.")
@click.option("--scenario", type=_FILE, help="With --record: the fleet; of the record itself by default.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option("--calibration", type=_FILE, help="TOML file of `jevons calibrate` instead of what ships.")
@click.option("--uncalibrated", is_flag=True, help="From data sheets and guessed shares of them alone.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    file: Path | None,
    record: Path | None,
    scenario: Path | None,
    uncalibrated: bool,
    as_json: bool,
    **given: Path | None,
) -> None:
    """How far predictions are off, on what was measured.

    Of points, three of ten are never fitted, by a hash of what was run: those are "check". What cannot be predicted is
    listed with its reason.

    Of a record, its requests are rehearsed and compared one by one: were they placed alike, did they take as long?
    """
    if (file is None) == (record is None):
        raise ConfigError("validate: give either --points or --record")
    shown = files(given["html"], given["png"])
    catalog = read_catalog(given["catalog"])
    calibration = NOTHING if uncalibrated else read_calibration(given["calibration"])
    if record is not None:
        wanted = scenario_of(read_record(record))[0] if scenario is None else read_scenario(scenario)
        _tell(rehearse(record, wanted, catalog, calibration), shown, as_json=as_json, is_fitted=scenario is None)
        return
    assert file is not None, "one of them is given"
    points = read_points(file)
    rows = validate(points, catalog, calibration)
    found = groups(points, rows)
    if shown:
        from jevons.cli.pictures.validate import notes, pictures

        from_where = "guessed" if uncalibrated else str(given["calibration"] or "those that ship with jevons")
        shown.write(f"Predictions beside {count(len(rows))} measurements", notes(rows, from_where), pictures(rows))
    if as_json:
        summary = {name: errors(group) for name, group in found.items()}
        click.echo(msgspec.json.encode({"rows": rows, "summary": summary}))
        return
    console = Console()
    console.print(_table(found))
    reasons = Counter(re.sub(r"'[^']*'|[\d.]+", "…", row.reason) for row in rows if row.reason)
    for reason, times in reasons.most_common():
        console.print(f" {times} not predicted: {reason}", markup=False, highlight=False)


def _tell(found: Fidelity, shown: Files, *, as_json: bool, is_fitted: bool) -> None:
    if shown:
        from jevons.cli.pictures.validate import held_to

        shown.write("A record and its rehearsal", _apart(found, is_fitted), held_to(found))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    console, table = Console(), Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("", "live", "twin", "off by"):
        table.add_column(head, justify="left" if not head else "right")
    for name, both in found.times.items():
        table.add_row(name, milliseconds(both.live), milliseconds(both.twin), f"{both.off:+.1%}")
    console.print(table)
    for line in _apart(found, is_fitted):
        console.print(f" {line}", markup=False, highlight=False)


def _apart(f: Fidelity, is_fitted: bool) -> list[str]:
    lines = [
        f"{count(f.placed_alike)} of {count(f.requests)} requests placed alike ({f.placed_alike / f.requests:.1%}), "
        f"{count(f.cached_alike)} with as many cached tokens",
        f"{count(f.cached_tokens.live)} cached tokens in all, {count(f.cached_tokens.twin)} in the twin",
    ]
    if f.first_apart is not None:
        lines.append(f"the first placed elsewhere: {f.first_apart}")
    if is_fitted:
        lines.append("the twin's step times were fitted to this record; --scenario takes one fitted to another")
    return lines


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
