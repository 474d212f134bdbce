"""What a planned fleet saves whose instances start and stop by what is asked of them, as rehearsals find it.

Where chips are rented, hours in which an instance is stopped are not paid. Where they are bought, they are paid all the
same, and only what they would have drawn is saved. Chips that are owned already are counted as paid all the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from jevons.config.scenario import Scenario, as_toml
from jevons.econ.cost import Basis
from jevons.facts.usage import GroupUsage
from jevons.twin.fleet import decoders_first
from jevons.twin.offers import PARTS
from jevons.twin.planned import Scaled, Tried, part_of
from jevons.twin.report import Report
from jevons.twin.sizing import Counts, Kept, Sizing, rehearsed

_STEADY = 1.2  # times the mean in the busiest part of the time: less is what chance makes
_HEADROOMS = (1.0, 0.5, 0.0)  # of what is wanted, as long as the promise is kept: less is cheaper
_MORE = (0, 1, 2)  # instances of each role beside those that do if all are there all the time: who starts comes late
_HOUR_S = 3600.0
_LEAST_SAVED = 0.001  # of the cost: less is what rehearsals differ by


class _Try(NamedTuple):
    """One rehearsal of a fleet that starts and stops."""

    counts: Counts
    scenario: Scenario
    report: Report
    kept: Kept


def scaled(sizing: Sizing, found: Sequence[tuple[Tried, Counts]]) -> Scaled:
    """The cheapest fleet that can start and stop, if it does.

    Args:
        found: fleets that keep the promise, the cheapest first.
    """
    why_not = _why_not(sizing)
    if why_not:
        return Scaled(reason=why_not)
    able = next(((tried, counts) for tried, counts in found if _can(sizing, counts)), None)
    if able is None:
        is_one = max(found[0][1].values()) == 1
        return Scaled(
            reason="one instance of a kind does all there is to do"
            if is_one
            else f"it takes one group of each role; {found[0][0].name} has several"
        )
    tried, counts = able
    tries = list(_tries(sizing, counts))
    keeping = [each for each in tries if each.kept.keeps]
    if not keeping:
        most = max(each.kept.met for each in tries)
        return Scaled(
            reason=f"{tried.name} keeps {most:.1%} within the promise at most if instances start and stop: load rises "
            f"faster than they are up, in {sizing.wants.up_after_s:,.0f} s",
            name=tried.name,
            fixed_usd_per_hour=tried.usd_per_hour,
        )
    fixed, _ = rehearsed(sizing.scenario(counts), sizing.wants.slo, sizing.catalog, sizing.calibration)
    priced = [(usd, each) for each in keeping if (usd := _usd_per_hour(sizing, each, (tried, fixed))) is not None]
    if not priced:
        return Scaled(reason=f"{tried.name}: its chips are bought, and what they draw is not known", name=tried.name)
    usd, best = min(priced, key=lambda pair: pair[0])
    return _told(sizing, found[0][0], tried, (usd, best))


def _why_not(sizing: Sizing) -> str:
    """Why nothing is rehearsed; empty: it is."""
    wants, load = sizing.wants, sizing.load
    part_s, up_s = load.span_s / PARTS, wants.up_after_s + wants.scaling.every_s
    if load.peak < _STEADY:
        return f"the busiest {PARTS}th of the time asks for {load.peak:.2f} × the mean: what is there is needed"
    if part_s < up_s:
        return (
            f"{load.span_s:,.0f} s of traffic are too short to tell: a {PARTS}th of it is {part_s:,.0f} s, and an "
            f"instance is up {up_s:,.0f} s after it is needed"
        )
    return ""


def _can(sizing: Sizing, counts: Counts) -> bool:
    roles = [sizing.kinds[kind].role for kind in counts]
    return len(set(roles)) == len(roles) and max(counts.values()) > 1


def _tries(sizing: Sizing, counts: Counts) -> Iterator[_Try]:
    """With as few instances at most as keep the promise, then with ever less headroom while they do."""
    wants, keeps = sizing.wants, False
    for more in _MORE:
        fleet = {kind: count + more for kind, count in counts.items()}
        if more and sizing.excesses(fleet):
            return
        for share in _HEADROOMS:
            each = _scenario(sizing, fleet, wants.scaling.headroom * share)
            found = _Try(fleet, each, *rehearsed(each, wants.slo, sizing.catalog, sizing.calibration))
            yield found
            if not found.kept.keeps:
                break
            keeps = True
        if keeps:
            return


def _scenario(sizing: Sizing, counts: Counts, headroom: float) -> Scenario:
    plain, wants = sizing.scenario(counts), sizing.wants
    groups = [replace(group, up_after_s=wants.up_after_s) for group in plain.fleet]
    least = min(wants.scaling.least, *counts.values())
    return replace(plain, fleet=groups, scaling=replace(wants.scaling, headroom=headroom, least=least))


def _usd_per_hour(sizing: Sizing, each: _Try, fixed: tuple[Tried, Report]) -> float | None:
    """By the mean; None where what is saved is not known."""
    if Basis(sizing.wants.basis) is Basis.RENT:
        return _rented(sizing, each)
    # Instances beside those that do all the time are bought too.
    usd, economics = sizing.needs(each.counts).usd_per_hour, sizing.catalog.economics
    drawn = [_joules(report) for report in (fixed[1], each.report)]
    if drawn[0] is None or drawn[1] is None:
        return None
    kw = (drawn[0] / fixed[1].simulated_s - drawn[1] / each.report.simulated_s) / 1e3
    return usd - kw * economics.pue.value * economics.usd_per_kwh.value


def _joules(report: Report) -> float | None:
    known = [group.energy_j for group in report.groups if group.energy_j is not None]
    return sum(known) if len(known) == len(report.groups) else None


def _rented(sizing: Sizing, each: _Try) -> float:
    """Chips that are owned are of no kind in particular: of each kind as large a share is."""
    usd = 0.0
    all_of = sizing.needs(each.counts).chips
    for kind, group in zip(sorted(each.counts), _usage(each), strict=True):
        count = each.counts[kind]
        usd += sizing.kinds[kind].more_usd_per_hour(count) * group.paid_share
        for chip, number in sizing.kinds[kind].chips.items():
            offer = sizing.offers[chip]
            owned = min(offer.owned, all_of[chip]) / all_of[chip]
            usd_of_one = owned * offer.running_usd_per_hour + (1 - owned) * offer.usd_per_hour * group.paid_share
            usd += usd_of_one * number * count
    return usd


def _usage(each: _Try) -> list[GroupUsage]:
    """Of each group, in the order of the scenario."""
    groups = [group.role for group in decoders_first(each.scenario)[0].fleet]
    by_role = dict(zip(groups, each.report.groups, strict=True))
    return [by_role[group.role] for group in each.scenario.fleet]


def _told(sizing: Sizing, cheapest: Tried, tried: Tried, best: tuple[float, _Try]) -> Scaled:
    """Beside the same fleet all the time, and the cheapest of all."""
    (usd, each), load = best, sizing.load
    report = each.report
    all_hours = sum(each.counts.values()) * report.simulated_s / _HOUR_S
    ups = [up for _, up in report.up]
    saved = 1 - usd / cheapest.usd_per_hour
    pays = saved > _LEAST_SAVED
    if pays:
        what = (
            "hours that are not rented" if Basis(sizing.wants.basis) is Basis.RENT else "power alone: chips are bought"
        )
        reason = f"{saved:.0%} less than {cheapest.name} all the time, by {what}"
    else:
        reason = f"${usd:,.2f}/h against ${cheapest.usd_per_hour:,.2f}/h of {cheapest.name} all the time"
    return Scaled(
        reason=reason,
        pays=pays,
        name=" + ".join(part_of(sizing.candidates[kind], count).name for kind, count in each.counts.items()),
        headroom=each.scenario.scaling.headroom if each.scenario.scaling else 0.0,
        fixed_usd_per_hour=tried.usd_per_hour,
        usd_per_hour=usd,
        usd_per_million_output_tokens=usd / _HOUR_S * load.span_s / load.output_tokens * 1e6,
        instance_hours=report.instance_hours,
        all_instance_hours=all_hours,
        least_up=min(ups),
        most_up=max(ups),
        met=each.kept.met,
        scenario=as_toml(each.scenario),
    )
