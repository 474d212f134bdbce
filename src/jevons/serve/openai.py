"""OpenAI's API as records: requests in, JSON out, and errors that name the field.

A field that would change the answer is either honoured or refused; fields of no consequence here (`user`, `metadata`)
are passed over, as OpenAI's own server does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from jevons.base.errors import RequestError
from jevons.facts.request import TokenLogprob

MAX_CHOICES = 64

# Fields of engines' own that prescribe the answer's form.
FORMS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("json_schema", "regex", "ebnf", "grammar"),
)

Count = Annotated[int, Meta(ge=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Priority = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
TokenId = Annotated[int, Meta(ge=0, lt=2**32)]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints take. None is the server's default, as in OpenAI's schema."""

    model: str
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    n: Choices | None = None
    seed: int | None = None  # taken modulo 2**64
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: Any = None  # vLLM's, and what it was called before
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    json_schema: Any = None  # SGLang's, llama-server's
    regex: Any = None
    ebnf: Any = None
    grammar: Any = None
    cache_salt: str | None = None
    priority: Priority | None = None  # vLLM's: the lower, the earlier

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def form(self) -> str | None:
        """The field that prescribes the answer's form; None: it may have any."""
        if (self.response_format or {}).get("type", "text") != "text":
            return "response_format"
        return next((name for name in FORMS if getattr(self, name) not in (None, "")), None)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    chat_template: str | None = None
    documents: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def is_written_otherwise(self) -> bool:
        """Whether its prompt is not what the model's own template makes of the messages."""
        return bool(self.continue_final_message or self.chat_template or self.documents)

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    # A union msgspec can tell apart; `prompts` checks what it holds.
    prompt: str | Annotated[list[Any], Meta(min_length=1)]
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Count | None = None

    @property
    def output_limit(self) -> int:
        return self.max_tokens or 16  # OpenAI's default for this endpoint

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or more prompts, each a text or token ids.

        Raises:
            RequestError: a list of anything else.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        for kind, is_one in _PROMPT_KINDS:
            try:
                found = msgspec.convert(self.prompt, kind)
            except msgspec.ValidationError:
                continue
            return [found] if is_one else found
        rule = "a string, strings, token ids (0 to 2^32 - 1) or non-empty lists of token ids"
        raise RequestError(f"prompt: must be {rule}, got {_quote(self.prompt)}", "prompt")


_PROMPT_KINDS: tuple[tuple[Any, bool], ...] = (
    (list[str], False),
    (list[TokenId], True),
    (list[Annotated[list[TokenId], Meta(min_length=1)]], False),
)
_chat_decoder = msgspec.json.Decoder(ChatRequest)
_completion_decoder = msgspec.json.Decoder(CompletionRequest)
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what reading a body may raise
_AT = re.compile(r" - at `\$(.*)`$")
_FIELD = re.compile(r"missing required field `(\w+)`")


def read_chat(body: bytes) -> ChatRequest:
    """Raises RequestError naming the field that is wrong."""
    try:
        request = _chat_decoder.decode(body)
    except UNREADABLE as error:
        raise _explained(error, body) from error
    _check_messages(request.messages)
    return request


def read_completion(body: bytes) -> CompletionRequest:
    """Raises RequestError naming the field that is wrong."""
    try:
        return _completion_decoder.decode(body)
    except UNREADABLE as error:
        raise _explained(error, body) from error


