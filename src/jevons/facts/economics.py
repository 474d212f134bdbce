"""What money, power and demand hang on: each figure with its range and where it comes from."""

from __future__ import annotations

import msgspec

from jevons.facts.hardware import Confidence, Entry, Figure, Positive


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Between which a number lies of which nobody says more: it has no value that could be taken for its base."""

    low: Positive
    high: Positive
    source: str
    confidence: Confidence
    note: str = ""


class Economics(Entry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Money in dollars, rates a year as shares, falls and growth a year as factors above 1."""

    # What a chip's hour costs.
    capex_overhead: Figure  # network, storage and installation, as a factor of what racks cost
    life_years: Figure
    wacc: Figure  # weighted average cost of capital, a year
    pue: Figure
    usd_per_kwh: Figure
    colo_usd_per_kw_month: Figure
    availability: Figure  # share of hours that a chip can be used
    utilisation: Figure  # share of what could be served that is asked for: demand-weighted, not of FLOP/s
    own_price_spread: Figure  # of published costs of an owned hour, as a factor
    rent_price_spread: Figure  # of published rents
    memory_price_share: Figure  # of what a chip costs with all around it
    # What memory below the chips' costs; a GB is 1e9 bytes.
    dram_usd_per_gb: Figure  # of a server's memory, to buy
    flash_usd_per_gb: Figure  # of a server's drives, to buy
    object_usd_per_gb_month: Figure  # in an object store, by the month
    # What people ask for.
    price_elasticity: Figure  # percent more tokens for a percent less, as a positive number
    capability_price_decline_per_year: Figure  # of what costs the same capability, as a factor
    hardware_cost_decline_per_year: Figure  # of a token, by hardware and software, as a factor
    token_demand_growth_per_year: Figure  # as a factor
    custom_silicon_share_2028: Figure  # of hyperscalers' inference
    # What efficiency is claimed.
    rubin_gain_low_interactivity: Figure  # tokens/s/MW of Vera Rubin NVL72 over GB300 NVL72
    rubin_gain_mid_interactivity: Figure
    rubin_gain_high_interactivity: Figure
    compression_easy: Bounds  # share of answer tokens that OPSDC (now CRISP) saves on easy tasks
    compression_hard: Bounds
    agent_input_tokens: Figure  # of one session of an agent
    agent_output_tokens: Figure
    agent_spread: Figure  # between sessions of one task, as a factor
    # Not published.
    lpx_rack_usd: Bounds
    lpx_rack_w: Bounds

    def bounds(self) -> dict[str, Bounds]:
        """Those of which only a range is known, by name."""
        return {name: b for name in self.__struct_fields__ if isinstance(b := getattr(self, name), Bounds)}
