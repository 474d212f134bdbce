"""How many tokens' keys and values fit beside a model's weights."""

from __future__ import annotations

from collections.abc import Callable

from jevons.facts.llm import WEIGHT_BITS, Full, Window
from jevons.perf.roofline import Engine, attention_params, expert_params

GUESS_ACTIVATION_BYTES = 2e9  # of each chip: activations, graphs, the driver
GUESS_ACTIVATION_SHARE = 0.1  # of a chip's memory, where that is less: activations and programs in SRAM


def weight_bytes(engine: Engine) -> float:
    """Of all chips of the group: copies of attention hold its weights once each."""
    model, experts = engine.model, expert_params(engine.model)
    bits = WEIGHT_BITS[engine.weights or model.weights]
    dense_bits = bits if engine.dense_weights is None else WEIGHT_BITS[engine.dense_weights]
    dense = model.params - experts
    again = (engine.group.attention - 1) * min(dense, attention_params(model))
    return (experts * bits + (dense + again) * dense_bits) / 8


def attention_bytes(engine: Engine) -> float:
    """Of all chips of the group, where they hold attention alone and the rest is elsewhere."""
    bits = WEIGHT_BITS[engine.dense_weights or engine.weights or engine.model.weights]
    return engine.group.attention * attention_params(engine.model) * bits / 8


def room_tokens(
    engine: Engine, tokens_each: float, memory_share: float, held: Callable[[Engine], float] = weight_bytes
) -> float:
    """Tokens of sequences that end at `tokens_each`; below that where not even one fits.

    Args:
        engine: whose chips, weights and keys and values they are.
        tokens_each: prompt and answer of one sequence: windows and fixed states weigh less in long ones.
        memory_share: that keys and values take, 0 to 1, of what weights and activations leave.
        held: bytes of the weights that its chips hold.
    """
    within = engine.group.tensor // engine.group.attention
    each = float(engine.model.state_bytes)
    for kind in engine.model.attention:
        cut = min(within, kind.kv_heads) if isinstance(kind, Full | Window) else 1
        each += kind.elements(round(tokens_each)) * engine.kv_bytes * within / cut
    if engine.model.index is not None:
        each += engine.model.index.bytes(round(tokens_each)) * within
    has = engine.chip.memory_bytes.value
    memory = engine.group.chips * (has - min(GUESS_ACTIVATION_BYTES, GUESS_ACTIVATION_SHARE * has))
    return max(0.0, memory - held(engine)) * memory_share / each * tokens_each
