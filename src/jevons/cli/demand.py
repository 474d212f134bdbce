"""`jevons demand`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from rich.console import Console

from jevons.base.errors import ConfigError, UnknownFigure
from jevons.base.names import instead
from jevons.cli.demand_fleets import compare_fleets, compared
from jevons.cli.demand_tables import Found, show
from jevons.cli.pictures import files, picture_options
from jevons.cli.rehearsed import figures_of as rehearsed_figures
from jevons.cli.rehearsed import rehearse_reuse
from jevons.config.catalog import Catalog, read_catalog
from jevons.config.outlook import OutlookFile, Range, check_shares, read_outlook, read_range
from jevons.config.prices import rack_of, read_prices
from jevons.econ.curve import GUESS_INTERACTIVITY, tokens_per_s
from jevons.econ.draws import Draws
from jevons.econ.levers import LEVERS
from jevons.econ.market import look_at_market
from jevons.econ.outlook import Setup, look_ahead, parameters
from jevons.econ.switching import Mixed, lock_in
from jevons.facts.hardware import Chip, Confidence, Figure, Rack

_DEFAULT = "jevons-2026-2030"
_FLAGS = {"elasticity": "price_elasticity", "growth": "token_demand_growth_per_year"}


@click.command("demand", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("outlook", default=_DEFAULT)
@click.option(
    "--elasticity", metavar="LOW:BASE:HIGH", help="Percent more tokens for a percent less; 0.2:1.1:2 as published."
)
@click.option("--growth", metavar="LOW:BASE:HIGH", help="Of tokens, as a factor a year; 1.5:2.2:8 as published.")
@click.option("--set", "changes", metavar="NAME=LOW:BASE:HIGH", multiple=True, help="Any other parameter.")
@click.option("--without", metavar="LEVER", multiple=True, help=f"Leave out one of {', '.join(LEVERS)}.")
@click.option("--without-limit", type=click.Choice(["chips", "power"]), multiple=True, help="As if there were enough.")
@click.option(
    "--hardware",
    type=click.Choice(["sheet", "perf", "between", "vendor"]),
    help="Whose word on Vera Rubin to take; the outlook's by default.",
)
@click.option(
    "--rehearse",
    metavar="SCENARIO",
    multiple=True,
    help="Measure in the twin what placement and memory below the chips save there. Again for a range.",
)
@click.option("--single", metavar="SCENARIO", help="One vendor's fleet, to compare with --mixed in the twin.")
@click.option("--mixed", metavar="SCENARIO", help="A mixed fleet, for the same traffic.")
@click.option("--usd-per-hour", multiple=True, help="CHIP=LOW:BASE:HIGH or CHIP=BASE: of --single and --mixed.")
@click.option(
    "--draws", type=click.IntRange(100, 1_000_000), default=4096, show_default=True, help="Of each parameter."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option("--catalog", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with figures of yours.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(outlook: str, draws: int, seed: int, catalog: Path | None, as_json: bool, **given: Any) -> None:
    """What cheaper tokens do to demand, to spending, and to who sells the silicon, year by year.

    OUTLOOK is a TOML file, or the name of one that ships with jevons. Everything is over the first year's; ranges hold
    9 of 10 draws of all parameters.
    """
    shown = files(given["html"], given["png"])
    asked, known, how = _asked(read_outlook(outlook), given), read_catalog(catalog), Draws(draws, seed)
    figures = figures_of(known, asked)
    rehearsed = [rehearse_reuse(name, known) for name in given["rehearse"]]
    figures |= rehearsed_figures(rehearsed)
    found = look(asked, figures, known, how, _mixed(given, known, how))
    found = msgspec.structs.replace(found, rehearsed=rehearsed)
    if shown:
        from jevons.cli.pictures.demand import notes, pictures

        shown.write(
            asked.title or "An outlook on demand", notes(found.demand, known.sources), pictures(found, asked.show)
        )
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    show(found, asked, Console())


def look(
    asked: OutlookFile, figures: dict[str, Figure], catalog: Catalog, draws: Draws, mixed: Mixed | None = None
) -> Found:
    """All that is asked for, whatever of it is shown. Raises ConfigError."""
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            return Found(
                demand=look_ahead(asked.title, figures, _setup(asked), draws),
                market=look_at_market(figures, _setup(asked), draws, figures["custom_silicon_share_2028"]),
                switching=lock_in((asked.chips, asked.chip), figures | merchant(catalog, asked.chip), draws, mixed),
            )
    except FloatingPointError as error:
        given = ", ".join(f"{name} = {change.value:g}" for name, change in asked.parameters.items())
        raise ConfigError(f"outlook: parameters: lead beyond what can be computed ({error}): {given}") from error


def merchant(catalog: Catalog, name: str) -> dict[str, Figure]:
    """What a chip costs in its rack and by the hour, and what it serves at medium speed. Raises ConfigError."""
    if name not in catalog.chips:
        raise ConfigError(f"outlook: chip: {name!r} is unknown; add it to chips")
    chip = catalog.chips[name]
    served = tokens_per_s(compared(catalog), chip, GUESS_INTERACTIVITY["mid"])
    if served is None:
        raise UnknownFigure(f"chips.{name}: tokens/s for users of {GUESS_INTERACTIVITY['mid']:.0f} tokens/s each")
    rate = Figure(value=served, source="OURS", confidence=Confidence.DERIVED, note="by perf")
    if chip.own_usd_per_hour is None:
        raise UnknownFigure(f"chips.{name}.own_usd_per_hour")
    price = _price(name, chip, rack_of(catalog, name))
    return {"chip_usd": price, "merchant_usd_per_hour": chip.own_usd_per_hour, "merchant_tokens_per_s": rate}


def _price(name: str, chip: Chip, rack: Rack | None) -> Figure:
    """With its share of the rack, where that is known."""
    price = chip.price_usd if rack is None or rack.price_usd is None else rack.price_usd
    if price is None:
        raise UnknownFigure(f"chips.{name}.price_usd")
    chips = 1 if rack is None or rack.price_usd is None else rack.chips
    ends = [None if end is None else end / chips for end in (price.low, price.high)]
    return Figure(
        value=price.value / chips, low=ends[0], high=ends[1], source=price.source, confidence=price.confidence
    )


def _mixed(given: Mapping[str, Any], catalog: Catalog, draws: Draws) -> Mixed | None:
    single, mixed = given["single"], given["mixed"]
    if single is None and mixed is None:
        if given["usd_per_hour"]:
            raise ConfigError("--usd-per-hour: prices the fleets of --single and --mixed, and neither is given")
        return None
    if single is None or mixed is None:
        raise ConfigError("--single and --mixed: give both scenarios, or neither")
    prices = read_prices(given["usd_per_hour"], catalog)
    return compare_fleets((single, mixed), catalog, prices, draws)


def figures_of(catalog: Catalog, asked: OutlookFile) -> dict[str, Figure]:
    """All parameters: the catalog's, and what the outlook replaces. Raises ConfigError."""
    figures = parameters(catalog.economics, catalog.demand, catalog.chips, compared(catalog), asked.hardware)
    for name, change in asked.parameters.items():
        if name not in figures:
            all_of = instead(name, figures) or f"; they are {', '.join(sorted(figures))}"
            raise ConfigError(f"outlook: parameters: {name!r} is none of them{all_of}")
        figures[name] = change.figure("this outlook")
    check_shares(figures)
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
        if name in changes:
            raise ConfigError(f"--set {name}: is given twice; a parameter has one range")
        changes[name] = read_range(values, f"--set {name}")
    for lever in given["without"]:
        if lever not in LEVERS:
            near = instead(lever, LEVERS)
            raise ConfigError(f"--without: must be one of {', '.join(LEVERS)}, got {lever!r}{near}")
    return msgspec.structs.replace(
        file,
        levers=tuple(lever for lever in file.levers if lever not in given["without"]),
        limits=tuple(limit for limit in file.limits if limit not in given["without_limit"]),
        hardware=given["hardware"] or file.hardware,
        parameters={**file.parameters, **changes},
    )
