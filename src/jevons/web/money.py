"""What a view's chips cost so far, from what the catalog knows of them. What is not known makes the sum unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from jevons.config.catalog import Catalog
from jevons.facts.hardware import Chip, Figure
from jevons.facts.view import View
from jevons.perf.energy import GUESS_IDLE_SHARE

_HOUR_S = 3600.0


class Range(msgspec.Struct, frozen=True):
    low: float
    base: float
    high: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars and joules since the view began; None where a price is not known."""

    usd_per_hour: Range | None
    usd: Range | None
    joules: Range | None  # of chips alone: between idle and what they may draw
    saved_usd: Range | None
    saved_s: float  # of devices
    saved_of: str  # what those are
    basis: list[str]  # where the prices come from, and what is missing


def cost_of(view: View, catalog: Catalog) -> Cost:
    """Paid for all the time since it began are the chips of the workers that are there now, busy or not."""
    hours = {chip: seconds / _HOUR_S for chip, seconds in view.chip_s.items()}
    rates = {chip: seconds / view.now_s for chip, seconds in view.chip_s.items()} if view.now_s > 0 else {}
    saved = {chip: seconds / _HOUR_S for chip, seconds in view.saved_chip_s.items() if seconds}
    saved_s = sum(view.saved_chip_s.values())
    return Cost(
        usd_per_hour=_sum(rates, catalog, _price),
        usd=_sum(hours, catalog, _price),
        joules=_sum(view.chip_s, catalog, _power),
        saved_usd=_sum(saved, catalog, _price) if saved else None,
        saved_s=saved_s,
        saved_of="workers" if "" in view.saved_chip_s else "chips",
        basis=_basis(view.chip_s, catalog),
    )


def _sum(amounts: Mapping[str, float], catalog: Catalog, price: Callable[[Chip], Range | None]) -> Range | None:
    total = Range(0.0, 0.0, 0.0)
    for name, amount in amounts.items():
        chip = catalog.chips.get(name)
        each = None if chip is None else price(chip)
        if each is None:
            return None
        total = Range(total.low + amount * each.low, total.base + amount * each.base, total.high + amount * each.high)
    return total if amounts else None


def _figure(chip: Chip) -> tuple[Figure, str] | None:
    """Of an hour."""
    if chip.own_usd_per_hour is not None:
        return chip.own_usd_per_hour, "to own"
    return None if chip.rent_usd_per_hour is None else (chip.rent_usd_per_hour, "to rent")


def _price(chip: Chip) -> Range | None:
    found = _figure(chip)
    if found is None:
        return None
    f, _ = found
    return Range(f.low or f.value, f.value, f.high or f.value)


def _power(chip: Chip) -> Range | None:
    """Watts. Between idle and TDP, and nobody measured: the middle stands for both."""
    if chip.tdp_w is None:
        return None
    idle_w, most_w = GUESS_IDLE_SHARE * chip.tdp_w.value, chip.tdp_w.value
    return Range(idle_w, (idle_w + most_w) / 2, most_w)


def _basis(amounts: Mapping[str, float], catalog: Catalog) -> list[str]:
    told = []
    for name in sorted(amounts):
        chip = catalog.chips.get(name)
        found = None if chip is None else _figure(chip)
        if not name:
            told.append("Chips of some workers are not known: say chip=NAME with --engine.")
        elif chip is None:
            told.append(f"{name} is no chip of the catalog.")
        elif found is None:
            told.append(f"What an hour of {name} costs is not known.")
        else:
            source = catalog.sources.get(found[0].source)
            where = found[0].source if source is None else f"{source.title}, {source.date}"
            told.append(f"{name}: ${found[0].value:g} an hour {found[1]} ({found[0].confidence}: {where}).")
        if chip is not None and chip.tdp_w is not None:
            told.append(f"Energy from {GUESS_IDLE_SHARE:.0%} to 100% of its TDP of {chip.tdp_w.value:g} W.")
    return told
