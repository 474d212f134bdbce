"""`jevons simulate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.compiled import are_compiled
from jevons.base.errors import ConfigError
from jevons.base.units import count, milliseconds, si
from jevons.cli.pictures import files, picture_options
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import Scenario, make_scenario, read_scenario, shipped
from jevons.twin.course import Watch
from jevons.twin.run import Report, simulate
from jevons.twin.spread import Spread

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("simulate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario", required=False)
@click.option("--fleet", help="Instances of one kind: INSTANCESxCHIP or INSTANCESxTENSORxCHIP, such as 8x4xh200.")
@click.option("--model", help="Of the catalog.")
@click.option("--trace", type=_FILE, help="Mooncake or OpenAI-style .jsonl, or Azure .csv.")
@click.option("--traffic", help="Made-up sessions instead: chat, rag, code, agents, documents, video.")
@click.option("--router", help="kv, round_robin, least_loaded or random.")
@click.option("--rate", type=float, help="Sessions starting a second; of a trace, how much faster it comes.")
@click.option("--requests", type=int, help="At most so many.")
@click.option("--seed", type=int)
@click.option("--exact", is_flag=True, help="Step through every iteration.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for results of each request.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    scenario: str | None, exact: bool, catalog: Path | None, out: Path | None, as_json: bool, **given: Any
) -> None:
    """Rehearse a fleet: SCENARIO is a TOML file, or the name of one that ships with jevons."""
    shown = files(given.pop("html"), given.pop("png"))
    wanted = _scenario(scenario, {name: value for name, value in given.items() if value is not None})
    if out is not None:
        _make(out)
    if not are_compiled():
        click.echo("Compiling the kernels, once for this version: about a minute ...", err=True)
    pieces: list[Any] = []
    watch = Watch(wanted.slo) if shown else None

    def keep(results: Any) -> None:
        if out is not None:
            pieces.append(results.copy())
        if watch is not None:
            watch.add(results)

    report = simulate(wanted, read_catalog(catalog), read_calibration(), exact=exact, on_results=keep)
    if out is not None:
        _write(out, report, pieces)
    if watch is not None:
        from jevons.cli.pictures.simulate import notes, pictures

        shown.write(report.title or "A rehearsal", notes(report), pictures(wanted, report, watch))
    if as_json:
        click.echo(msgspec.json.encode(report))
        return
    _show(report)


def _scenario(name: str | None, given: dict[str, Any]) -> Scenario:
    changes: dict[str, Any] = {key: given[key] for key in ("model", "router", "seed") if key in given}
    if "trace" in given and "traffic" in given:
        raise ConfigError("--trace and --traffic: give one of them: what is recorded, or what is made up")
    if "trace" in given:
        changes |= {"traffic.trace": str(given["trace"]), "traffic.kind": ""}
    if "traffic" in given:
        changes |= {"traffic.kind": given["traffic"], "traffic.trace": ""}
    if "requests" in given:
        changes["traffic.requests"] = given["requests"]
    if "fleet" in given:
        changes["fleet"] = [read_group(given["fleet"])]
    if name is None:
        if "fleet" not in given or not ("trace" in given or "traffic" in given):
            raise ConfigError("simulate: give a scenario, or --fleet, --model and --trace or --traffic")
        changes |= _rate(given, "trace" in given)
        return make_scenario({"traffic": {}}, "of these options", changes)
    path = Path(name)
    if not path.exists():
        path = shipped(name)
    changes |= _rate(given, "trace" in given or bool(read_scenario(path).traffic.trace and "traffic" not in given))
    return read_scenario(path, changes)


def _rate(given: dict[str, Any], is_trace: bool) -> dict[str, Any]:
    if "rate" not in given:
        return {}
    return {"traffic.speed" if is_trace else "traffic.rate": given["rate"]}


def read_group(text: str) -> dict[str, Any]:
    """The group that INSTANCESxTENSORxCHIP means. Raises ConfigError."""
    read = re.fullmatch(r"([0-9]+)x(?:([0-9]+)x)?(\S+)", text)
    if read is None:
        raise ConfigError(f"--fleet: must be INSTANCESxCHIP or INSTANCESxTENSORxCHIP, such as 8x4xh200, got {text!r}")
    return {"instances": int(read[1]), "tensor": int(read[2] or 1), "chip": read[3]}


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror}") from error


def _write(out: Path, report: Report, pieces: list[Any]) -> None:
    import numpy as np

    (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    np.save(out / "requests.npy", np.concatenate(pieces))


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
        f"{_reused(report)}, {report.preemptions} preemptions",
    ]
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
