"""A measured point as a case that can be predicted: which engines on which chips, who asks, and what was measured."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Literal

import msgspec

from jevons.config.catalog import Catalog
from jevons.config.points import Point
from jevons.facts.hardware import Chip
from jevons.facts.llm import Llm, Precision
from jevons.perf.calibration import Key, dense_weights, family_of
from jevons.perf.closed import Loop
from jevons.perf.roofline import Engine, Group, Shares, Work
from jevons.twin.layouts import layout_of
from jevons.twin.names import (
    MODELS,
    SYSTEMS,
    Layout,
    Unpredicted,
    engine_name,
    named,
    number,
    weights_of,
    within,
)

CHECK_SHARE = 0.3  # of points that are never fitted
LARGEST_GROUP = 16  # chips that are tried where the layout is free
GUESS_WEIGHTS_SHARE = 0.85  # of the memory, at most
_SPREAD = 0.2  # InferenceX draws lengths evenly from 0.8 to 1 of what it names
_ALL_QUEUED = re.compile(r"max throughput|offline", re.IGNORECASE)
What = Literal["tpot", "ttft", "rate", "step", "prefill rate", "decode rate", "best rate"]


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine batches unless told otherwise."""

    seats: int  # sequences at most, for each copy of attention
    step_tokens: int
    memory_share: float
    reserve: float = 1.0  # share of an answer for which there must be room when it begins
    apart: bool = False  # a prompt's iterations compute nothing else
    narrow_kv: bool = False  # keys and values in 8 bits where weights are 8 or 4


# Answers at all stages, half of each by the mean, fill the memory of engines that give it out as they grow; trtllm
# keeps room for all of each (its policy GUARANTEED_NO_EVICT).
_GROWING = 0.5
# Defaults of vLLM 0.12 to 0.19 (max_num_seqs and max_num_batched_tokens of its server on large GPUs), SGLang 0.5
# (chunked_prefill_size, no mixed chunks) and trtllm-bench (max_batch_size 2048, max_num_tokens 8192); the rest GUESS.
_HABITS = {
    "vllm": Habits(seats=1024, step_tokens=8192, memory_share=0.9, reserve=_GROWING),
    "sglang": Habits(seats=2048, step_tokens=8192, memory_share=0.88, reserve=_GROWING, apart=True),
    "trtllm": Habits(seats=2048, step_tokens=8192, memory_share=0.9, narrow_kv=True),
}
_OTHERS = Habits(seats=1024, step_tokens=8192, memory_share=0.9, reserve=_GROWING)

