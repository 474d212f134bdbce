"""What share of a data sheet is reached, learned from measurements, and how far to trust it.

A share is a guess times factors, one for each group the case belongs to: all engines, this engine, this engine with
this family of models, this chip, split layouts. A group that nobody measured has no factor: its cases fall back on
the wider groups, and the error to expect is that of predictions for groups left out of the fit.
"""

from __future__ import annotations

import enum

import msgspec

from jevons.facts.hardware import Chip
from jevons.facts.llm import WEIGHT_BITS, Llm, Precision
from jevons.perf.roofline import GUESS_SHARES, GUESS_STATIC_SHARES, Shares

FIELDS = (
    "bandwidth",
    "compute",
    "kv",
    "attention",
    "link",
    "layer_s",
    "link_s",
    "host_s",
    "imbalance",
    "expert_bandwidth",
    "expert_compute",
    "sequence_s",
    "request_s",
    "wait",
    "tokens_per_step",
)
AT_MOST_ONE = frozenset({"bandwidth", "compute", "kv", "attention", "link"})
AT_LEAST_ONE = frozenset({"imbalance", "tokens_per_step"})


KINDS = ("tpot", "ttft", "rate")

# Families whose checkpoints in FP4 have the experts in it alone: gpt-oss's own, NVIDIA's of DeepSeek and its likes.
_FP4_EXPERTS = ("deepseek-moe", "gpt-oss-moe", "glm-moe", "kimi-moe", "minimax-moe")


class Trust(enum.StrEnum):
    """Where a prediction's shares come from, surest first."""

    MEASURED = "measured"  # this engine and family of models was measured on this chip
    TRANSFERRED = "transferred"  # this engine or this family was, on chips alike
    PROJECTED = "projected"  # from data sheets and what all have in common


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What a case belongs to."""

    engine: str  # a program: "vllm", "sglang", "trtllm"; "" where it is not known
    family: str  # of models, see `family_of`
    chip: str
    weights: Precision
    split: bool = False  # prompts and answers on different engines

    def groups(self) -> list[str]:
        """Names of the groups it belongs to, widest first."""
        names = ["all", f"weights={self.weights}", f"chip={self.chip}"]
        if self.engine:
            names += [f"engine={self.engine}", f"engine={self.engine} family={self.family}"]
            names += [f"engine={self.engine} split"] if self.split else []
        return names

    @property
    def measured_as(self) -> str:
        """What must have been measured for it to count as measured."""
        return f"{self.engine} {self.family} {self.chip}"


class Effect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Factors on the shares of one group."""

    rows: int  # of measurements they were fitted on
    bandwidth: float = 1.0
    compute: float = 1.0
    kv: float = 1.0
    attention: float = 1.0
    link: float = 1.0
    layer_s: float = 1.0
    link_s: float = 1.0
    host_s: float = 1.0
    imbalance: float = 1.0
    expert_bandwidth: float = 1.0
    expert_compute: float = 1.0
    sequence_s: float = 1.0
    request_s: float = 1.0
    wait: float = 1.0
    tokens_per_step: float = 1.0


class Error(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far predictions of one trust were off on measurements that were not fitted; shares of what was measured."""

    rows: int
    median: float
    p90: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All factors, and where they come from."""

    title: str
    date: str
    command: str
    rule: str  # which measurements were fitted
    effects: dict[str, Effect]
    measured: list[str]  # engine, family and chip of what was fitted
    errors: dict[str, Error]  # by trust and what was measured: "measured tpot", "transferred rate"


class Calibrated(msgspec.Struct, frozen=True):
    """Shares for one case, and how far to trust what is predicted with them."""

    shares: Shares
    trust: Trust
    errors: dict[str, Error]  # of "tpot", "ttft", "rate"; what was not held out is missing

    def interval(self, value: float, what: str = "tpot") -> tuple[float, float]:
        """Between which nine of ten measurements are expected, from the error at p90 of what was held out."""
        error = self.errors.get(what)
        return (0.0, float("inf")) if error is None else (value / (1 + error.p90), value * (1 + error.p90))


NOTHING = Calibration(title="none", date="", command="", rule="", effects={}, measured=[], errors={})


def family_of(model: Llm) -> str:
    """Models that one set of shares is for: a maker's line, dense ones and mixtures of experts apart."""
    return model.family if model.moe is None else f"{model.family}-moe"


def dense_weights(model: Llm, weights: Precision, chip: Chip) -> Precision | None:
    """Of all but the experts, in checkpoints where these alone are in fewer bits; None: like the experts.

    Like them too on a chip that does not compute what the rest is released in, which no such checkpoint was made for.
    """
    if weights != "fp4" or family_of(model) not in _FP4_EXPERTS or chip.flops(int(WEIGHT_BITS["bf16"])) is None:
        return None
    return "bf16"


def look_up(calibration: Calibration, key: Key, *, is_static: bool = False) -> Calibrated:
    """Shares of the groups that `key` belongs to and that were measured.

    Args:
        is_static: the chip's programs are laid out in time: what was learned of others' does not hold, nor do their
            errors.
    """
    if is_static:
        return Calibrated(GUESS_STATIC_SHARES, Trust.PROJECTED, {})
    effects = [calibration.effects[name] for name in key.groups() if name in calibration.effects]
    shares = scaled(GUESS_SHARES, effects)
    trust = trust_in(calibration, key)
    errors = {what: calibration.errors[f"{trust} {what}"] for what in KINDS if f"{trust} {what}" in calibration.errors}
    return Calibrated(shares, trust, errors)


def trust_in(calibration: Calibration, key: Key) -> Trust:
    """Measured, or transferred where the engine with the family was measured on another chip, or both apart."""
    if key.measured_as in calibration.measured:
        return Trust.MEASURED
    known = {f"engine={key.engine} family={key.family}", f"engine={key.engine}"} & calibration.effects.keys()
    return Trust.TRANSFERRED if known and f"chip={key.chip}" in calibration.effects else Trust.PROJECTED


def scaled(guess: Shares, effects: list[Effect]) -> Shares:
    """`guess` times all factors, within what is possible."""
    values = {}
    for name in FIELDS:
        value = getattr(guess, name)
        for effect in effects:
            value *= getattr(effect, name)
        if name in AT_MOST_ONE:
            value = min(1.0, value)
        elif name in AT_LEAST_ONE:
            value = max(1.0, value)
        values[name] = value
    return Shares(**values)
