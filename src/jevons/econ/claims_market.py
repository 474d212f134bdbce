"""Claims about demand, money and who has the market."""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import Reals
from jevons.econ.claims import Computation, stated_of
from jevons.econ.draws import Amount
from jevons.econ.levers import LEVERS, Values
from jevons.econ.outlook import Setup, rehearse

_CLAIMED_YEAR = 2027  # of the market's size
_CUSTOM_YEAR = 2028
_SETUP = Setup(first=2026, last=2030, levers=LEVERS, limits=("chips", "power"))
_ASIC = ("evidence.asic_server_share_2026", "evidence.asic_server_share_2030")
_PERCENT = 100.0

ORDERS = Computation(
    uses=(
        "evidence.demand_seen_2025_usd",
        "evidence.demand_seen_2026_usd",
        "evidence.demand_window_2025_years",
    ),
    main=lambda of: _seen(of) * of["evidence.demand_window_2025_years"] / _longer(of),
    others={"totals of unlike windows": lambda of: _seen(of)},
    says="both are demand in sight, for Blackwell and Rubin together, the second for a year more",
)


def _seen(of: Values) -> Amount:
    return of["evidence.demand_seen_2026_usd"] / of["evidence.demand_seen_2025_usd"]


def _longer(of: Values) -> Amount:
    """The second window ends a year later."""
    return of["evidence.demand_window_2025_years"] + 1.0


TOP_FIVE = Computation(
    uses=("evidence.top_five_share_of_nvidia",),
    others={"five hyperscalers in NVIDIA's business": lambda of: _PERCENT * of["evidence.top_five_share_of_nvidia"]},
    says="it was said of NVIDIA's whole business and of hyperscalers, of which OpenAI is none",
)


def market_size(of: Values, year: int) -> Amount:
    """Silicon for inference in a year, in billions: this year's, grown as spending on tokens does."""
    now = of["accelerator_spend_2026_usd"] * of["inference_share_2026"] * 1e-9
    return now * _grown(of, year)


def _grown(of: Values, year: int) -> Amount:
    spend: Reals = rehearse(of, _SETUP).spend[year - _SETUP.first]
    return float(spend[0]) if spend.size == 1 else spend


_OUTLOOK = (
    "price_elasticity",
    "token_demand_growth_per_year",
    "trend_price_decline_per_year",
    "hardware_cost_decline_per_year",
    "life_years",
    "utilisation",
    "most_utilisation",
    "most_markup",
    "supply_growth_per_year",
    "power_growth_per_year",
    "mid_interactivity_share",
    "high_interactivity_share",
    "rubin_power_ratio",
    "rubin_hour_ratio",
    "rubin_gain_low_interactivity",
    "rubin_gain_mid_interactivity",
    "rubin_gain_high_interactivity",
    "reuse_cost_factor",
    "reuse_reach",
    "tiering_chip_factor",
    "tiering_memory_cost",
    "tiering_reach",
    "compression_reach",
    "compression_hard_share",
    "compression_easy",
    "compression_hard",
    "answer_cost_share",
    "sparsity_reach",
    "flop_bound_cost_share",
    "active_fraction",
    "small_model_reach",
    "small_model_price",
)

MARKET_SIZE = Computation(
    uses=(*_OUTLOOK, "accelerator_spend_2026_usd", "inference_share_2026", "evidence.accelerator_spend_2024_usd"),
    main=lambda of: market_size(of, _CLAIMED_YEAR),
    others={
        "accelerators of all kinds, 2026": lambda of: of["accelerator_spend_2026_usd"] * 1e-9,
    },
    also={
        "inference, 2026": ("$ billion a year", lambda of: market_size(of, _SETUP.first)),
        "inference, 2024, at the same share": (
            "$ billion a year",
            lambda of: of["evidence.accelerator_spend_2024_usd"] * of["inference_share_2026"] * 1e-9,
        ),
    },
    says="no source was found for these ranges; they fit all accelerators, of which inference is a part",
)

CAPTURED = Computation(
    uses=("nvidia_inference_revenue_share_2026", "evidence.nvidia_accelerator_revenue_share"),
    main=lambda of: _PERCENT * of["nvidia_inference_revenue_share_2026"],
    others={"all data-centre accelerators": lambda of: _PERCENT * of["evidence.nvidia_accelerator_revenue_share"]},
    says="the lower end is its share of all accelerators, training too; of inference it has less, and falling",
    tolerance=0.01,
)


def units_2028(of: Values) -> Amount:
    """Custom chips among hyperscalers' in 2028, halfway between two published years; all of them are theirs."""
    early, late = of[_ASIC[0]], of[_ASIC[1]]
    halfway = early + (late - early) * (_CUSTOM_YEAR - 2026) / (2030 - 2026)
    return np.minimum(1.0, halfway / of["hyperscaler_share"])


