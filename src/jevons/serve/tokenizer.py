"""Text to tokens and back on the request path, without torch or transformers.

The results are those of the model's Hugging Face tokenizer, to the id and to the character. Only single texts are
encoded here, which `tokenizers` does on the calling thread: its thread pool never starts, so forking later is safe and
`TOKENIZERS_PARALLELISM` needs no setting.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from jevons.base.errors import ModelError, RequestError
from jevons.serve.chat import ChatTemplate, template_sources
from jevons.serve.fast import Fast
from jevons.serve.forms import ByteLevelForm, FallbackForm, FallbackText, Utf8Text, text_form

# Above this a prompt is tokenized beside the event loop, for everybody's streams would wait for it: 5 ms, whether
# Hugging Face's tokenizers does it or fastokens.
INLINE_BYTES, FAST_INLINE_BYTES = 16 << 10, 128 << 10


class Tokenizer:
    """One model's tokenizer.

    Costs about 0.2 s and 15 MB for 49,152 tokens.

    Attributes:
        vocab: how many tokens there are, special ones included.
        encoder: what encodes now, and why where that is the slow one.
        eos_ids: the tokens that end an answer.
        context_tokens: the longest sequence the model was made for; None if its config.json does not say.

    Raises:
        ModelError: a file is missing or broken, or of a kind that cannot be decoded piece by piece.
    """

    def __init__(self, model_dir: Path) -> None:
        spec = read_text(model_dir / "tokenizer.json")
        settings = read_json(model_dir / "tokenizer_config.json")
        config = read_json(model_dir / "config.json")
        self._hf = load(spec, model_dir)
        tokens = special_tokens(settings)
        add_as_told(self._hf, settings, tokens)
        self._chat = ChatTemplate(template_sources(model_dir, settings), tokens)
        self.vocab: int = self._hf.get_vocab_size(with_added_tokens=True)
        self.eos_ids = eos_ids(self._hf, tokens, read_json(model_dir / "generation_config.json") or config)
        self.context_tokens: int | None = config.get("max_position_embeddings")
        self._form = text_form(json.loads(spec).get("decoder"), model_dir)
        self.pieces, self._special = split_pieces(self._hf, self._form)
        self._fast: Fast | None = None
        self.encoder = "tokenizers: fastokens is not proven yet"
        self.mismatches = 0  # texts that fastokens was found to encode otherwise, while it was used

    def hasten(self) -> str:
        """Encode by fastokens from now on, if it is there and proves to give the same. Takes a second; for a thread.

        Returns:
            what encodes now, and why where it is not that.
        """
        try:
            self._fast = Fast(self._hf)
            self.encoder = "fastokens"
        except (ImportError, ValueError) as error:
            self.encoder = f"tokenizers: {error}"
        return self.encoder

    @property
    def inline_bytes(self) -> int:
        """Longer prompts are better encoded beside the event loop."""
        return INLINE_BYTES if self._fast is None else FAST_INLINE_BYTES

    def encode(self, text: str, *, special: bool = True) -> array[int]:
        """The tokens of a plain prompt, with the model's opening token if it uses one and `special` is true.

        Special tokens written out in `text` are recognised, as Hugging Face and vLLM do.

        Raises:
            RequestError: `text` holds half of a surrogate pair, which is no character.
        """
        return self._ids(text, special, "prompt")

    def encode_rest(self, text: str) -> array[int] | None:
        """The tokens of text in the middle of an answer; None where the model's tokens know no middle.

        SentencePiece puts a space before whatever it is given.
        """
        return self._ids(text, False, "answer") if isinstance(self._form, ByteLevelForm) else None

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt's text for a chat; arguments and errors as `ChatTemplate.render`."""
        return self._chat.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> array[int]:
        """The prompt's tokens for a chat; the template wrote the special tokens already, so none is added."""
        text = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)
        return self._ids(text, False, "messages")

    def decode(self, ids: Sequence[int]) -> str:
        """The whole text of `ids`, special tokens left out."""
        return self._hf.decode(ids, skip_special_tokens=True)

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for; a special token's are its name; b"" if there is no such token."""
        piece = self.pieces.get(id, self._special.get(id, b""))
        return piece if isinstance(piece, bytes) else piece.encode()

    def token_text(self, id: int) -> str:
        """One token as text, U+FFFD where it is only a part of a character."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def text(self) -> Utf8Text | FallbackText:
        """A fresh, empty text of this tokenizer's form; see `Detokenizer`."""
        return self._form.fresh()

    def _ids(self, text: str, special: bool, param: str) -> array[int]:
        if self._fast is not None:
            try:
                ids = self._fast.encode(text, special)
                if ids is not None:
                    return ids
                self._fast = None
                self.encoder = "tokenizers: fastokens encoded a prompt otherwise"
                self.mismatches += 1
            except (TypeError, ValueError):
                pass  # what it cannot take, the other one says why
        try:
            return array("I", self._hf.encode(text, add_special_tokens=special).ids)
        except TypeError as no_text:  # what tokenizers raises for a str that has no UTF-8 form
            raise RequestError(f"{param}: holds half of a surrogate pair, which is no character", param) from no_text


