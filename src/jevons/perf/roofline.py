"""How long one iteration of a model takes on a group of chips, from first principles.

    seconds = linear layers + KV read by decodes + attention of prompts + links + overheads

Each part is the smooth maximum of what memory and arithmetic would take alone, at the share of the data sheet's rate
that is reached. The formulas hold for any chip of which bandwidth and FLOP/s are known; how far they hold is another
matter, told by who calibrates the shares.
"""

from __future__ import annotations

import math

import msgspec

from jevons.facts.hardware import Chip, Figure
from jevons.facts.llm import WEIGHT_BITS, Full, Index, Latent, Llm, Precision, State, Window

_SHARPNESS = 4  # of the smooth maximum: at equal parts it is 19 % above either
TILE_ROWS = 64  # of a product with one expert: a last tile is half full by the mean. GUESS, kernels have 16 to 128
LIMITED_NODES = 4  # that a token's experts lie on, where they are spread over nodes: arXiv 2412.19437, section 2.1.2
LATENT_QUERY_RANK = 1536  # of DeepSeek-V3 and Kimi K2
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
    expert_bandwidth: float = 1.0  # of `bandwidth`, reading experts: many small matrices
    expert_compute: float = 1.0  # of `compute`, in products with experts: few rows for each
    sequence_s: float = 0.0  # of an iteration's bookkeeping, for each sequence in it
    request_s: float = 0.0  # before a request's prompt is begun: its front end
    wait: float = 1.0  # for first tokens, over what batching and queues explain
    tokens_per_step: float = 1.0  # that one sequence gains: above 1 where tokens are speculated


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
    expert_bandwidth=0.8,
    expert_compute=0.6,
    sequence_s=5e-6,
    request_s=30e-3,
)


