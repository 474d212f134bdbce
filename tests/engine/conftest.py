"""A tiny Llama as a GGUF file: 2 layers, every byte a token, a few merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from tokenizers import pre_tokenizers

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 2, 64, 96, 4, 2, 16
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "12 3"]
TOKENS = [
    *SPECIAL,
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
    "[tool]",
]
TYPES = [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL) - 1) + [4]
KINDS = {
    "token_embd": "Q8_0",
    "attn_q": "Q4_1",
    "attn_k": "Q8_0",
    "attn_v": "BF16",
    "ffn_up": "F16",
    "ffn_gate": "Q4_0",
}

WriteGguf = Callable[..., Path]


def tensors() -> dict[str, Any]:
    """The weights in GGUF's names and row order, float32."""
    draw = np.random.default_rng(7)
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INTERMEDIATE, HIDDEN),
        "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    return {f"{name}.weight": draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def settings() -> dict[str, Any]:
    return {
        "llama.block_count": LAYERS,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INTERMEDIATE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.context_length": 512,
        "llama.rope.freq_base": 50_000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    }


def kind_of(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[KINDS.get(name.split(".")[-2], "F32")]


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    getattr(writer, kinds[type(value)])(key, value)


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """Writes the tiny model; settings and tensors given are changed, those given as None left out."""

    def write(
        changed: dict[str, Any] | None = None, *, weights: dict[str, Any] | None = None, arch: str = "llama"
    ) -> Path:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, arch)
        for key, value in (settings() | (changed or {})).items():
            if value is not None:
                add(writer, key, value)
        for name, value in (tensors() | (weights or {})).items():
            if value is not None:
                kind = kind_of(name) if name in tensors() else gguf.GGMLQuantizationType.F32
                writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def tiny_tensors() -> dict[str, Any]:
    return tensors()


@pytest.fixture
def kinds() -> dict[str, int]:
    """How each kind of tensor is quantised."""
    return {name.removesuffix(".weight").split(".")[-1]: kind_of(name) for name in tensors()}
