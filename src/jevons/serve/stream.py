"""Answers as OpenAI clients read them: chunks of a stream, or one object.

A chunk is put together from encoded pieces: only the text is encoded anew, 1 µs instead of 5 for the whole object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from jevons.serve.openai import TokenText, Usage, chat_logprobs, completion_logprobs, error_body

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class Delta(msgspec.Struct, frozen=True):
    """What a step added to one choice."""

    text: str = ""
    tokens: list[TokenText] = []  # filled where logprobs are wanted
    finish: str | None = None


class Choice(msgspec.Struct):
    """A whole choice, gathered from its deltas."""

    index: int
    text: str = ""
    tokens: list[TokenText] = []
    finish: str = "stop"


def error_event(message: str, status: int, code: str | None = None) -> bytes:
    """What ends a stream that cannot go on: a well-formed event, then the end."""
    return b"data: %b\n\n%b" % (error_body(message, status, code=code), DONE)


class ChatShape:
    """/v1/chat/completions."""

    def __init__(self, id: str, created_s: int, model: str) -> None:
        self._fields = {"id": f"chatcmpl-{id}", "object": "chat.completion", "created": created_s, "model": model}
        self._head = _chunk_head(self._fields, "chat.completion.chunk")

    def opening(self, index: int) -> bytes:
        """A choice's first chunk, that tells the role."""
        return b'%b"choices":[{"index":%d,"delta":{"role":"assistant","content":""},%b}]}\n\n' % (
            self._head,
            index,
            b'"logprobs":null,"finish_reason":null',
        )

    def chunk(self, index: int, delta: Delta) -> bytes:
        out = b""
        if delta.text or delta.tokens:
            logprobs = _encode(chat_logprobs(delta.tokens)) if delta.tokens else b"null"
            out = b'%b"choices":[{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}]}\n\n' % (
                self._head,
                index,
                _encode(delta.text),
                logprobs,
            )
        if delta.finish is not None:
            out += b'%b"choices":[{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}]}\n\n' % (
                self._head,
                index,
                _encode(delta.finish),
            )
        return out

    def usage(self, usage: Usage) -> bytes:
        return b'%b"choices":[],"usage":%b}\n\n' % (self._head, _encode(usage.record()))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        rows = [
            {
                "index": c.index,
                "message": {"role": "assistant", "content": c.text, "refusal": None},
                "logprobs": chat_logprobs(c.tokens) if c.tokens else None,
                "finish_reason": c.finish,
            }
            for c in choices
        ]
        return _encode({**self._fields, "choices": rows, "usage": usage.record()})


class CompletionShape:
    """/v1/completions."""

    def __init__(self, id: str, created_s: int, model: str) -> None:
        self._fields = {"id": f"cmpl-{id}", "object": "text_completion", "created": created_s, "model": model}
        self._head = _chunk_head(self._fields, "text_completion")
        self._sent: dict[int, int] = {}  # characters, by choice

    def opening(self, index: int) -> bytes:
        return b""

    def chunk(self, index: int, delta: Delta) -> bytes:
        offset = self._sent.get(index, 0)
        self._sent[index] = offset + len(delta.text)
        logprobs = _encode(completion_logprobs(delta.tokens, offset)) if delta.tokens else b"null"
        return b'%b"choices":[{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}]}\n\n' % (
            self._head,
            index,
            _encode(delta.text),
            logprobs,
            _encode(delta.finish),
        )

    def usage(self, usage: Usage) -> bytes:
        return b'%b"choices":[],"usage":%b}\n\n' % (self._head, _encode(usage.record()))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        rows = [
            {
                "index": c.index,
                "text": c.text,
                "logprobs": completion_logprobs(c.tokens, 0) if c.tokens else None,
                "finish_reason": c.finish,
            }
            for c in choices
        ]
        return _encode({**self._fields, "choices": rows, "usage": usage.record()})


Shape = ChatShape | CompletionShape


def _chunk_head(fields: dict[str, Any], kind: str) -> bytes:
    """Everything of a chunk before its choices."""
    return b"data: %b," % _encode({**fields, "object": kind})[:-1]
