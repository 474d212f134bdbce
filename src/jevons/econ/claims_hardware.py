"""Claims about chips, racks and models: what they compute, hold, draw and cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from jevons.econ.claims import Computation, most_stated_of, stated_of
from jevons.econ.draws import Amount, Result
from jevons.econ.levers import Values
from jevons.facts.hardware import Confidence, Figure
from jevons.facts.llm import Llm

_RUBIN, _GB300, _GB200, _LPU = "chips.rubin", "chips.gb300", "chips.gb200", "chips.lpu3"
_SIZE = f"{_RUBIN}.domain_size"
_GAINS = ("low", "mid", "high")
_BEFORE = 10.0  # what a query cost over what it is said to fall to
_CURVE = (
    "mid_interactivity_share",
    "high_interactivity_share",
    "rubin_power_ratio",
    "rubin_hour_ratio",
    *(f"rubin_gain_{which}_interactivity" for which in _GAINS),
)
_VENDOR = tuple(f"economics.rubin_gain_{which}_interactivity" for which in _GAINS)
_OURS = tuple(f"curve.{which}" for which in _GAINS)


def per_dollar(of: Values, gain: Amount) -> Amount:
    """Tokens for a dollar, of a gain in tokens/s/MW: a chip draws more, and its hour is dearer."""
    return gain * of["rubin_power_ratio"] / of["rubin_hour_ratio"]


def cheaper(of: Values) -> Amount:
    """How many times cheaper a token of Vera Rubin is than GB300's, over all that is spent on three speeds."""
    mid, high = of["mid_interactivity_share"], of["high_interactivity_share"]
    shares = {"low": 1.0 - mid - high, "mid": mid, "high": high}
    left: Amount = 0.0
    for which, share in shares.items():
        left = left + share / of[f"rubin_gain_{which}_interactivity"]
    return per_dollar(of, 1.0 / left)


def _claimed(which: str) -> Result:
    return lambda of: per_dollar(of, of[f"economics.rubin_gain_{which}_interactivity"])


def _predicted(which: str) -> Result:
    return lambda of: per_dollar(of, of[f"curve.{which}"])


def _needed(chip: str) -> Result:
    return lambda of: stated_of(of) * of[f"{_RUBIN}.own_usd_per_hour"] / of[f"{chip}.own_usd_per_hour"]


def _rack(of: Values, name: str) -> Amount:
    return of[_SIZE] * of[f"{_RUBIN}.{name}"]


def _times(name: str, scale: float) -> Result:
    return lambda of: _rack(of, name) * scale


def _sheet(name: str) -> Result:
    """Per dollar by one rate of the data sheets, over GB200: what the claim names as Blackwell."""
    dearer = (f"{_RUBIN}.own_usd_per_hour", f"{_GB200}.own_usd_per_hour")
    return lambda of: of[f"{_RUBIN}.{name}"] / of[f"{_GB200}.{name}"] / (of[dearer[0]] / of[dearer[1]])


TOKEN_COST = Computation(
    uses=(
        *_CURVE,
        *_VENDOR,
        *_OURS,
        *(f"{chip}.own_usd_per_hour" for chip in (_RUBIN, _GB300, _GB200)),
        *(f"{chip}.{rate}" for chip in (_RUBIN, _GB200) for rate in ("memory_bytes_per_s", "fp4_flops")),
    ),
    main=cheaper,
    parts={f"at {which} interactivity, the vendor's chart": _claimed(which) for which in _GAINS},
    also={
        **{f"at {which} interactivity, perf": ("×", _predicted(which)) for which in _GAINS},
        "memory bandwidth alone, over GB200": ("×", _sheet("memory_bytes_per_s")),
        "dense FP4 alone, over GB200": ("×", _sheet("fp4_flops")),
        "tokens/s of a chip that it takes, over GB300": ("×", _needed(_GB300)),
        "tokens/s of a chip that it takes, over GB200": ("×", _needed(_GB200)),
    },
    says="the gain is a curve: small where users are patient, large where each is served fast; its hour is dearer",
)

