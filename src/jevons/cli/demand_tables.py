"""`jevons demand` as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.cli import tables
from jevons.cli.rehearsed import Rehearsed, Tiering
from jevons.config.outlook import OutlookFile
from jevons.econ.draws import Interval, high_of
from jevons.econ.market import SEGMENTS, VENDORS, Market
from jevons.econ.outlook import Outlook, Year
from jevons.econ.switching import Fleet, Switching
from jevons.econ.tornado import Swing

_SHOWN_SWINGS = 6
_LEAST = 1e-6  # told as a figure
_SEEN = 0.005  # of the base; a swing below is not shown


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What `jevons demand --json` says."""

    demand: Outlook
    market: Market
    switching: Switching
    rehearsed: list[Rehearsed] = []  # what reuse of KV is worth, measured in the twin


def show(found: Found, asked: OutlookFile, console: Console) -> None:
    if found.demand.title:
        _say(console, found.demand.title)
    if found.rehearsed:
        tables.show(_rehearsed(found.rehearsed), console)
    if "demand" in asked.show:
        _show_demand(found.demand, console)
    if "market" in asked.show:
        _show_market(found.market, console)
    if "switching" in asked.show:
        _show_switching(found.switching, console)


def _rehearsed(found: Sequence[Rehearsed]) -> Table:
    """The last column is of a tier on top of placement."""
    title = "by the twin; placement: cost by kv over round robin; tiers, over kv without"
    table = _table(title, "", "placement", "tier", "chips", "memory", "cost")
    for each in found:
        for number, tier in enumerate(each.tiers):
            name, placement = (each.scenario, f"{each.placement:.2f}") if number == 0 else ("", "")
            table.add_row(name, placement, tier.tier, f"{tier.chip_factor:.2f}", *_paid(tier))
    return table


def _paid(tier: Tiering) -> tuple[str, str]:
    """The memory's price over the chips', and what both cost over chips alone."""
    if tier.memory_cost is None or tier.cost_factor is None:
        return "no price", "not known"
    return f"{tier.memory_cost.value:.1%}", f"{tier.cost_factor:.2f}"


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show_demand(found: Outlook, console: Console) -> None:
    tables.show(_years(found), console)
    tables.show(_levers(found), console)
    _say(console, *(f" {line}" for line in _findings(found)))
    last = found.years[-1]
    title = f"what matters for {last.year}'s spend, {figure(last.spend.base)} ×"
    tables.show(swings(title, "spend", found.matters, last.spend.base), console)


def _show_market(found: Market, console: Console) -> None:
    last = found.years[-1]
    tables.show(_dollars(found), console)
    tables.show(_buyers(found), console)
    tables.show(_shares(found), console)
    tables.show(_cases(found), console)
    usd = last.vendors["NVIDIA"].usd.base
    title = f"what matters for NVIDIA's {last.year}, ${figure(usd / 1e9)} billion"
    tables.show(swings(title, "$ billion", found.matters, usd, scale=1e-9), console)


def _dollars(found: Market) -> Table:
    table = _table("silicon for inference, its yearly cost, $ billion", "", "all", *VENDORS)
    for year in found.years:
        usd = (year.silicon_usd, *(year.vendors[name].usd for name in VENDORS))
        table.add_row(str(year.year), *(ranged(interval.scaled(1e-9)) for interval in usd))
    return table


def _buyers(found: Market) -> Table:
    title = "by who buys, $ billion; a token's silicon, theirs over everyone else's"
    table = _table(title, "", *SEGMENTS, "a token, theirs")
    for year in found.years:
        usd = (ranged(year.segments[name].scaled(1e-9)) for name in SEGMENTS)
        table.add_row(str(year.year), *usd, ranged(year.hyperscaler_price))
    return table


def _shares(found: Market) -> Table:
    title = "%: custom silicon of hyperscalers' tokens and of all; NVIDIA of dollars"
    table = _table(title, "", "theirs", "all tokens", "all chips", "all dollars", "NVIDIA")
    for year in found.years:
        custom = (year.custom_of_hyperscalers, year.custom_tokens, year.custom_units, year.custom_revenue)
        table.add_row(str(year.year), *map(_percent, (*custom, year.vendors["NVIDIA"].share)))
    return table


def _cases(found: Market) -> Table:
    last = found.years[-1].year
    title = f"{last}, by custom silicon's share of hyperscalers' tokens in 2028"
    table = _table(title, "", f"then in {last}", "all, $ billion", "NVIDIA, $ billion", "NVIDIA, %")
    for case in found.cases:
        dollars = (case.silicon_usd.scaled(1e-9), case.nvidia_usd.scaled(1e-9))
        shares = (_percent(case.custom_of_hyperscalers), *map(ranged, dollars), _percent(case.nvidia_share))
        table.add_row(f"{case.custom_share_2028:.0%}", *shares)
    return table


def _show_switching(found: Switching, console: Console) -> None:
    table = _table(f"to leave {found.chips:,} {found.chip}, layer by layer", "", "$ million", "months", "of its year")
    for layer in (*found.layers, found.with_neutral):
        table.add_row(layer.name, ranged(layer.usd.scaled(1e-6)), ranged(layer.months), f"{layer.share.base:.0%}")
    tables.show(table, console)
    _say(console, *(f" {line}" for line in _leaving(found)))
    even = found.break_even
    if even is None:
        return
    title = f"what matters for the break-even, {figure(even.tokens_per_year.base / 1e12)} T tokens a year"
    tables.show(swings(title, "T tokens", even.matters, even.tokens_per_year.base, scale=1e-12), console)


