"""From one GGUF file of the Llama family or of Gemma 3 to a Hugging Face directory, without torch.

Weights are dequantised, rounded to bfloat16 and written a slice of rows at a time, so memory stays small whatever the
model's size. What cannot be carried over exactly (stretched rotary frequencies, experts, biases, an unknown
pre-tokenizer) is refused by name: a model that is only nearly right is worse than none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from jevons.base.errors import ModelError
from jevons.engine.ggufmodel import GgufModel, config, expected_shapes, hf_name, read_model
from jevons.engine.ggufvocab import write_tokenizer

# Elements dequantised at once: 4 M floats are 16 MB, and about four such arrays are alive in `round_bf16`.
SLICE_ELEMENTS = 4 << 20


def convert(gguf_path: Path, out_dir: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `gguf_path` as config.json, model.safetensors (bfloat16), tokenizer.json and their companions.

    Costs about 3 s for 135 M parameters on one core, and 200 MB of memory besides the mapped file.

    Args:
        gguf_path: a GGUF file of architecture `llama` or `gemma3`, with a byte-level BPE or a SentencePiece vocabulary.
        out_dir: an existing directory; files of the same names are overwritten.
        progress: called with (bytes written, bytes in all) of model.safetensors.

    Raises:
        ModelError: the file is broken, or holds something that has no exact Hugging Face form.
        OSError: `out_dir` cannot be written.
    """
    fields, tensors = read(gguf_path)
    shape = read_model(fields)
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


def is_tied(tensors: dict[str, Any]) -> bool:
    """Whether the output matrix is the embedding: absent, or the same bytes."""
    output, embedding = tensors.get("output.weight"), tensors.get("token_embd.weight")
    if output is None or embedding is None:
        return output is None
    return bool(output.tensor_type == embedding.tensor_type and np.array_equal(output.data, embedding.data))


def check_tensors(tensors: dict[str, Any], shape: GgufModel, tied: bool) -> None:
    """Every tensor of the model is there and in its size, and nothing else is."""
    wanted = expected_shapes(shape, int(tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in tensors else 0)
    if tied:
        del wanted["output.weight"]
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise ModelError(
            f"tensors: must be those of a plain {shape.architecture}; missing {missing[:5]}, unknown {extra[:5]}"
        )
    for name, rows_columns in wanted.items():
        if hf_shape(tensors[name]) != rows_columns:
            raise ModelError(f"{name}: must have shape {rows_columns}, got {hf_shape(tensors[name])}")


def hf_shape(tensor: Any) -> list[int]:
    """GGUF counts dimensions from the innermost, Hugging Face from the outermost."""
    return [int(n) for n in reversed(tensor.shape)]


def write_safetensors(
    path: Path, tensors: dict[str, Any], shape: GgufModel, progress: Callable[[int, int], None] | None
) -> None:
    """One safetensors file: header length (u64), JSON header, then the tensors' bytes back to back.

    Written by hand because `safetensors` wants all tensors in memory at once. Format:
    https://github.com/huggingface/safetensors#format
    """
    header, total = layout(tensors, shape)
    done = 0
    with path.open("wb") as file:
        write_header(file, header)
        for name, tensor in tensors.items():
            off = 1.0 if shape.norms_from_one and name.endswith("norm.weight") else 0.0
            for part in bf16_slices(tensor, row_order(name, tensor, shape), off):
                done += file.write(part.tobytes())
                if progress:
                    progress(done, total)
    assert done == total, f"wrote {done} bytes of tensors where the header promises {total}"


def layout(tensors: dict[str, Any], shape: GgufModel) -> tuple[dict[str, Any], int]:
    """Where each tensor will lie: the header, and the bytes of all tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * int(tensor.n_elements)
        header[hf_name(shape, name)] = {"dtype": "BF16", "shape": hf_shape(tensor), "data_offsets": [start, end]}
    return header, end


def write_header(file: IO[bytes], header: dict[str, Any]) -> None:
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)  # tensors start on 8 bytes, as the format asks
    file.write(len(text).to_bytes(8, "little") + text)


def row_order(name: str, tensor: Any, shape: GgufModel) -> npt.NDArray[np.intp] | None:
    """The rows of a query or key matrix in Hugging Face's order; None where the order is the same.

    llama.cpp rotates neighbouring pairs (0, 1), (2, 3), ...; Hugging Face rotates (0, d/2), (1, d/2 + 1), ... So the
    converter to GGUF interleaved the two halves of each head (`permute` in convert_hf_to_gguf.py); this takes it back.
    """
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None or not shape.rotates_pairs:
        return None
    rows = np.arange(hf_shape(tensor)[0])
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def bf16_slices(tensor: Any, order: npt.NDArray[np.intp] | None, off: float) -> Iterator[npt.NDArray[np.uint16]]:
    """The tensor less `off` as bfloat16 bits, a slice of rows at a time; rows quantise each on their own, so may be
    reordered first.
    """
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
        yield round_bf16(floats - np.float32(off) if off else floats)


def round_bf16(floats: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Finite float32 → bits of the nearest bfloat16, ties to even: add just under half, plus the last bit kept."""
    bits = np.ascontiguousarray(floats, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
