from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from jevons.base.errors import ModelError
from jevons.engine.reference.runner import Cache, Runner, Sampled, Slice
from jevons.engine.reference.tiny import TINY, hf_config, write_random_model
from jevons.engine.shape import read_shape
from jevons.facts.model import ModelShape, RopeScaling
from jevons.facts.request import Sampling

LLAMA_31 = replace(TINY, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), rope_theta=500_000.0)


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    write_random_model(tmp_path)
    return tmp_path


def write_config(model_dir: Path, **changed: object) -> None:
    """The tiny model's config.json with other values; those given as None are left out."""
    values = hf_config(TINY) | changed
    (model_dir / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def change_tensors(model_dir: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, model_dir / "model.safetensors")


def first_token(model_dir: Path) -> Sampled | None:
    runner = Runner(model_dir, Cache(4, 16))
    return runner.step([Slice([1, 2, 3], 0, [0], Sampling(temperature=0, logprobs=5))])[0]


SHAPES = [TINY, LLAMA_31, replace(TINY, qk_norm=True), replace(TINY, qkv_bias=True, tied_embeddings=False)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_written_is_the_shape_read(tmp_path: Path, shape: ModelShape) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(shape)))
    assert read_shape(tmp_path) == shape


def test_the_newer_rope_parameters_say_the_same(tmp_path: Path) -> None:
    older = hf_config(LLAMA_31)
    scaling = older["rope_scaling"]
    assert isinstance(scaling, dict)
    write_config(tmp_path, rope_theta=None, rope_scaling=None, rope_parameters=scaling | {"rope_theta": 500_000.0})
    assert read_shape(tmp_path) == LLAMA_31


def test_what_is_left_out_has_the_usual_default(tmp_path: Path) -> None:
    write_config(tmp_path, head_dim=None, num_key_value_heads=None, tie_word_embeddings=None, rope_theta=None)
    shape = read_shape(tmp_path)
    assert (shape.head_dim, shape.kv_heads, shape.tied_embeddings, shape.rope_theta) == (16, 4, False, 10_000.0)


def test_a_window_that_qwen_does_not_use_is_no_obstacle(tmp_path: Path) -> None:
    write_config(tmp_path, model_type="qwen2", sliding_window=32768, use_sliding_window=False)
    assert read_shape(tmp_path).qkv_bias


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (
            {"model_type": "gemma3"},
            "model_type: must be one of llama, mistral, qwen2, qwen3, gemma3_text, got 'gemma3'",
        ),
        ({"model_type": None}, "model_type: must be one of llama, mistral, qwen2, qwen3, gemma3_text, got nothing"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window: must be null.*got 4096"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window: must be False.*got True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: must all be 'full_attention'"),
        ({"num_local_experts": 8}, "num_local_experts: must be None.*got 8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: must be None"),
        ({"attention_bias": True}, "attention_bias: must be false.*got True"),
        ({"hidden_act": "gelu"}, "hidden_act: must be 'silu'.*got 'gelu'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: type: must be 'default' or 'llama3', got 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling: factor: must be a positive number, got nothing"),
        ({"rope_scaling": 2}, "rope_scaling: must be an object, got 2"),
        ({"hidden_size": None}, "hidden_size: must be a positive whole number, got nothing"),
        ({"hidden_size": 63.5}, "hidden_size: must be a positive whole number, got 63.5"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers: must be a positive whole number, got 'two'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide the 4 attention heads, got 3"),
        ({"head_dim": 18}, "head_dim: must be a multiple of 4, is 18 for this model, got 18"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: must be true or false, got 'yes'"),
    ],
)
def test_a_model_we_cannot_compute_is_refused_by_file_key_and_value(
    tmp_path: Path, changed: dict[str, object], complaint: str
) -> None:
    write_config(tmp_path, **changed)
    with pytest.raises(ModelError, match=f"config.json.*{complaint}"):
        read_shape(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config.json: (is not JSON|must hold a JSON object)"):
        read_shape(tmp_path)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json: not found"):
        read_shape(tmp_path)


def test_a_sharded_model_is_the_same_model(tiny_dir: Path) -> None:
    expected = first_token(tiny_dir)
    tensors = load_file(tiny_dir / "model.safetensors")
    (tiny_dir / "model.safetensors").unlink()
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, tiny_dir / file)
    (tiny_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert first_token(tiny_dir) == expected


def test_weights_in_float32_are_taken_too(tiny_dir: Path) -> None:
    expected = first_token(tiny_dir)
    change_tensors(tiny_dir, lambda tensors: tensors.update({k: v.float() for k, v in tensors.items()}))
    assert first_token(tiny_dir) == expected


def test_a_missing_tensor_is_named(tiny_dir: Path) -> None:
    change_tensors(tiny_dir, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        Runner(tiny_dir, Cache(4, 16))


def test_a_misshapen_tensor_is_named_with_both_shapes(tiny_dir: Path) -> None:
    change_tensors(tiny_dir, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight: config\.json asks for shape \(64,\), got \(63,\)"):
        Runner(tiny_dir, Cache(4, 16))


def test_quantised_weights_are_refused(tiny_dir: Path) -> None:
    change_tensors(tiny_dir, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight: must be bf16, f16 or f32, got torch\.int8"):
        Runner(tiny_dir, Cache(4, 16))


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(ModelError, match=r"holds neither model\.safetensors nor model\.safetensors\.index\.json"):
        Runner(tmp_path, Cache(4, 16))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_broken_file_of_weights_is_named(tmp_path: Path, name: str) -> None:
    write_config(tmp_path)
    (tmp_path / name).write_text("no weights")
    with pytest.raises(ModelError, match=f"{name}: is not"):
        Runner(tmp_path, Cache(4, 16))


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    index = {"weight_map": {"model.embed_tokens.weight": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"gone\.safetensors: is not a readable safetensors file"):
        Runner(tmp_path, Cache(4, 16))


def test_an_index_that_names_the_wrong_file_is_refused(tiny_dir: Path) -> None:
    change_tensors(tiny_dir, lambda tensors: tensors.pop("model.norm.weight"))
    names = [*load_file(tiny_dir / "model.safetensors"), "model.norm.weight"]
    (tiny_dir / "model.safetensors").rename(tiny_dir / "one.safetensors")
    index = {"weight_map": dict.fromkeys(names, "one.safetensors")}
    (tiny_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"one\.safetensors: model\.norm\.weight: cannot be read"):
        Runner(tiny_dir, Cache(4, 16))