def tokens_2028(of: Values) -> Amount:
    """Their share of tokens: units, each with what it serves over a merchant chip."""
    units, each = units_2028(of), of["custom_tokens_over_merchant"]
    return units * each / (units * each + 1.0 - units)


CUSTOM_SILICON = Computation(
    uses=(*_ASIC, "hyperscaler_share", "custom_tokens_over_merchant", "custom_silicon_share_2028"),
    main=lambda of: _PERCENT * tokens_2028(of),
    parts={"as read from press and analysts": lambda of: _PERCENT * of["custom_silicon_share_2028"]},
    also={
        "of hyperscalers' chips": ("%", lambda of: _PERCENT * units_2028(of)),
        "of all AI servers shipped": ("%", lambda of: _PERCENT * 0.5 * (of[_ASIC[0]] + of[_ASIC[1]])),
        "of all inference tokens": ("%", lambda of: _PERCENT * tokens_2028(of) * of["hyperscaler_share"]),
    },
    says="units, revenue and tokens are three shares; what is published is of units, by whoever bought them",
)


def shorter(of: Values) -> Amount:
    """Share of answer tokens saved over a mix of easy and hard mathematics."""
    hard = of["compression_hard_share"]
    return (1.0 - hard) * of["compression_easy"] + hard * of["compression_hard"]


COMPRESSION = Computation(
    uses=(
        "compression_easy",
        "compression_hard",
        "compression_hard_share",
        "compression_easiest",
        "evidence.crisp_best_accuracy_points",
    ),
    main=lambda of: _PERCENT * shorter(of),
    parts={"easy mathematics at best, the blunt variant": lambda of: _PERCENT * of["compression_easiest"]},
    also={
        "hard mathematics": ("%", lambda of: _PERCENT * of["compression_hard"]),
        "accuracy gained at most, as revised": ("points", lambda of: of["evidence.crisp_best_accuracy_points"]),
    },
    says="so much on easy problems at best; of mathematics alone, and hardly more accurate as revised by its authors",
)

EFFICIENCY = Computation(
    uses=("hardware_cost_decline_per_year", "token_demand_growth_per_year", "capability_price_decline_per_year"),
    main=lambda of: _PERCENT * (of["hardware_cost_decline_per_year"] - 1.0),
    also={
        "tokens asked for": ("% a year", lambda of: _PERCENT * (of["token_demand_growth_per_year"] - 1.0)),
        "price of a capability falls": ("× a year", lambda of: of["capability_price_decline_per_year"]),
        "fleet's growth, as published": (
            "× a year",
            lambda of: of["token_demand_growth_per_year"] / of["hardware_cost_decline_per_year"],
        ),
    },
    says="every published cost of a token falls faster; a tenth of it by one generation would contradict this",
)

ASIC_COST = Computation(
    uses=("chip_generation_usd", "custom_usd_over_merchant", "life_years", "chips.gb300.own_usd_per_hour"),
    also={
        "chips at which a generation is paid back, if it is so": ("chips", lambda of: paid_back_chips(of)),
    },
    says="no source was found; what it would take to pay back the assumed cost is computed",
)


def paid_back_chips(of: Values) -> Amount:
    """Chips whose lower cost pays the design back over their life, at the price of an owned hour."""
    saved = of["chips.gb300.own_usd_per_hour"] * (1.0 - of["custom_usd_over_merchant"])
    return of["chip_generation_usd"] / (saved * 8760.0 * of["life_years"])


AWS_GPUS = Computation(
    uses=(
        "chips.gb300.all_in_w",
        "racks.gb200-nvl72.price_usd",
        "chips.gb200.domain_size",
        "evidence.demand_seen_2026_usd",
    ),
    also={
        "power, as GB300": ("GW", lambda of: stated_of(of) * 1e6 * of["chips.gb300.all_in_w"] * 1e-9),
        "price, in racks of GB200": ("$ billion", lambda of: _aws_usd(of) * 1e-9),
        "of all demand NVIDIA has in sight": (
            "%",
            lambda of: _PERCENT * _aws_usd(of) / of["evidence.demand_seen_2026_usd"],
        ),
    },
    says="it is plausible in size; the year is not confirmed",
)


def _aws_usd(of: Values) -> Amount:
    return stated_of(of) * 1e6 * of["racks.gb200-nvl72.price_usd"] / of["chips.gb200.domain_size"]


MARKET: dict[str, Computation] = {
    "orders": ORDERS,
    "top_five": TOP_FIVE,
    "market_size": MARKET_SIZE,
    "captured": CAPTURED,
    "custom_silicon": CUSTOM_SILICON,
    "compression": COMPRESSION,
    "efficiency": EFFICIENCY,
    "asic_cost": ASIC_COST,
    "aws_gpus": AWS_GPUS,
}
