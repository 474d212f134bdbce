"""The publishers' names for systems, models, engines and precisions, read here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from jevons.config.points import Point
from jevons.facts.llm import Precision
from jevons.perf.roofline import Group

SYSTEMS = (
    (r"gb200", "gb200"),
    (r"gb300", "gb300"),
    (r"b200", "b200"),
    (r"b300", "b300"),
    (r"h200", "h200"),
    (r"h800", "h800"),
    (r"h100.*pcap", "h100-350w"),
    (r"h100", "h100"),
    (r"a100", "a100"),
    (r"mi300x", "mi300x"),
    (r"mi325x", "mi325x"),
    (r"mi355x", "mi355x"),
    (r"rubin|vr nvl72", "rubin"),
    (r"tpu v6e", "tpu-v6e"),
    (r"tpu v7", "tpu-v7"),
    (r"rtx ?4090", "rtx-4090"),
    (r"rtx ?pro ?6000", "rtx-pro-6000"),
    (r"l40s", "l40s"),
    (r"bmg-pro-b60", "b60"),
)
MODELS = (
    (r"deepseek-v3\.2", "deepseek-v3.2"),
    (r"deepseek-(v3(\.1)?|r1)", "deepseek-v3"),
    (r"llama-3\.[x13]-70b", "llama-3.1-70b"),
    (r"llama-?3\.1-8b", "llama-3.1-8b"),
    (r"llama-?3\.1-405b", "llama-3.1-405b"),
    (r"llama-?2-70b", "llama-2-70b"),
    (r"llama-4-maverick", "llama-4-maverick"),
    (r"qwen3-235b-a22b", "qwen3-235b-a22b"),
    (r"qwen3-30b-a3b", "qwen3-30b-a3b"),
    (r"qwen3-32b", "qwen3-32b"),
    (r"qwen3-8b", "qwen3-8b"),
    (r"qwen3\.5-397b", "qwen3.5-397b-a17b"),
    (r"gpt-?oss-120b", "gpt-oss-120b"),
    (r"gpt-?oss-20b", "gpt-oss-20b"),
    (r"minimax-m2", "minimax-m2.5"),
    (r"mixtral-8x7b", "mixtral-8x7b"),
    (r"mixtral-8x22b", "mixtral-8x22b"),
    (r"bloom", "bloom-176b"),
    (r"glm-5\.2", "glm-5.2"),
    (r"glm-5", "glm-5"),
    (r"kimi-k2\.5", "kimi-k2.5"),
    (r"kimi-k2", "kimi-k2"),
)
# What runs the model, by what a row says of its source, its notes or its system.
ENGINES = (
    (r"; trtllm|tensorrt-llm|_trt\b|aarch64x72_dynamo", "trtllm"),
    (r"; sglang|sglang 0|lmsys", "sglang"),
    (r"splitwise", "vllm-2023"),  # before its chunked prefill and CUDA graphs
    (r"tpu-recipes|tpu v\d", "vllm-tpu"),
    (r"open-infra-index", "deepseek"),
    (r"; vllm|vllm 0|mi300x|bmg-pro", "vllm"),
)
MOST = 1_000_000  # tokens of a prompt or an answer, users, chips: beyond that a row is a slip, and takes minutes
_DIGITS = 20  # of a number that is read at all
_PRECISIONS: dict[str, Precision] = {"fp16": "bf16", "bf16": "bf16", "fp8": "fp8", "fp4": "fp4", "nvfp4": "fp4"}


class Unpredicted(Exception):
    """Why a point cannot be predicted."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of chips: one, or two kinds where prompts and answers are apart."""

    group: Group
    prefill: Group | None = None
    prefill_workers: int | None = 1  # None: as many as keep the decode workers busy
    decode_workers: int = 1


def named(text: str, names: Sequence[tuple[str, str]], what: str) -> str:
    """The catalog's name.

    Raises:
        Unpredicted: there is none.
    """
    for pattern, name in names:
        if re.search(pattern, text.lower()):
            return name
    raise Unpredicted(f"{what} {text!r} is not in the catalog")


def engine_name(point: Point) -> str:
    """The program that ran it; "" where nothing tells."""
    if "best on Pareto" in point.parallelism:  # of InferenceX's frontiers, GUESS: most points are of these
        return "sglang" if point.system.upper().startswith("MI") else "trtllm"
    about = f"{point.system} {point.source}; {point.notes}".lower()
    return next((name for pattern, name in ENGINES if re.search(pattern, about)), "")


def weights_of(point: Point, chip: str, model: str) -> Precision:
    """Of gpt-oss FP4, whatever the products with them are; of submissions to MLPerf what the chip is best at.

    Raises:
        Unpredicted: the precision is none.
    """
    if model.startswith("gpt-oss"):
        return "fp4"
    if "per submission" in point.precision:
        return "fp8" if chip in ("h100", "h200", "mi300x", "mi325x") else "fp4"
    found = re.match(r"[a-z]+\d+", point.precision.lower())
    if found is None or found[0] not in _PRECISIONS:
        raise Unpredicted(f"precision {point.precision!r} is not one")
    return _PRECISIONS[found[0]]


def number(text: str, what: str) -> int:
    """A whole number from 1 to `MOST`, alone or first of what is written.

    Raises:
        Unpredicted: it is none.
    """
    found = re.match(r"\d+(?=$| new|\b)", text)
    if found is None:
        raise Unpredicted(f"{what} {text!r} is no number")
    return within(found[0], what)


def within(digits: str, what: str) -> int:
    """Digits as a number from 1 to `MOST`. Raises Unpredicted: it is not between them."""
    value = int(digits) if len(digits) < _DIGITS else MOST + 1
    if not 1 <= value <= MOST:
        raise Unpredicted(f"{what} {digits!r} is not from 1 to {MOST:,}")
    return value
