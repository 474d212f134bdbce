"""`jevons simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.base.units import count, milliseconds, si
from jevons.cli.pictures import files, picture_options
from jevons.cli.scalings import scalings
from jevons.cli.scenarios import scenario_of, scenario_options, tell_of_compiling
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.twin.course import Watch
from jevons.twin.report import Report
from jevons.twin.run import simulate
from jevons.twin.spread import Spread
from jevons.twin.watch import Watched

_FILE = click.Path(path_type=Path, dir_okay=False)
_SPEED = "Seconds of the rehearsal that go by in one of yours."


class PageAt(NamedTuple):
    """Whether the page is wanted, at which port, and how fast the rehearsal is to pass by."""

    is_wanted: bool
    port: int
    speed: float


@click.command("simulate", context_settings={"help_option_names": ["-h", "--help"]})
@scenario_options
@click.option("--exact", is_flag=True, help="Step through every iteration.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option("--calibration", type=_FILE, help="TOML file of `jevons calibrate` instead of what ships.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for results of each request.")
@picture_options
@click.option("--watch", is_flag=True, help="Serve the page at a free port of this machine while it runs, and after.")
@click.option("--watch-port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0 takes a free one.")
@click.option("--watch-speed", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help=_SPEED)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    scenario: str | None, exact: bool, catalog: Path | None, out: Path | None, as_json: bool, **given: Any
) -> None:
    """Rehearse a fleet: SCENARIO is a TOML file, or the name of one that ships with jevons."""
    shown = files(given.pop("html"), given.pop("png"))
    page = PageAt(*(given.pop(name) for name in ("watch", "watch_port", "watch_speed")))
    known, learned = read_catalog(catalog), read_calibration(given.pop("calibration"))
    wanted = scenario_of(scenario, given)
    if out is not None:
        _make(out)
    tell_of_compiling()
    pieces: list[Any] = []
    watch = Watch(wanted.slo) if shown else None

    def keep(results: Any) -> None:
        if out is not None:
            pieces.append(results.copy())
        if watch is not None:
            watch.add(results)

    def finish(report: Report) -> None:
        if out is not None:
            _write(out, report, pieces)
        if watch is not None:
            from jevons.cli.pictures.simulate import notes, pictures

            shown.write(report.title or "A rehearsal", notes(report), pictures(wanted, report, watch))
        if as_json:
            click.echo(msgspec.json.encode(report))
        else:
            _show(report)

    if page.is_wanted:
        from jevons.cli.watch import watch_it

        watch_it(Watched(wanted, known, learned, exact=exact, on_results=keep), known, page, finish)
    else:
        finish(simulate(wanted, known, learned, exact=exact, on_results=keep))


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror}") from error


def _write(out: Path, report: Report, pieces: list[Any]) -> None:
    import numpy as np

    try:
        (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        np.save(out / "requests.npy", np.concatenate(pieces))
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error


def _show(report: Report) -> None:
    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in ("mean", "p50", "p90", "p99"):
        table.add_column(head, justify="right")
    for name, spread in _spreads(report).items():
        table.add_row(name, *(milliseconds(value) for value in (spread.mean, spread.p50, spread.p90, spread.p99)))
    if report.title:
        console.print(report.title, markup=False, highlight=False)
    console.print(table)
    lines = [
        f"{count(report.requests)} requests on {count(report.instances)} instances of {count(report.chips)} chips, "
        f"{report.simulated_s:,.0f} s simulated in {report.wall_s:.1f} s",
        f"{si(report.output_tokens_per_s, 'tokens/s')} out, {report.goodput_per_s:,.2f} requests/s within the SLO "
        f"({report.met_slo:.1%} of all), instances busy {report.utilisation:.1%} of the time",
        f"{_reused(report)}, {report.preemptions} preemptions"
        + (f", {count(report.lost)} computed anew after failures" if report.lost else ""),
    ]
    if report.up:
        all_hours = report.instances * report.simulated_s / 3600
        lines.append(
            f"{report.instance_hours:,.1f} instance-hours paid, {report.instance_hours / all_hours:.1%} of all: "
            f"{min(up for _, up in report.up)} to {max(up for _, up in report.up)} instances up"
        )
    lines += scalings(report)
    if report.joules_per_output_token is not None:
        lines.append(f"about {report.joules_per_output_token:.3g} J per output token, chips alone")
    for trust in report.trust:
        lines.append(f"trust: {trust.chip}: {trust.trust}; {trust.note}")
    for line in lines:
        console.print(f" {line}", markup=False, highlight=False)


def _reused(report: Report) -> str:
    by_tier = report.reuse_fraction
    told = f"{sum(by_tier.values()):.1%} of prompt tokens reused"
    if len(by_tier) > 1:
        told += " (" + ", ".join(f"{share:.1%} from {tier}" for tier, share in by_tier.items()) + ")"
    return told


def _spreads(report: Report) -> dict[str, Spread]:
    return {"TTFT": report.ttft_s, "TPOT": report.tpot_s, "ITL": report.itl_s, "queue": report.queue_s}
