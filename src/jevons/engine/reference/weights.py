"""A model's weights, from the safetensors files of its Hugging Face directory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from jevons.base.errors import ModelError
from jevons.engine.reference.linear import Activation, Linear, has_fast_bf16, pack
from jevons.engine.reference.share import Share
from jevons.engine.shape import read_shape
from jevons.facts.model import ModelShape

__all__ = ["Layer", "Weights", "compute_dtype", "give_back_memory", "load", "read_shape"]


@dataclass(frozen=True)
class Layer:
    """One transformer layer, or a rank's share of it; h hidden, d head_dim."""

    norm_in: torch.Tensor  # [h]
    qkv: Linear  # h -> (heads + 2 kv_heads) * d
    norm_q: torch.Tensor | None  # [d], Qwen 3 and Gemma 3
    norm_k: torch.Tensor | None  # [d], Qwen 3 and Gemma 3
    out: Linear  # heads * d -> h
    norm_mlp: torch.Tensor  # [h]
    gate: Linear  # h -> intermediate, activated
    up: Linear  # h -> intermediate
    down: Linear  # intermediate -> h
    window: int | None = None  # tokens attended to; None: all
    norm_attended: torch.Tensor | None = None  # [h], Gemma 3, of what attention adds
    norm_added: torch.Tensor | None = None  # [h], Gemma 3, of what the MLP adds


@dataclass(frozen=True)
class Weights:
    """A model's weights, or a rank's share of them, on one device."""

    embedding: torch.Tensor  # [vocab, h], bf16, scaled where the model does so
    layers: list[Layer]
    norm: torch.Tensor  # [h]
    head: Linear | None  # h -> vocab; None on ranks that do not draw


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16, but float32 on a CPU whose bf16 products are not in hardware: there float32 is many times faster."""
    return torch.bfloat16 if device.type != "cpu" or has_fast_bf16() else torch.float32


def load(model_dir: Path, share: Share, device: torch.device, dtype: torch.dtype) -> Weights:
    """A share's weights on `device` in `dtype`; beyond the result, a layer of the mapped files is in memory at a time.

    Raises:
        ModelError: a file is missing or broken, or a tensor missing or of another shape than `share.whole` asks for.
    """
    source, shape = _Source(model_dir, device, dtype), share.whole
    embedding = source.take("model.embed_tokens.weight", shape.vocab, shape.hidden, dtype=torch.bfloat16)
    if shape.gemma3 is not None:
        embedding *= float(torch.tensor(shape.hidden**0.5, dtype=torch.bfloat16))  # rounded, as it was when it learned
    norm = _norm(source, "model.norm", shape, shape.hidden)
    head = _Part("model.embed_tokens" if shape.tied_embeddings else "lm_head", (shape.vocab, shape.hidden))
    packed_head = source.linear(head) if share.has_head else None
    layers = [_layer(source, i, share) for i in range(shape.layers)]
    source.close()
    return Weights(embedding, layers, norm, packed_head)


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library can: loading leaves holes (100 of 1030 MB)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Source:
    """Tensors by name, checked. Files are mapped when asked for and until `close`, which gives their memory back."""

    def __init__(self, model_dir: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._model_dir, self._device, self._dtype = model_dir, device, dtype
        self._open: dict[Path, Any] = {}
        self._paths = self._find()

    def close(self) -> None:
        self._open.clear()

    def view(self, name: str, *size: int) -> torch.Tensor:
        """The mapped tensor itself."""
        if name not in self._paths:
            raise ModelError(f"{self._model_dir}: no tensor {name} in its safetensors files; config.json asks for it")
        path = self._paths[name]
        try:
            tensor: torch.Tensor = self._file(path).get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{path}: {name}: cannot be read: {error}") from error
        if tuple(tensor.shape) != size:
            raise ModelError(f"{path}: {name}: config.json asks for shape {size}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ModelError(f"{path}: {name}: must be bf16, f16 or f32, got {tensor.dtype}; dequantize first")
        return tensor

    def take(self, name: str, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy of the tensor, in `dtype` or else the one we compute in."""
        return self.view(name, *size).to(self._device, dtype or self._dtype, copy=True)

    def linear(self, *parts: _Part, biased: bool = False, activation: Activation = "") -> Linear:
        """One product for several weights with the same input."""
        weight = self._joined([self.view(f"{p.name}.weight", *p.size)[p.rows, p.columns] for p in parts])
        bias = [self.view(f"{p.name}.bias", p.size[0])[p.rows] for p in parts] if biased else None
        return pack(weight, None if bias is None else self._joined(bias), activation)

    def _joined(self, views: list[torch.Tensor]) -> torch.Tensor:
        joined = views[0] if len(views) == 1 else torch.cat(views)
        return joined.to(self._device, self._dtype).contiguous()

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: is not a readable safetensors file: {error}") from error
        return self._open[path]

    def _find(self) -> dict[str, Path]:
        """The file of each tensor: the one model.safetensors, or what the index of a sharded model says."""
        single, index = self._model_dir / "model.safetensors", self._model_dir / "model.safetensors.index.json"
        if single.exists():
            return dict.fromkeys(self._file(single).keys(), single)
        if not index.exists():
            raise ModelError(f"{self._model_dir}: holds neither model.safetensors nor model.safetensors.index.json")
        try:
            parsed = msgspec.json.decode(index.read_bytes(), type=_Index)
        except msgspec.MsgspecError as error:
            raise ModelError(f"{index}: is not an index of safetensors files: {error}") from error
        return {name: self._model_dir / file for name, file in parsed.weight_map.items()}


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Part(NamedTuple):
    """What is wanted of a weight: its name without suffix, its whole size [out, in], and the rows and columns."""

    name: str
    size: tuple[int, int]
    rows: slice = slice(None)
    columns: slice = slice(None)


