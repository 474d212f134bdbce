from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer

from jevons.base.errors import ModelError
from jevons.engine.gguf import convert, round_bf16

WriteGguf = Callable[..., Path]


@pytest.fixture
def converted(write_gguf: WriteGguf, tmp_path: Path) -> Callable[..., Path]:
    def run(*changed: Any, **others: Any) -> Path:
        convert(write_gguf(*changed, **others), tmp_path)
        return tmp_path

    return run


def settings_of(model_dir: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((model_dir / f"{name}.json").read_bytes())
    return found


def tokenizer_of(model_dir: Path) -> Tokenizer:
    found: Tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return found


def lossy(weights: npt.NDArray[np.float32], kind: int) -> torch.Tensor:
    """What is left of `weights` after quantising, as torch rounds it to bfloat16."""
    return torch.from_numpy(np.array(dequantize(quantize(weights, kind), kind))).to(torch.bfloat16)  # type: ignore[arg-type]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_to_bfloat16_is_torchs(values: list[float]) -> None:
    floats = np.array(values, dtype=np.float32)
    ours = round_bf16(floats).astype(np.int16)
    assert ours.tolist() == torch.from_numpy(floats).to(torch.bfloat16).view(torch.int16).tolist()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.1.attn_v", "model.layers.1.self_attn.v_proj"),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj"),
        ("blk.0.ffn_gate", "model.layers.0.mlp.gate_proj"),
        ("blk.1.ffn_up", "model.layers.1.mlp.up_proj"),
        ("blk.1.ffn_down", "model.layers.1.mlp.down_proj"),
        ("blk.1.attn_norm", "model.layers.1.input_layernorm"),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm"),
    ],
)
def test_a_tensor_keeps_its_values_under_its_hugging_face_name(
    converted: Callable[..., Path], tiny_tensors: dict[str, Any], ours: str, theirs: str, kinds: dict[str, int]
) -> None:
    found = load_file(converted() / "model.safetensors")[f"{theirs}.weight"]
    assert torch.equal(found, lossy(tiny_tensors[f"{ours}.weight"], kinds[ours.split(".")[-1]]))


