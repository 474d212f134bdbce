"""Plans as files, and what is said of them by several commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError
from jevons.base.units import count, dollars, milliseconds, si
from jevons.econ.purchase import Excess
from jevons.econ.rivals import Flip
from jevons.twin.planned import Plan


def read_plan(path: Path) -> Plan:
    """What `jevons plan --json` wrote. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise ConfigError(f"plan {path}: cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"plan {path}: is not a plan as `jevons plan --json` writes it: {error}") from error


_FIGURES = {
    "own_usd_per_hour": "$ an hour of {}, owned",
    "rent_usd_per_hour": "$ an hour of {}, rented",
    "given_usd_per_hour": "$ an hour of {}, as given",
    "capex_usd": "$ for {} with its share of a rack",
    "step_time": "steps of {}, measured over predicted,",
    "all_in_w": "W of {} with all around it",
    "delay_months": "months until the later chips come",
    "pue": "power of the site over that of its chips (PUE)",
    "usd_per_kwh": "$ a kWh",
    "availability": "share of hours that a chip can be used",
    "colo_usd_per_kw_month": "$ a month for room for a kW",
    "life_years": "years that chips are used",
    "wacc": "cost of capital, a year,",
    "capex_overhead": "network, storage and installation, as a factor of what racks cost,",
}


def figure_name(figure: str) -> str:
    """`own_usd_per_hour/h200` → '$ an hour of h200, owned'; others by their names in the catalog."""
    name, _, chip = figure.partition("/")
    return _FIGURES.get(name, figure).format(chip)


def flip_line(flip: Flip) -> str:
    """An assumption, where it flips, and whether that is likely."""
    known = "within what is known" if flip.is_within else "beyond what is known"
    more = "above" if flip.at > flip.base else "below"
    return f"{figure_name(flip.figure)} {more} {flip.at:.3g} instead of {flip.base:.3g} ({known}): {flip.to}"


def short_lines(found: Plan) -> Iterator[str]:
    """Of a plan that found nothing: that, which limits bind, and what could be promised instead."""
    slo = found.slo
    promise = f"{slo.share:.0%} of requests within {slo.ttft_s:g} s and {milliseconds(slo.tpot_s)} a token"
    yield f"Nothing keeps the promise ({promise}) within these limits."
    if found.short_of:
        yield " one limit binds:" if len(found.short_of) == 1 else " limits that bind:"
    for each in found.short_of:
        yield f"  {_excess(each)}"
    near = found.nearest
    if near is not None:
        ttft_s, tpot_s = near.both_s if found.slo.of == "both" else (near.ttft_s, near.tpot_s)
        within = f"{found.slo.share:.0%} of requests within {ttft_s:.3g} s and {milliseconds(tpot_s)} a token"
        yield f" or promise what {near.name} keeps within the limits: {within} (the old promise: {near.met:.1%})"


def _excess(each: Excess) -> str:
    has = amount(each.limit, each.has)
    if each.needs is None:
        return f"{each.limit}: has {has}, and what the fleet takes is not known"
    return f"{each.limit}: needs {amount(each.limit, each.needs)}, has {has} ({each.times:.2f} ×)"


def amount(limit: str, value: float) -> str:
    """Of what a limit is of, with its unit."""
    if limit == "power_w":
        return si(value, "W")
    return dollars(value) if "usd" in limit else count(value)