LARGEST_GENERATION = Computation(
    uses=(*_CURVE, *_VENDOR, "evidence.hopper_to_blackwell_mid", "evidence.hopper_to_blackwell_high"),
    main=lambda of: cheaper(of) / of["evidence.hopper_to_blackwell_mid"],
    also={
        "the vendor's chart at mid interactivity": (
            "×",
            lambda of: _claimed("mid")(of) / of["evidence.hopper_to_blackwell_mid"],
        ),
        "the vendor's chart at high interactivity": (
            "×",
            lambda of: _claimed("high")(of) / of["evidence.hopper_to_blackwell_high"],
        ),
    },
    says="from Hopper to Blackwell an independent benchmark saw more; the vendor's chart comes near in the middle",
)

EXAFLOPS = Computation(
    uses=(_SIZE, f"{_RUBIN}.fp4_flops", f"{_RUBIN}.fp4_sparse_flops", f"{_RUBIN}.fp8_flops"),
    main=_times("fp4_flops", 1e-18),
    others={"sparse FP4": _times("fp4_sparse_flops", 1e-18)},
    also={"dense FP8": ("EFLOP/s", _times("fp8_flops", 1e-18))},
    says="the figure counts half of the factors as zeros (2:4 sparsity); models are served dense",
)

MEMORY_SIZE = Computation(
    uses=(_SIZE, f"{_RUBIN}.memory_bytes"),
    main=_times("memory_bytes", 1e-12),
    says="all chips of a rack together",
)

BANDWIDTH = Computation(
    uses=(_SIZE, f"{_RUBIN}.memory_bytes_per_s", f"{_RUBIN}.scale_up_bytes_per_s"),
    main=_times("memory_bytes_per_s", 1e-12),
    others={"NVLink of all chips, both directions": _times("scale_up_bytes_per_s", 2e-12)},
    also={"memory of one chip": ("TB/s", lambda of: of[f"{_RUBIN}.memory_bytes_per_s"] * 1e-12)},
    says="what is told as memory's is what the fabric moves between all chips of the rack",
)

LPU_BANDWIDTH = Computation(
    uses=(
        _SIZE,
        f"{_LPU}.domain_size",
        f"{_LPU}.memory_bytes_per_s",
        f"{_LPU}.memory_bytes",
        f"{_RUBIN}.memory_bytes_per_s",
        f"{_RUBIN}.memory_bytes",
        f"{_RUBIN}.scale_up_bytes_per_s",
    ),
    main=lambda of: of[f"{_LPU}.memory_bytes_per_s"] / (2.0 * _rack(of, "scale_up_bytes_per_s")),
    others={"one chip's memory over another's": lambda of: _chip_ratio(of, "memory_bytes_per_s")},
    also={
        "memory of a rack over a rack's": ("×", lambda of: _rack_ratio(of, "memory_bytes_per_s")),
        "... which holds of a rack's bytes": ("×", lambda of: _rack_ratio(of, "memory_bytes")),
    },
    says="150 is less than 260: one chip is compared with the links of a rack; chip for chip it comes near",
)


def _chip_ratio(of: Values, name: str) -> Amount:
    return of[f"{_LPU}.{name}"] / of[f"{_RUBIN}.{name}"]


def _rack_ratio(of: Values, name: str) -> Amount:
    return of[f"{_LPU}.domain_size"] * of[f"{_LPU}.{name}"] / _rack(of, name)


def moe_active_share(models: Mapping[str, Llm]) -> Figure:
    """A token's share of the parameters of a mixture: the median of those that are known, the least and the most."""
    shares = sorted(
        model.active_params / model.params
        for model in models.values()
        if model.moe is not None and model.active_params is not None
    )
    return Figure(
        value=statistics.median(shares),
        low=shares[0],
        high=shares[-1],
        source="AICCFG",
        confidence=Confidence.DERIVED,
        note=f"of {len(shares)} models",
    )


MOE_SHARE = Computation(
    uses=("models.moe_active_share", "models.deepseek-v3.params", "models.deepseek-v3.active_params"),
    main=lambda of: of["models.moe_active_share"] * 100.0,
    also={"DeepSeek-V3": ("%", lambda of: _share(of, "deepseek-v3"))},
    says="it differs from model to model; it saves arithmetic, but neither memory nor, of large batches, reading it",
)


