"""Pictures of `jevons plan` and `jevons wait`."""

from __future__ import annotations

from jevons.base.units import milliseconds
from jevons.charts import Axis, Limit, Picture, Point, Span, scatter, spans
from jevons.cli.plans import flip_line, short_lines
from jevons.econ.wait import Answer
from jevons.twin.planned import Plan, Tried

_USD = Axis(label="cost", unit="$/Mtoken of output", low=0.0)
_SPEED = Axis(label="tokens a second of a user", unit="tokens/s")


def pictures(found: Plan) -> list[Picture]:
    """What was rehearsed, cost against speed; then the finalists with their power and how sure they are."""
    return [_fronts("What a token costs, and how fast it comes", {"": found}), *_finalists(found)]


def notes(found: Plan) -> list[str]:
    slo = found.slo
    return [
        *([] if found.best else [" ".join(line.strip() for line in short_lines(found))]),
        f"{found.model}: {slo.share:.0%} of requests within {slo.ttft_s:g} s and {milliseconds(slo.tpot_s)} a token.",
        f"{found.rehearsals} fleets rehearsed, simulated, not measured.",
        *(f"How far to trust {p.chip}: {p.trust}." for p in (found.best.parts if found.best else [])),
    ]


def _fronts(title: str, plans: dict[str, Plan]) -> Picture:
    points = []
    for group, plan in plans.items():
        tried = {each.name: each for each in [*plan.front, *plan.finalists]}
        # Of answers of one token nobody knows how fast more would come.
        points += [_point(each, group) for each in tried.values() if each.keeps and each.tpot_s > 0]
    about = "Each point keeps the promise. Speed: what that share of requests has at least. Right and low is better."
    return scatter(title, (_SPEED, _USD), points, better=("high", "low"), about=about)


def _point(tried: Tried, group: str) -> Point:
    watts = "unknown" if tried.power_w is None else f"{tried.power_w / 1e3:,.1f} kW"
    told = f"${tried.usd_per_hour:,.2f}/h, {watts}"
    return Point(name=tried.name, x=1 / tried.tpot_s, y=tried.usd_per_million_output_tokens, group=group, told=told)


def _finalists(found: Plan) -> list[Picture]:
    if found.sureness is None:
        return []
    rows = []
    for each, cost in zip(found.finalists, found.sureness.costs, strict=True):
        watts = "" if each.power_w is None else f" ({each.power_w / 1e3:,.0f} kW)"
        rows.append(Span(name=each.name + watts, low=cost.low, base=cost.base, high=cost.high))
    limit = found.limits.usd_per_hour
    limits = [] if limit is None else [Limit(limit, "limit")]
    axis = Axis(label="cost", unit="$/h", low=0.0)
    about = "From 5 % to 95 % of draws of prices and step times, ● at their base."
    return [spans("What fleets that keep the promise cost", axis, rows, limits, about)]


def wait_pictures(found: Answer, now: Plan, later: Plan) -> list[Picture]:
    """What each choice costs; then both plans in one picture."""
    rows = [
        Span(
            name=each.name if each.served == 1.0 else f"{each.name} (serves {each.served:.0%})",
            low=each.usd_per_million_tokens.low,
            base=each.usd_per_million_tokens.base,
            high=each.usd_per_million_tokens.high,
        )
        for each in found.choices
    ]
    about = (
        f"Over {found.months:g} months. From 5 % to 95 % of draws of prices, step times and the delay, ● at their base."
    )
    return [
        spans("What a token costs until then and after", _USD, rows, about=about),
        _fronts("Fleets of now and of later", _named(now, later)),
    ]


def _named(now: Plan, later: Plan) -> dict[str, Plan]:
    """By their titles; by when they are bought where those do not tell them apart."""
    if now.title == later.title:
        return {"now": now, "later": later}
    return {now.title or "now": now, later.title or "later": later}


def wait_notes(found: Answer) -> list[str]:
    delay = found.delay_months
    return [
        f"Now: {found.now}. Later: {found.later}.",
        f"The later chips come after {delay.value:.1f} months ({delay.low:.1f} to {delay.high:.1f}, assumed).",
        *(f"What would flip it, if it were: {flip_line(flip)}." for flip in found.flips[:3]),
        "Rehearsed, not measured.",
    ]
