"""What a model is: its shape, as far as computing and its KV cache need to know."""

from __future__ import annotations

import msgspec


class RopeScaling(msgspec.Struct, frozen=True):
    """Llama 3's stretched rotary frequencies (`rope_type: llama3` of its config.json)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


class Gemma3(msgspec.Struct, frozen=True):
    """What Gemma 3 does besides: sliding layers, scaled embeddings, four norms a layer (from 1), GELU for SiLU."""

    window: int  # tokens that a sliding layer attends to, the asking one among them
    sliding: tuple[bool, ...]  # of each layer: sees the window alone, not the whole context
    sliding_rope_theta: float
    query_scalar: float  # scores are divided by its root instead of head_dim's


class ModelShape(msgspec.Struct, frozen=True):
    """A decoder-only transformer of the Llama family (Llama 2/3, Mistral, Qwen 2/3, SmolLM), or Gemma 3.

    All sizes are counts; `qk_norm` is Qwen3's and Gemma3's RMS norm of each head's query and key, `qkv_bias` Qwen2's.
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
    gemma3: Gemma3 | None = None

    def window(self, layer: int) -> int | None:
        """Tokens that a layer attends to at most; None: all there are."""
        return self.gemma3.window if self.gemma3 is not None and self.gemma3.sliding[layer] else None

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of keys and values one token leaves behind, all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * dtype_bytes
