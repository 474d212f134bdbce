"""What a view's chips cost so far, by the prices that `jevons cost` goes by. What is not known makes a sum unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from jevons.base.errors import UnknownFigure
from jevons.config.catalog import Catalog
from jevons.config.prices import rack_of
from jevons.econ.cost import Basis, ChipHour, chip_hour
from jevons.econ.draws import Draws, Interval, interval_of
from jevons.facts.hardware import Figure
from jevons.facts.view import View
from jevons.perf.energy import GUESS_IDLE_SHARE

_HOUR_S = 3600.0


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars and joules since the view began; None where a price is not known."""

    usd_per_hour: Interval | None
    usd: Interval | None
    joules: Interval | None  # of chips alone: between idle and what they may draw, and nobody measured where
    saved_usd: Interval | None
    saved_s: float  # of devices
    saved_of: str  # what those are
    basis: list[str]  # where the prices come from, and what is missing


class _Kind(msgspec.Struct, frozen=True):
    """What is known of one kind of chip."""

    usd_per_hour: Interval | None
    power_w: Interval | None
    says: list[str]


class Money:
    """Prices by a catalog, each kind of chip's found once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._kinds: dict[str, _Kind] = {}

    def cost_of(self, view: View) -> Cost:
        """Paid for all the time since it began are the chips of the workers that are there now, busy or not."""
        hours = {chip: seconds / _HOUR_S for chip, seconds in view.chip_s.items()}
        rates = {chip: seconds / view.now_s for chip, seconds in view.chip_s.items()} if view.now_s > 0 else {}
        saved = {chip: seconds / _HOUR_S for chip, seconds in view.saved_chip_s.items() if seconds}
        return Cost(
            usd_per_hour=self._sum(rates, _usd_per_hour),
            usd=self._sum(hours, _usd_per_hour),
            joules=self._sum(view.chip_s, _power_w),
            saved_usd=self._sum(saved, _usd_per_hour),
            saved_s=sum(view.saved_chip_s.values()),
            saved_of="workers" if "" in view.saved_chip_s else "chips",
            basis=[line for chip in sorted(view.chip_s) for line in self._kind(chip).says],
        )

    def _sum(self, amounts: Mapping[str, float], price: Callable[[_Kind], Interval | None]) -> Interval | None:
        total = Interval(0.0, 0.0, 0.0)
        for name, amount in amounts.items():
            each = price(self._kind(name))
            if each is None:
                return None
            more = each.scaled(amount)
            total = Interval(total.low + more.low, total.base + more.base, total.high + more.high)
        return total if amounts else None

    def _kind(self, name: str) -> _Kind:
        if name not in self._kinds:
            self._kinds[name] = self._find(name)
        return self._kinds[name]

    def _find(self, name: str) -> _Kind:
        chip = self._catalog.chips.get(name)
        if chip is None:
            hint = "say chip=NAME with --engine" if not name else "see jevons fleet list"
            what = "Chips of some workers are not known" if not name else f"{name} is no chip of the catalog"
            return _Kind(None, None, [f"{what}: {hint}."])
        power = None if chip.tdp_w is None else _between(GUESS_IDLE_SHARE * chip.tdp_w.value, chip.tdp_w.value)
        says = (
            []
            if chip.tdp_w is None
            else [f"Energy from {GUESS_IDLE_SHARE:.0%} to 100% of its TDP of {chip.tdp_w.value:g} W."]
        )
        hour = self._hour(name)
        if hour is None:
            return _Kind(None, power, [f"What an hour of {name} costs is not known.", *says])
        usd = interval_of(hour.usd, hour.figures, Draws())
        return _Kind(usd, power, [self._told(name, hour, usd), *says])

    def _hour(self, name: str) -> ChipHour | None:
        """To own it, or else to rent it."""
        chip = self._catalog.chips[name]
        for basis in (Basis.OWN, Basis.RENT):
            try:
                return chip_hour(basis, name, chip, rack_of(self._catalog, name), self._catalog.economics)
            except UnknownFigure:
                continue
        return None

    def _told(self, name: str, hour: ChipHour, usd: Interval) -> str:
        first: Figure = next(iter(hour.figures.values()))
        source = self._catalog.sources.get(first.source)
        where = first.source if source is None else f"{source.title}, {source.date}"
        return f"{name}: ${usd.base:.2f} an hour to {hour.basis} (${usd.low:.2f} to ${usd.high:.2f}; {where})."


def _usd_per_hour(kind: _Kind) -> Interval | None:
    return kind.usd_per_hour


def _power_w(kind: _Kind) -> Interval | None:
    return kind.power_w


def _between(low: float, high: float) -> Interval:
    """Where nobody measured: the middle stands for both."""
    return Interval(low, (low + high) / 2, high)
