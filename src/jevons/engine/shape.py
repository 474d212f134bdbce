"""A model's shape, read from the `config.json` of its Hugging Face directory; needs no tensor library."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from jevons.base.errors import ModelError
from jevons.facts.model import Gemma3, ModelShape, RopeScaling

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")

# What we do not compute, and the only values under which leaving it out is right. A key that is absent is right too.
LEFT_OUT: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (None,),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "use_sliding_window": (False,),
    "use_bidirectional_attention": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
SLIDING = {"sliding_attention": True, "full_attention": False}

N = TypeVar("N", int, float)


class _Config:
    """The values of one config.json; every complaint names the file, the key and the value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            values = msgspec.json.decode(path.read_bytes())
        except FileNotFoundError:
            raise ModelError(f"{path}: not found; a model directory must hold config.json and *.safetensors") from None
        except msgspec.DecodeError as error:
            raise ModelError(f"{path}: is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ModelError(f"{path}: must hold a JSON object, got {type(values).__name__}")
        self.values: dict[str, object] = values

    def bad(self, key: str, rule: str) -> ModelError:
        got = repr(self.values[key]) if key in self.values else "nothing"
        return ModelError(f"{self.path}: {key}: {rule}, got {got}")

    def section(self, key: str) -> _Config | None:
        """The object under `key`, or None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "must be an object")
        part = _Config.__new__(_Config)
        part.path, part.values = self.path / key, value
        return part

    def number(self, key: str, kind: type[N], default: N | None = None) -> N:
        """A positive number; `default` stands in for an absent key or null."""
        value = self.values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0 or kind(value) != value:
            raise self.bad(key, "must be a positive whole number" if kind is int else "must be a positive number")
        return kind(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, "must be true or false")
        return value


def read_shape(model_dir: Path) -> ModelShape:
    """Shape of the model in `model_dir`.

    Raises:
        ModelError: config.json is missing or broken, or describes a model that the embedded engine cannot compute.
    """
    config = _Config(model_dir / "config.json")
    kind = config.values.get("model_type")
    if kind not in SUPPORTED:
        raise config.bad("model_type", f"must be one of {', '.join(SUPPORTED)}")
    _refuse_what_we_leave_out(config, str(kind))
    hidden, heads = config.number("hidden_size", int), config.number("num_attention_heads", int)
    layers = config.number("num_hidden_layers", int)
    gemma3 = None
    if kind == "gemma3_text":
        gemma3 = _gemma3(config, layers)
        rope_theta, rope_scaling = _rope(config, _rope_of(config, "full_attention"), 1_000_000.0)
    else:
        rope_theta, rope_scaling = _rope(config, config.section("rope_parameters"), 10_000.0)
    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=config.number("intermediate_size", int),
        heads=heads,
        kv_heads=config.number("num_key_value_heads", int, heads),
        head_dim=config.number("head_dim", int, hidden // heads),
        vocab=config.number("vocab_size", int),
        context_tokens=config.number("max_position_embeddings", int),
        rope_theta=rope_theta,
        norm_eps=config.number("rms_norm_eps", float),
        tied_embeddings=config.flag("tie_word_embeddings", gemma3 is not None),
        qk_norm=kind == "qwen3" or gemma3 is not None,
        qkv_bias=kind == "qwen2",
        rope_scaling=rope_scaling,
        gemma3=gemma3,
    )
    if shape.heads % shape.kv_heads:
        raise config.bad("num_key_value_heads", f"must divide the {shape.heads} attention heads")
    if shape.head_dim % 4:
        raise config.bad("head_dim", f"must be a multiple of 4, is {shape.head_dim} for this model")
    return shape


def _refuse_what_we_leave_out(config: _Config, kind: str) -> None:
    for key, allowed in LEFT_OUT.items():
        if key in config.values and config.values[key] not in allowed:
            raise config.bad(key, f"must be {allowed[0]!r} or absent: the embedded engine computes nothing else")
    # Qwen 2 always has q, k and v biases and says nothing; elsewhere the flag adds one to the output projection too.
    if kind != "qwen2" and config.values.get("attention_bias"):
        raise config.bad("attention_bias", "must be false or absent: the embedded engine has no such bias")
    # Qwen writes a window that it does not use; Mistral's counts as soon as it is there.
    if kind == "mistral" and config.values.get("sliding_window") is not None:
        raise config.bad("sliding_window", "must be null: the embedded engine attends to the whole context")
    if kind == "gemma3_text":
        if config.values.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
            raise config.bad("hidden_activation", "must be 'gelu_pytorch_tanh'")
        return
    kinds = config.values.get("layer_types")
    if isinstance(kinds, list) and any(layer != "full_attention" for layer in kinds):
        raise config.bad("layer_types", "must all be 'full_attention'")


def _gemma3(config: _Config, layers: int) -> Gemma3:
    """Gemma 3's own numbers; defaults are those of its published configurations."""
    local = _rope_of(config, "sliding_attention")
    if local is not None and local.values.get("rope_type", "default") != "default":
        raise local.bad("rope_type", "must be 'default'")
    theta = local.number("rope_theta", float) if local else config.number("rope_local_base_freq", float, 10_000.0)
    return Gemma3(
        window=config.number("sliding_window", int),
        sliding=_sliding(config, layers),
        sliding_rope_theta=theta,
        query_scalar=config.number("query_pre_attn_scalar", float, 256.0),
    )


def _sliding(config: _Config, layers: int) -> tuple[bool, ...]:
    """Which layers slide: as `layer_types` says, else all but every n-th, by `sliding_window_pattern`.

    A kind of layer that we do not know is refused: its state may be another than keys and values, and a stored prefix
    then not enough to go on from.
    """
    kinds = config.values.get("layer_types")
    if kinds is None:
        key = "sliding_window_pattern" if "sliding_window_pattern" in config.values else "_sliding_window_pattern"
        pattern = config.number(key, int, 6)
        return tuple((layer + 1) % pattern != 0 for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in tuple(SLIDING) for kind in kinds):
        raise config.bad("layer_types", f"must be {layers} of 'sliding_attention' and 'full_attention'")
    return tuple(SLIDING[kind] for kind in kinds)


def _rope_of(config: _Config, kind: str) -> _Config | None:
    """What `rope_parameters` says of one kind of layer; None where there is no such key."""
    newer = config.section("rope_parameters")
    if newer is None:
        return None
    part = newer.section(kind)
    if part is None:
        raise newer.bad(kind, "must be an object")
    return part


def _rope(config: _Config, newer: _Config | None, default_theta: float) -> tuple[float, RopeScaling | None]:
    """Rotary base and stretching: from `newer` (since transformers 5), else from `rope_theta` and `rope_scaling`."""
    theta = (newer or config).number("rope_theta", float, default_theta)
    part = newer or config.section("rope_scaling")
    if part is None:
        return theta, None
    key = "rope_type" if "rope_type" in part.values else "type"
    kind = part.values.get(key, "default")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise part.bad(key, "must be 'default' or 'llama3'")
    return theta, RopeScaling(
        factor=part.number("factor", float),
        low_freq_factor=part.number("low_freq_factor", float),
        high_freq_factor=part.number("high_freq_factor", float),
        original_context_tokens=part.number("original_max_position_embeddings", int),
    )


def mock_shape(real: ModelShape) -> ModelShape:
    """A model's shape with a cache of 32 bytes a token, for `engine.mock`."""
    return msgspec.structs.replace(real, layers=1, kv_heads=1, head_dim=8)
