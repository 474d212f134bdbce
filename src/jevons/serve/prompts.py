"""The models served here, and prompts turned into their tokens."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from jevons.base.errors import EngineError, RequestError
from jevons.engine.openai import OpenAIEngine
from jevons.serve.openai import ChatRequest, CompletionRequest
from jevons.serve.tokenizer import Tokenizer

REMOTE_TIMEOUT_S = 5.0
REMOTE_PROMPTS = 64  # of one request; one that has more waits for no more round trips
NO_MODEL = "model_not_found"  # OpenAI's code for it
PARTS_BYTES = 16 << 10  # what a message of several parts counts for; they are not looked at

_ENDS = ("add_generation_prompt", "continue_final_message")
# What a chat's prompt is made of, by the names that vLLM's /tokenize has for it.
_WRITTEN_BY = ("messages", "tools", "chat_template", "chat_template_kwargs", *_ENDS)

if TYPE_CHECKING:
    _Array = array[int]
else:
    _Array = array


class PseudoTokens(_Array):
    """A prompt cut into bytes: good enough to recognise a shared prefix, not to count, and nothing an engine reads."""


Encode = Callable[[ChatRequest | CompletionRequest], Awaitable[list[Sequence[int]]]]
EncodeRest = Callable[[str], Sequence[int] | None]


class Served(msgspec.Struct, frozen=True):
    """One model under the name clients ask for.

    `context_tokens` None: the engine has not told, and checks itself. `exact_tokens` False: prompts are cut into
    pseudo-tokens, good enough to recognise a shared prefix, not to count. `source`: where its tokenizer was read from.
    `alias_of`: the model that this is another name of.
    """

    name: str
    encode: Encode
    context_tokens: int | None
    exact_tokens: bool = True
    encode_rest: EncodeRest | None = None  # text in the middle of an answer → its tokens; None: not known here
    source: str = ""
    alias_of: str = ""


class Prompts:
    """Looks up a request's model and turns its prompts into token ids."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}

    def serve(self, served: Served) -> None:
        self._served[served.name] = served

    def served(self, name: str) -> Served | None:
        return self._served.get(name)

    def serve_adapters(self, model: str, names: Collection[str]) -> None:
        """These are adapters of a model that is served: its tokenizer is theirs."""
        for name in names:
            self._served[name] = msgspec.structs.replace(self._served[model], name=name)

    def serve_aliases(self, model: str, names: Collection[str]) -> None:
        """These are other names of a model that is served; a model that is called so itself goes before."""
        for name in names:
            if name not in self._served or self._served[name].alias_of:
                self._served[name] = msgspec.structs.replace(self._served[model], name=name, alias_of=model)

    def model_of(self, name: str) -> str:
        """What its workers call the model that is asked for by this name."""
        served = self._served.get(name)
        return name if served is None else served.alias_of or name

    def limit(self, name: str, context_tokens: int) -> None:
        """A worker that serves this model holds no longer sequences."""
        served = self._served.get(name)
        if served is not None and (served.context_tokens is None or served.context_tokens > context_tokens):
            self._served[name] = msgspec.structs.replace(served, context_tokens=context_tokens)

    def models(self) -> dict[str, int]:
        """Name → context tokens, 0 where unknown."""
        return {name: served.context_tokens or 0 for name, served in self._served.items()}

    def encoders(self) -> dict[str, Tokenizer]:
        """Model → its tokenizer, where that is ours."""
        served = self._served.items()
        return {name: one.encode.tokenizer for name, one in served if isinstance(one.encode, LocalEncoder)}

    def context_tokens(self, model: str) -> int | None:
        return self._served[model].context_tokens

    def encode_rest(self, model: str, text: str) -> Sequence[int] | None:
        """The tokens of text in the middle of an answer; None where they are not known here."""
        encode = self._served[model].encode_rest
        return None if encode is None else encode(text)

    async def encode(self, asked: ChatRequest | CompletionRequest) -> list[Sequence[int]]:
        """Every prompt of the request as token ids, at least one each.

        Raises:
            RequestError: unknown model, a prompt that is empty, or too long for the context.
        """
        served = self._of(asked.model)
        return _fitting(served, asked, await served.encode(asked))

    def encode_now(self, asked: ChatRequest | CompletionRequest) -> list[Sequence[int]] | None:
        """As `encode`, where it takes no longer than everybody else may wait; else None."""
        served = self._of(asked.model)
        if not isinstance(served.encode, LocalEncoder):
            return None
        prompts = served.encode.now(asked)
        return None if prompts is None else _fitting(served, asked, prompts)

    def _of(self, model: str) -> Served:
        served = self._served.get(model)
        if served is None:
            names = ", ".join(sorted(self._served)) or "none yet"
            raise RequestError(f"model: {model!r} is not served here; there is {names}", "model", 404, NO_MODEL)
        return served


