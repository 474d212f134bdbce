"""All figures that claims are held against, by name: `chips.rubin.tdp_w`, `demand.hyperscaler_share`, `curve.mid`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from jevons.econ.claims import Computation
from jevons.econ.claims_hardware import HARDWARE, moe_active_share
from jevons.econ.claims_market import MARKET
from jevons.econ.curve import GUESS_INTERACTIVITY, Served, gains
from jevons.econ.outlook import parameters, predicted
from jevons.facts.demand import DemandFigures
from jevons.facts.economics import Economics
from jevons.facts.hardware import Chip, Confidence, Entry, Figure, Rack
from jevons.facts.llm import Llm


class Tables(msgspec.Struct, frozen=True, kw_only=True):
    """Of the catalog."""

    chips: Mapping[str, Chip]
    racks: Mapping[str, Rack]
    models: Mapping[str, Llm]
    economics: Economics
    demand: DemandFigures
    evidence: Mapping[str, Figure]


COMPUTATIONS: dict[str, Computation] = {**HARDWARE, **MARKET}


def named(tables: Mapping[str, Mapping[str, Entry]]) -> dict[str, Figure]:
    """Figures of records in tables, as TABLE.NAME.FIGURE."""
    return {
        f"{table}.{name}.{key}": figure
        for table, records in tables.items()
        for name, record in records.items()
        for key, figure in record.figures().items()
    }


def of_models(models: Mapping[str, Llm]) -> dict[str, Figure]:
    """Sizes of models, and the share of mixtures that a token uses."""
    found = {"models.moe_active_share": moe_active_share(models)}
    for name, model in models.items():
        for key in ("params", "active_params"):
            if (value := getattr(model, key)) is not None:
                found[f"models.{name}.{key}"] = Figure(value=value, source=model.source, confidence=Confidence.OFFICIAL)
    return found


def of_outlook(
    economics: Economics, demand: DemandFigures, chips: Mapping[str, Chip], served: Served
) -> dict[str, Figure]:
    """Parameters of the outlook by their plain names, what perf predicts of the curve, and the vendor's word on it."""
    found = parameters(economics, demand, chips, served, "between")
    watts = found["rubin_power_ratio"].value
    for which, chip_gain in gains(served, chips["rubin"], chips["gb300"]).items():
        found[f"curve.{which}"] = predicted(chip_gain, watts, GUESS_INTERACTIVITY[which])
    easy = economics.compression_easy
    found["compression_easiest"] = Figure(value=easy.high, source=easy.source, confidence=easy.confidence)
    own = ("custom_silicon_share_2028", "capability_price_decline_per_year")
    found |= {name: getattr(economics, name) for name in own}
    return found | {f"economics.{name}": figure for name, figure in economics.figures().items()}


def all_figures(tables: Tables, served: Served) -> dict[str, Figure]:
    """Everything together."""
    return {
        **named({"chips": tables.chips, "racks": tables.racks}),
        **of_models(tables.models),
        **of_outlook(tables.economics, tables.demand, tables.chips, served),
        **{f"evidence.{name}": figure for name, figure in tables.evidence.items()},
    }
