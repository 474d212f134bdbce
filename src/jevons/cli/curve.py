"""`jevons curve`."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.base.names import instead
from jevons.base.units import short_dollars
from jevons.cli.pictures import files, picture_options
from jevons.cli.scenarios import FILE
from jevons.cli.tables import show
from jevons.config.calibration import read_calibration
from jevons.config.catalog import Catalog, read_catalog
from jevons.config.prices import power_of, price_of
from jevons.econ.cost import Basis
from jevons.econ.curve import Served
from jevons.econ.curve import points as points_of
from jevons.econ.draws import Draws, Interval, bases
from jevons.econ.speeds import Side, Step, prices_at
from jevons.facts.llm import WEIGHT_BITS, Precision
from jevons.perf.calibration import Key, family_of, look_up
from jevons.perf.frontier import Asked

_SPEEDS = "20,40,60,80,100,120,150,200"
_CHARTED = ("gb300", "rubin")  # on NVIDIA's chart
_CHART_SPEEDS = ("low", "mid", "high")
_SHEET = {"memory bandwidth": "memory_bytes_per_s", "dense FP8": "fp8_flops", "dense FP4": "fp4_flops"}
_ENGINE = "vllm"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of the last chip over another, in how many times cheaper a token is."""

    chip: str
    raw: dict[str, float]  # by ratios of data sheets alone, over the ratio of prices
    vendor: dict[str, float] | None  # by tokens/s/MW on the vendor's chart, for low, mid and high speeds


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """What `jevons curve --json` says."""

    model: str
    weights: list[Precision]  # that it may have: each chip, at each speed, has it in the cheapest
    asked: Asked
    basis: Basis
    rate_p90_error: float | None  # of predicted throughput, on measurements held out
    steps: list[Step]
    claims: list[Claim]