def check_supported(request: ChatRequest | CompletionRequest) -> None:
    """Refuse what the embedded engine cannot do, rather than answer something else.

    Raises:
        RequestError: names the field.
    """
    neutral: dict[str, tuple[object, ...]] = {
        "presence_penalty": (None, 0.0),
        "frequency_penalty": (None, 0.0),
        "repetition_penalty": (None, 1.0),
        "min_p": (None, 0.0),
        "min_tokens": (None, 0),
        "logit_bias": (None, {}),
        "response_format": (None, {"type": "text"}),
        "tool_choice": (None, "none", "auto"),
        "continue_final_message": (None, False),
        "chat_template": (None, ""),
        "documents": (None, []),
        "echo": (None, False),
        "suffix": (None, ""),
        "best_of": (None, 1),
        **dict.fromkeys(FORMS, (None, "")),
    }
    for field, allowed in neutral.items():
        value = getattr(request, field, None)
        if value not in allowed:
            raise RequestError(
                f"{field}: the embedded engine does not support it, got {_quote(value)}; leave it out", field
            )


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            field = f"messages[{i}].role"
            raise RequestError(f"{field}: must be a non-empty string, got {_quote(role)}", field)
        if not (isinstance(content, str | list) or (content is None and role == "assistant")):
            field = f"messages[{i}].content"
            raise RequestError(f"{field}: must be a string or a list of parts, got {_quote(content)}", field)


def _explained(error: Exception, body: bytes) -> RequestError:
    """Turn a decoding error into one that names the field, quotes the value and says the rule."""
    try:
        value = msgspec.json.decode(body)
    except UnicodeDecodeError:
        return _not_utf8(body)
    except (msgspec.DecodeError, RecursionError) as broken:
        why = "it is nested too deeply" if isinstance(broken, RecursionError) else broken
        return RequestError(f"body: must be a JSON object in UTF-8: {why}", code="invalid_json")
    text = str(error)
    missing = _FIELD.search(text)
    if missing:
        return RequestError(f"{missing[1]}: is required", missing[1])
    at = _AT.search(text)
    path = (at[1] if at else "").lstrip(".")
    rule = _AT.sub("", text).replace("Expected", "must be").replace("`", "").split(", got ")[0]
    if not path:
        return RequestError(f"body: {rule}, got {_quote(value)}")
    return RequestError(f"{path}: {rule}, got {_quote(_value_at(value, path))}", path)


def _value_at(value: object, path: str) -> object:
    """The value at a path like `messages[0].role`, as far as it can be followed."""
    for name, number in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and number.isdigit() and int(number) < len(value):
            value = value[int(number)]
    return value


def _not_utf8(body: bytes) -> RequestError:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        where = f", got byte 0x{body[error.start]:02x} at {error.start}"
    else:
        where = ": a string holds half of a surrogate pair"
    return RequestError(f"body: must be UTF-8{where}", code="invalid_utf8")


def _quote(value: object) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 80 else text[:77] + "…"


# Answers


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def record(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> bytes:
    """OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def refusal(status: int, message: str) -> bytes:
    """The body of an answer that the door gives before any handler is asked."""
    return error_body(message, status)


def models_body(models: Mapping[str, int]) -> bytes:
    """GET /v1/models. `models`: name → context tokens, 0 where unknown."""
    data = [_model(name, context) for name, context in sorted(models.items())]
    return msgspec.json.encode({"object": "list", "data": data})


def model_body(name: str, context: int) -> bytes:
    """GET /v1/models/NAME."""
    return msgspec.json.encode(_model(name, context))


def _model(name: str, context: int) -> dict[str, Any]:
    told = {"id": name, "object": "model", "created": 0, "owned_by": "jevons"}
    return {**told, "max_model_len": context} if context else told


class TokenText(msgspec.Struct, frozen=True):
    """One sampled token as logprobs show it."""

    text: str
    raw: bytes
    logprob: TokenLogprob
    top: list[tuple[str, bytes, float]]


def chat_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""
    return {
        "content": [
            {
                "token": t.text,
                "logprob": t.logprob.logprob,
                "bytes": list(t.raw),
                "top_logprobs": [{"token": text, "logprob": lp, "bytes": list(raw)} for text, raw, lp in t.top],
            }
            for t in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
    """The `logprobs` object of a completion choice; `offset` is where its text begins in the whole."""
    offsets = []
    for t in tokens:
        offsets.append(offset)
        offset += len(t.text)
    return {
        "tokens": [t.text for t in tokens],
        "token_logprobs": [t.logprob.logprob for t in tokens],
        "top_logprobs": [{text: lp for text, _, lp in t.top} for t in tokens],
        "text_offset": offsets,
    }
