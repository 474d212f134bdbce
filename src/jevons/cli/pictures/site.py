"""Pictures of `jevons site`: fleets beside each other on as much power."""

from __future__ import annotations

from collections.abc import Mapping

from jevons.charts import Axis, Picture, Span, spans
from jevons.cli.pricing import Priced
from jevons.econ.draws import Interval

_RANGE = "● all parameters at their base; the bar: 9 of 10 draws of them."


def pictures(found: Mapping[str, Priced]) -> list[Picture]:
    """Args: `found`, by the name of its scenario; what has no price or no known power has a row without a bar."""
    cost = Axis(label="a million output tokens, which pay for all", unit="$", low=0.0)
    rate = Axis(label="output of the site", unit="million tokens/s", low=0.0)
    energy = Axis(label="an output token, from the grid", unit="J", low=0.0)
    return [
        _beside("What tokens cost", cost, {n: None if p.money is None else p.money.mtok for n, p in found.items()}),
        _beside(
            "How many come from the site",
            rate,
            {n: None if p.site is None else p.site.tokens_per_s.scaled(1e-6) for n, p in found.items()},
        ),
        _beside(
            "What one draws",
            energy,
            {n: None if p.power is None else p.power.joules_per_token for n, p in found.items()},
        ),
    ]


def notes(found: Mapping[str, Priced], site_mw: float) -> list[str]:
    told = dict.fromkeys(f"{t.chip}: {t.trust}; {t.note}" for priced in found.values() for t in priced.trust)
    missing = dict.fromkeys(f"{name}: {figure}" for p in found.values() for name, figure in p.missing.items())
    met = ", ".join(f"{name} {priced.met_slo:.0%}" for name, priced in found.items())
    return [
        f"A site of {site_mw:g} MW, cooling included; rehearsed, not measured. Requests within the SLO: {met}.",
        *(f"Not known, so without a price: {each}." for each in missing),
        *(f"How far to trust it: {each}." for each in told),
        "Sources of prices and parameters: jevons fleet show NAME, jevons fleet show economics.",
    ]


def _beside(title: str, axis: Axis, found: Mapping[str, Interval | None]) -> Picture:
    rows = [
        Span(name=name, low=None, base=None, high=None)
        if interval is None
        else Span(name=name, low=interval.low, base=interval.base, high=interval.high)
        for name, interval in found.items()
    ]
    return spans(title, axis, rows, about=_RANGE)
