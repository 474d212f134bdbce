"""`jevons wait`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from math import isclose
from pathlib import Path

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.cli.pictures import files, picture_options
from jevons.cli.plans import flip_line, read_plan
from jevons.cli.ranges import Finite
from jevons.cli.tables import show
from jevons.config.catalog import Catalog, read_catalog
from jevons.config.prices import read_range
from jevons.econ.cost import ChipHour
from jevons.econ.draws import Draws, bases
from jevons.econ.rivals import Rival, figures_of, usd_per_hour
from jevons.econ.wait import DELAY, Answer, Waiting, answer
from jevons.facts.hardware import Confidence, Figure
from jevons.twin.offers import hour_of
from jevons.twin.planned import Plan, errors_of

_FILE = click.Path(path_type=Path, dir_okay=False)
_MOST_FLIPS = 5
_DAYS_A_MONTH = 30.44
_WHICH = ("now", "later")
GUESS_EARLY, GUESS_LATE = 0.5, 2.0  # of the time until chips come: how soon and how late they may


@click.command("wait", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("now", type=_FILE)
@click.argument("later", type=_FILE)
@click.option("--months", type=Finite(0, min_open=True), default=36.0, show_default=True, help="Looked at.")
@click.option("--delay", help="LOW:BASE:HIGH or BASE, months until the later chips are there.")
@click.option("--catalog", type=_FILE, help="TOML file with chips or economics of yours.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    now: Path, later: Path, months: float, delay: str | None, catalog: Path | None, **given: bool | Path | None
) -> None:
    """Buy what is there, or wait? NOW and LATER are plans for the same work, as `jevons plan --json` wrote them.

    Told as BASE (5 % to 95 %), by prices, step times and the delay.
    """
    html, png = given["html"], given["png"]
    shown = files(html if isinstance(html, Path) else None, png if isinstance(png, Path) else None)
    plans, known = (read_plan(now), read_plan(later)), read_catalog(catalog)
    found = answered(plans, months, _delay(*plans, delay), known)
    for text in _otherwise(plans, known):
        click.echo(text, err=True)
    if shown:
        from jevons.cli.pictures.plan import wait_notes, wait_pictures

        shown.write("Buy what is there, or wait?", wait_notes(found), wait_pictures(found, *plans))
    if given["as_json"]:
        click.echo(msgspec.json.encode(found))
        return
    console = Console()
    for line in _lines(found):
        if isinstance(line, Table):
            show(line, console)
        else:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def answered(plans: tuple[Plan, Plan], months: float, delay: Figure, catalog: Catalog) -> Answer:
    """What it comes to. Raises ConfigError: the plans are not for the same, or a price is not known."""
    now, later = plans
    if now.load != later.load or now.slo != later.slo or now.model != later.model:
        raise ConfigError("wait: both plans must serve the same model and traffic within the same promise")
    for plan, which in zip(plans, _WHICH, strict=True):
        if plan.basis == "rent":
            raise ConfigError(
                f"wait: the plan for {which} must be of owned hours, for buying is compared with renting: make it with "
                f"--basis own or build, got basis 'rent'"
            )
    if now.basis != later.basis:
        raise ConfigError(f"wait: both plans must have one basis, got {now.basis!r} and {later.basis!r}")
    rivals = [_rival(plan, which) for plan, which in zip(plans, _WHICH, strict=True)]
    errors = errors_of([each.best for each in plans if each.best])
    for chip in now.given.keys() & later.given.keys():
        if now.given[chip] != later.given[chip]:
            raise ConfigError(f"wait: both plans must have been given the same price of {chip}, they were not")
    given = now.given | later.given
    own = {chip: _hour(now.basis, chip, catalog, given) for rival in rivals for chip in rival.chips}
    rent = {chip: hour for chip in rivals[0].chips if (hour := hour_of("rent", chip, catalog, given)) is not None}
    if len(rent) < len(rivals[0].chips):
        rent = {}
    waiting = Waiting(
        now=rivals[0],
        later=rivals[1],
        own=own,
        rent=rent,
        months=months,
        output_tokens_per_hour=now.load.output_tokens / now.load.span_s * 3600.0,
    )
    figures = figures_of(own, errors) | figures_of(rent, errors) | {DELAY: delay}
    return answer(waiting, figures, Draws())


def _rival(plan: Plan, which: str) -> Rival:
    if plan.paid is None:
        raise ConfigError(f"wait: the plan for {which} found no fleet; relax its limits or its promise")
    return (
        msgspec.structs.replace(plan.paid, name=f"{plan.paid.name}, in {plan.weights}") if plan.weights else plan.paid
    )


def _hour(basis: str, chip: str, catalog: Catalog, given: Mapping[str, Figure]) -> ChipHour:
    hour = hour_of(basis, chip, catalog, given)
    if hour is None:
        raise ConfigError(f"wait: no price ({basis}) of {chip} is known; give it in a file of yours, --catalog FILE")
    return hour


def _otherwise(plans: tuple[Plan, Plan], catalog: Catalog) -> Iterator[str]:
    """What is told of plans that were made at other prices than those here; whoever changes them knows."""
    for plan, which in zip(plans, _WHICH, strict=True):
        assert plan.best is not None, "it was asked before"
        rival = _rival(plan, which)
        hours = {chip: _hour(plan.basis, chip, catalog, plan.given) for chip in rival.chips}
        usd = float(usd_per_hour(rival, hours, bases(figures_of(hours, errors_of([plan.best])))))
        if not isclose(usd, plan.best.usd_per_hour, rel_tol=1e-6):
            yield (
                f"the plan for {which} was made at ${plan.best.usd_per_hour:,.2f} an hour, and with these prices it is "
                f"${usd:,.2f}: give the --catalog that it was made with, if that is not meant"
            )


def _delay(now: Plan, later: Plan, text: str | None) -> Figure:
    """Months until the later chips are there: as told, or between the plans' dates."""
    if text is not None:
        return read_range("--delay", text)
    if not (now.at and later.since):
        raise ConfigError("wait: give --delay, or `at` in the plan for now and `since` of a chip in the one for later")
    days = (_day(later.since) - _day(now.at)).days
    if days <= 0:
        raise ConfigError(f"wait: {later.since} is not after {now.at}: nobody has to wait")
    months = days / _DAYS_A_MONTH
    return Figure(
        value=months,
        low=months * GUESS_EARLY,
        high=months * GUESS_LATE,
        source="dates of both plans",
        confidence=Confidence.ASSUMED,
    )


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text if len(text) > 7 else f"{text}-01")
    except ValueError as error:
        raise ConfigError(f"wait: {text!r} is no date: {error}; write YYYY-MM") from error


def _lines(found: Answer) -> Iterator[str | Table]:
    delay = found.delay_months
    yield f"now: {found.now}; later: {found.later}"
    yield f"{found.months:g} months; the later chips come after {delay.value:.1f} ({delay.low:.1f} to {delay.high:.1f})"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at, head in enumerate(("", "$/Mtok out", "5 % to 95 %", "cheapest in", "serves")):
        table.add_column(head, justify="right" if at else "left", no_wrap=at > 0)
    for each in found.choices:
        cost = each.usd_per_million_tokens
        share = f"{each.cheapest_share:.0%} of draws" if each.served == 1.0 else ""
        table.add_row(each.name, f"{cost.base:.3g}", f"{cost.low:.3g} to {cost.high:.3g}", share, f"{each.served:.0%}")
    yield table
    yield " what would flip it, if it were"
    for flip in found.flips[:_MOST_FLIPS]:
        yield f" {flip_line(flip)}"
    if not found.flips:
        yield " no single assumption flips it"
