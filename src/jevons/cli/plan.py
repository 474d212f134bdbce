"""`jevons plan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.base.units import milliseconds
from jevons.cli.pictures import check_folder, files, picture_options, write
from jevons.cli.plans import amount, flip_line, read_plan, short_lines
from jevons.cli.scenarios import tell_of_compiling
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.prices import read_price
from jevons.config.scenario import MADE_UP, RECORDED
from jevons.config.wants import Price, Wants, make_wants, read_wants, shipped_wants
from jevons.econ.purchase import highs
from jevons.econ.rivals import Sureness
from jevons.facts.hardware import Figure
from jevons.twin.plan import plan
from jevons.twin.planned import Plan, Scaled, Tried

_FILE = click.Path(path_type=Path, dir_okay=False)
_MOST_FLIPS = 4
_MOST_OTHERS = 6
_FLAGS = {  # options that are values of the file, by their names there
    "model": "model",
    "ttft": "slo.ttft_s",
    "tpot": "slo.tpot_s",
    "share": "slo.share",
    "budget_usd_per_hour": "limits.usd_per_hour",
    "basis": "basis",
    "at": "at",
    "finalists": "finalists",
    "requests": "traffic.requests",
    "seed": "seed",
}


@click.command("plan", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("wants", required=False)
@click.option("--model", help="Of the catalog.")
@click.option("--weights", help="bf16, fp8, fp4; with commas: that would do, of which the cheapest is taken.")
@click.option("--trace", type=_FILE, help="Mooncake or OpenAI-style .jsonl, or Azure .csv; packed too, .gz.")
@click.option("--traffic", help="Made-up sessions instead: chat, rag, code, agents, documents, video.")
@click.option("--rate", type=float, help="Sessions starting a second; of a trace, how much faster it comes.")
@click.option("--requests", type=int, help="At most so many.")
@click.option("--ttft", type=float, help="Seconds until the first token that are promised.")
@click.option("--tpot", type=float, help="Seconds for each further token that are promised.")
@click.option("--share", type=float, help="Of requests that must be within both.")
@click.option("--mw", type=float, help="Power there is: of chips, hosts and network, without cooling.")
@click.option("--half-power", is_flag=True, help="Half of the power that the file names.")
@click.option("--budget-usd-per-hour", type=float, help="Dollars an hour there are.")
@click.option("--chips", help="That may be bought, with commas.")
@click.option("--without", help="Chips that may not, with commas.")
@click.option("--vendors", help="That are allowed, with commas.")
@click.option("--basis", type=click.Choice(["own", "rent", "build"]), help="Whose hours.")
@click.option("--usd-per-hour", multiple=True, help="CHIP=LOW:BASE:HIGH or CHIP=BASE, dollars. Again for more kinds.")
@click.option("--at", help="YYYY-MM: chips that are there later do not count.")
@click.option("--finalists", type=int, help="Sets of kinds of instances that are rehearsed, at least.")
@click.option("--seed", type=int, help="Of made-up traffic and chance.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or models of yours.")
@click.option("--calibration", type=_FILE, help="TOML file of `jevons calibrate` instead of what ships.")
@click.option("--against", type=_FILE, help="A former plan, as --json wrote it: what changed, and why.")
@click.option("--out", type=_FILE, help="File for the fleet: a scenario that `jevons simulate` rehearses.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    wants: str | None, catalog: Path | None, against: Path | None, out: Path | None, as_json: bool, **given: Any
) -> None:
    """The cheapest fleet that keeps a promise. WANTS is a TOML file, or the name of one that ships with jevons."""
    shown = files(given.pop("html"), given.pop("png"))
    check_folder("--out", out)
    learned = read_calibration(given.pop("calibration"))
    prices = dict(read_price(text) for text in given.pop("usd_per_hour"))
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    wanted = _priced(_wants(wants, asked), prices)
    former = None if against is None else read_plan(against)
    highs()  # nobody waits a minute for kernels that cannot be used
    tell_of_compiling()
    tell = (lambda tried: None) if as_json else _tell
    found = plan(wanted, read_catalog(catalog), learned, tell)
    if out is not None:
        _write(out, found)
    if shown:
        from jevons.cli.pictures.plan import notes, pictures

        shown.write(found.title or f"A fleet for {found.model}", notes(found), pictures(found))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for line in _lines(found):
        Console().print(line, markup=False, highlight=False)
    if former is not None:
        for text in _changes(former, found):
            click.echo(f" {text}")


def _wants(name: str | None, given: dict[str, Any]) -> Wants:
    changes = {_FLAGS[flag]: value for flag, value in given.items() if flag in _FLAGS}
    for flag in ("chips", "without", "vendors"):
        if flag in given:
            changes[flag] = [each.strip() for each in given[flag].split(",")]
    if "trace" in given and "traffic" in given:
        raise ConfigError("--trace and --traffic: give one of them: what is recorded, or what is made up")
    if "trace" in given:
        changes |= {**RECORDED, "traffic.trace": str(given["trace"].resolve())}
    if "traffic" in given:
        changes |= {**MADE_UP, "traffic.kind": given["traffic"]}
    if "weights" in given:
        first, *rest = (each.strip() for each in given["weights"].split(","))
        changes |= {"weights": first, "or_weights": rest}
    if "mw" in given:
        changes["limits.power_w"] = given["mw"] * 1e6
    if name is None:
        if "model" not in given or not ("trace" in given or "traffic" in given):
            raise ConfigError("plan: give a file, or --model and --trace or --traffic")
        changes |= _rate(given, "trace" in given)
        return _halved(make_wants({"traffic": {}}, "of these options", changes), given)
    path = Path(name)
    path = path if path.exists() else shipped_wants(name)
    is_trace = "trace" in given or ("traffic" not in given and bool(read_wants(path).traffic.trace))
    return _halved(read_wants(path, changes | _rate(given, is_trace)), given)


def _priced(wants: Wants, prices: Mapping[str, Figure]) -> Wants:
    """With these prices instead of those of the file."""
    given = {chip: Price(usd_per_hour=p.value, low=p.low, high=p.high) for chip, p in prices.items()}
    return msgspec.structs.replace(wants, prices=wants.prices | given)


def _rate(given: dict[str, Any], is_trace: bool) -> dict[str, Any]:
    return {"traffic.speed" if is_trace else "traffic.rate": given["rate"]} if "rate" in given else {}


def _halved(wants: Wants, given: dict[str, Any]) -> Wants:
    if "half_power" not in given:
        return wants
    power_w = wants.limits.power_w
    if power_w is None:
        raise ConfigError("--half-power: there is no limit on power; name one, as limits.power_w or --mw")
    return msgspec.structs.replace(wants, limits=msgspec.structs.replace(wants.limits, power_w=power_w / 2))


def _write(out: Path, found: Plan) -> None:
    """The cheapest fleet, as it starts and stops where that pays."""
    if found.best is None:
        click.echo(f"--out {out}: not written: nothing keeps the promise", err=True)
        return
    text = found.scaled.scenario if found.scaled is not None and found.scaled.pays else found.scenario
    write("--out", out, text.encode())


def _tell(tried: Tried) -> None:
    kept = "keeps" if tried.keeps else f"{tried.met:.1%}"
    click.echo(f"rehearsed {tried.name}: ${tried.usd_per_hour:,.2f}/h, {kept}", err=True)


def _lines(found: Plan) -> Iterator[Any]:
    if found.best is None:
        yield from short_lines(found)
        return
    slo = found.slo
    promise = f"{slo.share:.0%} of requests within {slo.ttft_s:g} s and {milliseconds(slo.tpot_s)} a token"
    if found.title:
        yield found.title
    yield f"{found.model} in {found.weights}, {promise}: {found.best.name}"
    yield _table(found.finalists)
    yield " $/Mtok: of output, which pays for all; TTFT and TPOT: within which that share of requests is"
    for weights, usd in found.in_other_weights.items():
        yield f" in {weights}: {'no fleet was found' if usd is None else f'{_usd(usd)}/h at least'}"
    others = [each for each in found.front if each not in found.finalists]
    if others:
        yield " also rehearsed, and beaten by none in dollars, speed and power at once:"
        yield _table(others[:_MOST_OTHERS])
    yield _sure(found)
    if found.sureness is not None:
        yield from _flips(found.sureness)
    if found.scaled is not None:
        yield from _scaled(found.scaled)
    yield from _trusted(found.best)
    yield f" {found.rehearsals} fleets rehearsed; by the bound alone none is below {_usd(found.bound_usd_per_hour)}/h"
    for why in sorted(set(found.why_not.values())):
        yield f" not considered, {why}: {', '.join(chip for chip, of in found.why_not.items() if of == why)}"


def _table(fleets: list[Tried]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    heads = ("fleet", "$/h", "$/Mtok", "kW", "TTFT", "TPOT", "kept")
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at else "left", no_wrap=at > 0)
    for each in fleets:
        table.add_row(
            each.name,
            f"{each.usd_per_hour:,.2f}",
            f"{each.usd_per_million_output_tokens:.3g}",
            "unknown" if each.power_w is None else f"{each.power_w / 1e3:,.1f}",
            milliseconds(each.ttft_s),
            milliseconds(each.tpot_s),
            f"{each.met:.1%}",
        )
    return table


def _sure(found: Plan) -> str:
    assert found.sureness is not None, "asked where something was found"
    cost = found.sureness.costs[0]
    told = f" ${cost.base:,.2f}/h ({cost.low:,.2f} to {cost.high:,.2f}, by prices and step times)"
    if len(found.finalists) == 1:
        return f"{told}; nothing else kept the promise"
    share = found.sureness.cheapest_share[0]
    return f"{told}; the cheapest of these {len(found.finalists)} in {share:.0%} of draws"


def _flips(sure: Sureness) -> Iterator[str]:
    if sure.flips:
        yield " what would flip it, if it were"
    for flip in sure.flips[:_MOST_FLIPS]:
        yield f" {flip_line(flip)}"


def _scaled(found: Scaled) -> Iterator[str]:
    """What starting and stopping saves, or why it does not."""
    if not found.pays:
        yield f" starting and stopping instances does not pay: {found.reason}"
    else:
        yield f" starting and stopping instances pays: {found.reason}"
    if found.usd_per_hour:
        yield (
            f"  {found.name}, {found.least_up} to {found.most_up} up: {found.instance_hours:,.1f} of "
            f"{found.all_instance_hours:,.1f} instance-hours, ${found.usd_per_hour:,.2f}/h by the mean, "
            f"${found.usd_per_million_output_tokens:.3g}/Mtok; {found.met:.1%} kept, headroom {found.headroom:.0%}"
        )


def _trusted(best: Tried) -> Iterator[str]:
    for chip in sorted(best.chips):
        part = next((part for part in best.parts if part.chip == chip), None)
        if part is None:
            yield f" trust: {chip}: guessed shares of its data sheet; nothing of this kind was ever measured"
            continue
        error = part.rate_p90_error
        note = "nothing of this kind was held out" if error is None else f"nine of ten throughputs within {error:.0%}"
        yield f" trust: {chip}: {part.trust}; {note}"


def _usd(value: float | None) -> str:
    return "unknown" if value is None else f"${value:,.2f}"


def _changes(former: Plan, now: Plan) -> Iterator[str]:
    """What is otherwise than in a former plan, and which of the limits or offers made it so."""
    was, best = former.best, now.best
    if was is None or best is None:
        yield f"before: {was.name if was else 'nothing'}; now: {best.name if best else 'nothing'}"
        if was is not None:
            yield from _reasons(was, former, now)
        return
    if was.name == best.name:
        yield f"as before: {best.name}"
        return
    ratio = best.usd_per_million_output_tokens / was.usd_per_million_output_tokens
    yield f"before: {was.name}; now: {best.name}: {ratio:.2f} × the dollars a token"
    yield from _reasons(was, former, now)


def _reasons(was: Tried, former: Plan, now: Plan) -> Iterator[str]:
    gone = [chip for chip in was.chips if chip in now.why_not]
    for chip in gone:
        yield f"because {chip} is not there now: {now.why_not[chip]}"
    for name in ("power_w", "usd_per_hour", "capex_usd"):
        has, needed = getattr(now.limits, name), getattr(was, name)
        if has is not None and (needed is None or needed > has):
            told = "unknown" if needed is None else amount(name, needed)
            yield f"because {name} is limited to {amount(name, has)}: the former fleet needs {told}"
    if not gone and (now.slo != former.slo or now.load != former.load):
        yield "because another promise, or other traffic, is asked for"