@pytest.mark.parametrize(("ours", "theirs", "heads"), [("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)])
def test_query_and_key_rows_return_to_hugging_faces_order(
    converted: Callable[..., Path],
    tiny_tensors: dict[str, Any],
    ours: str,
    theirs: str,
    heads: int,
    kinds: dict[str, int],
) -> None:
    found = load_file(converted() / "model.safetensors")[f"model.layers.1.self_attn.{theirs}.weight"]
    # `permute` of llama.cpp's convert_hf_to_gguf.py, the way there
    there = found.reshape(heads, 2, 16 // 2, 64).swapaxes(1, 2).reshape(heads * 16, 64)
    assert torch.equal(there, lossy(tiny_tensors[f"blk.1.{ours}.weight"], kinds[ours]))


def test_rows_written_a_few_at_a_time_make_the_same_file(
    converted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (converted() / "model.safetensors").read_bytes()
    monkeypatch.setattr("jevons.engine.gguf.SLICE_ELEMENTS", 64 * 5)
    assert (converted() / "model.safetensors").read_bytes() == whole


def test_the_config_describes_the_model(converted: Callable[..., Path]) -> None:
    config = settings_of(converted(), "config")
    wanted = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 267,
        "max_position_embeddings": 512,
        "rope_theta": 50_000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: config.get(key) for key in wanted} == wanted


def test_the_end_token_is_in_the_generation_config(converted: Callable[..., Path]) -> None:
    assert settings_of(converted(), "generation_config")["eos_token_id"] == 2


def test_an_output_matrix_of_its_own_is_kept(converted: Callable[..., Path], tiny_tensors: dict[str, Any]) -> None:
    model_dir = converted(weights={"output.weight": tiny_tensors["token_embd.weight"] + 1})
    assert settings_of(model_dir, "config")["tie_word_embeddings"] is False
    with safe_open(model_dir / "model.safetensors", "np") as file:
        assert "lm_head.weight" in file.keys()  # noqa: SIM118 - not a dict


def test_progress_ends_at_the_size_of_all_tensors(write_gguf: WriteGguf, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(write_gguf(), tmp_path, lambda done, total: seen.append((done, total)))
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert seen[-1] == (seen[-1][1],) * 2
    assert (tmp_path / "model.safetensors").stat().st_size == 8 + header + seen[-1][1]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["hello", "Ġw", "Ġ", "1", "2", "3", "4"]),
        ("gpt-2", ["hello", "Ġw", "Ġ", "123", "4"]),
        ("llama-bpe", ["hello", "Ġw", "Ġ", "123", "4"]),
        ("qwen2", ["hello", "Ġw", "Ġ", "1", "2", "3", "4"]),
    ],
)
def test_each_split_cuts_digits_its_own_way(converted: Callable[..., Path], pre: str, pieces: list[str]) -> None:
    model_dir = converted({"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False})
    assert tokenizer_of(model_dir).encode("hello w 1234").tokens == pieces


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe"])
def test_any_text_survives_there_and_back(converted: Callable[..., Path], pre: str) -> None:
    tokenizer = tokenizer_of(converted({"tokenizer.ggml.pre": pre}))
    text = "".join(map(chr, range(1, 0x250))) + "日本 😀 \r\n\t don't 12 ½"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_control_tokens_are_special_and_user_defined_ones_are_shown(converted: Callable[..., Path]) -> None:
    tokenizer = tokenizer_of(converted())
    ids = tokenizer.encode("<|im_start|>hello[tool]<|im_end|>").ids
    assert ids == [1, tokenizer.token_to_id("hello"), tokenizer.token_to_id("[tool]"), 2]
    assert tokenizer.decode(ids) == "hello[tool]"


def test_the_opening_token_is_added_where_the_file_says_so(converted: Callable[..., Path]) -> None:
    model_dir = converted({"tokenizer.ggml.add_bos_token": True})
    assert tokenizer_of(model_dir).encode("hello").tokens == ["<|im_start|>", "hello"]
    assert settings_of(model_dir, "tokenizer_config")["add_bos_token"] is True


def test_llama_3_adds_its_opening_token_unless_told_otherwise(converted: Callable[..., Path]) -> None:
    assert tokenizer_of(converted({"tokenizer.ggml.pre": "llama-bpe"})).encode("hello").ids[0] == 1


def test_the_chat_template_and_special_tokens_come_over(converted: Callable[..., Path]) -> None:
    settings = settings_of(converted(), "tokenizer_config")
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert settings["chat_template"].startswith("{% for m in messages %}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre: must be one of .*'tekken'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre: must be one of .*None"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model: must be 'gpt2' .* or 'llama' .*, got 'bert'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.add_space_prefix: only False can be converted, got None"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges: must be a list"),
        ({"tokenizer.ggml.merges": ["he nowhere"]}, "tokenizer.ggml.merges: .*damaged"),
        ({"tokenizer.ggml.eos_token_id": 999}, "eos_token_id: must be below 267.*999"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type: only 'none'"),
        (
            {"llama.rope.dimension_count": 8, "llama.attention.key_length": 16},
            "dimension_count: must be the head size 16",
        ),
        ({"llama.expert_count": 8}, "llama.expert_count: only dense"),
        ({"llama.block_count": None}, "llama.block_count: must be one whole number"),
        ({"llama.block_count": 3}, r"missing \['blk.2.attn_k.weight'"),
        ({"llama.feed_forward_length": 128}, r"ffn_gate.weight: must have shape \[128, 64\], got \[96, 64\]"),
    ],
)
def test_a_setting_without_an_exact_form_is_refused_by_name(
    converted: Callable[..., Path], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        converted(changed)


def test_another_architecture_is_refused(converted: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="only gemma3 and llama can be converted, got 'gemma'"):
        converted(arch="gemma")


def test_a_tensor_we_do_not_know_is_refused(converted: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"unknown \['rope_freqs.weight'\]"):
        converted(weights={"rope_freqs.weight": np.ones(8, np.float32)})


def test_a_missing_tensor_is_named(converted: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"missing \['token_embd.weight'\]"):
        converted(weights={"token_embd.weight": None})


def test_weights_that_are_not_finite_are_refused(converted: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"output_norm\.weight: holds values that are not finite"):
        converted(weights={"output_norm.weight": np.full(64, np.inf, np.float32)})


@pytest.mark.parametrize("keep", [0, 3, 20, 500, 5_000, -1])
def test_a_file_cut_short_is_refused(write_gguf: WriteGguf, tmp_path: Path, keep: int) -> None:
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        convert(path, tmp_path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.gguf: not a readable GGUF file"):
        convert(tmp_path / "nowhere.gguf", tmp_path)


def test_without_the_gguf_package_the_error_says_what_to_install(
    write_gguf: WriteGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'jevons\[engine\]'"):
        convert(path, tmp_path)