def _leaving(found: Switching) -> list[str]:
    lines = [
        f"a neutral layer removes {_percent(found.removed)} % of that, if chips stay until they are paid",
        *_pays(found),
    ]
    if found.mixed is None:
        return [*lines, "a mixed fleet beside one vendor's: --single rag-gb300 --mixed rag-mixed"]
    single, mixed = found.mixed.single, found.mixed.mixed
    return [
        *lines,
        "by the twin, a million output tokens, which pay for all:",
        *(f"  {_fleet(fleet)}: {_usd(fleet.usd_per_mtok)}, {fleet.met_slo:.0%} in time" for fleet in (single, mixed)),
        f"  saved: {_percent(found.mixed.saved)} %, for the choice of chips as much as for mixing them",
    ]


def _pays(found: Switching) -> list[str]:
    even = found.break_even
    if even is None:
        most = high_of(found.parameters["custom_usd_over_merchant"])
        return [f"a chip of one's own may cost {most:.3g} times a merchant's for the same tokens: then it never pays"]
    return [
        f"a chip of one's own pays from {ranged(even.tokens_per_year.scaled(1e-12))} T output tokens a year on",
        f"  {ranged(even.chips)} chips; merchants' ${ranged(even.usd_per_year.scaled(1e-9))} bn a year",
        "  its design is assumed at what is in circulation: no source was found",
    ]


def _usd(interval: Interval) -> str:
    return f"${interval.base:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _fleet(fleet: Fleet) -> str:
    chips = " and ".join(f"{count} {name}" for name, count in fleet.chips.items())
    return f"{chips} of {' and '.join(fleet.vendors)}"


def figure(value: float) -> str:
    """Two figures, without exponents."""
    if value == 0.0:
        return "0"
    if 0.0 < value < _LEAST:
        return f"<{_LEAST:f}"
    for size, name in ((1e9, "bn"), (1e6, "M")):
        if abs(value) >= size:
            return f"{figure(value / size)} {name}"
    places = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{min(max(0, places), 6)}f}"


def ranged(interval: Interval) -> str:
    if interval.low == interval.high:
        return figure(interval.base)
    return f"{figure(interval.base)} ({figure(interval.low)} to {figure(interval.high)})"


def _percent(interval: Interval) -> str:
    dash = "–" if interval.low >= 0.0 else " to "
    return f"{interval.base:.0%} ({interval.low:.0%}{dash}{interval.high:.0%})".replace("%", "")


def swings(title: str, what: str, matters: Sequence[Swing], base: float, scale: float = 1.0) -> Table:
    table = _table(title, "", "from", "to", what)
    seen = [swing for swing in matters if swing.width > _SEEN * abs(base)]
    for swing in seen[:_SHOWN_SWINGS]:
        ends = f"{figure(swing.at_low * scale)} to {figure(swing.at_high * scale)}"
        table.add_row(swing.name, figure(swing.low), figure(swing.high), ends)
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style=""
    )
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def _years(found: Outlook) -> Table:
    title = f"over {found.setup.first}; chips, power: share of draws in which they limit what is done"
    table = _table(title, "", "cost of a task", "tasks", "spend", "chips", "power")
    for year in found.years:
        ranges = (ranged(interval) for interval in (year.price, year.tasks, year.spend))
        table.add_row(str(year.year), *ranges, *_short(year))
    return table


def _short(year: Year) -> tuple[str, str]:
    chips, power = year.limited_by_chips, year.limited_by_power
    return f"{chips:.0%}", f"{power:.0%}"


def _levers(found: Outlook) -> Table:
    table = _table(f"in {found.years[-1].year}, with each lever over without it", "", "price paid", "tasks", "spend")
    for lever in found.levers:
        table.add_row(lever.name, ranged(lever.price), ranged(lever.tasks), ranged(lever.spend))
    return table


def _findings(found: Outlook) -> list[str]:
    last, adoption = found.years[-1], found.adoption_per_year
    lines = [
        _flip(found),
        *_rebound(found),
        f"adoption at steady prices: {ranged(adoption)} × a year, prices explain the rest",
    ]
    if found.most_elasticity is not None:
        lines.append(
            f"above an elasticity of {found.most_elasticity:.2f} they would explain more than all published growth"
        )
    if last.rent_share.high > 0.005:
        low, high = last.rent_share.low, last.rent_share.high
        lines.append(f"paid above cost while capacity is short: {low:.0%} to {high:.0%} of {last.year}'s spend")
    return lines


def _rebound(found: Outlook) -> list[str]:
    taken, last = found.rebound, found.years[-1].year
    if taken is None:
        return []
    return [
        f"rebound in {last} without limits: of the saving, more tasks take back",
        f"  money {_percent(taken.money)} %, above 100 in {taken.money_above_one:.0%} of draws: more is spent",
        f"  energy {_percent(taken.energy)} %, above 100 in {taken.energy_above_one:.0%}: more is used, as Jevons said",
    ]


def _flip(found: Outlook) -> str:
    if found.flip is None:
        return "nothing makes tokens cheaper here"
    told = f"cheaper tokens raise spend from an elasticity of {found.flip:.2f} on ({found.above_one:.0%} of draws)"
    if not found.setup.limits or found.flip_within_limits == found.flip:
        return told
    if found.flip_within_limits is None:
        return f"{told}; within limits they {'raise' if found.limits_raise_spend else 'never raise'} it at any"
    return f"{told}, within limits from {found.flip_within_limits:.2f}"
