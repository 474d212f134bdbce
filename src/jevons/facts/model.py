"""What a model is: its shape, as far as computing and its KV cache need to know."""

from __future__ import annotations

import msgspec


class RopeScaling(msgspec.Struct, frozen=True):
    """Llama 3's stretched rotary frequencies (`rope_type: llama3` of its config.json)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


class ModelShape(msgspec.Struct, frozen=True):
    """A decoder-only transformer of the Llama family (Llama 2/3, Mistral, Qwen 2/3, SmolLM).

    All sizes are counts; `qk_norm` is Qwen3's RMS norm of each head's query and key, `qkv_bias` Qwen2's.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    rope_theta: float
    norm_eps: float
    tied_embeddings: bool
    qk_norm: bool = False
    qkv_bias: bool = False
    rope_scaling: RopeScaling | None = None

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of keys and values one token leaves behind, all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * dtype_bytes
