"""`jevons demand`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.config.catalog import Catalog, read_catalog
from jevons.config.outlook import OutlookFile, Range, read_outlook, read_range
from jevons.econ.curve import Served
from jevons.econ.draws import Draws, Interval
from jevons.econ.levers import LEVERS
from jevons.econ.outlook import Outlook, Setup, Year, look_ahead, parameters
from jevons.facts.hardware import Figure

_DEFAULT = "jevons-2026-2030"
_SHOWN_SWINGS = 8
_SEEN = 0.005  # a swing below is not shown
_MODEL = "deepseek-v3"  # for which chips are compared, and that dense models give way to
_FLAGS = {"elasticity": "price_elasticity", "growth": "token_demand_growth_per_year"}


@click.command("demand", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("outlook", default=_DEFAULT)
@click.option("--elasticity", metavar="LOW:BASE:HIGH", help="Percent more tokens for a percent less.")
@click.option("--growth", metavar="LOW:BASE:HIGH", help="Of tokens, published, as a factor a year.")
@click.option("--set", "changes", metavar="NAME=LOW:BASE:HIGH", multiple=True, help="Any other parameter.")
@click.option("--without", metavar="LEVER", multiple=True, help=f"Leave out one of {', '.join(LEVERS)}.")
@click.option("--without-limit", type=click.Choice(["chips", "power"]), multiple=True, help="As if there were enough.")
@click.option(
    "--hardware", type=click.Choice(["sheet", "perf", "between", "vendor"]), help="Whose word on Vera Rubin to take."
)
@click.option("--draws", type=click.IntRange(100, 1_000_000), default=4096, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--catalog", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with figures of yours.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(outlook: str, draws: int, seed: int, catalog: Path | None, as_json: bool, **given: Any) -> None:
    """What cheaper tokens do to demand, year by year.

    OUTLOOK is a TOML file, or the name of one that ships with jevons. Everything is over the first year's; ranges hold
    9 of 10 draws of all parameters.
    """
    asked = _asked(read_outlook(outlook), given)
    figures = figures_of(read_catalog(catalog), asked)
    found = look_ahead(asked.title, figures, _setup(asked), Draws(draws, seed))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    show(found, Console())


def figures_of(catalog: Catalog, asked: OutlookFile) -> dict[str, Figure]:
    """All parameters: the catalog's, and what the outlook replaces. Raises ConfigError."""
    served = Served(model=catalog.models[_MODEL])
    figures = parameters(catalog.economics, catalog.demand, catalog.chips, served, asked.hardware)
    for name, change in asked.parameters.items():
        if name not in figures:
            raise ConfigError(f"outlook: parameters: {name!r} is none of them; {', '.join(sorted(figures))} are")
        figures[name] = change.figure("this outlook")
    return figures


def _setup(asked: OutlookFile) -> Setup:
    return Setup(first=asked.first, last=asked.last, levers=asked.levers, limits=asked.limits)


def _asked(file: OutlookFile, given: Mapping[str, Any]) -> OutlookFile:
    """The file with what flags change of it."""
    changes: dict[str, Range] = {
        name: read_range(given[flag], f"--{flag}") for flag, name in _FLAGS.items() if given[flag]
    }
    for text in given["changes"]:
        name, is_set, values = text.partition("=")
        if not is_set:
            raise ConfigError(f"--set: must be NAME=LOW:BASE:HIGH, got {text!r}")
        changes[name] = read_range(values, f"--set {name}")
    for lever in given["without"]:
        if lever not in LEVERS:
            raise ConfigError(f"--without: must be one of {', '.join(LEVERS)}, got {lever!r}")
    return msgspec.structs.replace(
        file,
        levers=tuple(lever for lever in file.levers if lever not in given["without"]),
        limits=tuple(limit for limit in file.limits if limit not in given["without_limit"]),
        hardware=given["hardware"] or file.hardware,
        parameters={**file.parameters, **changes},
    )


def show(found: Outlook, console: Console) -> None:
    if found.title:
        console.print(found.title, markup=False, highlight=False)
    console.print(_years(found))
    console.print(_levers(found))
    for line in _findings(found):
        console.print(f" {line}", markup=False, highlight=False)
    console.print(_swings(found))


def figure(value: float) -> str:
    """Two figures, without exponents."""
    if value == 0.0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{round(value, 1 - math.floor(math.log10(abs(value)))):,.{min(digits, 6)}f}"


def ranged(interval: Interval) -> str:
    if interval.low == interval.high:
        return figure(interval.base)
    return f"{figure(interval.base)} ({figure(interval.low)} to {figure(interval.high)})"


def _table(title: str, *heads: str) -> Table:
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style=""
    )
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def _years(found: Outlook) -> Table:
    title = f"over {found.setup.first}; chips, power: share of draws in which they limit what is done"
    table = _table(title, "", "cost of a task", "tasks", "spend", "chips", "power")
    for year in found.years:
        ranges = (ranged(interval) for interval in (year.price, year.tasks, year.spend))
        table.add_row(str(year.year), *ranges, *_short(year))
    return table


def _short(year: Year) -> tuple[str, str]:
    chips, power = year.limited_by_chips, year.limited_by_power
    return f"{chips:.0%}", f"{power:.0%}"


def _levers(found: Outlook) -> Table:
    table = _table(f"in {found.years[-1].year}, with each lever over without it", "", "price paid", "tasks", "spend")
    for lever in found.levers:
        table.add_row(lever.name, ranged(lever.price), ranged(lever.tasks), ranged(lever.spend))
    return table


def _findings(found: Outlook) -> list[str]:
    last, adoption = found.years[-1], found.adoption_per_year
    lines = [_flip(found), f"adoption at steady prices: {ranged(adoption)} × a year, prices explain the rest"]
    if found.most_elasticity is not None:
        lines.append(
            f"above an elasticity of {found.most_elasticity:.2f} they would explain more than all published growth"
        )
    if last.rent_share.high > 0.005:
        low, high = last.rent_share.low, last.rent_share.high
        lines.append(f"paid above cost while capacity is short: {low:.0%} to {high:.0%} of {last.year}'s spend")
    return lines


def _flip(found: Outlook) -> str:
    if found.flip is None:
        return "nothing makes tokens cheaper here"
    told = f"cheaper tokens raise spend from an elasticity of {found.flip:.2f} on ({found.above_one:.0%} of draws)"
    if not found.setup.limits or found.flip_within_limits == found.flip:
        return told
    if found.flip_within_limits is None:
        return f"{told}; within limits they {'raise' if found.limits_raise_spend else 'never raise'} it at any"
    return f"{told}, within limits from {found.flip_within_limits:.2f}"


def _swings(found: Outlook) -> Table:
    last = found.years[-1]
    table = _table(f"what matters for {last.year}'s spend, {figure(last.spend.base)} ×", "", "from", "to", "spend")
    seen = [swing for swing in found.matters if swing.width > _SEEN * last.spend.base]
    for swing in seen[:_SHOWN_SWINGS]:
        spend = f"{figure(swing.at_low)} to {figure(swing.at_high)}"
        table.add_row(swing.name, figure(swing.low), figure(swing.high), spend)
    return table
