"""What one instance can do at most, by means: queues and bursts come on top, and only a rehearsal knows how much."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import msgspec

from jevons.perf.roofline import Engine, Work, iteration

Role = Literal["both", "prefill", "decode"]
DecodeSeconds = Callable[[float, float], float]  # of a step of so many answers, by the tokens each attends to
_HALVINGS = 24  # of a bracket: to 7 figures
_MOST_STEPS = 16  # towards a token's seconds
_AGREE = 1.005


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What arrives, by the mean request."""

    requests_per_s: float
    prompt_tokens: float  # that must be computed even if nothing that was seen were ever forgotten
    prompt_pairs: float  # sum over those of the tokens each attends to
    context_tokens: float  # that a token of the answer attends to
    output_tokens: float
    input_tokens: float  # of prompts, reused or not
    long_tokens: float  # that must be computed of a prompt, where so many have no more as must be answered in time
    long_pairs: float


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as far as its capacity goes."""

    engine: Engine
    role: Role
    room_tokens: float  # of keys and values
    step_tokens: int  # computed in one iteration at most
    max_running: int
    decode_s: DecodeSeconds | None = None  # where experts are on chips of their own; None: the engine does all


def requests_per_s(instance: Instance, demand: Demand, ttft_s: float, tpot_s: float) -> float:
    """Of such requests, how many a second one instance can do for ever; 0 where their first token is late anyway.

    Prompts alone: as fast as full steps compute them. Answers: as many as memory holds and as a step within `tpot_s`
    advances. Both: prompts take part of the time, and answers wait for them.

    Args:
        ttft_s: seconds until the first token of a long prompt, with nothing else to do.
        tpot_s: seconds that a token of an answer may take, by the mean.
    """
    if instance.role != "decode" and _alone_s(instance, demand) > ttft_s:
        return 0.0
    if instance.role == "prefill":
        return 1.0 / _prompt_s(instance, demand, 0.0)

    def is_held(rate: float) -> bool:
        running = rate * demand.output_tokens * _token_s(instance, demand, rate, tpot_s)
        most = min(instance.max_running, instance.room_tokens / demand.context_tokens)
        return running <= most

    return _largest(is_held, 1.0)


def _token_s(instance: Instance, demand: Demand, rate: float, tpot_s: float) -> float:
    """Seconds that a token takes at so many requests a second; infinite where that is more than `tpot_s`.

    Who is answered sooner leaves sooner, and fewer run: approached from below, by steps that grow until they agree.
    """
    token_s = 0.0
    for _ in range(_MOST_STEPS):
        running = rate * demand.output_tokens * token_s
        left = 1.0 if instance.role == "decode" else 1.0 - rate * _prompt_s(instance, demand, running)
        before, token_s = token_s, _step_s(instance, demand, max(1.0, running)) / left if left > 0 else math.inf
        if token_s > tpot_s:
            return math.inf
        if token_s <= before * _AGREE:
            break
    return token_s


def _step_s(instance: Instance, demand: Demand, running: float) -> float:
    """Seconds of a step that computes no prompts."""
    if instance.decode_s is not None:
        return instance.decode_s(running, demand.context_tokens)
    return iteration(instance.engine, Work(decodes=running, context_tokens=running * demand.context_tokens)).seconds


def _alone_s(instance: Instance, demand: Demand) -> float:
    steps = max(1.0, demand.long_tokens / instance.step_tokens)
    each = Work(prompt_tokens=demand.long_tokens / steps, prompt_pairs=demand.long_pairs / steps)
    return steps * iteration(instance.engine, each).seconds


def _prompt_s(instance: Instance, demand: Demand, running: float) -> float:
    """Seconds that one prompt adds, computed in full steps together with so many answers."""
    tokens = instance.step_tokens
    pairs = demand.prompt_pairs / demand.prompt_tokens * tokens
    context = running * demand.context_tokens
    engine = instance.engine
    full = Work(prompt_tokens=tokens, prompt_pairs=pairs, decodes=running, context_tokens=context)
    without_s = iteration(engine, Work(decodes=running, context_tokens=context)).seconds if running else 0.0
    return (iteration(engine, full).seconds - without_s) / tokens * demand.prompt_tokens


def _largest(is_held: Callable[[float], bool], start: float) -> float:
    """The largest value for which a question is answered yes that is no above it; 0 where it never is."""
    low, high = 0.0, start
    while is_held(high) and high < 1e9:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_held(middle) else (low, middle)
    return low