# Mean tokens of a prompt and an answer in MLPerf's data sets, and the TPOT at p99 that its scenarios allow, seconds:
# recalled from its rules of v5.1, not read again.
_DATASETS: dict[str, tuple[float, float, dict[str, float]]] = {
    "llama2-70b": (294, 294, {"server": 0.2, "interactive": 0.04}),
    "llama3.1-405b": (9428, 684, {"server": 0.175, "interactive": 0.08}),
    "llama3.1-8b": (778, 128, {"server": 0.1, "interactive": 0.03}),
    "deepseek-r1": (800, 3886, {"server": 0.08}),
    "mixtral-8x7b": (424, 145, {"server": 0.2}),
}
NARROW_KV_CHIPS = ("b200", "gb200", "b300", "gb300")
GUESS_MEAN_OF_P99 = 0.75  # of a TPOT's limit at p99, what its mean may be
GUESS_PRODUCTION_TPOT_S = 0.05  # DeepSeek tells 20 to 22 tokens/s for a user
DEEPSEEK_HIT_SHARE = 0.563  # of prompt tokens that its production rates count without computing them, by itself


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, in terms of the catalog."""

    key: Key
    what: What
    model: str
    layout: Layout | None  # None: the best there is
    kv_bytes: float
    habits: Habits
    loop: Loop | None = None
    work: Work | None = None
    tpot_limit_s: float | None = None
    times: float = 1.0  # of the predicted seconds or rate of one chip, what the row states
    dividend: float | None = None  # the row states this over the rate
    derived: str = ""  # "cost" or "energy": a rate that was measured too, over a price or a power

    def engine(self, catalog: Catalog, shares: Shares, group: Group | None = None) -> Engine:
        """The engine that decodes, or one of another layout."""
        if group is None:
            assert self.layout is not None, "a case without a layout names its group"
            group = self.layout.group
        model, chip = catalog.models[self.model], catalog.chips[self.key.chip]
        return Engine(
            model=model,
            chip=chip,
            group=group,
            shares=shares,
            weights=self.key.weights,
            kv_bytes=self.kv_bytes,
            dense_weights=dense_weights(model, self.key.weights, chip),
        )


def is_check(point: Point) -> bool:
    """Whether the point is held out of every fit: three of ten are.

    By a hash of what was run, without the system and the metric: all that was measured of one run is on one side, and
    so are runs that differ in their chips alone.
    """
    run = (point.model, point.precision, point.parallelism, point.input_len, point.output_len, point.users)
    digest = hashlib.sha256("|".join((*run, point.source)).encode()).digest()
    return int.from_bytes(digest[:8], "big") < CHECK_SHARE * 2**64


def case_of(point: Point, catalog: Catalog) -> Case:
    """The case that the point measures.

    Raises:
        Unpredicted: it cannot be told, or cannot be.
    """
    if point.metric not in _METRICS:
        raise Unpredicted(f"metric {point.metric!r} is not predicted")
    chip = named(point.system, SYSTEMS, "system")
    model = named(point.model, MODELS, "model")
    weights, engine = weights_of(point, chip, model), engine_name(point)
    if catalog.chips[chip].flops({"fp4": 4, "fp8": 8, "bf16": 16}[weights]) is None:
        raise Unpredicted(f"{point.system} does not compute {weights}")
    habits = _HABITS.get(engine, _OTHERS)
    narrow = "KV FP8" in point.precision or "FP8 KV" in point.precision
    narrow = narrow or (weights != "bf16" and (habits.narrow_kv or _says_narrow(point, chip)))
    llm, split = catalog.models[model], "disagg" in point.parallelism
    case = Case(
        key=Key(engine=engine, family=family_of(llm), chip=chip, weights=weights, split=split),
        what="tpot",
        model=model,
        layout=None,
        kv_bytes=1.0 if narrow else 2.0,
        habits=habits,
    )
    if "best" in point.parallelism or "submission" in point.parallelism:
        _fits_somewhere(llm, weights, catalog.chips[chip])
    return _METRICS[point.metric](point, case, catalog)


def fits_beside(model: Llm, weights: Precision, chips: int, chip: Chip) -> bool:
    """Whether weights leave some room for keys and values, where a layout is free."""
    return model.weight_bytes(weights) <= GUESS_WEIGHTS_SHARE * chips * chip.memory_bytes.value


def _fits_somewhere(model: Llm, weights: Precision, chip: Chip) -> None:
    if not fits_beside(model, weights, LARGEST_GROUP, chip):
        raise Unpredicted(f"weights of {model.weight_bytes(weights) / 1e9:.0f} GB fit no layout that is tried")


def _says_narrow(point: Point, chip: str) -> bool:
    """Checkpoints of NVIDIA's ModelOpt ask for keys and values in 8 bits, and InferenceX's recipes on Blackwell do."""
    return point.model.startswith("nvidia/") or (chip in NARROW_KV_CHIPS and "InferenceX" in point.notes)


def _placed(point: Point, case: Case, catalog: Catalog, users: float) -> Layout:
    """The point's layout, where its weights fit."""
    chip = catalog.chips[case.key.chip]
    layout = layout_of(point.parallelism, chip, catalog.models[case.model], users)
    for group in (layout.group, layout.prefill):
        if group is not None:
            _fits(catalog.models[case.model], case.key.weights, group, chip)
    return layout