def _share(of: Values, model: str) -> Amount:
    return 100.0 * of[f"models.{model}.active_params"] / of[f"models.{model}.params"]


QUERY_COST = Computation(
    uses=(*_CURVE, *_VENDOR, "evidence.frontier_usd_per_million_input_tokens"),
    main=lambda of: _BEFORE * stated_of(of) / cheaper(of),
    parts={"at mid interactivity, the vendor's chart": lambda of: _BEFORE * stated_of(of) / _claimed("mid")(of)},
    also={
        "tokens of such a query, at a frontier list price": (
            "tokens",
            lambda of: _BEFORE * stated_of(of) / of["evidence.frontier_usd_per_million_input_tokens"] * 1e6,
        ),
    },
    says="no source; it is the claim of a tenth of the token cost applied once, and holds no more than that one",
)

RACK_POWER = Computation(
    uses=("racks.vera-rubin-nvl72.power_w", "racks.gb200-nvl72.power_w", "racks.gb300-nvl72.power_w", "economics.pue"),
    main=lambda of: of["racks.vera-rubin-nvl72.power_w"] * 1e-6,
    also={
        "GB200 NVL72": ("MW", lambda of: of["racks.gb200-nvl72.power_w"] * 1e-6),
        "GB300 NVL72": ("MW", lambda of: of["racks.gb300-nvl72.power_w"] * 1e-6),
        "too large by, at least": ("×", lambda of: stated_of(of) * 1e6 / of["racks.vera-rubin-nvl72.power_w"]),
        "too large by, at most": ("×", lambda of: most_stated_of(of) * 1e6 / of["racks.vera-rubin-nvl72.power_w"]),
        "Vera Rubin racks on so many MW": (
            "racks",
            lambda of: stated_of(of) * 1e6 / (of["racks.vera-rubin-nvl72.power_w"] * of["economics.pue"]),
        ),
    },
    says="a rack draws hundreds of kilowatts; tens of megawatts are a site of many racks",
)

MILLION_GPUS = Computation(
    uses=(_SIZE, "racks.vera-rubin-nvl72.price_usd", f"{_RUBIN}.price_usd", "evidence.rack_price_most_usd"),
    main=lambda of: 1e6 * of["racks.vera-rubin-nvl72.price_usd"] / of[_SIZE] * 1e-9,
    also={
        "chips alone": ("$ billion", lambda of: 1e6 * of[f"{_RUBIN}.price_usd"] * 1e-9),
        "racks at the most that was reported": (
            "$ billion",
            lambda of: 1e6 * of["evidence.rack_price_most_usd"] / of[_SIZE] * 1e-9,
        ),
    },
    says="the product is right, the price is not Vera Rubin's: a chip with its share of the rack costs far more",
)

SMALL_BEATS_LARGE = Computation(
    uses=(
        "models.gpt-oss-120b.params",
        "models.qwen3.5-9b.params",
        *(f"evidence.{who}_{what}" for who in ("qwen", "gpt_oss") for what in ("mmlu_pro", "livecodebench")),
    ),
    main=lambda of: of["models.gpt-oss-120b.params"] / of["models.qwen3.5-9b.params"],
    provided={
        "MMLU-Pro over gpt-oss-120b's": ("points", lambda of: _ahead(of, "mmlu_pro")),
        "LiveCodeBench v6 over gpt-oss-120b's": ("points", lambda of: _ahead(of, "livecodebench")),
    },
    says="it wins one benchmark and loses another, and the larger model has open weights: it is not proprietary",
    tolerance=0.1,
)


def _ahead(of: Values, what: str) -> Amount:
    return of[f"evidence.qwen_{what}"] - of[f"evidence.gpt_oss_{what}"]


HARDWARE: dict[str, Computation] = {
    "token_cost": TOKEN_COST,
    "largest_generation": LARGEST_GENERATION,
    "exaflops": EXAFLOPS,
    "memory_size": MEMORY_SIZE,
    "bandwidth": BANDWIDTH,
    "lpu_bandwidth": LPU_BANDWIDTH,
    "moe_share": MOE_SHARE,
    "query_cost": QUERY_COST,
    "rack_power": RACK_POWER,
    "million_gpus": MILLION_GPUS,
    "small_beats_large": SMALL_BEATS_LARGE,
}
