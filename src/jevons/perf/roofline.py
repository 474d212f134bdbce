"""How long one iteration of a model takes on a group of chips, from first principles.

    seconds = linear layers + KV read by decodes + attention of prompts + links + overheads

Each part is the smooth maximum of what memory and arithmetic would take alone, at the share of the data sheet's rate
that is reached. The formulas hold for any chip of which bandwidth and FLOP/s are known; how far they hold is another
matter, told by who calibrates the shares.
"""

from __future__ import annotations

import math

import msgspec

from jevons.facts.hardware import Chip
from jevons.facts.llm import WEIGHT_BITS, Full, Latent, Llm, Precision, State, Window

_SHARPNESS = 4  # of the smooth maximum: at equal parts it is 19 % above either
LATENT_HEAD_DIM = 128  # of each head's part that is not rotary, in all models with latent attention of the catalog


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """What is reached of the data sheet, and what comes on top of it."""

    bandwidth: float  # of memory, reading weights
    compute: float  # of dense FLOP/s, in products with weights
    kv: float  # of memory bandwidth, reading keys and values
    attention: float  # of 16-bit FLOP/s, in attention of prompts
    link: float  # of the fabric's rate
    layer_s: float  # a layer's launches
    link_s: float  # a message's latency
    host_s: float  # an iteration's scheduling and sampling
    imbalance: float = 1.0  # of experts: the fullest rank's tokens over the mean's


# Before anything is calibrated. GUESS: within the ranges that calibrations of public measurements gave for H100, H200
# and B200 with vLLM and TensorRT-LLM.
GUESS_SHARES = Shares(
    bandwidth=0.8,
    compute=0.65,
    kv=0.55,
    attention=0.6,
    link=0.7,
    layer_s=20e-6,
    link_s=3e-6,
    host_s=1e-3,
    imbalance=1.2,
)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Chips that run one copy of a model together: `tensor` of them share each layer, `experts` share the experts."""

    tensor: int = 1
    experts: int = 1  # 1: experts are cut like other layers
    attention: int = 1  # copies of attention, each on its share of the sequences


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a group of chips."""

    model: Llm
    chip: Chip
    group: Group = Group()
    shares: Shares = GUESS_SHARES
    weights: Precision | None = None  # of the weights, and of the products with them; None: as released
    kv_bytes: float = 2.0  # of one number of keys and values


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What one iteration computes."""

    prompt_tokens: float = 0.0
    prompt_pairs: float = 0.0  # sum over those of the tokens each attends to
    decodes: float = 0.0  # sequences advanced by a token
    context_tokens: float = 0.0  # of those, all together


class Parts(msgspec.Struct, frozen=True):
    """Where an iteration's seconds go."""

    linear_s: float
    kv_s: float
    attention_s: float
    link_s: float
    overhead_s: float

    @property
    def seconds(self) -> float:
        return self.linear_s + self.kv_s + self.attention_s + self.link_s + self.overhead_s


def smooth_max(a: float, b: float) -> float:
    """About the larger; above it where both are alike, for neither hides the other wholly."""
    return math.pow(a**_SHARPNESS + b**_SHARPNESS, 1 / _SHARPNESS)


def distinct_experts(experts: int, active: int, tokens: float) -> float:
    """Expected number of experts that any of `tokens` is sent to, each to `active` of them at random."""
    return experts * (1.0 - math.pow(1.0 - active / experts, tokens))


def expert_params(model: Llm) -> float:
    """Parameters of all routed experts.

    From what is published, all and those of one token: experts differ in how many matrices they have. Counted, as three
    matrices each, where a token's are not published.
    """
    moe = model.moe
    if moe is None:
        return 0.0
    if model.active_params is not None:
        return (model.params - model.active_params) / (1.0 - moe.active / moe.experts)
    return float(moe.layers * moe.experts * 3 * (moe.latent or model.hidden) * moe.intermediate)


def iteration(engine: Engine, work: Work) -> Parts:
    """Seconds of one iteration."""
    tokens = work.prompt_tokens + work.decodes
    return Parts(
        linear_s=_linear_s(engine, tokens),
        kv_s=_kv_s(engine, work),
        attention_s=_attention_s(engine, work),
        link_s=_link_s(engine, tokens),
        overhead_s=engine.model.layers * engine.shares.layer_s + engine.shares.host_s,
    )


