"""From one GGUF file of the Llama family to a Hugging Face directory, without torch.

Weights are dequantised, rounded to bfloat16 and written a slice of rows at a time, so memory stays small whatever the
model's size. What cannot be carried over exactly (stretched rotary frequencies, experts, biases, an unknown
pre-tokenizer) is refused by name: a model that is only nearly right is worse than none.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from jevons.base.errors import ModelError
from jevons.engine.ggufvocab import write_tokenizer

# Elements dequantised at once: 4 M floats are 16 MB, and about four such arrays are alive in `round_bf16`.
SLICE_ELEMENTS = 4 << 20

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"} | {
    f"blk.#.{ours}": f"model.layers.#.{theirs}" for ours, theirs in LAYER_TENSORS.items()
}


class LlamaShape(msgspec.Struct, frozen=True):
    """The numbers of a Llama model, as its GGUF header states them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    rope_theta: float
    norm_eps: float


def convert(gguf_path: Path, out_dir: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `gguf_path` as config.json, model.safetensors (bfloat16), tokenizer.json and their companions.

    Costs about 3 s for 135 M parameters on one core, and 200 MB of memory besides the mapped file.

    Args:
        gguf_path: a GGUF file of architecture `llama` with a byte-level BPE vocabulary.
        out_dir: an existing directory; files of the same names are overwritten.
        progress: called with (bytes written, bytes in all) of model.safetensors.

    Raises:
        ModelError: the file is broken, or holds something that has no exact Hugging Face form.
        OSError: `out_dir` cannot be written.
    """
    fields, tensors = read(gguf_path)
    shape = llama_shape(fields)
    tied = is_tied(tensors)
    if tied:
        tensors.pop("output.weight", None)
    check_tensors(tensors, shape, tied)
    vocab = int(tensors["token_embd.weight"].shape[1])
    write_safetensors(out_dir / "model.safetensors", tensors, shape, progress)
    special = write_tokenizer(fields, vocab, shape.context_tokens, out_dir)
    write_json(out_dir / "config.json", config(shape, vocab, tied) | special)
    write_json(out_dir / "generation_config.json", special)


def require_gguf() -> None:
    """Raises ModelError if the optional package that reads GGUF is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("converting a model needs the gguf package; install it: pip install 'jevons[engine]'")


def read(gguf_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's metadata as plain values, and its tensors (mapped, not loaded) by name."""
    require_gguf()
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf_path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        return fields, {tensor.name: tensor for tensor in reader.tensors}
    except (OSError, ValueError, IndexError, KeyError) as broken:
        raise ModelError(f"{gguf_path}: not a readable GGUF file ({broken}); fetch it again") from broken


def llama_shape(fields: dict[str, Any]) -> LlamaShape:
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"general.architecture: only 'llama' can be converted, got {architecture!r}")
    refuse_what_has_no_plain_form(fields)
    heads = count(fields, "attention.head_count")
    hidden = count(fields, "embedding_length")
    return LlamaShape(
        layers=count(fields, "block_count"),
        hidden=hidden,
        intermediate=count(fields, "feed_forward_length"),
        heads=heads,
        kv_heads=count(fields, "attention.head_count_kv", heads),
        head_dim=count(fields, "attention.key_length", hidden // heads),
        context_tokens=count(fields, "context_length"),
        rope_theta=real(fields, "rope.freq_base", 10_000.0),
        norm_eps=real(fields, "attention.layer_norm_rms_epsilon"),
    )


def refuse_what_has_no_plain_form(fields: dict[str, Any]) -> None:
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"llama.rope.scaling.type: only 'none' can be converted, got {scaling!r}")
    if fields.get("llama.expert_count", 0):
        raise ModelError(f"llama.expert_count: only dense models can be converted, got {fields['llama.expert_count']}")
    head_dim = fields.get("llama.attention.key_length")
    rotated = fields.get("llama.rope.dimension_count")
    if head_dim and rotated and head_dim != rotated:
        raise ModelError(f"llama.rope.dimension_count: must be the head size {head_dim}, got {rotated}")


def count(fields: dict[str, Any], key: str, default: int | None = None) -> int:
    value = fields.get(f"llama.{key}", default)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"llama.{key}: must be one whole number of at least 1, got {value!r}")
    return value


def real(fields: dict[str, Any], key: str, default: float | None = None) -> float:
    """GGUF keeps float32; its shortest decimal is what the model's author wrote (1e-05, not 9.999999747378752e-06)."""
    value = fields.get(f"llama.{key}", default)
    if not isinstance(value, float):
        raise ModelError(f"llama.{key}: must be a real number, got {value!r}")
    return float(str(np.float32(value)))


def is_tied(tensors: dict[str, Any]) -> bool:
    """Whether the output matrix is the embedding: absent, or the same bytes."""
    output, embedding = tensors.get("output.weight"), tensors.get("token_embd.weight")
    if output is None or embedding is None:
        return output is None
    return bool(output.tensor_type == embedding.tensor_type and np.array_equal(output.data, embedding.data))


