"""A GGUF file's vocabulary, byte-level BPE or SentencePiece's, as tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from jevons.base.errors import ModelError

# Values of `tokenizer.ggml.token_type` (llama.cpp, include/llama.h, enum llama_token_type).
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# Splits of Llama 3 and Qwen 2, from their published tokenizer.json; they differ in how digits are grouped.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


class Recipe(NamedTuple):
    """What `tokenizer.ggml.pre` stands for."""

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    ignore_merges: bool = False  # a word that is a token needs no merges
    adds_bos: bool = False  # where the file does not say
    nfc: bool = False


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    isolated = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([isolated, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits_then_gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()])


def gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


RECIPES = {
    "gpt-2": Recipe(gpt2),
    "llama-bpe": Recipe(lambda: split_by(LLAMA3_SPLIT), ignore_merges=True, adds_bos=True),
    "qwen2": Recipe(lambda: split_by(QWEN2_SPLIT), nfc=True),
    "smollm": Recipe(digits_then_gpt2),
}


def write_tokenizer(fields: dict[str, Any], vocab: int, context_tokens: int, out_dir: Path) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        fields: the GGUF file's metadata.
        vocab: rows of the embedding; every token's id must be below.
        context_tokens: the longest sequence the model was made for.

    Returns:
        The ids that config.json names: `bos_token_id`, `eos_token_id`, `pad_token_id`, those the file has.

    Raises:
        ModelError: the vocabulary is of another kind or an unknown split, or inconsistent.
    """
    tokens = listed(fields, "tokens")
    if len(tokens) > vocab or len(set(tokens)) < len(tokens):
        raise ModelError(f"tokenizer.ggml.tokens: must be at most {vocab} distinct tokens, got {len(tokens)}")
    ids = special_ids(fields, len(tokens))
    tokenizer, adds_bos = read_tokenizer(fields, tokens)
    adds_bos = bool(fields.get("tokenizer.ggml.add_bos_token", adds_bos)) and "bos" in ids
    if adds_bos:
        bos = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, ids["bos"])])
    tokenizer.save(str(out_dir / "tokenizer.json"))
    settings = {
        "add_bos_token": adds_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{kind}_token": tokens[id] for kind, id in ids.items()},
    }
    template = fields.get("tokenizer.chat_template")
    if template:
        settings["chat_template"] = template
    (out_dir / "tokenizer_config.json").write_bytes(msgspec.json.format(msgspec.json.encode(settings)) + b"\n")
    return {f"{kind}_token_id": id for kind, id in ids.items() if kind != "unk"}


def read_tokenizer(fields: dict[str, Any], tokens: list[str]) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether it adds an opening token where the file does not say."""
    kind, types = fields.get("tokenizer.ggml.model"), listed(fields, "token_type")
    if kind == "gpt2":
        recipe = recipe_of(fields)
        tokenizer = byte_level_bpe(recipe, tokens, listed(fields, "merges"))
        add_special(tokenizer, tokens, types)
        return tokenizer, recipe.adds_bos
    if kind == "llama":
        tokenizer = sentencepiece_bpe(fields, tokens, types)
        add_special(tokenizer, tokens, types, normalized=True)
        return tokenizer, True
    raise ModelError(f"tokenizer.ggml.model: must be 'gpt2' (byte-level BPE) or 'llama' (SentencePiece), got {kind!r}")


def recipe_of(fields: dict[str, Any]) -> Recipe:
    pre = fields.get("tokenizer.ggml.pre")
    if pre not in RECIPES:
        raise ModelError(f"tokenizer.ggml.pre: must be one of {', '.join(RECIPES)}, got {pre!r}")
    return RECIPES[pre]


def listed(fields: dict[str, Any], key: str) -> list[Any]:
    value = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise ModelError(f"tokenizer.ggml.{key}: must be a list, got {value!r}")
    return value


def special_ids(fields: dict[str, Any], tokens: int) -> dict[str, int]:
    keys = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
    ids = {kind: fields[f"tokenizer.ggml.{key}"] for kind, key in keys.items() if f"tokenizer.ggml.{key}" in fields}
    for kind, id in ids.items():
        if not 0 <= id < tokens:
            raise ModelError(f"tokenizer.ggml.{keys[kind]}: must be below {tokens}, the tokens there are, got {id}")
    return ids


def byte_level_bpe(recipe: Recipe, tokens: list[str], merges: list[str]) -> Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        model = BPE({token: id for id, token in enumerate(tokens)}, pairs, ignore_merges=recipe.ignore_merges)
    except Exception as broken:  # tokenizers raises bare Exception; the message names the merge
        raise ModelError(f"tokenizer.ggml.merges: {broken}; the file is damaged, fetch it again") from broken
    tokenizer = Tokenizer(model)
    if recipe.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = recipe.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_bpe(fields: dict[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE as Gemma has it: spaces are "▁", unknown characters their bytes, nothing is cut before."""
    if fields.get("tokenizer.ggml.add_space_prefix") is not False:
        got = fields.get("tokenizer.ggml.add_space_prefix")
        raise ModelError(f"tokenizer.ggml.add_space_prefix: only False can be converted, got {got!r}")
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    if unknown is None:
        raise ModelError("tokenizer.ggml.unknown_token_id: must be there; the file is damaged, fetch it again")
    vocab = {token: id for id, token in enumerate(tokens)}
    pairs = merges_by_score(vocab, listed(fields, "scores"), types)
    tokenizer = Tokenizer(BPE(vocab, pairs, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def merges_by_score(vocab: dict[str, int], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Merges that do what SentencePiece does: of all neighbours that are a token together, join the best scored first.

    Every way to cut a token in two tokens is a merge; costs 2 s for 262,144 tokens.
    """
    normal = {token for token, id in vocab.items() if types[id] == NORMAL}
    pairs: list[tuple[str, str]] = []
    for token in sorted(normal, key=lambda token: (-scores[vocab[token]], vocab[token])):
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs += sorted(
            (pair for pair in cuts if pair[0] in normal and pair[1] in normal),
            key=lambda pair: (vocab[pair[0]], vocab[pair[1]]),
        )
    return pairs


def add_special(tokenizer: Tokenizer, tokens: list[str], types: list[int], normalized: bool = False) -> None:
    """Control tokens are found whole in any text and hidden when decoding; user-defined ones are found but shown.

    `normalized`: user-defined ones are written as they stand in normalized text, and looked for there.
    """
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    shown = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=normalized, special=False) for token in shown])
