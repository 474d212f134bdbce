"""A rehearsal, priced: what `jevons cost` tells, prints and draws."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from jevons.base.errors import ConfigError
from jevons.config.catalog import Catalog
from jevons.config.prices import make_bill, rack_of, unpriced
from jevons.econ.bill import Bill
from jevons.econ.cost import Basis
from jevons.econ.draws import Amount, Draws, Interval, interval_of
from jevons.econ.power import racks_within
from jevons.econ.quote import Money, Power, Site, money, power, site
from jevons.facts.hardware import Figure
from jevons.twin.report import GroupTrust, Report


class RackPower(msgspec.Struct, frozen=True, kw_only=True):
    """What chips of one kind are bought in."""

    chips: int
    kw: Interval | None  # None: not known
    on_site: Interval | None  # whole racks, if all were of this kind


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet beside another one, for a million output tokens that pay for everything."""

    other: str
    other_trust: list[GroupTrust]
    other_mtok: Interval
    ratio: Interval | None  # of this fleet's dollars to the other's; None: this one has no price
    break_even: dict[str, Interval]  # dollars an hour of each kind of chip, the others at their prices, at ratio 1


class Priced(msgspec.Struct, frozen=True, kw_only=True):
    """What `jevons cost --json` says. Intervals: 5th percentile, all parameters at their base, 95th percentile."""

    title: str
    basis: Basis
    given: list[str] = []  # chips whose price is not by that, but given
    requests: int
    chips: dict[str, int]
    paid_share: float  # of the hours of all these, where instances start and stop
    output_tokens_per_s: float
    goodput_per_s: float
    met_slo: float
    missing: dict[str, str]  # figures without which there is no price, by kind of chip
    money: Money | None
    power: Power | None  # None: what a chip draws is not known
    racks: dict[str, RackPower]
    site: Site | None
    against: Against | None
    trust: list[GroupTrust]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """How to price."""

    basis: Basis
    prices: dict[str, Figure] = {}  # given, dollars an hour by kind of chip
    site_mw: float | None = None
    against: Report | None = None
    draws: Draws = Draws()


def priced(report: Report, catalog: Catalog, wanted: Wanted) -> Priced:
    """Raises ConfigError: see `_against`."""
    usage, draws = report.usage, wanted.draws
    missing = unpriced(usage, catalog, wanted.basis, wanted.prices)
    bill = make_bill(usage, catalog, wanted.basis, wanted.prices, lacks=missing)
    drawn = power(bill, draws)
    is_placed = wanted.site_mw is not None and drawn is not None
    return Priced(
        title=report.title,
        basis=wanted.basis,
        given=[name for name in usage.chips if name in wanted.prices],
        requests=report.requests,
        chips=usage.chips,
        paid_share=usage.paid_share,
        output_tokens_per_s=report.output_tokens_per_s,
        goodput_per_s=report.goodput_per_s,
        met_slo=report.met_slo,
        missing=missing,
        money=None if missing else money(bill, draws),
        power=drawn,
        racks={name: rack for name in usage.chips if (rack := _rack(name, catalog, wanted)) is not None},
        site=site(bill, wanted.site_mw, draws, priced=not missing) if is_placed and wanted.site_mw else None,
        against=None if wanted.against is None else _against(bill, list(missing), wanted.against, catalog, wanted),
        trust=report.trust,
    )


def _rack(name: str, catalog: Catalog, wanted: Wanted) -> RackPower | None:
    rack = rack_of(catalog, name)
    if rack is None:
        return None
    if rack.power_w is None:
        return RackPower(chips=rack.chips, kw=None, on_site=None)
    rack_w, site_mw = f"rack_w/{name}", wanted.site_mw
    figures = {rack_w: rack.power_w, "pue": catalog.economics.pue}

    def whole(of: Mapping[str, Amount]) -> Amount:
        return racks_within(site_w=(site_mw or 0.0) * 1e6, rack_w=of[rack_w], pue=of["pue"])

    kw = interval_of(lambda of: of[rack_w] / 1e3, figures, wanted.draws)
    return RackPower(chips=rack.chips, kw=kw, on_site=interval_of(whole, figures, wanted.draws) if site_mw else None)


def _against(bill: Bill, missing: list[str], report: Report, catalog: Catalog, wanted: Wanted) -> Against:
    """Raises ConfigError: the other fleet has no price, or more than one kind of chip here has none."""
    other = make_bill(report.usage, catalog, wanted.basis, wanted.prices)
    if len(missing) > 1:
        raise ConfigError(
            f"--against: tells the price of one kind of chip, and {', '.join(missing)} have none; "
            f"give the others by --usd-per-hour"
        )
    figures, draws = bill.figures() | other.figures(), wanted.draws

    def break_even(chip: str) -> Interval:
        return interval_of(lambda of: bill.break_even_usd_per_hour(chip, other.usd_per_mtok, of), figures, draws)

    def ratio(of: Mapping[str, Amount]) -> Amount:
        return bill.usd_per_mtok(of) / other.usd_per_mtok(of)

    return Against(
        other=report.title,
        other_trust=report.trust,
        other_mtok=interval_of(other.usd_per_mtok, figures, draws),
        ratio=None if missing else interval_of(ratio, figures, draws),
        break_even={chip: break_even(chip) for chip in (missing or bill.usage.chips)},
    )