def check_tensors(tensors: dict[str, Any], shape: LlamaShape, tied: bool) -> None:
    """Every tensor of the model is there and in its size, and nothing else is."""
    wanted = expected_shapes(shape, int(tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in tensors else 0)
    if tied:
        del wanted["output.weight"]
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise ModelError(f"tensors: must be those of a plain Llama; missing {missing[:5]}, unknown {extra[:5]}")
    for name, rows_columns in wanted.items():
        if hf_shape(tensors[name]) != rows_columns:
            raise ModelError(f"{name}: must have shape {rows_columns}, got {hf_shape(tensors[name])}")


def expected_shapes(shape: LlamaShape, vocab: int) -> dict[str, list[int]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = {
        "attn_norm": [shape.hidden],
        "attn_q": [queries, shape.hidden],
        "attn_k": [keys, shape.hidden],
        "attn_v": [keys, shape.hidden],
        "attn_output": [shape.hidden, queries],
        "ffn_norm": [shape.hidden],
        "ffn_gate": [shape.intermediate, shape.hidden],
        "ffn_up": [shape.intermediate, shape.hidden],
        "ffn_down": [shape.hidden, shape.intermediate],
    }
    ends = {"token_embd": [vocab, shape.hidden], "output_norm": [shape.hidden], "output": [vocab, shape.hidden]}
    blocks = {f"blk.{i}.{name}": dims for i in range(shape.layers) for name, dims in layer.items()}
    return {f"{name}.weight": dims for name, dims in (ends | blocks).items()}


def hf_shape(tensor: Any) -> list[int]:
    """GGUF counts dimensions from the innermost, Hugging Face from the outermost."""
    return [int(n) for n in reversed(tensor.shape)]


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    stem = name.removesuffix(".weight")
    layer = re.search(r"\d+", stem)
    if layer is None:
        return HF_NAMES[stem] + ".weight"
    return HF_NAMES[stem.replace(layer[0], "#", 1)].replace("#", layer[0], 1) + ".weight"


def write_safetensors(
    path: Path, tensors: dict[str, Any], shape: LlamaShape, progress: Callable[[int, int], None] | None
) -> None:
    """One safetensors file: header length (u64), JSON header, then the tensors' bytes back to back.

    Written by hand because `safetensors` wants all tensors in memory at once. Format:
    https://github.com/huggingface/safetensors#format
    """
    header, total = layout(tensors)
    done = 0
    with path.open("wb") as file:
        write_header(file, header)
        for name, tensor in tensors.items():
            for part in bf16_slices(tensor, row_order(name, tensor, shape)):
                done += file.write(part.tobytes())
                if progress:
                    progress(done, total)
    assert done == total, f"wrote {done} bytes of tensors where the header promises {total}"


def layout(tensors: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Where each tensor will lie: the header, and the bytes of all tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * int(tensor.n_elements)
        header[hf_name(name)] = {"dtype": "BF16", "shape": hf_shape(tensor), "data_offsets": [start, end]}
    return header, end


def write_header(file: IO[bytes], header: dict[str, Any]) -> None:
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)  # tensors start on 8 bytes, as the format asks
    file.write(len(text).to_bytes(8, "little") + text)


def row_order(name: str, tensor: Any, shape: LlamaShape) -> npt.NDArray[np.intp] | None:
    """The rows of a query or key matrix in Hugging Face's order; None where the order is the same.

    llama.cpp rotates neighbouring pairs (0, 1), (2, 3), ...; Hugging Face rotates (0, d/2), (1, d/2 + 1), ... So the
    converter to GGUF interleaved the two halves of each head (`permute` in convert_hf_to_gguf.py); this takes it back.
    """
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return None
    rows = np.arange(hf_shape(tensor)[0])
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def bf16_slices(tensor: Any, order: npt.NDArray[np.intp] | None) -> Iterator[npt.NDArray[np.uint16]]:
    """The tensor as bfloat16 bits, a slice of rows at a time; rows quantise on their own, so may be reordered first."""
    from gguf.quants import dequantize

    dims = hf_shape(tensor)
    step = max(1, SLICE_ELEMENTS // (tensor.n_elements // dims[0]))
    for start in range(0, dims[0], step):
        rows = slice(start, start + step) if order is None else order[start : start + step]
        try:
            floats = dequantize(tensor.data[rows], tensor.tensor_type)
        except NotImplementedError as unknown:
            raise ModelError(f"{tensor.name}: quantisation {tensor.tensor_type.name} is not known to gguf") from unknown
        if not np.isfinite(floats).all():
            raise ModelError(f"{tensor.name}: holds values that are not finite; the file is damaged, fetch it again")
        yield round_bf16(floats)


def round_bf16(floats: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Finite float32 → bits of the nearest bfloat16, ties to even: add just under half, plus the last bit kept."""
    bits = np.ascontiguousarray(floats, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")


def config(shape: LlamaShape, vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": shape.context_tokens,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
