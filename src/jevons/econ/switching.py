"""What it takes to leave a vendor, layer by layer, and when a chip of one's own pays.

    silicon     what chips owned are still worth; or the design of one's own
    fabric      network, storage and installation bought anew: what racks cost on top of their price
    software    kernels, engine and operations for one new platform, of which a neutral serving layer saves a share

Layers are changed one after another at worst, side by side at best: both are told. A chip of one's own is paid back by
what it saves on each token: a design costs what it costs, however many are served.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from jevons.econ.cost import HOURS_PER_YEAR, SECONDS_PER_HOUR, capital_recovery
from jevons.econ.draws import Amount, Draws, Interval, Result, high_of, interval_of
from jevons.econ.levers import Values
from jevons.econ.tornado import Swing, tornado
from jevons.facts.hardware import Figure

LAYERS = ("silicon", "fabric", "software")
GUESS_LEFT = 0.5  # of chips' price, written off when they go half-way through their life


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    usd: Interval
    months: Interval
    share: Interval  # of what the fleet costs in a year


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """Of a chip of one's own."""

    tokens_per_year: Interval  # output tokens, above which the design is paid back
    chips: Interval  # of one's own that serve as many
    usd_per_year: Interval  # that must be spent on merchants' chips for as much
    matters: list[Swing]  # for the tokens


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What one rehearsed fleet's tokens cost."""

    title: str
    vendors: list[str]
    chips: dict[str, int]
    met_slo: float  # share of requests
    usd_per_mtok: Interval  # of output, which pays for all


class Mixed(msgspec.Struct, frozen=True, kw_only=True):
    """One vendor's fleet and a mixed one, for the same traffic, by the twin."""

    single: Fleet
    mixed: Fleet
    saved: Interval  # share of the single vendor's cost; below 0: it costs more


class Switching(msgspec.Struct, frozen=True, kw_only=True):
    """What `jevons demand` tells of lock-in."""

    chips: int  # of the fleet that would be left
    chip: str
    layers: list[Layer]
    with_neutral: Layer  # software, where a neutral layer runs on both platforms
    removed: Interval  # share of what leaving costs, silicon kept to its end, that the neutral layer removes
    break_even: BreakEven | None  # None: it may save nothing on a token, and then never pays
    mixed: Mixed | None = None  # where both were rehearsed
    parameters: dict[str, Figure]


def silicon_usd(of: Values, chips: float) -> Amount:
    """What is written off if chips go now; kept to the end of their life, nothing is."""
    return chips * of["chip_usd"] * GUESS_LEFT


def fabric_usd(of: Values, chips: float) -> Amount:
    return chips * of["chip_usd"] * (of["capex_overhead"] - 1.0)


def software_usd(of: Values, *, neutral: bool) -> Amount:
    """Of one new platform; what a neutral layer does already need not be done again."""
    return of["software_port_usd"] * (1.0 - of["neutral_layer_share"] if neutral else 1.0)


def fleet_usd_per_year(of: Values, chips: float) -> Amount:
    return chips * of["merchant_usd_per_hour"] * HOURS_PER_YEAR


def removed(of: Values, chips: float) -> Amount:
    """Share that the neutral layer takes off, of fabric and software: chips are kept until they are paid."""
    spared = software_usd(of, neutral=False) - software_usd(of, neutral=True)
    return spared / (fabric_usd(of, chips) + software_usd(of, neutral=False))


def saved_usd_per_token(of: Values) -> Amount:
    """By a chip of one's own over a merchant's hour for the same tokens, design aside."""
    return merchant_usd_per_token(of) * (1.0 - of["custom_usd_over_merchant"])


def merchant_usd_per_token(of: Values) -> Amount:
    return of["merchant_usd_per_hour"] / (of["merchant_tokens_per_s"] * SECONDS_PER_HOUR * of["utilisation"])


def break_even_tokens(of: Values) -> Amount:
    """Output tokens a year at which the design's yearly payment is saved; all of its generation's life."""
    payment = of["chip_generation_usd"] * capital_recovery(of["wacc"], of["life_years"])
    return (payment + of["software_port_usd"] / of["life_years"]) / saved_usd_per_token(of)


def break_even_chips(of: Values) -> Amount:
    """Chips of one's own that serve those tokens."""
    served = of["merchant_tokens_per_s"] * of["custom_tokens_over_merchant"] * of["utilisation"]
    return break_even_tokens(of) / (served * SECONDS_PER_HOUR * HOURS_PER_YEAR)


def _break_even(figures: Mapping[str, Figure], draws: Draws) -> BreakEven:
    """Where something is saved on each token."""
    return BreakEven(
        tokens_per_year=interval_of(break_even_tokens, figures, draws),
        chips=interval_of(break_even_chips, figures, draws),
        usd_per_year=interval_of(lambda of: break_even_tokens(of) * merchant_usd_per_token(of), figures, draws),
        matters=tornado(break_even_tokens, figures),
    )


def lock_in(
    fleet: tuple[int, str], figures: Mapping[str, Figure], draws: Draws, mixed: Mixed | None = None
) -> Switching:
    """All of it.

    Args:
        fleet: that would be left: how many chips, of which kind.
        figures: those of `facts.demand` and `facts.economics` that are used here, and of the chip `chip_usd` (its share
            of a rack), `merchant_usd_per_hour` and `merchant_tokens_per_s` (at the speed that users are promised).
        mixed: two rehearsed fleets, where there are any.
    """
    chips, chip = fleet

    def told(result: Result) -> Interval:
        return interval_of(result, figures, draws)

    def layer(name: str, usd: Result, months: Result) -> Layer:
        share = told(lambda of: usd(of) / fleet_usd_per_year(of, chips))
        return Layer(name=name, usd=told(usd), months=told(months), share=share)

    return Switching(
        chips=chips,
        chip=chip,
        layers=[
            layer("silicon", lambda of: silicon_usd(of, chips), lambda of: of["chip_generation_months"]),
            layer("fabric", lambda of: fabric_usd(of, chips), lambda of: of["fabric_months"]),
            layer("software", lambda of: software_usd(of, neutral=False), lambda of: of["software_port_months"]),
        ],
        with_neutral=layer(
            "  neutral layer",
            lambda of: software_usd(of, neutral=True),
            lambda of: of["software_port_months"] * (1.0 - of["neutral_layer_share"]),
        ),
        removed=told(lambda of: removed(of, chips)),
        break_even=None if high_of(figures["custom_usd_over_merchant"]) >= 1.0 else _break_even(figures, draws),
        mixed=mixed,
        parameters=dict(figures),
    )
