"""Small models with weights by chance, for vLLM: what they say means nothing, what they keep in their caches is real.

    .vllm/bin/python tests/vllm/small_models.py KIND TOKENIZER OUT      KIND: full, windows

Made by the interpreter that vLLM has, whose transformers knows the architectures.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import (  # type: ignore[import-not-found]
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

SIZES = {
    "vocab_size": 49_152,  # of the tokenizer
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4_096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
WINDOW_TOKENS = 97  # with the next token, 96 before it: three blocks of 32, to the token
LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]


def make(kind: str, tokenizer: Path, out: Path) -> None:
    torch.manual_seed(0)
    if kind == "full":
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SIZES))
    else:
        windows = {"layer_types": LAYERS, "num_hidden_layers": len(LAYERS), "sliding_window": WINDOW_TOKENS}
        model = Gemma3ForCausalLM(Gemma3TextConfig(query_pre_attn_scalar=32, **windows, **SIZES))
    model.to(torch.float32).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tokenizer / name, out / name)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("full", "windows"):
        sys.exit("usage: small_models.py full|windows TOKENIZER OUT")
    make(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