def _layer(source: _Source, number: int, share: Share) -> Layer:
    source.close()
    shape, name = share.whole, f"model.layers.{number}."
    h, d, wide = shape.hidden, shape.head_dim, shape.intermediate
    q, kv = shape.heads * d, shape.kv_heads * d
    attn, mlp = name + "self_attn.", name + "mlp."
    qkv = (
        _Part(attn + "q_proj", (q, h), share.q_rows),
        _Part(attn + "k_proj", (kv, h), share.kv_rows),
        _Part(attn + "v_proj", (kv, h), share.kv_rows),
    )
    layer = Layer(
        norm_in=_norm(source, name + "input_layernorm", shape, h),
        qkv=source.linear(*qkv, biased=shape.qkv_bias),
        norm_q=_norm(source, attn + "q_norm", shape, d) if shape.qk_norm else None,
        norm_k=_norm(source, attn + "k_norm", shape, d) if shape.qk_norm else None,
        out=source.linear(_Part(attn + "o_proj", (h, q), columns=share.q_rows)),
        norm_mlp=_norm(source, name + "post_attention_layernorm", shape, h),
        gate=source.linear(
            _Part(mlp + "gate_proj", (wide, h), share.wide_rows), activation="gelu" if shape.gemma3 else "silu"
        ),
        up=source.linear(_Part(mlp + "up_proj", (wide, h), share.wide_rows)),
        down=source.linear(_Part(mlp + "down_proj", (h, wide), columns=share.wide_rows)),
    )
    return layer if shape.gemma3 is None else _as_gemma3(layer, source, share.whole, number)


def _as_gemma3(layer: Layer, source: _Source, shape: ModelShape, number: int) -> Layer:
    """`layer` with its window, its four norms where they belong, and scores divided by the root it asks for."""
    assert shape.gemma3 is not None
    assert layer.norm_q is not None
    name = f"model.layers.{number}."
    return replace(
        layer,
        window=shape.window(number),
        norm_q=layer.norm_q * (shape.head_dim / shape.gemma3.query_scalar) ** 0.5,
        norm_attended=layer.norm_mlp,
        norm_mlp=_norm(source, name + "pre_feedforward_layernorm", shape, shape.hidden),
        norm_added=_norm(source, name + "post_feedforward_layernorm", shape, shape.hidden),
    )


def _norm(source: _Source, name: str, shape: ModelShape, size: int) -> torch.Tensor:
    """What a norm multiplies by. Gemma keeps how far that is from 1, and multiplies before it rounds: float32."""
    if shape.gemma3 is None:
        return source.take(name + ".weight", size)
    return 1 + source.take(name + ".weight", size, dtype=torch.float32)