class LocalEncoder:
    """Prompts by our own tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    async def __call__(self, asked: ChatRequest | CompletionRequest) -> list[Sequence[int]]:
        found = self.now(asked)
        return await asyncio.to_thread(self._encode, asked) if found is None else found

    def now(self, asked: ChatRequest | CompletionRequest) -> list[Sequence[int]] | None:
        """None: it is long, and better done beside the event loop."""
        return None if _size(asked) > self.tokenizer.inline_bytes else self._encode(asked)

    def _encode(self, asked: ChatRequest | CompletionRequest) -> list[Sequence[int]]:
        return [self._chat(asked)] if isinstance(asked, ChatRequest) else self._text(asked)

    def _chat(self, asked: ChatRequest) -> Sequence[int]:
        kwargs = asked.chat_template_kwargs or {}
        taken = sorted(kwargs.keys() & {"tools", "add_generation_prompt"})
        if taken:
            field = f"chat_template_kwargs.{taken[0]}"
            raise RequestError(f"{field}: is a field of the request itself, give it there", field)
        return self.tokenizer.encode_chat(
            asked.messages, tools=asked.tools, add_generation_prompt=asked.add_generation_prompt, **kwargs
        )

    def _text(self, asked: CompletionRequest) -> list[Sequence[int]]:
        encode, vocab = self.tokenizer.encode, self.tokenizer.vocab
        return [encode(p) if isinstance(p, str) else _checked(p, vocab) for p in asked.prompts]


class AttachedEncoder(LocalEncoder):
    """Prompts by our own tokenizer, for an engine that has the same.

    What cannot be written here (images, a template that only the engine has) becomes pseudo-tokens: whether it can be
    answered is for the engine to say.
    """

    def _chat(self, asked: ChatRequest) -> Sequence[int]:
        try:
            return super()._chat(asked)
        except RequestError:
            return _pseudo_chat(asked)


def attached_encoder(tokenizer: Tokenizer) -> Encode:
    """Prompts by our own tokenizer, as far as it can."""
    return AttachedEncoder(tokenizer)


def local_encoder(tokenizer: Tokenizer) -> Encode:
    """Prompts by our own tokenizer."""
    return LocalEncoder(tokenizer)


def remote_encoder(engine: OpenAIEngine) -> Encode:
    """Prompts by the engine's own /tokenize: exact, a round trip each. Where that fails, pseudo-tokens."""

    async def tokens_of(model: str, fields: dict[str, Any]) -> Sequence[int] | None:
        try:
            return await engine.tokenize({"model": model, **fields}, REMOTE_TIMEOUT_S) or None
        except (EngineError, TimeoutError):
            return None

    async def encode(asked: ChatRequest | CompletionRequest) -> list[Sequence[int]]:
        if isinstance(asked, ChatRequest):
            told = {name: getattr(asked, name) for name in _WRITTEN_BY}
            fields = {name: value for name, value in told.items() if value is not None}
            return [await tokens_of(asked.model, fields) or _pseudo_chat(asked)]
        found: list[Sequence[int]] = []
        for number, prompt in enumerate(asked.prompts):
            if isinstance(prompt, list):
                found.append(prompt)
                continue
            known = await tokens_of(asked.model, {"prompt": prompt}) if number < REMOTE_PROMPTS else None
            found.append(known or _pseudo_text(prompt))
        return found

    return encode


def pseudo_encoder() -> Encode:
    """For engines that have no tokenizer we can use: a prompt's bytes, four to a pseudo-token. Token ids stay."""

    async def encode(asked: ChatRequest | CompletionRequest) -> list[Sequence[int]]:
        if isinstance(asked, ChatRequest):
            return [_pseudo_chat(asked)]
        return [prompt if isinstance(prompt, list) else _pseudo_text(prompt) for prompt in asked.prompts]

    return encode


def _pseudo_text(prompt: object) -> PseudoTokens:
    return pseudo_tokens(msgspec.json.encode(prompt))


def _pseudo_chat(asked: ChatRequest) -> PseudoTokens:
    """Tools first: templates write them at the prompt's beginning, so with others nothing of it is the same."""
    return pseudo_tokens(msgspec.json.encode([*(asked.tools or ()), *map(_short, asked.messages)]))


def pseudo_tokens(raw: bytes) -> PseudoTokens:
    """Four bytes a token: equal prefixes give equal tokens, and English comes to about as many as real ones."""
    return PseudoTokens("I", raw.ljust(-(-len(raw) // 4) * 4, b"\0"))


def _short(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message, with digests of the parts that are no text: an image takes megabytes."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = [isinstance(part, dict) and part.get("type") == "text" for part in content]
    parts = [part if is_text else _digest(part) for part, is_text in zip(content, texts, strict=True)]
    return {**message, "content": parts}


def _digest(part: object) -> str:
    return blake2b(msgspec.json.encode(part), digest_size=16).hexdigest()


def _fitting(
    served: Served, asked: ChatRequest | CompletionRequest, prompts: list[Sequence[int]]
) -> list[Sequence[int]]:
    field = "messages" if isinstance(asked, ChatRequest) else "prompt"
    for prompt in prompts:
        if not prompt:
            raise RequestError(f"{field}: must come to at least one token, got none", field)
        is_exact = served.exact_tokens and not isinstance(prompt, PseudoTokens)
        if served.context_tokens is not None and is_exact:
            _check_length(field, len(prompt), asked.output_limit, served.context_tokens)
    return prompts


def _size(asked: ChatRequest | CompletionRequest) -> int:
    if isinstance(asked, CompletionRequest):
        return sum(len(p) for p in asked.prompts)
    return sum(len(text) if isinstance(text := m.get("content"), str) else PARTS_BYTES for m in asked.messages)


def _checked(ids: list[int], vocab: int) -> list[int]:
    worst = max(ids)
    if worst >= vocab:
        raise RequestError(f"prompt: token ids must be below {vocab}, this model's vocabulary, got {worst}", "prompt")
    return ids


def _check_length(field: str, prompt: int, output: int | None, context: int) -> None:
    code = "context_length_exceeded"
    if prompt >= context:
        raise RequestError(
            f"{field}: must leave room for an answer: it comes to {prompt} tokens, the context is {context} tokens",
            field,
            code=code,
        )
    if output is not None and prompt + output > context:
        raise RequestError(
            f"max_tokens: prompt and answer must fit the context of {context} tokens, got {prompt} + {output}",
            "max_tokens",
            code=code,
        )