@click.command("curve", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("chips", nargs=-1)
@click.option("--model", default="deepseek-v3", show_default=True, help="Of the catalog.")
@click.option("--weights", default="fp4,fp8", show_default=True, help="That would do; the cheapest for each chip.")
@click.option("--input", "input_tokens", type=click.IntRange(1), default=8192, show_default=True, help="Tokens.")
@click.option("--cached", "cached_tokens", type=click.IntRange(0), default=0, show_default=True, help="Of the input.")
@click.option("--output", "output_tokens", type=click.IntRange(1), default=1024, show_default=True, help="Tokens.")
@click.option("--at", default=_SPEEDS, show_default=True, help="Tokens/s for each user.")
@click.option("--basis", type=click.Choice([*map(str, Basis)]), default="own", show_default=True, help="Whose hours.")
@click.option("--catalog", type=FILE, help="TOML file with chips or models of yours.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(chips: tuple[str, ...], catalog: Path | None, as_json: bool, **given: Any) -> None:
    """What a million output tokens cost on CHIPS, over how fast each user gets them, and how much cheaper the last is.

    By data sheets, and the shares of them that all chips reach alike; at full load, in the layout and with the batch
    that suit each speed best. CHIPS are gb200, gb300 and rubin where none are named.
    """
    shown = files(given.pop("html"), given.pop("png"))
    found = _curve(chips or ("gb200", "gb300", "rubin"), read_catalog(catalog), given)
    if shown:
        from jevons.cli.pictures.curve import notes, pictures

        shown.write(f"What speed costs: {found.model}", notes(found), pictures(found))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    _show(found)


def _curve(chips: tuple[str, ...], catalog: Catalog, given: dict[str, Any]) -> Curve:
    asked = msgspec.convert({name: given[name] for name in Asked.__struct_fields__}, Asked, strict=False)
    if asked.cached_tokens >= asked.input_tokens:
        raise ConfigError(f"--cached: must be below --input, {asked.input_tokens:g}, got {asked.cached_tokens:g}")
    given["weights"] = _weights(given["weights"])
    sides = [_side(chip, catalog, asked, given) for chip in dict.fromkeys(chips)]
    return Curve(
        model=given["model"],
        weights=given["weights"],
        asked=asked,
        basis=Basis(given["basis"]),
        rate_p90_error=sides[-1].rate_p90_error,
        steps=prices_at(sides, _speeds(given["at"]), Draws()),
        claims=[_claim(side, sides[-1], catalog) for side in sides[:-1]],
    )


def _speeds(text: str) -> list[float]:
    try:
        speeds = [float(speed) for speed in text.split(",")]
    except ValueError:
        speeds = [0.0]
    if not all(0 < speed < inf for speed in speeds):
        raise ConfigError(f"--at: must be tokens/s above 0, such as 20,50,100, got {text!r}")
    return list(dict.fromkeys(speeds))


def _weights(text: str) -> list[Precision]:
    try:
        return msgspec.convert([each.strip() for each in text.split(",")], list[Precision])
    except msgspec.ValidationError:
        raise ConfigError(f"--weights: must be of {', '.join(WEIGHT_BITS)}, with commas, got {text!r}") from None


def _side(name: str, catalog: Catalog, asked: Asked, given: dict[str, Any]) -> Side:
    """No chip's own shares: what was measured of some would be compared with what was not of others."""
    if name not in catalog.chips or given["model"] not in catalog.models:
        kind, unknown = ("chip", name) if name not in catalog.chips else ("model", given["model"])
        near = instead(unknown, catalog.chips if kind == "chip" else catalog.models)
        raise ConfigError(f"curve: {unknown!r} is no {kind} of the catalog{near}; `jevons fleet list` shows all")
    chip, model = catalog.chips[name], catalog.models[given["model"]]
    ways = [way for way in given["weights"] if chip.flops(int(WEIGHT_BITS[way])) is not None]
    if not ways or chip.flops(8) is None:
        asked_for = ", ".join(given["weights"])
        raise ConfigError(
            f"curve: {name} does not compute {asked_for}, or its FLOP/s are not known; set other --weights"
        )
    keys = {way: Key(engine=_ENGINE, family=family_of(model), chip="", weights=way) for way in ways}
    known = {way: look_up(read_calibration(), key, is_static=chip.kind == "lpu") for way, key in keys.items()}
    error = known[ways[0]].errors.get("rate")
    served = Served(model=model, shares={way: each.shares for way, each in known.items()}, asked=asked)
    points = points_of(served, chip)
    if not points:
        raise ConfigError(f"curve: {given['model']} and one such request do not fit {name}s of one domain")
    hour = price_of(catalog, Basis(given["basis"]), name, {})
    return Side(chip=name, points=points, hour=hour, rate_p90_error=None if error is None else error.p90)


def _claim(old: Side, new: Side, catalog: Catalog) -> Claim:
    price = float(new.hour.usd(bases(new.hour.figures)) / old.hour.usd(bases(old.hour.figures)))
    chips = [catalog.chips[side.chip] for side in (new, old)]
    raw = {}
    for label, figure in _SHEET.items():
        over, under = (getattr(chip, figure) for chip in chips)
        if over is not None and under is not None:
            raw[label] = over.value / under.value / price
    watts = [power_of(catalog, side.chip) for side in (new, old)]
    vendor = None
    if (old.chip, new.chip) == _CHARTED and watts[0] is not None and watts[1] is not None:
        gains = {speed: getattr(catalog.economics, f"rubin_gain_{speed}_interactivity") for speed in _CHART_SPEEDS}
        vendor = {speed: gain.value * watts[0].value / watts[1].value / price for speed, gain in gains.items()}
    return Claim(chip=old.chip, raw=raw, vendor=vendor)


def _show(found: Curve) -> None:
    console = Console()
    asked, chips = found.asked, list(found.steps[0].offers)
    again = f", {asked.cached_tokens:,.0f} of them cached" if asked.cached_tokens else ""
    console.print(
        f"{found.model} in {' or '.join(found.weights)}, {asked.input_tokens:,.0f} tokens in{again}, "
        f"{asked.output_tokens:,.0f} out:\n"
        f"dollars for a million output tokens, which pay for all, at full load (5 % to 95 %)",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    heads = ["tokens/s\na user", *chips, *(f"{chips[-1]} less\nthan {chip}" for chip in chips[:-1])]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for step in found.steps:
        offers = (_price(offer.mtok) for offer in step.offers.values())
        table.add_row(f"{step.interactivity:g}", *offers, *(_times(each) for each in step.cheaper.values()))
    show(table, console)
    for line in _lines(found, chips[-1]):
        console.print(f" {line}", markup=False, highlight=False, soft_wrap=True)


def _price(mtok: Interval | None) -> str:
    return "out of reach" if mtok is None else f"{short_dollars(mtok.base)}\n{_bounds(mtok)}"


def _times(ratio: Interval | None) -> str:
    return "" if ratio is None else f"{ratio.base:.2f} ×\n{_bounds(ratio)}"


def _bounds(interval: Interval) -> str:
    """In two figures: more would say more than is known."""
    return " to ".join(_two(value) for value in (interval.low, interval.high))


def _two(value: float) -> str:
    return "∞" if value == inf else f"{float(f'{value:.2g}'):,g}"


def _lines(found: Curve, last: str) -> Iterator[str]:
    for claim in found.claims:
        told = ", ".join(f"{times:.2f} × by {label}" for label, times in claim.raw.items())
        yield f"data sheets and prices alone, {last} over {claim.chip}: {told}"
        if claim.vendor is not None:
            told = ", ".join(f"{times:.3g} × at {speed}" for speed, times in claim.vendor.items())
            yield f"the vendor's chart (tokens/s/MW, unofficial), in dollars over {claim.chip}: {told} speed"
    if found.rate_p90_error is None:
        yield "trust: nothing of this kind was held out"
    else:
        yield (
            f"trust: shares of data sheets that all chips have in common; nine of ten held-out throughputs within "
            f"{found.rate_p90_error:.0%}. ∞: in so many draws one of them is not so fast"
        )
