"""`jevons claims`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.cli.demand_fleets import compared
from jevons.cli.pictures import files, picture_options
from jevons.cli.tables import show
from jevons.config.catalog import Catalog, read_catalog
from jevons.econ.claims import Estimate, Finding, Grounds, Verdict, assess
from jevons.econ.claims_grounds import COMPUTATIONS, Tables, all_figures
from jevons.econ.draws import Draws

_FIGURES = 3


@click.command("claims", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("numbers", nargs=-1, type=int)
@click.option(
    "--draws", type=click.IntRange(100, 1_000_000), default=4096, show_default=True, help="Of each parameter."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option("--catalog", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with figures of yours.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="A list of records on standard output.")
def command(numbers: tuple[int, ...], draws: int, seed: int, as_json: bool, **given: Path | None) -> None:
    """What holds of what is claimed about tokens, chips and money.

    Each number is computed from figures of the catalog and from the models here. NUMBERS: those alone, with all that
    was computed beside them and where it comes from.
    """
    shown, catalog = files(given["html"], given["png"]), read_catalog(given["catalog"])
    found = findings(catalog, Draws(draws, seed))
    unknown = sorted(set(numbers) - {finding.number for finding in found})
    if unknown:
        raise ConfigError(f"claims: there is none of number {unknown[0]}; there are 1 to {len(found)}")
    chosen = [finding for finding in found if not numbers or finding.number in numbers]
    if shown:
        from jevons.cli.pictures.claims import cards, notes, pictures

        shown.write("What is claimed, computed", notes(chosen), pictures(chosen, ranged), cards(chosen, ranged))
    if as_json:
        click.echo(msgspec.json.encode(chosen))
        return
    console = Console()
    show(_table(chosen), console)
    _explain(chosen, console, in_full=bool(numbers))


def findings(catalog: Catalog, draws: Draws) -> list[Finding]:
    """All claims of the catalog, judged, by number."""
    for name, claim in catalog.claims.items():
        if claim.computation not in COMPUTATIONS:
            raise ConfigError(
                f"claims.{name}.computation: {claim.computation!r} is none of {', '.join(sorted(COMPUTATIONS))}"
            )
    tables = Tables(**{name: getattr(catalog, name) for name in Tables.__struct_fields__})
    grounds = Grounds(
        figures=all_figures(tables, compared(catalog)),
        computations=COMPUTATIONS,
        title=lambda source: _title(catalog, source),
        draws=draws,
    )
    return sorted((assess(claim, grounds) for claim in catalog.claims.values()), key=lambda finding: finding.number)


def _title(catalog: Catalog, source: str) -> str:
    known = catalog.sources.get(source)
    return source if known is None else f"{known.title}, {known.date}"


def _table(found: list[Finding]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_lines=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("claim", ratio=5)
    table.add_column("computed", ratio=4)
    table.add_column("verdict", ratio=2)
    for finding in found:
        table.add_row(str(finding.number), finding.claim, _computed(finding), str(finding.verdict))
    return table


def _computed(finding: Finding) -> str:
    if finding.computed is not None:
        return ranged(finding.computed)
    return f"missing: {finding.missing}"


def _explain(found: list[Finding], console: Console, *, in_full: bool) -> None:
    for finding in found:
        if finding.verdict is not Verdict.HOLDS or in_full:
            console.print(f"{finding.number:>3} {finding.says}", markup=False, highlight=False)
        if not in_full:
            continue
        console.print(f"    stated: {finding.stated.text}, by {finding.by}, {finding.date}", markup=False)
        for name, estimate in finding.beside.items():
            console.print(f"    {name}: {ranged(estimate)}", markup=False, highlight=False)
        if finding.missing:
            console.print(f"    missing: {finding.missing}", markup=False, highlight=False)
        for source in finding.sources:
            console.print(f"    source: {source}", markup=False, highlight=False)


def ranged(estimate: Estimate) -> str:
    """With its unit; the range where there is one."""
    value, low, high = (_number(x) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} {estimate.unit}" if low == high else f"{value} ({low} to {high}) {estimate.unit}"


def _number(value: float) -> str:
    """Three figures; all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{_FIGURES}g}"
