"""`jevons cost`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.base.units import count, short_dollars, si
from jevons.cli.pictures import files, picture_options
from jevons.cli.pricing import Against, Priced, RackPower, Wanted, priced
from jevons.cli.ranges import Finite
from jevons.cli.scenarios import FILE, SAYING, scenario_of, scenario_options, tell_of_compiling
from jevons.cli.tables import show
from jevons.config.calibration import read_calibration
from jevons.config.catalog import Catalog, read_catalog
from jevons.config.prices import read_prices, read_range
from jevons.econ.cost import Basis
from jevons.econ.draws import Interval
from jevons.econ.quote import Money, Power, Site
from jevons.econ.tornado import Swing
from jevons.twin.report import Report
from jevons.twin.run import simulate

_MOST_SWINGS = 6  # told
_BASES = {Basis.OWN: "owned, as published", Basis.RENT: "rented, as published", Basis.BUILD: "built"}
_LABELS = {
    "utilisation": "demand over the year, of the rehearsed",
    "step_time": "steps, measured over predicted",
    "own_usd_per_hour": "an hour, owned",
    "rent_usd_per_hour": "an hour, rented",
    "given_usd_per_hour": "an hour, as given",
    "capex_usd": "price",
    "all_in_w": "watts",
    "pue": "power of the site over that of its chips (PUE)",
    "availability": "hours that a chip can be used, of all",
    "usd_per_kwh": "electricity, $/kWh",
    "colo_usd_per_kw_month": "room, $/kW a month",
    "life_years": "life, years",
    "wacc": "cost of capital",
    "capex_overhead": "network, storage, installation",
    "memory_price_share": "memory's share of prices",
    "dram_usd_per_gb": "memory of hosts, $/GB",
    "flash_usd_per_gb": "drives, $/GB",
    "object_usd_per_gb_month": "object store, $/GB a month",
}


@click.command("cost", context_settings={"help_option_names": ["-h", "--help"]})
@scenario_options
@click.option("--report", type=FILE, help="report.json of `jevons simulate --out`, instead of a rehearsal now.")
@click.option("--basis", type=click.Choice([*map(str, Basis)]), default="own", show_default=True, help="Whose hours.")
@click.option("--usd-per-hour", multiple=True, help="CHIP=LOW:BASE:HIGH or CHIP=BASE, dollars. Again for more kinds.")
@click.option("--utilisation", help="LOW:BASE:HIGH, 0 to 1: demand over the year, of the one rehearsed.")
@click.option("--site-mw", type=Finite(0, min_open=True), help="Tell what fits on a site of so much power.")
@click.option("--against", help="Another scenario: which is cheaper, and at what price of a chip both cost the same.")
@click.option("--catalog", type=FILE, help="TOML file with chips, racks or economics of yours.")
@click.option("--calibration", type=FILE, help="TOML file of `jevons calibrate` instead of what ships.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(scenario: str | None, catalog: Path | None, as_json: bool, **given: Any) -> None:
    """What a fleet's tokens cost: SCENARIO is rehearsed, and what it took is priced.

    Told as BASE (5 % to 95 %): all parameters at their base, and between what results lie 9 times of 10.
    """
    known, others = utilised(read_catalog(catalog), given["utilisation"]), {"calibration": given["calibration"]}
    wanted = Wanted(
        basis=Basis(given["basis"]),
        prices=read_prices(given["usd_per_hour"], known),
        site_mw=given["site_mw"],
        against=None if given["against"] is None else rehearsed(given["against"], others, known),
    )
    shown = files(given["html"], given["png"])
    found = priced(_report(scenario, given, known), known, wanted)
    if shown:
        from jevons.cli.pictures.cost import notes, pictures

        shown.write(f"What it costs: {found.title or 'a fleet'}", notes(found), pictures(found, _label, _plain))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    _show(found)


def utilised(catalog: Catalog, text: str | None) -> Catalog:
    """With what `--utilisation` says. Raises ConfigError."""
    if text is None:
        return catalog
    economics = msgspec.structs.replace(catalog.economics, utilisation=read_range("--utilisation", text, most=1.0))
    return msgspec.structs.replace(catalog, economics=economics)


def _report(scenario: str | None, given: Mapping[str, Any], catalog: Catalog) -> Report:
    path: Path | None = given["report"]
    if path is None:
        return rehearsed(scenario, given, catalog)
    others = [repr(scenario)] if scenario is not None else [f"--{name}" for name in SAYING if given[name] is not None]
    if others:
        raise ConfigError(f"--report and {others[0]}: give one of them: what was rehearsed, or what shall be")
    if given["calibration"] is not None and given["against"] is None:
        raise ConfigError("--report and --calibration: give one of them: what was rehearsed is not predicted again")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"--report: {path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"--report: {path} is no report of this version's `jevons simulate --out`: {error}"
        ) from error


def rehearsed(scenario: str | None, given: Mapping[str, Any], catalog: Catalog) -> Report:
    """What came of a scenario. Raises ConfigError."""
    learned = read_calibration(given.get("calibration"))
    wanted = scenario_of(scenario, given)
    tell_of_compiling()
    return simulate(wanted, catalog, learned)


def _show(found: Priced) -> None:
    console = Console()
    if found.title:
        console.print(found.title, markup=False, highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 1))
    for head in ("", "base", "5 %", "95 %"):
        table.add_column(head, justify="right" if head else "left", no_wrap=bool(head))
    for label, interval, read in _rows(found):
        table.add_row(label, *(read(value) for value in (interval.base, interval.low, interval.high)))
    show(table, console)
    for line in _lines(found):
        console.print(f" {line}", markup=False, highlight=False, soft_wrap=True)


_Row = tuple[str, Interval, Callable[[float], str]]


def _rows(found: Priced) -> Iterator[_Row]:
    if found.money is not None:
        yield from _money_rows(found.money)
    if found.power is not None:
        yield from _power_rows(found.power)
    for name, rack in found.racks.items():
        yield from _rack_rows(name, rack)
    if found.site is not None:
        yield from _site_rows(found.site)
    if found.against is not None:
        yield from _against_rows(found.against)


def _money_rows(money: Money) -> Iterator[_Row]:
    for name, hour in money.chip_hours.items():
        yield f"an hour of {name}", hour, short_dollars
    yield "a year of the fleet", money.fleet_year, short_dollars
    for name, tier in money.tiers.items():
        yield f"  of that, {si(tier.size_bytes, 'B')} of {name}", tier.year, short_dollars
    yield "a million output tokens, which pay for all", money.mtok, short_dollars
    for label, interval in (
        ("  … or, each its own: input, computed", money.mtok_input),
        ("  input, cached", money.mtok_cached),
        ("  output", money.mtok_output),
        ("a thousand requests", money.request.scaled(1e3)),
        ("  within the SLO", None if money.good_request is None else money.good_request.scaled(1e3)),
    ):
        if interval is not None:
            yield label, interval, short_dollars


def _power_rows(power: Power) -> Iterator[_Row]:
    yield "J for an output token, from the grid", power.joules_per_token, _plain
    yield "output tokens/s from a megawatt of IT", power.tokens_per_s_per_mw, _plain


def _rack_rows(name: str, rack: RackPower) -> Iterator[_Row]:
    if rack.kw is not None:
        yield f"kW of a rack of {rack.chips} {name}", rack.kw, _plain
    if rack.on_site is not None:
        yield "  racks that fit on the site", rack.on_site, _plain


def _site_rows(site: Site) -> Iterator[_Row]:
    yield f"chips that fit on {site.site_mw:g} MW", site.chips, _plain
    yield "  output tokens/s of all", site.tokens_per_s, lambda value: si(value, "")
    if site.usd_per_year is not None:
        yield "  a year of all", site.usd_per_year, short_dollars


def _against_rows(against: Against) -> Iterator[_Row]:
    yield "a million output tokens of the other", against.other_mtok, short_dollars
    if against.ratio is not None:
        yield "  these cost, of that", against.ratio, lambda value: f"{value:.2f} ×"
    for name, hour in against.break_even.items():
        yield f"  alike at, an hour of {name}", hour, lambda value: short_dollars(value) if value > 0 else "none"


def _lines(found: Priced) -> Iterator[str]:
    chips = " and ".join(f"{count(number)} {name}" for name, number in found.chips.items())
    yield f"{chips}, {_priced_by(found)}; {count(found.requests)} requests, {found.met_slo:.1%} within the SLO"
    if found.paid_share < 1.0:
        yield f"paid {found.paid_share:.1%} of their hours: from start to stop; the others are for other work to pay"
    for name, figure in found.missing.items():
        yield f"no price: {figure} is not known: give --usd-per-hour {name}=LOW:BASE:HIGH, or --against SCENARIO"
    if found.power is None:
        yield "no energy: what a chip of it draws with all around it is not known"
    if found.against is not None:
        yield f"the other: {found.against.other}"
        yield from _known_unlike(found, found.against)
    if found.against is not None and any(hour.base <= 0 for hour in found.against.break_even.values()):
        yield "none: the other chips of this fleet alone cost more for as many tokens"
    if found.money is not None:
        yield "what matters most, for a million output tokens that pay for all:"
        yield from _tornado(found.money.tornado[:_MOST_SWINGS])
    for trust in found.trust:
        yield f"trust: {trust.chip}: {trust.trust}; {trust.note}"


def _priced_by(found: Priced) -> str:
    if set(found.given) == set(found.chips):
        return "at prices as given"
    return _BASES[found.basis] + (f", but {' and '.join(found.given)} as given" if found.given else "")


def _known_unlike(found: Priced, against: Against) -> Iterator[str]:
    """Who was never measured may reach more of its data sheet than is predicted, and who was is held to what it did."""
    sides = [{trust.trust for trust in side} for side in (found.trust, against.other_trust)]
    if sides[0] == sides[1]:
        return
    told = (", ".join(f"{trust.chip} {trust.trust}" for trust in side) for side in (found.trust, against.other_trust))
    yield f"steps are not known alike: {next(told)}; of the other {next(told)}: read the range, not the base"


def _tornado(swings: list[Swing]) -> Iterator[str]:
    names = [_label(swing.name) for swing in swings]
    width = max(map(len, names), default=0)
    for name, swing in zip(names, swings, strict=True):
        values = f"{_plain(swing.low)} to {_plain(swing.high)}"
        yield f"  {name:<{width}}  {values:>16}:  {short_dollars(swing.at_low)} to {short_dollars(swing.at_high)}"


def _label(name: str) -> str:
    figure, _, chip = name.partition("/")
    return f"{_LABELS.get(figure, figure)}{f', {chip}' if chip else ''}"


def _plain(value: float) -> str:
    """Three figures, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
