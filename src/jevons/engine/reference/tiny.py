"""Random models of any shape in a Hugging Face directory: to try the engine without a download."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from jevons.facts.model import ModelShape

TINY = ModelShape(
    layers=2,
    hidden=64,
    intermediate=128,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=256,
    context_tokens=2048,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
)

NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA3_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def write_random_model(model_dir: Path, shape: ModelShape = TINY, seed: int = 0) -> None:
    """Write config.json and model.safetensors (bf16) to the existing `model_dir`; same seed, same bits."""
    (model_dir / "config.json").write_text(json.dumps(hf_config(shape), indent=1))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in tensor_sizes(shape).items():
        drawn = torch.randn(size, generator=generator)
        if name.endswith("norm.weight"):
            drawn = drawn / 8 + (shape.gemma3 is None)  # Gemma's weights say how far from 1
        elif len(size) == 2:
            drawn *= size[1] ** -0.5  # keeps a product's numbers as large as its input's
            drawn *= 2 if "q_proj" in name or "k_proj" in name else 1  # scores large enough to pick some tokens
        tensors[name] = drawn.to(torch.bfloat16)
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})


def hf_config(shape: ModelShape) -> dict[str, object]:
    """config.json for `shape`: a Gemma 3, a Qwen 3 if it normalizes queries and keys, a Qwen 2 if it has biases, or a
    Llama.
    """
    scaling, gemma3 = shape.rope_scaling, shape.gemma3
    own: dict[str, object] = {"model_type": "qwen3" if shape.qk_norm else "qwen2" if shape.qkv_bias else "llama"}
    if gemma3 is not None:
        own = {
            "model_type": "gemma3_text",
            "sliding_window": gemma3.window,
            "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in gemma3.sliding],
            "rope_local_base_freq": gemma3.sliding_rope_theta,
            "query_pre_attn_scalar": gemma3.query_scalar,
            "hidden_activation": "gelu_pytorch_tanh",
        }
    return own | {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context_tokens,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context_tokens,
        },
        "tie_word_embeddings": shape.tied_embeddings,
    }


def tensor_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model of this shape by its Hugging Face name."""
    h, d, wide = shape.hidden, shape.head_dim, shape.intermediate
    q, kv = shape.heads * d, shape.kv_heads * d
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, h), "model.norm.weight": (h,)}
    if not shape.tied_embeddings:
        sizes["lm_head.weight"] = (shape.vocab, h)
    for layer in range(shape.layers):
        attn, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            sizes[f"{attn}{name}.weight"] = (rows, h)
            if shape.qkv_bias:
                sizes[f"{attn}{name}.bias"] = (rows,)
        if shape.qk_norm:
            sizes |= {f"{attn}q_norm.weight": (d,), f"{attn}k_norm.weight": (d,)}
        sizes |= {f"{attn}o_proj.weight": (h, q), f"{mlp}down_proj.weight": (h, wide)}
        sizes |= {f"{mlp}gate_proj.weight": (wide, h), f"{mlp}up_proj.weight": (wide, h)}
        for norm in NORMS if shape.gemma3 is None else GEMMA3_NORMS:
            sizes[f"model.layers.{layer}.{norm}.weight"] = (h,)
    return sizes