def _linear_s(engine: Engine, tokens: float) -> float:
    """Weights are read once, however many tokens there are; of experts those that are sent a token."""
    model, chip, shares = engine.model, engine.chip, engine.shares
    bits = WEIGHT_BITS[engine.weights or model.weights]
    rate = chip.flops(int(bits))
    assert rate is not None, "who places a model on a chip knows that it computes such numbers"
    routed = expert_params(model)
    read, active, slowest = model.params - routed, model.params - routed, 1.0
    if model.moe is not None:
        share = routed / model.moe.experts
        read += share * distinct_experts(model.moe.experts, model.moe.active, tokens)
        active += share * model.moe.active
        slowest = shares.imbalance if engine.group.experts > 1 else 1.0
    chips = engine.group.tensor
    memory_s = read * bits / 8 / (chips * chip.memory_bytes_per_s.value * shares.bandwidth)
    compute_s = 2 * active * tokens / (chips * rate.value * shares.compute)
    return smooth_max(memory_s, compute_s) * slowest


def _kv_s(engine: Engine, work: Work) -> float:
    """Each decode reads its sequence's keys and values, or its state."""
    model = engine.model
    if not work.decodes:
        return 0.0
    context = work.context_tokens / work.decodes
    read = 0.0
    for kind in model.attention:
        cut = _cut(kind, engine.group)
        size = kind.layers * kind.state_bytes if isinstance(kind, State) else kind.elements(1) * engine.kv_bytes
        length = 1.0 if isinstance(kind, State) else context
        if isinstance(kind, Window):
            length = min(context, kind.window_tokens)
        if model.sparse_tokens is not None and not isinstance(kind, State):
            length = min(length, model.sparse_tokens)
        read += size * length / cut
    return work.decodes * read / (engine.chip.memory_bytes_per_s.value * engine.shares.kv)


def _cut(kind: Full | Window | Latent | State, group: Group) -> float:
    """Over how many chips the reading of one sequence, and the sequences, are spread."""
    heads = kind.kv_heads if isinstance(kind, Full | Window) else 1
    within = group.tensor // group.attention
    return group.attention * (min(within, heads) if isinstance(kind, Full | Window | Latent) else within)


def _attention_s(engine: Engine, work: Work) -> float:
    """Prompts attend to all before them; what reads windows or the best tokens alone, to those."""
    model, rate = engine.model, engine.chip.flops(16)
    if rate is None or not work.prompt_tokens:
        return 0.0
    each = work.prompt_pairs / work.prompt_tokens
    flops = 0.0
    for kind in model.attention:
        if isinstance(kind, State):
            continue  # linear in tokens: with the other products
        dims = 2 * kind.head_dim if isinstance(kind, Full | Window) else 2 * LATENT_HEAD_DIM + kind.rope_dim
        seen = min(each, kind.window_tokens) if isinstance(kind, Window) else each
        seen = seen if model.sparse_tokens is None else min(seen, model.sparse_tokens)
        flops += 2.0 * kind.layers * model.heads * dims * seen * work.prompt_tokens
    return flops / (engine.group.tensor * rate.value * engine.shares.attention)


def _link_s(engine: Engine, tokens: float) -> float:
    """Two sums over the tensor group a layer; where experts have ranks of their own, there and back for the second."""
    model, chip, group, shares = engine.model, engine.chip, engine.group, engine.shares
    if group.tensor == 1 or chip.scale_up_bytes_per_s is None:
        return 0.0
    rate = chip.scale_up_bytes_per_s.value * shares.link
    moe_layers = model.moe.layers if model.moe is not None and group.experts > 1 else 0
    within = group.tensor // group.attention
    a_sum_s = shares.link_s + 2 * (within - 1) / within * tokens / group.attention * model.hidden * 2 / rate
    seconds = (2 * model.layers - moe_layers) * a_sum_s if within > 1 else 0.0
    if model.moe is not None and moe_layers:
        each = tokens / group.experts * model.moe.active * (model.moe.latent or model.hidden)
        away = (group.experts - 1) / group.experts
        seconds += moe_layers * (2 * shares.link_s + each * 3 * away / rate)  # one byte there, two back
    return seconds


class Steady(msgspec.Struct, frozen=True):
    """A closed loop of users, each asking again when answered."""

    tpot_s: float
    step_s: float  # of an iteration that only decodes
    prompt_s: float  # to compute one prompt alone


def steady(engine: Engine, users: int, input_tokens: float, output_tokens: float) -> Steady:
    """What `users` see of an engine that serves them alone, by the mean: queues and bursts are for the twin.

    Each answer's decodes are held up by the prompts of the others that are computed meanwhile, one an answer.
    """
    context = users * (input_tokens + output_tokens / 2)
    step_s = iteration(engine, Work(decodes=users, context_tokens=context)).seconds
    alone = Work(prompt_tokens=input_tokens, prompt_pairs=input_tokens * (input_tokens + 1) / 2)
    overhead_s = iteration(engine, Work()).overhead_s
    prompt_s = iteration(engine, alone).seconds
    return Steady(step_s + users / output_tokens * (prompt_s - overhead_s), step_s, prompt_s)
