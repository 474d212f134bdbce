"""Rotary position embedding, with Llama 3's stretched frequencies and Gemma 3's two bases."""

from __future__ import annotations

import math

import torch
from msgspec.structs import replace

from jevons.facts.model import ModelShape

Factors = tuple[torch.Tensor, torch.Tensor]


class Rotary:
    """Rotates heads by position, halves paired: number i with i + head_dim / 2, as in the Hugging Face weights."""

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        self.device = device
        self._frequencies: dict[int | None, torch.Tensor] = {None: frequencies(shape).to(device)}
        if shape.gemma3 is not None:
            sliding = replace(shape, rope_theta=shape.gemma3.sliding_rope_theta, rope_scaling=None)
            self._frequencies[shape.gemma3.window] = frequencies(sliding).to(device)

    def factors(self, positions: torch.Tensor, dtype: torch.dtype) -> dict[int | None, Factors]:
        """Factors for the layers of each window the model has, None: the whole context."""
        return {window: turned(positions, each, dtype) for window, each in self._frequencies.items()}


def turned(positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype) -> Factors:
    """(cos, sin) for `rotate`, each [rows, 1, head_dim]; angles are float32, the factors `dtype`."""
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def rotate(x: torch.Tensor, factors: Factors) -> torch.Tensor:
    """x [rows, heads, head_dim], rotated."""
    cos, sin = factors
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def frequencies(shape: ModelShape) -> torch.Tensor:
    """Radians per position, float32 [head_dim / 2].

    Llama 3 leaves short waves alone, divides the frequency of long ones by `factor` and blends between
    (rope_scaling of meta-llama/Llama-3.1-8B; `_compute_llama3_parameters` in transformers).
    """
    plain = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    scaling = shape.rope_scaling
    if scaling is None:
        return plain
    waves = scaling.original_context_tokens * plain / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)
