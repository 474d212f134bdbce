"""A bill as intervals: what a fleet's tokens cost, what they draw, and what matters most."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from jevons.econ.bill import STEP_TIME, Bill
from jevons.econ.draws import Amount, Draws, Interval, interval_of
from jevons.econ.tornado import Swing, tornado
from jevons.facts.hardware import Figure


class TierMoney(msgspec.Struct, frozen=True, kw_only=True):
    """Of one kind of memory below the chips', of all nodes."""

    size_bytes: float
    year: Interval  # dollars, part of the fleet's


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars."""

    chip_hours: dict[str, Interval]  # of one chip, by kind
    tiers: dict[str, TierMoney]  # memory below the chips'
    fleet_hour: Interval
    fleet_year: Interval
    mtok: Interval  # a million output tokens, which pay for everything
    mtok_output: Interval  # … which pay for themselves
    mtok_input: Interval | None  # that had to be computed; None: there were none
    mtok_cached: Interval
    request: Interval
    good_request: Interval | None  # within the SLO
    tornado: list[Swing]  # of `mtok`


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Of output tokens, at the power for which room is built."""

    it_kw: Interval
    joules_per_token: Interval  # from the grid
    tokens_per_s_per_mw: Interval  # of IT


def money(bill: Bill, draws: Draws) -> Money:
    """All in dollars. Every chip of the bill has a price."""
    figures, usage = bill.figures(), bill.usage
    is_computed = usage.input_tokens > usage.cached_tokens
    return Money(
        chip_hours={name: interval_of(hour.usd, hour.figures, draws) for name, hour in bill.hours.items()},
        tiers={name: _tier(bill, name, size, draws) for name, size in usage.tier_bytes.items()},
        fleet_hour=interval_of(bill.usd_per_hour, _of_what_is_there(figures), draws),
        fleet_year=interval_of(bill.usd_per_year, _of_what_is_there(figures), draws),
        mtok=interval_of(bill.usd_per_mtok, figures, draws),
        mtok_output=interval_of(bill.usd_per_mtok_output, figures, draws),
        mtok_input=interval_of(bill.usd_per_mtok_input, figures, draws) if is_computed else None,
        mtok_cached=interval_of(bill.usd_per_mtok_cached, figures, draws),
        request=interval_of(bill.usd_per_request, figures, draws),
        good_request=interval_of(bill.usd_per_good_request, figures, draws) if usage.met else None,
        tornado=[swing for swing in tornado(bill.usd_per_mtok, figures) if swing.width > 0],
    )


def _tier(bill: Bill, name: str, size_bytes: float, draws: Draws) -> TierMoney:
    year = interval_of(lambda of: bill.tier_usd_per_year(name, of), bill.figures(), draws)
    return TierMoney(size_bytes=size_bytes, year=year)


def power(bill: Bill, draws: Draws) -> Power | None:
    """All in watts; None where what one of the chips draws is not known."""
    if any(name not in bill.power_w for group in bill.usage.groups for name in group.chips):
        return None
    figures = bill.figures()
    return Power(
        it_kw=interval_of(bill.it_w, figures, draws).scaled(1e-3),
        joules_per_token=interval_of(bill.joules_per_output_token, figures, draws),
        tokens_per_s_per_mw=interval_of(bill.tokens_per_s_per_mw, figures, draws),
    )


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """As many fleets like one as a site's connection feeds, cooling included."""

    site_mw: float
    fleets: Interval
    chips: Interval
    tokens_per_s: Interval  # of output, at the rehearsed peak
    usd_per_year: Interval | None  # None: what has no price cannot be summed


def site(bill: Bill, site_mw: float, draws: Draws, priced: bool) -> Site:
    """What fits on a site. Parts of a fleet count: a site is far larger than one, or is cut by who builds it.

    Args:
        priced: every chip of the bill has a price.
    """
    site_w, figures = site_mw * 1e6, bill.figures()
    chips = sum(count for group in bill.usage.groups for count in group.chips.values())
    rate = bill.usage.output_tokens / bill.usage.seconds

    def usd_per_year(of: Mapping[str, Amount]) -> Amount:
        return bill.fleets_within(site_w, of) * bill.usd_per_year(of)

    there = _of_what_is_there(figures)
    fleets = interval_of(lambda of: bill.fleets_within(site_w, of), there, draws)
    return Site(
        site_mw=site_mw,
        fleets=fleets,
        chips=fleets.scaled(chips),
        tokens_per_s=interval_of(lambda of: bill.fleets_within(site_w, of) * rate, figures, draws),
        usd_per_year=interval_of(usd_per_year, figures, draws) if priced else None,
    )


def _of_what_is_there(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """What a fleet of so many chips hangs on: not how long their steps take, for which more would be needed."""
    return {name: figure for name, figure in figures.items() if not name.startswith(STEP_TIME)}
