"""What the outlook on demand and market hangs on, beside `facts.economics`: each figure with range and source."""

from __future__ import annotations

from jevons.facts.hardware import Entry, Figure


class DemandFigures(Entry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Money in dollars, growth a year as factors, all else as shares or factors."""

    # What the trend already contains.
    trend_price_decline_per_year: Figure  # fall of prices, as a factor, that published growth came with; 1: none
    # Vera Rubin and what it serves.
    mid_interactivity_share: Figure  # of what is spent on tokens
    high_interactivity_share: Figure
    # How far each lever reaches by the last year, as a share of what it could apply to in the first.
    reuse_cost_factor: Figure  # cost with KV-aware placement over cost with round robin, all else alike
    reuse_reach: Figure  # of what is spent
    tiering_chip_factor: Figure  # chips with memory below them over chips without, KV-aware placement both times
    tiering_memory_cost: Figure  # of that memory, over what the chips beside it cost
    tiering_reach: Figure  # of what is spent
    compression_reach: Figure  # share of what is spent on answers that are mathematics or checked like it
    compression_hard_share: Figure  # of those, hard ones
    answer_cost_share: Figure  # of what a task costs, for its answer's tokens
    sparsity_reach: Figure  # of what is spent: moves from dense models to mixtures of experts
    flop_bound_cost_share: Figure  # of what a task costs: bound by arithmetic, not memory
    small_model_reach: Figure  # of what is spent: moves to small models
    small_model_price: Figure  # over the large one's
    # Limits, over what the first year has.
    most_utilisation: Figure  # of chips, at which no more can be sold
    supply_growth_per_year: Figure  # of chips that serve
    power_growth_per_year: Figure  # of watts that serve
    most_markup: Figure  # on the cost of what is short, as a factor; beyond it buyers wait
    # Who sells the silicon.
    accelerator_spend_2026_usd: Figure  # a year, training and inference
    inference_share_2026: Figure  # of that
    hyperscaler_share: Figure  # of inference: of those with silicon of their own
    custom_revenue_share_2026: Figure  # of accelerators' revenue
    nvidia_inference_revenue_share_2026: Figure
    custom_silicon_share_2026: Figure  # of hyperscalers' inference tokens
    custom_usd_over_merchant: Figure  # silicon for the same tokens
    custom_tokens_over_merchant: Figure  # of one chip
    # What it takes to leave.
    chip_generation_usd: Figure  # to design an accelerator of one's own
    chip_generation_months: Figure
    fabric_months: Figure
    software_port_usd: Figure  # kernels, engine, operations of one new platform
    software_port_months: Figure
    neutral_layer_share: Figure  # of that port which a neutral serving layer makes unnecessary