# Of chips whose programs are laid out in time when they are compiled: nothing is launched. GUESS for the layer and the
# host. A message takes what it takes over 16 Groq 3 LPUs, 8 GB (Hot Chips 2026, LPU slides; 2.95 µs over 1,152 GB).
GUESS_STATIC_SHARES = msgspec.structs.replace(
    GUESS_SHARES, layer_s=0.5e-6, link_s=0.35e-6, host_s=20e-6, sequence_s=0.0
)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Chips that run one copy of a model together: `tensor` of them share each layer, `experts` share the experts.

    With a `pipeline`, layers are cut into so many stages of `tensor` chips each, which work on as many micro-batches.
    """

    tensor: int = 1
    pipeline: int = 1
    experts: int = 1  # 1: experts are cut like other layers
    attention: int = 1  # copies of attention, each on its share of the sequences

    @property
    def chips(self) -> int:
        return self.tensor * self.pipeline


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a group of chips."""

    model: Llm
    chip: Chip
    group: Group = Group()
    shares: Shares = GUESS_SHARES
    weights: Precision | None = None  # of the weights, and of the products with them; None: as released
    kv_bytes: float = 2.0  # of one number of keys and values
    dense_weights: Precision | None = None  # of all but the experts; None: like these


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
    matrices each, where a token's are not published, or where each token goes to all.
    """
    moe = model.moe
    if moe is None:
        return 0.0
    if model.active_params is not None and moe.active < moe.experts:
        return (model.params - model.active_params) / (1.0 - moe.active / moe.experts)
    return float(moe.layers * moe.experts * 3 * (moe.latent or model.hidden) * moe.intermediate)


def attention_params(model: Llm) -> float:
    """Parameters of all attention layers: of what is read whole by each copy of attention.

    Counted from the shapes. Latent attention's down and up projections as DeepSeek-V3 has them (arXiv 2412.19437, table
    of section 4.2: query rank 1536, 128 dimensions a head); recurrent layers like full ones of the same width.
    """
    hidden, heads = model.hidden, model.heads
    total = 0.0
    for kind in model.attention:
        if isinstance(kind, Latent):
            down = hidden * (LATENT_QUERY_RANK + kind.rank + kind.rope_dim)
            up = LATENT_QUERY_RANK * heads * (LATENT_HEAD_DIM + kind.rope_dim) + kind.rank * heads * 2 * LATENT_HEAD_DIM
            each = down + up + heads * LATENT_HEAD_DIM * hidden
        elif isinstance(kind, State):
            each = 4 * hidden * hidden
        else:
            each = 2 * hidden * kind.head_dim * (heads + kind.kv_heads)
        total += kind.layers * each
    return total


def halves(model: Llm) -> tuple[int, int]:
    """Layers that have attention or a state, and such that have feed-forward weights or experts.

    Of most models all have both; of Nemotron's each has one of them.
    """
    attending = sum(kind.layers for kind in model.attention)
    return attending, max(0, model.layers - attending) or model.layers


def iteration(engine: Engine, work: Work) -> Parts:
    """Seconds of one iteration.

    In a full pipeline a micro-batch passes all stages while each other one does: what takes the time of the whole model
    on one stage's chips is the work of one micro-batch. One that runs empty, at a lone prompt, takes longer.
    """
    work = _of_one(work, engine.group.pipeline)
    tokens, shares = work.prompt_tokens + work.decodes, engine.shares
    each_s = shares.sequence_s * work.decodes / engine.group.attention
    return Parts(
        linear_s=_linear_s(engine, tokens),
        kv_s=_kv_s(engine, work),
        attention_s=_attention_s(engine, work),
        link_s=_link_s(engine, tokens),
        overhead_s=engine.model.layers * shares.layer_s + shares.host_s + each_s,
    )


def _of_one(work: Work, stages: int) -> Work:
    """The work of one of so many micro-batches; a sequence is not cut."""
    if stages == 1:
        return work
    decodes = max(min(work.decodes, 1.0), work.decodes / stages)
    context = work.context_tokens * decodes / work.decodes if work.decodes else 0.0
    return Work(
        prompt_tokens=work.prompt_tokens / stages,
        prompt_pairs=work.prompt_pairs / stages,
        decodes=decodes,
        context_tokens=context,
    )


def _linear_s(engine: Engine, tokens: float) -> float:
    """Weights are read once, however many tokens there are; of experts those that are sent a token.

    Copies of attention read its weights once each.
    """
    model, group, shares = engine.model, engine.group, engine.shares
    routed = expert_params(model)
    dense = model.params - routed
    read = dense + (group.attention - 1) * min(dense, attention_params(model))
    bits, flops = _precision(engine, engine.dense_weights or engine.weights or model.weights)
    read_per_s = group.tensor * engine.chip.memory_bytes_per_s.value * shares.bandwidth
    seconds = smooth_max(read * bits / 8 / read_per_s, 2 * dense * tokens / flops)
    if model.moe is None:
        return seconds
    bits, flops = _precision(engine, engine.weights or model.weights)
    each = routed / model.moe.experts
    asked = distinct_experts(model.moe.experts, model.moe.active, tokens)
    memory_s = each * asked * bits / 8 / (read_per_s * shares.expert_bandwidth)
    rows = model.moe.active * tokens + asked * TILE_ROWS / 2
    compute_s = 2 * each * rows / (flops * shares.expert_compute)
    return seconds + smooth_max(memory_s, compute_s) * (shares.imbalance if group.experts > 1 else 1.0)


def _precision(engine: Engine, weights: Precision) -> tuple[float, float]:
    """Bits of a weight, and operations a second that all chips of the group reach with such."""
    bits = WEIGHT_BITS[weights]
    rate = engine.chip.flops(int(bits))
    assert rate is not None, "who places a model on a chip knows that it computes such numbers"
    return bits, engine.group.tensor * rate.value * engine.shares.compute


def _kv_s(engine: Engine, work: Work) -> float:
    """Each decode reads its sequence's keys and values, or its state."""
    model = engine.model
    if not work.decodes:
        return 0.0
    context = work.context_tokens / work.decodes
    read, flops = 0.0, 0.0
    for kind in model.attention:
        cut = _cut(kind, engine.group)
        # A state is read and written back; of keys and values one token is written, which is nothing beside the rest.
        size = 2 * kind.layers * kind.state_bytes if isinstance(kind, State) else kind.elements(1) * engine.kv_bytes
        length = 1.0 if isinstance(kind, State) else context
        if isinstance(kind, Window):
            length = min(context, kind.window_tokens)
        if model.sparse_tokens is not None and not isinstance(kind, State):
            length = min(length, model.sparse_tokens)
        read += size * length / cut
        if isinstance(kind, Latent):  # all heads work on one vector: many operations a byte
            flops += 2 * kind.layers * model.heads * (2 * kind.rank + kind.rope_dim) * length
        elif isinstance(kind, Full | Window):  # counts where memory is SRAM
            flops += 4 * kind.layers * model.heads * kind.head_dim * length
    memory_s = work.decodes * read / (engine.chip.memory_bytes_per_s.value * engine.shares.kv)
    index_s = _looking_s(engine, work.context_tokens)
    rate = _attention_rate(engine.chip)
    if not flops or rate is None:
        return memory_s + index_s
    compute_s = work.decodes * flops / (engine.group.tensor * rate.value * engine.shares.attention)
    return smooth_max(memory_s, compute_s) + index_s


def _looking_s(engine: Engine, tokens: float) -> float:
    """Decodes look at the keys of all their tokens for those they attend to: each chip of a copy at all of them."""
    index, chip, copies = engine.model.index, engine.chip, engine.group.attention
    if index is None:
        return 0.0
    read_s = index.bytes(1) * tokens / (copies * chip.memory_bytes_per_s.value * engine.shares.kv)
    rate = chip.flops(8)
    if rate is None:
        return read_s
    return smooth_max(read_s, _index_flops(index) * tokens / (copies * rate.value * engine.shares.attention))


def _index_flops(index: Index) -> float:
    """Of one token that is looked at."""
    return 2.0 * index.layers * index.heads * index.head_dim


def _attention_rate(chip: Chip) -> Figure | None:
    """FLOP/s of attention: in 16 bits, or in 8 on chips that have no more."""
    return chip.flops(16) or chip.flops(8)