def _fits(model: Llm, weights: Precision, group: Group, chip: Chip) -> None:
    needs, has = model.weight_bytes(weights), group.tensor * chip.memory_bytes.value
    if needs > has:
        raise Unpredicted(f"weights of {needs / 1e9:.0f} GB do not fit {has / 1e9:.0f} GB")


def _lengths(point: Point) -> tuple[int, int]:
    return number(point.input_len, "input"), number(point.output_len, "output")


def _loop_of(point: Point, case: Case, catalog: Catalog, what: What, times: float) -> Case:
    """A closed loop of users.

    Rows whose layouts say nothing of copies of attention are of other campaigns, which name the mean; they spread too,
    or what they measured of first tokens would be the burst of all users at once, again and again.
    """
    users = number(point.users, "concurrency")
    layout, (prompt, output) = _placed(point, case, catalog, users), _lengths(point)
    longest = 1 / (1 - _SPREAD / 2) if "aDPnan" in point.parallelism else 1.0
    loop = Loop(
        users=users,
        input_tokens=prompt * longest,
        output_tokens=output * longest,
        spread=_SPREAD,
        step_tokens=case.habits.step_tokens,
        reserve=case.habits.reserve,
        seats=case.habits.seats * layout.group.attention,
        apart=case.habits.apart,
    )
    return msgspec.structs.replace(case, what=what, layout=layout, loop=loop, times=times)


def _tpot(point: Point, case: Case, catalog: Catalog) -> Case:
    return _loop_of(point, case, catalog, "tpot", 1e3)


def _ttft(point: Point, case: Case, catalog: Catalog) -> Case:
    return _loop_of(point, case, catalog, "ttft", 1e3)


def _rate(point: Point, case: Case, catalog: Catalog) -> Case:
    """Output tokens a second, of one chip or of as many as the metric says."""
    count = re.search(r"\((\d+) chips\)", point.metric)
    times = float(count[1]) if count else 1.0
    if not _ALL_QUEUED.search(point.users):
        return _loop_of(point, case, catalog, "rate", times)
    prompt, output = _lengths(point)
    layout = _placed(point, case, catalog, float("inf"))
    loop = Loop(users=1, input_tokens=prompt, output_tokens=output)
    return msgspec.structs.replace(case, what="best rate", layout=layout, loop=loop, times=times)


def _system_rate(point: Point, case: Case, catalog: Catalog) -> Case:
    """A submission to MLPerf: all chips of the system, in the layout that does best within the scenario's limit."""
    about = next((value for name, value in _DATASETS.items() if point.model.startswith(name)), None)
    if about is None:
        raise Unpredicted(f"data set of {point.model!r} is not known")
    prompt, output, limits = about
    limit = limits.get(point.users.lower())
    if limit is None and point.users.lower() != "offline":
        raise Unpredicted(f"scenario {point.users!r} has no known limit")
    count = re.search(r"(?:aarch64x|GBx)(\d+)|^(\d+)x|-(\d+)x-?BMG", point.system)
    if count is None:
        raise Unpredicted(f"system {point.system!r} does not tell its chips")
    chips = float(next(group for group in count.groups() if group)) * (2 if "Dual" in point.system else 1)
    loop = Loop(users=1, input_tokens=prompt, output_tokens=output)
    allowed = None if limit is None else limit * GUESS_MEAN_OF_P99
    return msgspec.structs.replace(case, what="best rate", loop=loop, times=chips, tpot_limit_s=allowed)


def _total_rate(point: Point, case: Case, catalog: Catalog) -> Case:
    """Tokens in and out, at a speed for each user, in the layout that does best: InferenceX's frontier."""
    speed = re.match(r"(\d+) tok/s/user", point.users)
    if speed is None:
        raise Unpredicted(f"speed {point.users!r} is no number")
    prompt, output = _lengths(point)
    loop = Loop(users=1, input_tokens=prompt * (1 - _SPREAD / 2), output_tokens=output * (1 - _SPREAD / 2))
    times = (prompt + output) / output
    limit_s = 1 / within(speed[1], "speed")
    return msgspec.structs.replace(case, what="best rate", loop=loop, times=times, tpot_limit_s=limit_s, layout=None)


