"""Which vLLMs the connector accepts, and whose blocks it keeps apart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jevons.base.errors import ConfigError
from jevons.engine.vllm.model import check, identity_of, in_order, layout_of
from jevons.kv.layout import Layout, fingerprint

LIGHT = "layout, model, scheduler, settings, step, worker"
HEAVY = ("uvloop", "httptools", "tokenizers", "zmq", "jinja2", "prometheus_client", "click")


PLAIN = Layout(1, 3, 64, 32, "bfloat16")


class FullAttentionSpec(SimpleNamespace):
    """What vLLM says of a plain layer's cache."""


class SlidingWindowSpec(FullAttentionSpec):
    pass


def spec(kind: type = FullAttentionSpec, **more: Any) -> Any:
    values: dict[str, Any] = {
        "block_size": 32,
        "num_kv_heads": 3,
        "head_size": 64,
        "head_size_v": 64,
        "dtype": "torch.bfloat16",
        "kv_quant_mode": SimpleNamespace(name="NONE"),
        "sliding_window": None,
        "attention_chunk_size": None,
        "non_causal": False,
        "page_size_padded": None,
        "num_head_slots": None,
        "state_content_bytes": None,
        "tokens_per_state": 1,
    }
    return kind(**values | more)


def caches(*specs: Any) -> Any:
    groups = [SimpleNamespace(kv_cache_spec=each, layer_names=["model.layers.0.attn"]) for each in specs]
    return SimpleNamespace(kv_cache_groups=groups)


def config(model: str = "", **more: Any) -> Any:
    """A `VllmConfig`; what is given changes the part that has it."""
    parts: dict[str, dict[str, Any]] = {
        "kv_transfer_config": {
            "kv_load_failure_policy": "recompute",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {},
        },
        "parallel_config": {
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "prefill_context_parallel_size": 1,
            "decode_context_parallel_size": 1,
            "data_parallel_size": 1,
        },
        "device_config": {"device_type": "cpu"},
        "load_config": {"load_format": "auto"},
        "model_config": {
            "model": model,
            "revision": None,
            "dtype": "torch.bfloat16",
            "quantization": None,
            "enforce_eager": True,
            "hf_config": SimpleNamespace(
                to_dict=lambda: {"rope_theta": more.get("rope_theta", 1.0), "id2label": {0: "a", 1: "b"}}
            ),
        },
    }
    filled = {part: SimpleNamespace(**{k: more.get(k, v) for k, v in values.items()}) for part, values in parts.items()}
    return SimpleNamespace(**filled, speculative_config=more.get("speculative_config"))


@pytest.mark.parametrize(
    "more",
    [
        {"kv_load_failure_policy": "fail"},
        {"kv_role": "kv_producer"},
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"data_parallel_size": 2},
        {"speculative_config": object()},
        {"device_type": "cuda"},
    ],
)
def test_what_could_be_wrong_or_fail_a_request_is_refused_by_name(more: dict[str, Any]) -> None:
    check(config())

    with pytest.raises(ConfigError, match=next(iter(more)).removesuffix("_type")):
        check(config(**more))


def test_the_layout_is_the_whole_models() -> None:
    assert layout_of(caches(spec())) == PLAIN


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        (caches(spec(), spec()), "2 groups of layers"),
        (caches(spec(SlidingWindowSpec)), "SlidingWindowSpec"),
        (caches(spec(sliding_window=4096)), "sliding_window must be None, got 4096"),
        (caches(spec(dtype="torch.uint8")), "uint8"),
        (caches(spec(kv_quant_mode=SimpleNamespace(name="FP8_PER_TENSOR"))), "FP8_PER_TENSOR"),
        (caches(spec(head_size_v=32)), "heads of 64 and 32"),
        (caches(spec(tokens_per_state=4)), "tokens_per_state"),
    ],
)
def test_caches_of_other_kinds_are_refused_with_what_they_are(cache: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        layout_of(cache)


def test_layers_are_ordered_by_their_numbers() -> None:
    names = [f"model.layers.{i}.attn" for i in range(12)]

    assert in_order(sorted(names)) == names
    with pytest.raises(ConfigError, match="numbered from 0"):
        in_order(["model.layers.1.attn", "draft.layers.1.attn"])


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], str]:
    def save(weights: bytes) -> str:
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(weights)
        return str(tmp_path)

    return save


def test_equal_vllms_share_blocks_and_unlike_ones_do_not(save: Callable[[bytes], str]) -> None:
    def mark(weights: bytes = b"w", layout: Layout = PLAIN, **more: Any) -> bytes:
        return fingerprint(identity_of(config(save(weights), **more), layout))

    assert mark() == mark()
    unlike = [
        mark(b"v"),
        mark(layout=Layout(1, 3, 64, 64, "bfloat16")),
        mark(dtype="torch.float32"),
        mark(quantization="fp8"),
        mark(enforce_eager=False),
        mark(rope_theta=2.0),  # --hf-overrides: not in the model's directory
    ]
    assert len({mark(), *unlike}) == 1 + len(unlike)


def test_a_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no safetensors"):
        identity_of(config(str(tmp_path)), PLAIN)


def test_it_imports_nothing_heavy_into_vllms_processes() -> None:
    code = f"import sys; from jevons.engine.vllm import {LIGHT}; print(*[m for m in {HEAVY} if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == []
