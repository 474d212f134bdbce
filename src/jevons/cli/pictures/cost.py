"""Pictures of `jevons cost`."""

from __future__ import annotations

from collections.abc import Callable

from jevons.base.units import count
from jevons.charts import Axis, Picture, Span, Swing, spans, tornado
from jevons.cli.pricing import Priced
from jevons.econ.draws import Interval
from jevons.econ.quote import Money

_MOST_SWINGS = 12
_RANGE = "● all parameters at their base; the bar: 9 of 10 draws of them."

Label = Callable[[str], str]
Read = Callable[[float], str]


def pictures(found: Priced, label: Label, read: Read) -> list[Picture]:
    """What tokens cost and which parameter matters.

    Args:
        label: of a parameter's name, for people.
        read: of a parameter's value.
    """
    money = [] if found.money is None else [_tokens(found, found.money), _matters(found.money, label, read)]
    return [*money, *([] if found.money is None else [_hours(found.money)]), *_drawn(found)]


def notes(found: Priced) -> list[str]:
    chips = " and ".join(f"{count(number)} {name}" for name, number in found.chips.items())
    given = f", but {' and '.join(found.given)} at prices as given" if found.given else ""
    told = dict.fromkeys(f"{each.chip}: {each.trust}; {each.note}" for each in found.trust)
    return [
        f"{chips}, hours by basis '{found.basis}'{given}; {count(found.requests)} rehearsed requests, "
        f"{found.met_slo:.1%} of them within the SLO. Simulated, not measured.",
        *(f"No price: {figure} is not known." for figure in found.missing.values()),
        *(f"How far to trust it: {each}." for each in told),
        "Sources of prices and parameters: jevons fleet show NAME, jevons fleet show economics.",
    ]


def _tokens(found: Priced, money: Money) -> Picture:
    shown = {
        "output tokens, which pay for everything": money.mtok,
        "… or each its own: output": money.mtok_output,
        "input, computed": money.mtok_input,
        "input, cached": money.mtok_cached,
    }
    rows = [_span(name, interval) for name, interval in shown.items() if interval is not None]
    if found.against is not None:
        rows.insert(1, _span(f"the same in {found.against.other or 'the other fleet'}", found.against.other_mtok))
    return spans("What a million tokens cost", Axis(label="cost", unit="$/Mtoken", low=0.0), rows, about=_RANGE)


def _matters(money: Money, label: Label, read: Read) -> Picture:
    swings = [
        Swing(name=label(s.name), low=read(s.low), high=read(s.high), at_low=s.at_low, at_high=s.at_high)
        for s in money.tornado[:_MOST_SWINGS]
    ]
    axis = Axis(label="a million output tokens that pay for everything", unit="$")
    return tornado("What matters most", axis, money.mtok.base, swings)


def _hours(money: Money) -> Picture:
    rows = [_span(f"an hour of one {name}", interval) for name, interval in money.chip_hours.items()]
    return spans("What chips cost", Axis(label="an hour", unit="$", low=0.0), rows, about=_RANGE)


def _drawn(found: Priced) -> list[Picture]:
    if found.power is None:
        return []
    rows = [_span("an output token, from the grid", found.power.joules_per_token)]
    return [spans("What it draws", Axis(label="energy", unit="J", low=0.0), rows, about=_RANGE)]


def _span(name: str, interval: Interval) -> Span:
    return Span(name=name, low=interval.low, base=interval.base, high=interval.high)
