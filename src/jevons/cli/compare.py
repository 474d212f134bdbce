"""`jevons compare`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.units import count, milliseconds
from jevons.cli.pictures import files, picture_options
from jevons.twin.compare import Comparison, Decision, Part, compare, read_results

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("compare", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER)
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(a: Path, b: Path, html: Path | None, png: Path | None, as_json: bool) -> None:
    """Where the decisions of two rehearsals part, and what came of it.

    A and B are folders of `jevons simulate --out`. Times are means, of those requests in that rehearsal.
    """
    shown = files(html, png)
    results = read_results(a), read_results(b)
    found = compare(*results)
    if shown:
        from jevons.cli.pictures.compare import notes, pictures

        shown.write("Two rehearsals compared", notes(found, (str(a), str(b))), pictures(*results))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    console = Console()
    console.print(_table(found))
    for line in _first(found):
        console.print(f" {line}", markup=False, highlight=False)


def _table(found: Comparison) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("requests placed", "", "TTFT", "TPOT", "reused", "TTFT off by"):
        table.add_column(head, justify="left" if head in ("requests placed", "") else "right")
    for name, part in (("alike", found.placed_alike), ("differently", found.placed_differently)):
        for i, side in enumerate("AB"):
            table.add_row(f"{count(part.requests)} {name}" if i == 0 else "", side, *_cells(part, i))
    return table


def _cells(part: Part, i: int) -> list[str]:
    times = [milliseconds(pair[i]) for pair in (part.ttft_s, part.tpot_s, part.prediction_error_s)]
    return [times[0], times[1], f"{part.reuse[i]:.1%}", times[2]]


def _first(found: Comparison) -> list[str]:
    if found.first_decisions is None:
        return ["every request was placed alike"]
    a, b = found.first_decisions
    return [
        f"first parted: request {found.first} at {found.first_at_s:.3f} s",
        f"A: {_told(a)}",
        f"B: {_told(b)}",
    ]


def _told(d: Decision) -> str:
    then = f", then {d.decode_on}" if d.decode_on >= 0 else ""
    return (
        f"instance {d.worker}{then}, {count(d.predicted_cached)} tokens believed cached ({count(d.cached)} were), "
        f"first token predicted in {milliseconds(d.predicted_s)}, came in {milliseconds(d.ttft_s)}"
    )
