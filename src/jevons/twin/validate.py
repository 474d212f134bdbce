"""What is predicted of measured points, beside what was measured; what cannot be predicted keeps its reason.

The publishers' names for systems, models and layouts are read here and nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median

import msgspec

from jevons.base.stats import percentile
from jevons.config.catalog import Catalog
from jevons.config.points import Point
from jevons.facts.hardware import Chip
from jevons.facts.llm import Precision
from jevons.perf.roofline import Engine, Group, Steady, Work, iteration, steady

_SYSTEMS = (
    (r"gb200", "gb200"),
    (r"gb300", "gb300"),
    (r"b200", "b200"),
    (r"b300", "b300"),
    (r"h200", "h200"),
    (r"h100(?!.*pcap)", "h100"),
    (r"mi300x", "mi300x"),
    (r"mi355x", "mi355x"),
    (r"rubin", "rubin"),
    (r"tpu v6e", "tpu-v6e"),
    (r"tpu v7", "tpu-v7"),
)
_MODELS = (
    (r"deepseek-(v3(\.1)?|r1)", "deepseek-v3"),
    (r"llama-3\.[x13]-70b", "llama-3.1-70b"),
    (r"llama-?3\.1-8b", "llama-3.1-8b"),
    (r"llama-?3\.1-405b", "llama-3.1-405b"),
    (r"llama2-70b", "llama-2-70b"),
    (r"qwen3-235b-a22b", "qwen3-235b-a22b"),
    (r"qwen3-32b", "qwen3-32b"),
    (r"qwen3\.5-397b", "qwen3.5-397b-a17b"),
    (r"gpt-?oss-120b", "gpt-oss-120b"),
    (r"minimax-m2\.5", "minimax-m2.5"),
    (r"mixtral-8x7b", "mixtral-8x7b"),
)
_PRECISIONS: dict[str, Precision] = {"fp16": "bf16", "bf16": "bf16", "fp8": "fp8", "fp4": "fp4", "nvfp4": "fp4"}
_SAID = 0.9  # closed loops of the publishers draw lengths from 0.8 to 1 of what they name


class Row(msgspec.Struct, frozen=True):
    """One point. Exactly one of `predicted` and `reason` says something."""

    id: str
    metric: str
    measured: float
    predicted: float | None
    unit: str
    reason: str = ""

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        assert self.predicted is not None, "asked of what was predicted"
        return abs(self.predicted - self.measured) / self.measured


class Errors(msgspec.Struct, frozen=True):
    """Of one group of points; shares of what was measured. None where nothing was predicted."""

    points: int
    predicted: int
    mape: float | None
    median: float | None
    p90: float | None


class _Unpredicted(Exception):
    """Why a point cannot be predicted."""


def validate(points: Iterable[Point], catalog: Catalog) -> list[Row]:
    """Predict every point."""
    return [_row(point, catalog) for point in points]


def errors(rows: Sequence[Row]) -> Errors:
    """How far off they are, all together."""
    off = [row.error for row in rows if row.predicted is not None]
    if not off:
        return Errors(len(rows), 0, None, None, None)
    return Errors(len(rows), len(off), mean(off), median(off), percentile(off, 0.9))


def _row(point: Point, catalog: Catalog) -> Row:
    try:
        return Row(point.id, point.metric, point.value, _predict(point, catalog), point.unit)
    except _Unpredicted as reason:
        return Row(point.id, point.metric, point.value, None, point.unit, str(reason))


def _predict(point: Point, catalog: Catalog) -> float:
    if point.metric not in _METRICS:
        raise _Unpredicted(f"metric {point.metric!r} is not predicted")
    chip = _chip(point, catalog)
    engine = Engine(
        model=catalog.models[_named(point.model, _MODELS, "model")],
        chip=chip,
        group=_group(point.parallelism, chip),
        weights=_precision(point.precision),
        kv_bytes=2.0,
    )
    needs, has = engine.model.weight_bytes(engine.weights), engine.group.tensor * chip.memory_bytes.value
    if needs > has:
        raise _Unpredicted(f"weights of {needs / 1e9:.0f} GB do not fit {has / 1e9:.0f} GB")
    if chip.flops(4 if engine.weights == "fp4" else 8 if engine.weights == "fp8" else 16) is None:
        raise _Unpredicted(f"{point.system} does not compute {engine.weights}")
    return _METRICS[point.metric](point, engine)


def _chip(point: Point, catalog: Catalog) -> Chip:
    return catalog.chips[_named(point.system, _SYSTEMS, "system")]


def _named(text: str, names: Sequence[tuple[str, str]], what: str) -> str:
    for pattern, name in names:
        if re.search(pattern, text.lower()):
            return name
    raise _Unpredicted(f"{what} {text!r} is not in the catalog")


def _precision(text: str) -> Precision:
    found = re.match(r"[a-z]+\d+", text.lower())
    if found is None or found[0] not in _PRECISIONS or "/" in text:
        raise _Unpredicted(f"precision {text!r} is not one")
    return _PRECISIONS[found[0]]


def _group(text: str, chip: Chip) -> Group:
    """Layouts as they are written: TP4 aDP1.0 moeTP4.0 moeEP1.0, TP8, DEP8.

    Some name 64 chips, or 16, of nodes of eight: ranks that share attention times ranks that share experts, which are
    the same 8, or 4, chips twice.
    """
    spread = re.fullmatch(r"DEP(\d+)", text)
    if spread:
        count = int(spread[1])
        return Group(tensor=count, attention=count, experts=count)
    tensor = re.match(r"TP(\d+)\b", text)
    if tensor is None:
        raise _Unpredicted(f"layout {text!r} is not predicted")
    copies, experts = re.search(r"(?:aDP|attention-DP)(\d+)", text), re.search(r"moeEP(\d+)", text)
    attention, spread_over = int(copies[1]) if copies else 1, int(experts[1]) if experts else 1
    chips, domain = int(tensor[1]) * attention, chip.domain_size.value if chip.domain_size else 1.0
    real = math.isqrt(chips)
    if chips > domain and spread_over > 1 and real * real == chips:
        return Group(tensor=real, attention=real if attention > 1 else 1, experts=real)
    return Group(tensor=chips, attention=attention, experts=spread_over)


def _number(text: str, what: str) -> int:
    if not text.isdigit():
        raise _Unpredicted(f"{what} {text!r} is no number")
    return int(text)


def _loop(point: Point, engine: Engine) -> tuple[int, float, Steady]:
    """A closed loop's users, output tokens, and steady state."""
    users = _number(point.users, "concurrency")
    prompt, output = _SAID * _number(point.input_len, "input"), _SAID * _number(point.output_len, "output")
    return users, output, steady(engine, users, prompt, output)


