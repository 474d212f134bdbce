"""What vLLM's blocks are: their fingerprint, or why they cannot be shared.

Whatever is not known to be plain full attention is refused at start. A block that means something else than we think
would be wrong text, and nobody would see it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from jevons.base.errors import ConfigError
from jevons.engine.digest import weights_digest
from jevons.kv.layout import DTYPE_BYTES, Identity, Layout

VERSION = "0.32.0"  # of vLLM: what we know of its blocks was found in this one

_ONE_WORKER = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
)
# Of a layer's KV cache, the only values under which a block is keys and values of one head after another.
_PLAIN: dict[str, tuple[object, ...]] = {
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "non_causal": (False,),
    "page_size_padded": (None,),
    "num_head_slots": (None,),
    "state_content_bytes": (None,),
    "tokens_per_state": (1,),
}


def check(config: Any) -> None:
    """Refuse what vLLM was started with, where blocks would not be what they seem, or a lost one would cost a request.

    Args:
        config: a `VllmConfig`.

    Raises:
        ConfigError: names the option, its value and the rule.
    """
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    if transfer.kv_load_failure_policy != "recompute":
        raise ConfigError(
            f"kv_load_failure_policy: must be 'recompute', got {transfer.kv_load_failure_policy!r}: "
            "a block that is lost would fail its request instead of being computed"
        )
    if transfer.kv_role != "kv_both":
        raise ConfigError(f"kv_role: must be 'kv_both', got {transfer.kv_role!r}")
    for key in _ONE_WORKER:
        if getattr(parallel, key) != 1:
            raise ConfigError(
                f"{key}: must be 1, got {getattr(parallel, key)}: a page holds whole blocks of one worker"
            )
    if parallel.data_parallel_size != 1 and "socket" not in transfer.kv_connector_extra_config:
        raise ConfigError(
            f"data_parallel_size: {parallel.data_parallel_size} engines cannot each start a keeper; start one and give "
            "its socket"
        )
    if config.speculative_config is not None:
        raise ConfigError("speculative_config: must be absent: a block may hold tokens that were guessed")
    if config.device_config.device_type != "cpu":
        raise ConfigError(f"device: must be cpu, got {config.device_config.device_type}: copies were proven there only")


def layout_of(kv_cache_config: Any) -> Layout:
    """The shape of a block of all layers.

    Args:
        kv_cache_config: a `KVCacheConfig`.

    Raises:
        ConfigError: there are several groups of layers, or one of another kind than full attention.
    """
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise ConfigError(f"model: has {len(groups)} groups of layers with unlike caches; jevons shares blocks of one")
    (group,) = groups
    spec = group.kv_cache_spec
    if type(spec).__name__ != "FullAttentionSpec":
        raise ConfigError(f"model: its layers are {type(spec).__name__}; jevons shares blocks of FullAttentionSpec")
    for key, allowed in _PLAIN.items():
        if getattr(spec, key) not in allowed:
            raise ConfigError(f"model: its layers' {key} must be {allowed[0]!r}, got {getattr(spec, key)!r}")
    dtype = str(spec.dtype).removeprefix("torch.")
    if dtype not in DTYPE_BYTES or spec.kv_quant_mode.name != "NONE" or spec.head_size_v != spec.head_size:
        raise ConfigError(
            f"model: a cache of {dtype}, quantised {spec.kv_quant_mode.name}, heads of {spec.head_size} and "
            f"{spec.head_size_v}; jevons shares {', '.join(DTYPE_BYTES)}, unquantised, keys and values alike"
        )
    return Layout(len(group.layer_names), spec.num_kv_heads, spec.head_size, spec.block_size, dtype)


def in_order(layers: Sequence[str]) -> list[str]:
    """Layer names, first to last.

    Raises:
        ConfigError: they are not one of each number.
    """
    numbers = {name: [int(part) for part in name.split(".") if part.isdecimal()] for name in layers}
    ordered = sorted(layers, key=lambda name: numbers[name])
    if [numbers[name] for name in ordered] != [[i] for i in range(len(layers))]:
        raise ConfigError(f"model: layers must be numbered from 0, got {', '.join(ordered[:3])} …")
    return ordered


def identity_of(config: Any, layout: Layout) -> Identity:
    """What makes this vLLM's blocks its own. Reads the weights once: 0.06 s a GB from the page cache.

    The number of threads is left out: it changes bits by rounding alone, as the batch does in any case.

    Raises:
        ConfigError: the model's files are not a directory of safetensors.
    """
    model = config.model_config
    directory = _directory(model.model, model.revision)
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f"model: {directory} holds no safetensors, whose digest would tell its blocks from others'")
    shape = json.dumps(model.hf_config.to_dict() | {"_name_or_path": ""}, sort_keys=True, default=_plain)
    numerics = (
        f"vllm {VERSION}",
        f"torch {torch.__version__}",
        torch.backends.cpu.get_cpu_capability(),
        str(model.dtype),
        f"quantization {model.quantization}",
        f"load {config.load_config.load_format}",
        "eager" if model.enforce_eager else "compiled",
        blake2b(shape.encode(), digest_size=16).hexdigest(),  # of what vLLM made of config.json, overrides included
    )
    return Identity(weights_digest(directory), layout, ", ".join(numerics))


def _plain(value: object) -> str:
    """What JSON has no word for, the same in every process."""
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__


def _directory(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    config = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(config, str):
        raise ConfigError(f"model: {model!r} is neither a directory nor in the Hugging Face cache")
    return Path(config).parent
