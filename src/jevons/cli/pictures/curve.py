"""Pictures of `jevons curve`: what speed costs, and how many times cheaper the last chip is at which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jevons.charts import Axis, Band, Limit, Line, Picture, lines
from jevons.econ.draws import Interval

if TYPE_CHECKING:
    from jevons.cli.curve import Claim, Curve

_SPEED = Axis(label="speed for each user", unit="tokens/s")
_CLAIMED = (("gb300", "rubin"), 10.0)  # "10x lower token cost": NVIDIA of Vera Rubin, CES 2026; claim 1 of the catalog
_MOST = 4.0  # times the highest line: there bands are cut off, where they have no end
_RANGE = (
    "Lines: all parameters at their base. Bands: 9 of 10 draws, cut off at the top where in some of them a chip is not "
    "so fast."
)


def pictures(found: Curve) -> list[Picture]:
    return [_costs(found), *(_cheaper(found, claim) for claim in reversed(found.claims))]


def notes(found: Curve) -> list[str]:
    asked, error = found.asked, found.rate_p90_error
    held = (
        "nothing of this kind was held out" if error is None else f"nine of ten held-out throughputs within {error:.0%}"
    )
    return [
        f"{found.model} in {' or '.join(found.weights)}, {asked.input_tokens:,.0f} tokens in "
        f"({asked.cached_tokens:,.0f} cached), {asked.output_tokens:,.0f} out; "
        f"hours by basis '{found.basis}', at full load.",
        f"How far to trust it: shares of data sheets that all chips have in common; {held}. Computed, not measured.",
        "Figures of hardware, each with its source: jevons fleet show NAME.",
    ]


def _costs(found: Curve) -> Picture:
    series = [
        _line(name, [(step.interactivity, step.offers[name].mtok) for step in found.steps])
        for name in found.steps[0].offers
    ]
    axes = (_SPEED, Axis(label="a million output tokens, which pay for all", unit="$", is_log=True))
    return lines("What speed costs", axes, series, about=_RANGE)


def _cheaper(found: Curve, claim: Claim) -> Picture:
    new = list(found.steps[0].offers)[-1]
    name = f"{new} over {claim.chip}"
    series = [_line(name, [(step.interactivity, step.cheaper.get(claim.chip)) for step in found.steps])]
    pair, claimed = _CLAIMED
    limits = [Limit(claimed, "claimed: 10 times")] if (claim.chip, new) == pair else []
    raw = ", ".join(f"{times:.2f} by {label}" for label, times in claim.raw.items())
    about = f"{_RANGE} Data sheets and prices alone would say {raw}."
    if claim.vendor is not None:
        chart = ", ".join(f"{times:.3g} at {speed}" for speed, times in claim.vendor.items())
        about += f" The vendor's chart (unofficial) says {chart} speed."
    axes = (_SPEED, Axis(label="times cheaper a token", unit="×", is_log=True))
    return lines(f"How many times cheaper is {new} than {claim.chip}?", axes, series, limits, about)


def _line(name: str, at: list[tuple[float, Interval | None]]) -> Line:
    """Where there is something; what has no end is cut off far above."""
    there = [(speed, interval) for speed, interval in at if interval is not None]
    base = [interval.base for _, interval in there]
    most = _MOST * max([value for value in base if np.isfinite(value)], default=1.0)
    band = Band([interval.low for _, interval in there], [min(interval.high, most) for _, interval in there])
    return Line(name=name, x=[speed for speed, _ in there], y=base, bands=[band])