class Detokenizer:
    """The text of one output sequence, as its tokens come.

    All `push` results and the `flush` together equal `Tokenizer.decode` of all ids. Each token costs the same, however
    many came before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._text = tokenizer.text()

    def push(self, ids: Sequence[int]) -> str:
        """The text that is certain now: bytes that a later token may complete to a character wait."""
        pieces = self._pieces
        return self._text.add([pieces[id] for id in ids if id in pieces])

    def flush(self) -> str:
        """What still waited, U+FFFD for what stayed incomplete; nothing may be pushed after it."""
        return self._text.end()


class StopFinder:
    """Finds the first place where one of the stop strings is complete, however the text is cut into pieces.

    Each stop string has a Knuth-Morris-Pratt automaton, so a character costs the same whatever the client sent.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [Automaton(stop) for stop in stops]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to send, and whether a stop string is complete: it and what follows it is never sent."""
        if self._stopped:
            return "", True
        if not self._stops:
            return text, False
        waiting = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            found = max(stop.step(character) for stop in self._stops)
            if found:
                self._stopped, self._held = True, ""
                return waiting[: end - found], True
        safe = len(waiting) - max(stop.matched for stop in self._stops)
        self._held = waiting[safe:]
        return waiting[:safe], False

    def flush(self) -> str:
        """What was held back, when the output ended without a stop string."""
        held, self._held = self._held, ""
        return held


class Automaton:
    """How much of one stop string the text so far ends with."""

    def __init__(self, stop: str) -> None:
        if not stop:
            raise RequestError("stop: must be a string of at least 1 character, got ''", param="stop")
        self._stop = stop
        self._borders = borders(stop)
        self.matched = 0

    def step(self, character: str) -> int:
        """The stop string's length if `character` completes it, else 0."""
        while self.matched and self._stop[self.matched] != character:
            self.matched = self._borders[self.matched - 1]
        self.matched += self._stop[self.matched] == character
        return self.matched if self.matched == len(self._stop) else 0


def borders(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that is also its suffix."""
    lengths = [0]
    for character in pattern[1:]:
        length = lengths[-1]
        while length and pattern[length] != character:
            length = lengths[length - 1]
        lengths.append(length + (pattern[length] == character))
    return lengths


def split_pieces(
    hf: tokenizers.Tokenizer, form: ByteLevelForm | FallbackForm
) -> tuple[dict[int, bytes | str], dict[int, bytes | str]]:
    """What each token adds to the text, by id; and apart the special tokens, which add nothing."""
    hidden = {id for id, token in hf.get_added_tokens_decoder().items() if token.special}
    pieces: dict[int, bytes | str] = {}
    special: dict[int, bytes | str] = {}
    for token, id in hf.get_vocab(with_added_tokens=True).items():
        if id in hidden:
            special[id] = token.encode()
        else:
            pieces[id] = form.piece(token)
    return pieces, special


def load(spec: str, model_dir: Path) -> tokenizers.Tokenizer:
    try:
        hf: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(spec)
    except Exception as broken:  # tokenizers raises bare Exception; the message names the place
        raise ModelError(f"{model_dir / 'tokenizer.json'}: {broken}; fetch the model again") from broken
    hf.no_truncation()  # some models carry the settings of their training
    hf.no_padding()
    return hf


def add_as_told(hf: tokenizers.Tokenizer, settings: dict[str, Any], tokens: dict[str, str]) -> None:
    """`add_bos_token` and `add_eos_token`, where the settings have either, overrule tokenizer.json.

    So does transformers 5 (TokenizersBackend.update_post_processor).
    """
    if not settings.keys() & {"add_bos_token", "add_eos_token"}:
        return
    bos = tokens.get("bos_token") if settings.get("add_bos_token") else None
    eos = tokens.get("eos_token") if settings.get("add_eos_token") else None
    used = [(token, hf.token_to_id(token)) for token in (bos, eos) if token]
    if not used and hf.post_processor is None:
        return  # a template that adds nothing still costs 5 to 8 % of encoding
    hf.post_processor = processors.TemplateProcessing(
        single=[part for part in (bos, "$A", eos) if part], special_tokens=used
    )


def special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like; Hugging Face writes each as text or as {"content": text, …}."""
    found = {key: value for key, value in settings.items() if key.endswith("_token") and not key.startswith("add_")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def eos_ids(hf: tokenizers.Tokenizer, tokens: dict[str, str], generation: dict[str, Any]) -> frozenset[int]:
    """The tokenizer's own end token and those that generation_config.json (or config.json) names."""
    named = generation.get("eos_token_id")
    ids = set(named if isinstance(named, list) else [named])
    ids.add(hf.token_to_id(tokens.get("eos_token", "")))
    return frozenset(ids - {None})


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as unreadable:
        raise ModelError(f"{path}: cannot be read ({unreadable.strerror}); a model needs this file") from unreadable


def read_json(path: Path) -> dict[str, Any]:
    """A file of settings; {} where the model has none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except ValueError as broken:
        raise ModelError(f"{path}: not JSON ({broken}); fetch the model again") from broken
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must be a JSON object, got {type(value).__name__}")
    return value
