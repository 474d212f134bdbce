"""A stream whose engine was lost goes on at another one: the client is sent the rest, and nothing twice.

    events sent so far ──▶ Said ──▶ the same request, its prompt all tokens so far ──▶ events in the form begun

What the engine made of its answer besides text (tool calls, reasoning, log probabilities) cannot be taken up in the
middle: such a stream is cut, as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from jevons.engine.openai import Event, SeenUsage, data_of
from jevons.serve.openai import ChatRequest, CompletionRequest

COMPLETIONS = "/v1/completions"
FOLD_BYTES = 256 << 10  # events kept as they came, before they are read and their text alone is kept
# What /v1/completions does not know, or what we set ourselves.
_NOT_PASSED = frozenset(
    (
        *("messages", "prompt", "max_tokens", "max_completion_tokens", "min_tokens", "stream", "stream_options"),
        *("tools", "tool_choice", "parallel_tool_calls", "add_generation_prompt", "continue_final_message"),
        *("chat_template", "chat_template_kwargs", "reasoning_effort", "include_reasoning", "top_logprobs", "logprobs"),
        *("response_format", "modalities", "echo"),
    )
)
_PLAIN = frozenset(("role", "content"))  # of a delta, what a continuation can go on from


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    text: str | None = None
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[_Choice] = []


_read = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.Encoder().encode


class Rest(NamedTuple):
    """What another engine is asked for."""

    path: str
    body: bytes
    tokens: Sequence[int]  # prompt and answer so far, for the placement
    is_all: bool = False  # nothing of the answer was out: the request as it was


class Said:
    """What a client was sent of one stream.

    Args:
        path: what was asked, /v1/chat/completions or /v1/completions.
        asked: the request.
    """

    def __init__(self, path: str, asked: ChatRequest | CompletionRequest) -> None:
        self._path = path
        self._asked = asked
        self._raw: list[bytes] = []
        self.kept_bytes = 0  # of them
        self._chunk = _Chunk()  # the first one: its name is the whole stream's
        self._text = ""
        self._pieces = 0
        self._odd: str | None = _unfit(asked)
        self._resent = False  # the rest is the whole request once more: nothing of the answer was out
        self._is_said = False  # all of the answer: of the rest its usage alone is of use
        self._wanted = (asked.n or 1) * (1 if isinstance(asked, ChatRequest) else len(asked.prompts))  # answers
        self._finished: set[int] = set()  # of them
        self._lacks_finish = False  # the client was not told why it ended
        self.finish: str | None = None  # of the first answer
        self.tokens = 0  # of `text`, as far as known

    def add(self, raw: bytes) -> None:
        """Whole events went to the client."""
        self._raw.append(raw)
        self.kept_bytes += len(raw)
        if self.kept_bytes > FOLD_BYTES:
            self._fold()

    @property
    def text(self) -> str:
        """All of the answer's text so far."""
        self._fold()
        return self._text

    def stuck(self) -> str | None:
        """Why nobody else could go on from here; None: somebody could."""
        self._fold()
        return self._odd

    def rest(
        self, body: bytes, prompt: Sequence[int], tail: Sequence[int] | None, context_tokens: int | None
    ) -> Rest | None:
        """The request for what is still to come.

        Args:
            body: the client's request.
            prompt: its tokens.
            tail: tokens of `text`; None: its model's tokens are not known here.
            context_tokens: of the model; None: not known.

        Returns:
            None: it cannot be asked for.
        """
        self._is_said = self.is_complete(tail)
        if not self._text:
            self._resent = True
            return Rest(self._path, body, prompt, is_all=True)
        told = self._asked.prompt if isinstance(self._asked, CompletionRequest) else None
        left = 1 if self._is_said else self._left(len(prompt), context_tokens)
        if left is None or (tail is None and not isinstance(told, str)):
            return None
        fields = {key: value for key, value in msgspec.json.decode(body).items() if key not in _NOT_PASSED}
        fields["prompt"] = told + self._text if tail is None and isinstance(told, str) else [*prompt, *(tail or ())]
        if self._asked.min_tokens:
            fields["min_tokens"] = max(0, self._asked.min_tokens - self.tokens)
        fields |= {"max_tokens": left, "stream": True, "stream_options": {"include_usage": True}}
        self._resent = False
        return Rest(COMPLETIONS, _encode(fields), [*prompt, *(tail or ())])

    def is_complete(self, tail: Sequence[int] | None) -> bool:
        """Whether only the end was missing: the engine said why it stopped, or as much was said as was asked for.

        Args:
            tail: as for `rest`.
        """
        self._fold()
        self.tokens = len(tail) if tail is not None else self._pieces
        limit = self._asked.output_limit
        is_long = self._odd is None and limit is not None and self.tokens >= limit
        if self.finish is None and self._text and is_long:
            self.finish, self._lacks_finish = "length", True
            self._finished.add(0)
        return len(self._finished) >= self._wanted

    def ending(self) -> bytes:
        """What a stream lacks of which all is said."""
        lacks, self._lacks_finish = self._lacks_finish, False
        return self._event(self._choices("", self.finish)) if lacks else b""

    def shaped(self, event: Event) -> bytes:
        """An event of the rest, as the client expects it; b"" where it repeats what there is."""
        try:
            told = msgspec.json.decode(data_of(event.raw))
            choices = told.get("choices") or []
        except (msgspec.DecodeError, AttributeError):
            return event.raw
        if "error" in told:
            return event.raw
        if not choices:
            return b"" if event.usage is None else self._event([], self.whole_usage(event.usage))
        if self._is_said:
            return self.ending()
        if not self._resent:
            return self._event(self._choices(choices[0].get("text") or "", choices[0].get("finish_reason")))
        if _only_role(choices[0]):
            return b""
        return b"data: %b\n\n" % _encode({**told, "id": self._chunk.id, "created": self._chunk.created})

    def whole_usage(self, usage: SeenUsage) -> SeenUsage:
        """Of prompt and whole answer, from that of the rest.

        An answer that ended by its limit has as many tokens: read again, its text may come to others.
        """
        whole = self.tokens + (0 if self._is_said else usage.completion_tokens)
        if self._is_said and self.finish == "length":
            whole = self._asked.output_limit or whole
        return SeenUsage(usage.prompt_tokens - self.tokens, whole, usage.prompt_tokens_details)

    def _left(self, prompt_tokens: int, context_tokens: int | None) -> int | None:
        """Tokens still wanted; None: not known."""
        limit = self._asked.output_limit
        if limit is None:
            limit = None if context_tokens is None else context_tokens - prompt_tokens
        return None if limit is None else max(1, limit - self.tokens)

    def _event(self, choices: list[dict[str, Any]], usage: SeenUsage | None = None) -> bytes:
        kind = "text_completion" if self._path == COMPLETIONS else "chat.completion.chunk"
        chunk = {"id": self._chunk.id, "object": kind, "created": self._chunk.created, "model": self._chunk.model}
        if usage is not None:
            total = usage.prompt_tokens + usage.completion_tokens
            told = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
            return b"data: %b\n\n" % _encode({**chunk, "choices": choices, "usage": {**told, "total_tokens": total}})
        return b"data: %b\n\n" % _encode({**chunk, "choices": choices})

    def _choices(self, text: str, finish: str | None) -> list[dict[str, Any]]:
        said: dict[str, Any] = {"text": text} if self._path == COMPLETIONS else {"delta": {"content": text}}
        return [{"index": 0, **said, "logprobs": None, "finish_reason": finish}]

    def _fold(self) -> None:
        """Read what was kept, keep its text."""
        for raw in b"".join(self._raw).split(b"\n\n"):
            self._take(raw)
        self._raw, self.kept_bytes = [], 0

    def _take(self, raw: bytes) -> None:
        try:
            chunk = _read(data_of(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # [DONE], a comment
        if not self._chunk.id:
            self._chunk = chunk
        self._finished |= {choice.index for choice in chunk.choices if choice.finish_reason is not None}
        for choice in chunk.choices[:1]:
            delta = choice.delta or {}
            odd = [key for key, value in delta.items() if value and key not in _PLAIN]
            if odd:
                self._odd = f"its answer has {', '.join(odd)}"
            added = choice.text or delta.get("content") or ""
            self._text += added
            self._pieces += bool(added)
            self.finish = choice.finish_reason or self.finish


def _unfit(asked: ChatRequest | CompletionRequest) -> str | None:
    """Why an answer to this could not be gone on with in the middle."""
    if (asked.n or 1) > 1:
        return "several answers were asked for"
    if asked.logprob_count is not None:
        return "log probabilities were asked for"
    if asked.form is not None:
        return f"{asked.form} says what form its answer has"
    if isinstance(asked, ChatRequest):
        return _unfit_chat(asked)
    if len(asked.prompts) > 1 or (asked.best_of or 1) > 1:
        return "several answers were asked for"
    return "the prompt is part of the answer" if asked.echo else None


def _unfit_chat(asked: ChatRequest) -> str | None:
    if asked.is_written_otherwise:
        return "its prompt is not what the model's own template makes of its messages"
    return "tools may be called" if asked.tools and asked.tool_choice != "none" else None


def _only_role(choice: dict[str, Any]) -> bool:
    """Whether a chunk of a chat says who speaks and nothing else."""
    delta = choice.get("delta") or {}
    return (
        "role" in delta
        and not any(value for key, value in delta.items() if key != "role")
        and (choice.get("finish_reason") is None)
    )