def _cost(point: Point, case: Case, catalog: Catalog) -> Case:
    """Dollars for a million tokens in and out, chips owned."""
    price = catalog.chips[case.key.chip].own_usd_per_hour
    if price is None:
        raise Unpredicted(f"what an hour of {point.system} costs is not known")
    total = _total_rate(point, case, catalog)
    return msgspec.structs.replace(total, dividend=price.value / 3600 * 1e6, derived="cost")


def _per_megawatt(point: Point, case: Case, catalog: Catalog) -> Case:
    power = catalog.chips[case.key.chip].all_in_w
    if power is None:
        raise Unpredicted(f"the power of {point.system} with all its share is not known")
    total = _total_rate(point, case, catalog)
    return msgspec.structs.replace(total, times=total.times / power.value * 1e6, derived="energy")


def _prompts(point: Point, case: Case, catalog: Catalog) -> Case:
    """A batch of prompts, computed at once, some of them after tokens that are there already."""
    batch, prompt = number(point.users, "batch"), number(point.input_len, "input")
    past = re.search(r"\+ 0*([1-9]\d*) past", point.input_len)
    before = within(past[1], "past") if past else 0
    work = Work(prompt_tokens=batch * prompt, prompt_pairs=batch * prompt * (before + (prompt + 1) / 2))
    layout = _placed(point, case, catalog, 1)
    return msgspec.structs.replace(case, what="step", layout=layout, work=work, times=1e3)


def _decodes(point: Point, case: Case, catalog: Catalog) -> Case:
    """An iteration of a batch that decodes."""
    batch, (prompt, output) = number(point.users, "batch"), _lengths(point)
    work = Work(decodes=batch, context_tokens=batch * (prompt + output / 2))
    layout = _placed(point, case, catalog, 1)
    return msgspec.structs.replace(case, what="step", layout=layout, work=work, times=1e3)


def _prefill_rate(point: Point, case: Case, catalog: Catalog) -> Case:
    """Prompt tokens a second of a node of eight, in full batches; production counts those it found cached too."""
    known = re.match(r"\d+$", point.input_len)
    prompt = within(known[0], "input") if known else 5_000
    layout = _placed(point, case, catalog, 1)
    tokens = 16_384.0 * layout.group.tensor
    work = Work(prompt_tokens=tokens, prompt_pairs=tokens * prompt / 2)
    hit = DEEPSEEK_HIT_SHARE if point.users == "production" else 0.0
    return msgspec.structs.replace(case, what="prefill rate", layout=layout, work=work, times=8 / (1 - hit))


def _decode_rate(point: Point, case: Case, catalog: Catalog) -> Case:
    context = re.search(r"\d+", point.input_len)
    if context is None:
        raise Unpredicted(f"input {point.input_len!r} is no number")
    loop = Loop(users=1, input_tokens=within(context[0], "input"), output_tokens=1)
    limit = GUESS_PRODUCTION_TPOT_S if point.users == "production" else None
    layout = _placed(point, case, catalog, 1)
    return msgspec.structs.replace(case, what="decode rate", layout=layout, loop=loop, tpot_limit_s=limit, times=8.0)


_METRICS: dict[str, Callable[[Point, Case, Catalog], Case]] = {
    "TPOT": _tpot,
    "mean TPOT": _tpot,
    "TTFT": _ttft,
    "mean TTFT": _ttft,
    "output throughput per GPU": _rate,
    "output throughput per chip": _rate,
    "output throughput (8 chips)": _rate,
    "throughput (whole system)": _system_rate,
    "total throughput per GPU": _total_rate,
    "cost": _cost,
    "energy proxy": _per_megawatt,
    "prompt (prefill) time": _prompts,
    "prefill forward step": _prompts,
    "token time": _decodes,
    "decode forward step": _decodes,
    "input throughput per node": _prefill_rate,
    "output throughput per node": _decode_rate,
}
