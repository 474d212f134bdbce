"""Who sells the silicon for inference: spending on tokens to dollars by vendor, in two tiers of buyers.

Hyperscalers have silicon of their own and serve a growing share of their tokens on it; everyone else buys. Three
shares that are often mixed up are kept apart: of tokens served, of chips (units), and of revenue. Custom silicon costs
less for the same tokens, so moving tokens to it shrinks the revenue of all.

A year's silicon is its yearly cost, not the year's purchases. What is paid above cost while capacity is short stays
with who has the capacity.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.econ.draws import Draws, Interval, bases, interval
from jevons.econ.levers import Values, row
from jevons.econ.outlook import Setup, rehearse
from jevons.econ.tornado import Swing, tornado
from jevons.facts.hardware import Figure

VENDORS = ("NVIDIA", "other merchants", "custom")
SEGMENTS = ("hyperscalers", "everyone else")
GUESS_MOST_CUSTOM = 0.95  # of a hyperscaler's tokens
_KNOWN_AFTER = 2.0  # years: between 2026 and 2028 the share is given, then it goes on as it went


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """Of one course of the years; shape (years, draws)."""

    silicon_usd: Reals  # a year
    vendor_usd: dict[str, Reals]
    segment_usd: dict[str, Reals]
    hyperscaler_price: Reals  # of a token's silicon, over what everyone else pays
    custom_tokens: Reals  # share of all inference tokens
    custom_units: Reals  # of chips
    custom_revenue: Reals


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    usd: Interval  # a year
    share: Interval  # of all silicon for inference


class MarketYear(msgspec.Struct, frozen=True, kw_only=True):
    year: int
    silicon_usd: Interval
    vendors: dict[str, Vendor]
    segments: dict[str, Interval]  # dollars a year
    hyperscaler_price: Interval  # of a token's silicon, over what everyone else pays
    custom_of_hyperscalers: Interval  # share of their tokens
    custom_tokens: Interval  # shares of all
    custom_units: Interval
    custom_revenue: Interval


class ShareCase(msgspec.Struct, frozen=True, kw_only=True):
    """The last year, with custom silicon's share in 2028 given."""

    custom_share_2028: float
    custom_of_hyperscalers: Interval  # in the last year
    nvidia_usd: Interval
    nvidia_share: Interval
    silicon_usd: Interval


class Market(msgspec.Struct, frozen=True, kw_only=True):
    years: list[MarketYear]
    cases: list[ShareCase]
    matters: list[Swing]  # for NVIDIA's dollars in the last year
    parameters: dict[str, Figure]


def custom_share(of: Values, since: Reals) -> Reals:
    """Of hyperscalers' tokens, year by year: a line through 2026 and 2028, and on from there; within 0 and 0.95."""
    now, then = row(of["custom_silicon_share_2026"]), row(of["custom_silicon_share_2028"])
    return np.clip(now + (then - now) * since / _KNOWN_AFTER, 0.0, GUESS_MOST_CUSTOM)


def split(of: Values, spent: Reals, since: Reals) -> Split:
    """Dollars of silicon by vendor and by buyer.

    Args:
        spent: on tokens at cost, over the first year's, shape (years, draws).
        since: years since the first, shape (years, 1).
    """
    big, price, each = (row(of[name]) for name in ("hyperscaler_share", *_CUSTOM))
    custom = big * custom_share(of, since)
    per_token = 1.0 - custom * (1.0 - price)  # silicon for a token, over merchant silicon for all
    first = row(of["accelerator_spend_2026_usd"]) * row(of["inference_share_2026"])
    total = first * spent * per_token / per_token[:1]
    revenue, chips = custom * price / per_token, custom / each
    nvidia = _nvidia_of_merchants(of, revenue[:1])
    return Split(
        silicon_usd=total,
        vendor_usd={
            "NVIDIA": total * (1.0 - revenue) * nvidia,
            "other merchants": total * (1.0 - revenue) * (1.0 - nvidia),
            "custom": total * revenue,
        },
        segment_usd={
            "hyperscalers": total * (big - custom * (1.0 - price)) / per_token,
            "everyone else": total * (1.0 - big) / per_token,
        },
        hyperscaler_price=1.0 - custom / big * (1.0 - price),
        custom_tokens=custom,
        custom_units=chips / (chips + 1.0 - custom),
        custom_revenue=revenue,
    )