def _tpot_ms(point: Point, engine: Engine) -> float:
    return _loop(point, engine)[2].tpot_s * 1e3


def _ttft_ms(point: Point, engine: Engine) -> float:
    """The prompt, half an iteration, and the wait where all users begin together faster than prompts are computed."""
    users, output, state = _loop(point, engine)
    wait_s = max(0.0, users * state.prompt_s - 0.2 * output * state.tpot_s) / 2
    return (state.prompt_s + state.step_s / 2 + wait_s) * 1e3


def _output_rate(point: Point, engine: Engine) -> float:
    """Output tokens a second of one chip."""
    users, output, state = _loop(point, engine)
    return users * output / (_ttft_ms(point, engine) / 1e3 + output * state.tpot_s) / engine.group.tensor


def _prompt_ms(point: Point, engine: Engine) -> float:
    """A batch of prompts, computed at once."""
    batch, prompt = _number(point.users, "batch"), _number(point.input_len, "input")
    work = Work(prompt_tokens=batch * prompt, prompt_pairs=batch * prompt * (prompt + 1) / 2)
    return iteration(engine, work).seconds * 1e3


def _token_ms(point: Point, engine: Engine) -> float:
    """An iteration of a batch that decodes."""
    batch = _number(point.users, "batch")
    context = _number(point.input_len, "input") + _number(point.output_len, "output") / 2
    return iteration(engine, Work(decodes=batch, context_tokens=batch * context)).seconds * 1e3


_METRICS: dict[str, Callable[[Point, Engine], float]] = {
    "TPOT": _tpot_ms,
    "mean TPOT": _tpot_ms,
    "TTFT": _ttft_ms,
    "mean TTFT": _ttft_ms,
    "output throughput per GPU": _output_rate,
    "output throughput per chip": _output_rate,
    "prompt (prefill) time": _prompt_ms,
    "token time": _token_ms,
    "decode forward step": _token_ms,
}
