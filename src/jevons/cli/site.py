"""`jevons site`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.cli.cost import rehearsed, utilised
from jevons.cli.pictures import files, picture_options
from jevons.cli.pricing import Priced, Wanted, priced
from jevons.cli.ranges import Finite
from jevons.cli.scenarios import FILE
from jevons.cli.tables import show
from jevons.config.catalog import read_catalog
from jevons.config.prices import read_prices
from jevons.econ.cost import Basis
from jevons.econ.draws import Interval

SAME = ("same-gb300", "same-vr", "same-vr-lpx", "same-tpu-v7", "same-mi355x")
_UNKNOWN = "not known"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What `jevons site --json` says of one fleet."""

    scenario: str
    priced: Priced


@click.command("site", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenarios", nargs=-1)
@click.option("--mw", type=Finite(0, min_open=True), default=50.0, show_default=True, help="Of the grid.")
@click.option("--basis", type=click.Choice([*map(str, Basis)]), default="own", show_default=True, help="Whose hours.")
@click.option("--usd-per-hour", multiple=True, help="CHIP=LOW:BASE:HIGH or CHIP=BASE, dollars. Again for more kinds.")
@click.option("--utilisation", help="LOW:BASE:HIGH, 0 to 1: demand over the year, of the one rehearsed.")
@click.option("--catalog", type=FILE, help="TOML file with chips, racks or economics of yours.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON list on standard output.")
def command(scenarios: tuple[str, ...], catalog: Path | None, as_json: bool, **given: Any) -> None:
    """What a site of so much power holds of each fleet, cooling included, and what its tokens cost.

    SCENARIOS are those that ship of one model on five makes, where none are named.
    """
    shown = files(given["html"], given["png"])
    known = utilised(read_catalog(catalog), given["utilisation"])
    prices = read_prices(given["usd_per_hour"], known)
    wanted = Wanted(basis=Basis(given["basis"]), prices=prices, site_mw=given["mw"])
    names = list(dict.fromkeys(scenarios or SAME))
    found = [
        Found(scenario=called, priced=priced(rehearsed(name, {}, known), known, wanted))
        for name, called in zip(names, _called(names), strict=True)
    ]
    if shown:
        from jevons.cli.pictures.site import notes, pictures

        by_name = {each.scenario: each.priced for each in found}
        shown.write(f"A site of {given['mw']:g} MW", notes(by_name, given["mw"]), pictures(by_name))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    _show(found, given["mw"])


def _called(names: list[str]) -> list[str]:
    """Without their folders, where that tells them apart."""
    stems = [Path(name).stem for name in names]
    return stems if len(set(stems)) == len(stems) else names


def _show(found: list[Found], site_mw: float) -> None:
    console = Console()
    title = f"A site of {site_mw:g} MW, cooling included: base, and below it 5 % to 95 %"
    console.print(title, highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("", "chips", "M output\ntokens/s", "million $\na year", "$ for 1M\noutput", "J for an\noutput token"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for each in found:
        table.add_row(each.scenario, *_cells(each.priced))
    show(table, console)
    for line in dict.fromkeys(_lines(found)):
        console.print(f" {line}", markup=False, highlight=False, soft_wrap=True)


def _cells(of: Priced) -> Iterator[str]:
    site, money, power = of.site, of.money, of.power
    yield _cell(None if site is None else site.chips)
    yield _cell(None if site is None else site.tokens_per_s.scaled(1e-6))
    yield _cell(None if site is None or site.usd_per_year is None else site.usd_per_year.scaled(1e-6))
    yield _cell(None if money is None else money.mtok)
    yield _cell(None if power is None else power.joules_per_token)


def _cell(interval: Interval | None) -> str:
    """The range in two figures: more would say more than is known."""
    if interval is None:
        return _UNKNOWN
    low, high = (f"{float(f'{value:.2g}'):,g}" for value in (interval.low, interval.high))
    base = f"{interval.base:,.0f}" if interval.base >= 100 else f"{interval.base:.3g}"
    return f"{base}\n{low} to {high}"


def _lines(found: list[Found]) -> Iterator[str]:
    for each in found:
        for figure in each.priced.missing.values():
            yield f"{each.scenario}: no price: {figure} is not known"
        if each.priced.power is None:
            yield f"{each.scenario}: no power: what a chip of it draws with all around it is not known"
    for each in found:
        for trust in each.priced.trust:
            yield f"trust: {trust.chip}: {trust.trust}; {trust.note}"