def _cut(kind: Full | Window | Latent | State, group: Group) -> float:
    """Over how many chips the reading of one sequence, and the sequences, are spread."""
    heads = kind.kv_heads if isinstance(kind, Full | Window) else 1
    within = group.tensor // group.attention
    return group.attention * (min(within, heads) if isinstance(kind, Full | Window | Latent) else within)


def _attention_s(engine: Engine, work: Work) -> float:
    """Prompts attend to all before them; what reads windows or the best tokens alone, to those."""
    model, rate = engine.model, _attention_rate(engine.chip)
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
    seconds = flops / (engine.group.tensor * rate.value * engine.shares.attention)
    narrow = engine.chip.flops(8)
    if model.index is None or narrow is None:
        return seconds
    looking = _index_flops(model.index) * work.prompt_pairs
    return seconds + looking / (engine.group.attention * narrow.value * engine.shares.attention)


def _link_s(engine: Engine, tokens: float) -> float:
    """Sums over the chips of a copy of attention, after attention and what follows it in a layer; copies gather and
    scatter their tokens around experts, or around feed-forward weights that all chips share.

    Where experts have ranks of their own, tokens go there and back instead. Dense layers before experts are each copy's
    own matter.
    """
    model, group, shares = engine.model, engine.group, engine.shares
    if group.chips == 1 or engine.chip.scale_up_bytes_per_s is None:
        return 0.0
    within = group.tensor // group.attention
    attending, feeding = halves(model)
    gathered = 0 if group.attention == 1 else feeding if model.moe is None else model.moe.layers
    seconds = 0.0
    if group.pipeline > 1:  # from stage to stage, and the token back to the first
        moved = tokens * model.hidden * 2 / group.tensor
        seconds += group.pipeline * (shares.link_s + moved / _link_rate(engine, group.chips))
    if within > 1:
        moved = 2 * (within - 1) / within * tokens / group.attention * model.hidden * 2
        seconds += (attending + feeding - gathered) * (shares.link_s + moved / _link_rate(engine, within))
    if gathered:
        moved = _gathered_bytes(engine, tokens)
        seconds += gathered * (2 * shares.link_s + moved / _link_rate(engine, group.tensor))
    return seconds


def _gathered_bytes(engine: Engine, tokens: float) -> float:
    """That a chip sends there and back around what all chips share of a layer."""
    model, ranks = engine.model, engine.group.tensor
    width = model.hidden if model.moe is None else model.moe.latent or model.hidden
    if model.moe is None or engine.group.experts == 1:
        return 2 * (ranks - 1) / ranks * tokens * width * 2
    # One byte there, two back; over the network once to each node.
    domain = engine.chip.domain_size.value if engine.chip.domain_size else 1.0
    nodes = min(LIMITED_NODES, ranks / domain) if ranks > domain else model.moe.active
    return 3 * (ranks - 1) / ranks * tokens / ranks * min(model.moe.active, nodes) * width


def _link_rate(engine: Engine, ranks: int) -> float:
    """Bytes a second of one chip to others: over the network where they are more than the fabric joins."""
    chip = engine.chip
    assert chip.scale_up_bytes_per_s is not None
    beyond = chip.domain_size is not None and ranks > chip.domain_size.value and chip.scale_out_bytes_per_s is not None
    figure = chip.scale_out_bytes_per_s if beyond and chip.scale_out_bytes_per_s else chip.scale_up_bytes_per_s
    return figure.value * engine.shares.link


class Steady(msgspec.Struct, frozen=True):
    """A closed loop of users, each asking again when answered."""

    tpot_s: float
    step_s: float  # of a token where nothing but decodes is computed
    prompt_s: float  # to compute one prompt alone


def steady(
    engine: Engine,
    users: float,
    input_tokens: float,
    output_tokens: float,
    apart: bool = False,
    cached_tokens: float = 0.0,
) -> Steady:
    """What `users` see of an engine that serves them alone, by the mean: queues and bursts are for `perf.closed`.

    While each gets an answer's tokens, each prompt is computed once: in the iterations that decode, several in each or
    one in some of them, or `apart` in iterations of their own.

    Args:
        cached_tokens: of the input, that are not computed again.
    """
    computed, gain = input_tokens - cached_tokens, engine.shares.tokens_per_step
    pairs = computed * (cached_tokens + (computed + 1) / 2)
    decodes = Work(decodes=users, context_tokens=users * (input_tokens + output_tokens / 2))
    step_s = iteration(engine, decodes).seconds
    rate = users * gain / output_tokens  # prompts for each iteration
    each = max(1.0, rate)
    prompts = Work(prompt_tokens=each * computed, prompt_pairs=each * pairs)
    if apart:
        added_s = iteration(engine, prompts).seconds
    else:
        added_s = iteration(engine, _both(prompts, decodes)).seconds - step_s
    alone_s = iteration(engine, Work(prompt_tokens=computed, prompt_pairs=pairs)).seconds
    return Steady((step_s + min(1.0, rate) * added_s) / gain, step_s / gain, alone_s)


def _both(prompts: Work, decodes: Work) -> Work:
    return Work(
        prompt_tokens=prompts.prompt_tokens,
        prompt_pairs=prompts.prompt_pairs,
        decodes=decodes.decodes,
        context_tokens=decodes.context_tokens,
    )
