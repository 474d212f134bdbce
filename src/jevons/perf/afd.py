"""Attention on some devices, the rest of each layer on others: keys and values in HBM, experts in SRAM.

The batch is cut into micro-batches that go to and fro, so that both sides work at once. Where the slowest of attention,
the rest, and the way between them takes t for one micro-batch and layer, a step takes

    layers · micro-batches · t + the last one's way through both sides, but for t

if there are enough micro-batches to fill the pipeline. Otherwise each layer takes a micro-batch's way through both, and
the last one is behind the first by t for each between.
"""

from __future__ import annotations

import math

import msgspec

from jevons.facts.hardware import Chip
from jevons.facts.llm import WEIGHT_BITS, Llm, Precision
from jevons.perf.roofline import (
    Engine,
    Group,
    Shares,
    Work,
    attention_params,
    distinct_experts,
    expert_params,
    halves,
    iteration,
    smooth_max,
)

GUESS_SRAM_SHARE = 0.9  # of its memory that weights may take: programs and activations need the rest


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of all but attention."""

    chip: Chip
    chips: int
    weights: Precision
    shares: Shares
    rows: int = 1  # a micro-batch is padded to a multiple of so many tokens: programs of static shapes


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Between the two sides."""

    bytes_per_s: float  # all links together, one direction
    latency_s: float
    bytes_out: float = 1.0  # of one number of a token's hidden state, on the way there
    bytes_back: float = 2.0


class Step(msgspec.Struct, frozen=True):
    """One token of every sequence."""

    seconds: float
    micro_batches: int
    attention_s: float  # of one layer and micro-batch, like the next two
    rest_s: float
    way_s: float

    @property
    def bound(self) -> str:
        """What holds the pipeline up."""
        parts = {"attention": self.attention_s, "rest": self.rest_s, "way": self.way_s}
        return max(parts, key=lambda name: parts[name])


def rest_bytes(model: Llm, weights: Precision) -> float:
    """Weights of all but attention."""
    return (model.params - attention_params(model)) * WEIGHT_BITS[weights] / 8


def chips_needed(model: Llm, weights: Precision, chip: Chip) -> int:
    """Devices whose memory holds all but attention."""
    return math.ceil(rest_bytes(model, weights) / (chip.memory_bytes.value * GUESS_SRAM_SHARE))


def afd_step(attention: Engine, rest: Rest, way: Way, sequences: float, context_tokens: float) -> Step | None:
    """The best cut into micro-batches; None where the rest's memory does not hold its weights.

    Args:
        attention: the model on the devices of its attention.
        sequences: that decode, ≥ 1, with `context_tokens` all together.
    """
    if chips_needed(attention.model, rest.weights, rest.chip) > rest.chips:
        return None
    most = max(1, min(32, int(sequences)))
    steps = (_step(attention, rest, way, count, sequences, context_tokens) for count in range(1, most + 1))
    return min(steps, key=lambda step: step.seconds)


def _step(attention: Engine, rest: Rest, way: Way, count: int, sequences: float, context_tokens: float) -> Step:
    each, layers = sequences / count, attention.model.layers
    attention_s = _attention_s(attention, each, context_tokens / count)
    rest_s = _rest_s(attention.model, rest, each)
    way_s = way.latency_s + each * attention.model.hidden * max(way.bytes_out, way.bytes_back) / way.bytes_per_s
    through_s = attention_s + rest_s + 2 * way_s
    slowest = max(attention_s, rest_s, way_s)
    a_layer_s = max(count * slowest, through_s)  # a micro-batch's next layer waits for its last
    behind_s = min(through_s, count * slowest) - slowest
    return Step(layers * a_layer_s + behind_s, count, attention_s, rest_s, way_s)


def _attention_s(engine: Engine, sequences: float, context_tokens: float) -> float:
    """One layer: its weights, keys and values, sums over the chips of a copy, launches, bookkeeping."""
    model, shares, group = engine.model, engine.shares, engine.group
    # Copies have nothing to tell each other: what the rest needs and gives goes over the way.
    alone = msgspec.structs.replace(engine, group=Group(tensor=group.tensor // group.attention))
    work = Work(decodes=sequences / group.attention, context_tokens=context_tokens / group.attention)
    parts = iteration(alone, work)
    bits = WEIGHT_BITS[engine.dense_weights or engine.weights or model.weights]
    rate = engine.chip.flops(int(bits))
    assert rate is not None, "who places a model on a chip knows that it computes such numbers"
    params = attention_params(model)
    read = params * group.attention * bits / 8
    memory_s = read / (group.tensor * engine.chip.memory_bytes_per_s.value * shares.bandwidth)
    weights_s = smooth_max(memory_s, 2 * params * sequences / (group.tensor * rate.value * shares.compute))
    attending, feeding = halves(model)
    link_s = parts.link_s * attending / (attending + feeding)  # sums after experts are on their side
    return (weights_s + parts.kv_s + link_s + parts.overhead_s) / model.layers


def _rest_s(model: Llm, rest: Rest, tokens: float) -> float:
    """One layer: experts that a token is sent to, and what all tokens pass."""
    padded = math.ceil(tokens / rest.rows) * rest.rows
    bits, shares = WEIGHT_BITS[rest.weights], rest.shares
    rate = rest.chip.flops(int(bits))
    assert rate is not None, "who places a model on a chip knows that it computes such numbers"
    routed = expert_params(model)
    read = active = model.params - routed - attention_params(model)
    if model.moe is not None:
        read += routed / model.moe.experts * distinct_experts(model.moe.experts, model.moe.active, tokens)
        active += routed / model.moe.experts * model.moe.active
    memory_s = read * bits / 8 / (rest.chips * rest.chip.memory_bytes_per_s.value * shares.bandwidth)
    compute_s = 2 * active * padded / (rest.chips * rate.value * shares.compute)
    return smooth_max(memory_s, compute_s) * shares.imbalance / model.layers + shares.layer_s
