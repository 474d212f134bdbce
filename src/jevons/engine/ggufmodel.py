"""What a GGUF file's model is: its numbers, its tensors and their Hugging Face names, by architecture.

What cannot be carried over exactly (stretched rotary frequencies, experts, biases) is refused by name.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from jevons.base.errors import ModelError

LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3_LAYER = LLAMA_LAYER | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYER_TENSORS = {"llama": LLAMA_LAYER, "gemma3": GEMMA3_LAYER}
HF_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# Gemma 3's rule for its layers, which GGUF leaves to whoever reads it (llama.cpp: `set_swa_pattern(6)`).
GEMMA3_PATTERN = 6
GEMMA3_SLIDING_THETA = 10_000.0


class GgufModel(msgspec.Struct, frozen=True):
    """A model's numbers, as its GGUF header states them."""

    architecture: str  # a key of LAYER_TENSORS
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    rope_theta: float
    norm_eps: float
    window: int | None  # of sliding layers; None where there are none

    @property
    def rotates_pairs(self) -> bool:
        """Whether llama.cpp rotates neighbouring numbers of a head, not numbers half a head apart."""
        return self.architecture == "llama"

    @property
    def norms_from_one(self) -> bool:
        """Whether Hugging Face keeps how far a norm's weight is from 1, where GGUF keeps the weight."""
        return self.architecture == "gemma3"


def read_model(fields: dict[str, Any]) -> GgufModel:
    """The model of a file with these metadata.

    Raises:
        ModelError: an architecture, or something in it, that has no exact Hugging Face form.
    """
    architecture = fields.get("general.architecture")
    if architecture not in LAYER_TENSORS:
        known = " and ".join(sorted(LAYER_TENSORS))
        raise ModelError(f"general.architecture: only {known} can be converted, got {architecture!r}")
    refuse_what_has_no_plain_form(fields, architecture)
    heads = count(fields, "attention.head_count")
    hidden = count(fields, "embedding_length")
    return GgufModel(
        architecture=architecture,
        layers=count(fields, "block_count"),
        hidden=hidden,
        intermediate=count(fields, "feed_forward_length"),
        heads=heads,
        kv_heads=count(fields, "attention.head_count_kv", heads),
        head_dim=count(fields, "attention.key_length", hidden // heads),
        context_tokens=count(fields, "context_length"),
        rope_theta=real(fields, "rope.freq_base", 10_000.0),
        norm_eps=real(fields, "attention.layer_norm_rms_epsilon"),
        window=count(fields, "attention.sliding_window") if architecture == "gemma3" else None,
    )


def refuse_what_has_no_plain_form(fields: dict[str, Any], arch: str) -> None:
    scaling = fields.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"{arch}.rope.scaling.type: only 'none' can be converted, got {scaling!r}")
    if experts := fields.get(f"{arch}.expert_count", 0):
        raise ModelError(f"{arch}.expert_count: only dense models can be converted, got {experts}")
    head_dim = fields.get(f"{arch}.attention.key_length")
    rotated = fields.get(f"{arch}.rope.dimension_count")
    if head_dim and rotated and head_dim != rotated:
        raise ModelError(f"{arch}.rope.dimension_count: must be the head size {head_dim}, got {rotated}")


def count(fields: dict[str, Any], key: str, default: int | None = None) -> int:
    key = f"{fields['general.architecture']}.{key}"
    value = fields.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{key}: must be one whole number of at least 1, got {value!r}")
    return value


def real(fields: dict[str, Any], key: str, default: float | None = None) -> float:
    """GGUF keeps float32; its shortest decimal is what the model's author wrote (1e-05, not 9.999999747378752e-06)."""
    key = f"{fields['general.architecture']}.{key}"
    value = fields.get(key, default)
    if not isinstance(value, float):
        raise ModelError(f"{key}: must be a real number, got {value!r}")
    return float(str(np.float32(value)))


def expected_shapes(shape: GgufModel, vocab: int) -> dict[str, list[int]]:
    """Every tensor by its name in GGUF, with its dimensions, outermost first."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = {
        "attn_norm": [shape.hidden],
        "attn_q": [queries, shape.hidden],
        "attn_k": [keys, shape.hidden],
        "attn_v": [keys, shape.hidden],
        "attn_output": [shape.hidden, queries],
        "attn_q_norm": [shape.head_dim],
        "attn_k_norm": [shape.head_dim],
        "post_attention_norm": [shape.hidden],
        "ffn_norm": [shape.hidden],
        "post_ffw_norm": [shape.hidden],
        "ffn_gate": [shape.intermediate, shape.hidden],
        "ffn_up": [shape.intermediate, shape.hidden],
        "ffn_down": [shape.hidden, shape.intermediate],
    }
    ends = {"token_embd": [vocab, shape.hidden], "output_norm": [shape.hidden], "output": [vocab, shape.hidden]}
    own = LAYER_TENSORS[shape.architecture]
    blocks = {f"blk.{i}.{name}": layer[name] for i in range(shape.layers) for name in own}
    return {f"{name}.weight": dims for name, dims in (ends | blocks).items()}


def hf_name(shape: GgufModel, name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    stem = name.removesuffix(".weight")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer is None:
        return HF_ENDS[stem] + ".weight"
    return f"model.layers.{layer[1]}.{LAYER_TENSORS[shape.architecture][layer[2]]}.weight"


def config(shape: GgufModel, vocab: int, tied: bool) -> dict[str, Any]:
    """The values of config.json, special tokens left out."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": shape.context_tokens,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        **({"hidden_act": "silu"} if shape.window is None else gemma3_config(shape, shape.window)),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def gemma3_config(shape: GgufModel, window: int) -> dict[str, Any]:
    kinds = ["full_attention" if (i + 1) % GEMMA3_PATTERN == 0 else "sliding_attention" for i in range(shape.layers)]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": shape.head_dim,  # the 27B alone has another, and a rope scaling that is refused
        "sliding_window": window,
        "layer_types": kinds,
        "rope_local_base_freq": GEMMA3_SLIDING_THETA,
    }
