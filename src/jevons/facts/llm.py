"""What is known of a language model, as far as its time and memory go."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(gt=0)]
Precision = Literal["bf16", "fp8", "fp4"]
# FP4 with a scale of 8 bits for 16 numbers, as NVFP4 has it; MXFP4 has one for 32.
WEIGHT_BITS: dict[Precision, float] = {"bf16": 16.0, "fp8": 8.0, "fp4": 4.5}


class Full(msgspec.Struct, frozen=True, tag="full", tag_field="kind", forbid_unknown_fields=True):
    """Attention to all tokens, keys and values shared by groups of heads."""

    layers: Count
    kv_heads: Count
    head_dim: Count

    def elements(self, tokens: int) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * tokens


class Window(msgspec.Struct, frozen=True, tag="window", tag_field="kind", forbid_unknown_fields=True):
    """Attention to the last tokens alone."""

    layers: Count
    kv_heads: Count
    head_dim: Count
    window_tokens: Count

    def elements(self, tokens: int) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * min(tokens, self.window_tokens)


class Latent(msgspec.Struct, frozen=True, tag="latent", tag_field="kind", forbid_unknown_fields=True):
    """Multi-head latent attention: one compressed vector a token, and a rotary part, for all heads."""

    layers: Count
    rank: Count
    rope_dim: Count

    def elements(self, tokens: int) -> int:
        return self.layers * (self.rank + self.rope_dim) * tokens


class State(msgspec.Struct, frozen=True, tag="state", tag_field="kind", forbid_unknown_fields=True):
    """A recurrent state of fixed size: linear attention, state-space layers."""

    layers: Count
    state_bytes: Count  # of one sequence, one layer

    def elements(self, tokens: int) -> int:
        return 0


Attention = Full | Window | Latent | State


class Experts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mixture of experts: each token goes to `active` of them, and to the shared ones."""

    layers: Count
    experts: Count
    active: Count
    intermediate: Count
    shared: int = 0
    latent: int | None = None  # they work on vectors of this size instead of `hidden`


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What finds the tokens that sparse attention reads: 8 bits for each number of a key, 32 for its scale."""

    layers: Count  # that look for themselves; others take what the one before them found
    heads: Count
    head_dim: Count

    def bytes(self, tokens: int) -> int:
        return self.layers * (self.head_dim + 4) * tokens


class Llm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes are counts."""

    family: str
    source: str
    params: Annotated[float, Meta(gt=0)]
    active_params: Annotated[float, Meta(gt=0)] | None = None  # of one token; None: not published
    weights: Precision  # it was released in
    layers: Count
    hidden: Count
    heads: Count
    vocab: Count
    context_tokens: Count
    attention: list[Attention]
    intermediate: Count | None = None  # of dense layers
    moe: Experts | None = None
    sparse_tokens: Count | None = None  # attention reads the best so many, after looking at all
    index: Index | None = None  # with which it looks; None: not known, and not counted

    def kv_bytes(self, tokens: int, element_bytes: float = 2.0) -> float:
        """Bytes that one sequence of so many tokens leaves behind, fixed states included."""
        index = self.index.bytes(tokens) if self.index is not None else 0
        return self.state_bytes + index + element_bytes * sum(kind.elements(tokens) for kind in self.attention)

    @property
    def state_bytes(self) -> int:
        """Of one sequence, whatever its length."""
        return sum(kind.layers * kind.state_bytes for kind in self.attention if isinstance(kind, State))

    def weight_bytes(self, weights: Precision | None = None) -> float:
        """Bytes of all weights, in the precision released or another."""
        return self.params * WEIGHT_BITS[weights or self.weights] / 8
