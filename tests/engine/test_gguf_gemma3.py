"""A tiny Gemma 3 as a GGUF file: its norms, its layers, and SentencePiece's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file
from tokenizers import Tokenizer

from jevons.base.errors import ModelError
from jevons.engine.gguf import convert
from jevons.engine.ggufmodel import GEMMA3_LAYER
from jevons.engine.reference.tiny import TINY, write_random_model
from jevons.engine.shape import read_shape
from jevons.facts.model import Gemma3

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SHOWN = ["\n", "\n\n", "  ", "   "]  # user-defined; GGUF writes their spaces as spaces
PIECES = ["▁t", "he", "▁the", "in", "er", "▁a", *"▁theinrax"]
TOKENS = [*CONTROL, *BYTES, *SHOWN, *PIECES]
TYPES = [3] * len(CONTROL) + [6] * len(BYTES) + [4] * len(SHOWN) + [1] * len(PIECES)
SCORES = [0.0] * (len(TOKENS) - len(PIECES)) + [-float(i) for i in range(len(PIECES))]
SHAPE = replace(
    TINY,
    layers=7,
    kv_heads=1,
    vocab=len(TOKENS),
    qk_norm=True,
    context_tokens=512,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    gemma3=Gemma3(24, (True, True, True, True, True, False, True), 10_000.0, 16.0),
)
FIELDS: dict[str, Any] = {
    "gemma3.block_count": SHAPE.layers,
    "gemma3.embedding_length": SHAPE.hidden,
    "gemma3.feed_forward_length": SHAPE.intermediate,
    "gemma3.attention.head_count": SHAPE.heads,
    "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": SHAPE.head_dim,
    "gemma3.attention.sliding_window": 24,
    "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
    "gemma3.context_length": 512,
    "gemma3.rope.freq_base": 1_000_000.0,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.scores": SCORES,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 3,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.add_space_prefix": False,
}
ADD = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}


def gguf_name(name: str) -> str:
    """A tensor's name in GGUF, from that in Hugging Face's."""
    ours = {theirs: ours for ours, theirs in GEMMA3_LAYER.items()}
    parts = name.removesuffix(".weight").split(".")
    if parts[1] != "layers":
        return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[1]]
    return f"blk.{parts[2]}.{ours['.'.join(parts[3:])]}.weight"


def write(to: Path, original: Path, **changed: Any) -> None:
    """The model in `original` as GGUF has it: norms from 0 and not from 1."""
    writer = gguf.GGUFWriter(to, "gemma3")
    for key, value in (FIELDS | {key.replace("__", "."): value for key, value in changed.items()}).items():
        if value is not None:
            getattr(writer, ADD[type(value)])(key, value)
    for name, tensor in load_file(original / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), (tensor.float() + name.endswith("norm.weight")).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original")
    write_random_model(path, SHAPE)
    return path


@pytest.fixture(scope="module")
def converted(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted")
    write(path / "tiny.gguf", original)
    convert(path / "tiny.gguf", path)
    return path


def test_every_tensor_comes_back_to_the_bit(original: Path, converted: Path) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (original, converted))
    assert before.keys() == after.keys()
    for name in before:
        # GGUF has 1 + weight, in which the last bits of the smallest weights are lost; they count for nothing there.
        off = 1 if name.endswith("norm.weight") else 0
        assert torch.equal(before[name].float() + off, after[name].float() + off)


def test_the_config_describes_the_model(converted: Path) -> None:
    assert read_shape(converted) == SHAPE
    config = json.loads((converted / "config.json").read_bytes())
    assert (config["architectures"], config["eos_token_id"]) == (["Gemma3ForCausalLM"], 1)


def test_the_best_scored_neighbours_are_joined_first(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert tokenizer.encode("the in at").tokens == ["<bos>", "▁t"[1:], "he", "▁", "in", "▁a", "t"]
    assert tokenizer.encode(" the inner", add_special_tokens=False).tokens == ["▁the", "▁", "in", "n", "er"]


def test_runs_of_spaces_and_lines_are_found_before_anything_is_joined(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    ids = tokenizer.encode("a   the\n\n\n  a", add_special_tokens=False).ids
    assert [TOKENS[id] for id in ids] == ["a", "   ", "t", "he", "\n\n", "\n", "  ", "a"]


def test_any_text_survives_there_and_back(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    text = "".join(map(chr, range(1, 0x250))) + "日本 😀 \r\n\t don't   12 ½"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer__ggml__add_space_prefix": True}, "add_space_prefix: only False can be converted, got True"),
        ({"tokenizer__ggml__unknown_token_id": None}, "unknown_token_id: must be there"),
        ({"tokenizer__ggml__scores": None}, "scores: must be a list"),
        ({"gemma3__attention__sliding_window": None}, "gemma3.attention.sliding_window: must be one whole number"),
        ({"gemma3__rope__scaling__type": "linear"}, "gemma3.rope.scaling.type: only 'none'"),
    ],
)
def test_what_has_no_exact_form_is_refused_by_name(
    original: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    write(tmp_path / "tiny.gguf", original, **changed)
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "tiny.gguf", tmp_path)
