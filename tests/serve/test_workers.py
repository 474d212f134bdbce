"""What workers are started with: sizes that cannot hold this model's blocks are told at the start."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from jevons.base.errors import ConfigError
from jevons.config import Settings, make
from jevons.serve.workers import worker_configs

TOKEN_BYTES = 2 * 3 * 2 * 64 * 2  # layers, KV heads, of key and value
PAGE = 16 * TOKEN_BYTES
SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def shape_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def starts(shape_dir: Path, **more: object) -> int:
    return len(worker_configs(msgspec.convert({"workers": 2, **more}, Settings), shape_dir, None))


def test_sizes_that_hold_what_they_must_are_taken(shape_dir: Path) -> None:
    assert starts(shape_dir, dram_bytes=PAGE, disk_path="d", disk_bytes=7 * (PAGE + 256) // 3) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"kv_bytes": PAGE - 1}, f"kv_bytes: must hold at least one block .{PAGE} bytes .* got {PAGE - 1}; raise it"),
        ({"dram_bytes": PAGE - 1}, f"dram_bytes: must hold at least one block .{PAGE} bytes .* got {PAGE - 1}; raise"),
        (
            {"dram_bytes": 10 * PAGE, "disk_path": "d", "disk_bytes": 7 * (PAGE + 256) // 3 - 1},
            "disk_bytes: must hold two blocks and a third of one for recycling",
        ),
        (  # pages hold the larger blocks of prefill workers, in the wider numbers of the others
            {
                "prefill": 1,
                "decode": 1,
                "prefill_block_size": 64,
                "prefill_kv_dtype": "bfloat16",
                "kv_dtype": "float32",
                "dram_bytes": 4 * PAGE,
            },
            f"dram_bytes: must hold at least one block .{8 * PAGE} bytes",
        ),
    ],
)
def test_sizes_that_hold_no_block_are_told_with_the_least(shape_dir: Path, more: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        starts(shape_dir, **more)


def test_workers_without_the_package_that_runs_models_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())

    with pytest.raises(ConfigError, match=r"needs torch, not installed here: pip install 'jevons\[engine\]'"):
        worker_configs(make({}, "test"), Path("nowhere"), None)
    assert worker_configs(make({"engines": ["http://h:1"]}, "test"), Path("nowhere"), None) == []