_CUSTOM = ("custom_usd_over_merchant", "custom_tokens_over_merchant")


def _nvidia_of_merchants(of: Values, custom_revenue: Reals) -> Reals:
    """Its share of merchants' revenue, as in the first year."""
    return np.minimum(1.0, row(of["nvidia_inference_revenue_share_2026"]) / (1.0 - custom_revenue))


def look_at_market(figures: Mapping[str, Figure], setup: Setup, draws: Draws, shares: Figure) -> Market:
    """The market of an outlook, year by year, and its last year at the low, base and high share of custom silicon."""
    drawn: Values = {name: draws.of(name, figure) for name, figure in figures.items()}
    base: Values = bases(figures)
    wide, plain = _of(drawn, setup), _of(base, setup)
    cases = sorted({end for end in (shares.low, shares.value, shares.high) if end is not None})
    return Market(
        years=[_year(setup.first + i, i, (wide, plain), (drawn, base)) for i in range(len(setup.since))],
        cases=[_case(share, drawn, base, setup) for share in cases],
        matters=tornado(lambda of: float(_of(of, setup).vendor_usd["NVIDIA"][-1, 0]), figures),
        parameters=dict(figures),
    )


def _of(of: Values, setup: Setup) -> Split:
    done = rehearse(of, setup)
    return split(of, done.spend - done.rent, setup.since)


def _year(year: int, i: int, splits: tuple[Split, Split], values: tuple[Values, Values]) -> MarketYear:
    wide, plain = splits
    since = np.full((1, 1), float(i))

    def both(a: Reals, b: Reals) -> Interval:
        return interval(
            np.broadcast_to(a, wide.silicon_usd.shape)[i], float(np.broadcast_to(b, plain.silicon_usd.shape)[i, 0])
        )

    def vendor(name: str) -> Vendor:
        a, b = wide.vendor_usd[name], plain.vendor_usd[name]
        return Vendor(usd=both(a, b), share=both(a / wide.silicon_usd, b / plain.silicon_usd))

    return MarketYear(
        year=year,
        silicon_usd=both(wide.silicon_usd, plain.silicon_usd),
        vendors={name: vendor(name) for name in VENDORS},
        segments={name: both(wide.segment_usd[name], plain.segment_usd[name]) for name in SEGMENTS},
        hyperscaler_price=both(wide.hyperscaler_price, plain.hyperscaler_price),
        custom_of_hyperscalers=interval(custom_share(values[0], since)[0], float(custom_share(values[1], since)[0, 0])),
        custom_tokens=both(wide.custom_tokens, plain.custom_tokens),
        custom_units=both(wide.custom_units, plain.custom_units),
        custom_revenue=both(wide.custom_revenue, plain.custom_revenue),
    )


def _case(share: float, drawn: Values, base: Values, setup: Setup) -> ShareCase:
    given = {"custom_silicon_share_2028": share}
    wide, plain = _of({**drawn, **given}, setup), _of({**base, **given}, setup)
    last = setup.since[-1:]

    def both(a: Reals, b: Reals) -> Interval:
        return interval(a[-1], float(b[-1, 0]))

    of_total = (wide.vendor_usd["NVIDIA"] / wide.silicon_usd, plain.vendor_usd["NVIDIA"] / plain.silicon_usd)
    return ShareCase(
        custom_share_2028=share,
        custom_of_hyperscalers=both(custom_share({**drawn, **given}, last), custom_share({**base, **given}, last)),
        nvidia_usd=both(wide.vendor_usd["NVIDIA"], plain.vendor_usd["NVIDIA"]),
        nvidia_share=both(*of_total),
        silicon_usd=both(wide.silicon_usd, plain.silicon_usd),
    )
