"""Any OpenAI-compatible server as an engine: vLLM, SGLang, llama-server, another jevons.

Requests go through as the client wrote them, answers come back as the engine wrote them; on the way we read what the
router learns from: when tokens come, how many prompt tokens were cached, why it ended.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from jevons.base.errors import EngineError
from jevons.engine.http_client import HttpClient
from jevons.engine.http_exchange import Exchange, Taker
from jevons.engine.specs import RANK_HEADER, EngineSpec

INCLUDE_USAGE = b'{"stream_options":{"include_usage":true},'

_NO_KEY = (401, 403)
_MOST_CONTEXT = 1 << 40  # tokens

TokenCount = Annotated[int, Meta(ge=0, lt=2**31)]  # as an engine or a gateway may tell it


class _Tokens(msgspec.Struct, frozen=True):
    tokens: list[Annotated[int, Meta(ge=0, lt=1 << 32)]]


class _Row(msgspec.Struct, frozen=True):
    """Of /v1/models; what is told of context differs between engines."""

    id: str
    parent: str | None = None  # the model that it is an adapter of
    root: Any = None
    max_model_len: Any = None  # vLLM, SGLang
    meta: Any = None  # llama-server

    @property
    def context_tokens(self) -> int | None:
        trained = self.meta.get("n_ctx_train") if isinstance(self.meta, dict) else None
        told = self.max_model_len or trained
        return told if isinstance(told, int) and 0 < told <= _MOST_CONTEXT else None


class _Models(msgspec.Struct, frozen=True):
    data: list[_Row]


class SeenUsage(msgspec.Struct, frozen=True):
    prompt_tokens: TokenCount = 0
    completion_tokens: TokenCount = 0
    prompt_tokens_details: dict[str, Any] | None = None

    @property
    def cached_tokens(self) -> int | None:
        """None where the engine does not tell (vLLM needs --enable-prompt-tokens-details), or more than its prompt has:
        SGLang adds up what each of `n` answers found."""
        details = self.prompt_tokens_details
        cached = details.get("cached_tokens") if details else None
        return cached if isinstance(cached, int) and 0 <= cached <= self.prompt_tokens else None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Body(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: SeenUsage | None = None


class Event(msgspec.Struct, frozen=True):
    """One server-sent event, as it came, and what we read in it."""

    raw: bytes  # ends with the blank line
    text: str = ""  # of its choices
    has_choices: bool = False
    usage: SeenUsage | None = None
    is_done: bool = False


class Answer(msgspec.Struct, frozen=True):
    """A whole answer."""

    status: int
    content_type: str
    body: bytes
    usage: SeenUsage | None


_LABEL = re.compile(r'(\w+)="([^"]*)"')


class _Used(msgspec.Struct, frozen=True):
    usage: SeenUsage | None = None


_CHOICES = b'"choices"'
_read_body = msgspec.json.Decoder(_Body).decode
_read_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_tokens = msgspec.json.Decoder(_Tokens).decode
_read_used = msgspec.json.Decoder(_Used).decode


class OpenAIEngine:
    """One server. Its methods raise EngineGone when it cannot be reached or ends in the middle."""

    def __init__(self, spec: EngineSpec, on_kept_lost: Callable[[], None] | None = None) -> None:
        """For `on_kept_lost` see `HttpClient`."""
        self.spec = spec
        of_rank = "" if spec.rank is None else f"{RANK_HEADER}: {spec.rank}\r\n"
        of_key = f"authorization: Bearer {spec.key}\r\n" if spec.key else ""
        self._http = HttpClient(spec.address, on_kept_lost, (of_rank + of_key).encode())
        self.adapters: frozenset[str] = frozenset()  # as it told when it was last asked for its models
        self._roots: dict[str, str] = {}  # as it told when it was last asked for its models
        self.aliases: list[str] = []  # of its first model: those that are loaded from the same place
        self._numbers: dict[str, int] = {}  # of adapters, as they are believed to be
        self._last_number = 0

    @property
    def adapter_numbers(self) -> dict[int, str]:
        """Adapters by what older engines' KV events call them: vLLM numbers them from 1 as they are loaded, and lists
        them in that order."""
        return {number: name for name, number in self._numbers.items()}

    async def models(self, *, anew: bool = False) -> dict[str, int | None]:
        """Served names, with their context in tokens where it is told; adapters are not among them.

        Args:
            anew: it has just come up: its adapters are numbered from 1 again.

        Raises:
            EngineError: it answers no list of models.
        """
        raw = await self.get_json("/v1/models")
        try:
            rows = msgspec.convert(raw, _Models).data
        except msgspec.ValidationError as error:
            text = str(raw)[:120]
            raise EngineError(f"engine {self.spec.url}: /v1/models is not a list of models: {text}") from error
        self._number([row.id for row in rows if row.parent], anew)
        self._roots = {row.id: row.root for row in rows if isinstance(row.root, str)}
        bases = [row.id for row in rows if not row.parent]
        root = self._roots.get(bases[0]) if bases else None
        self.aliases = [name for name in bases[1:] if root is not None and self._roots.get(name) == root]
        return {row.id: row.context_tokens for row in rows if not row.parent}

    def _number(self, adapters: list[str], anew: bool) -> None:
        """These are there now; who was unloaded leaves a number that nobody has again."""
        known, last = ({}, 0) if anew else (self._numbers, self._last_number)
        self._numbers = {name: known[name] for name in adapters if name in known}
        for name in adapters:
            if name not in self._numbers:
                last += 1
                self._numbers[name] = last
        self._last_number, self.adapters = last, frozenset(adapters)

    def model_root(self, model: str) -> str | None:
        """The directory or repository the engine said it loaded `model` from, when it was asked for its models."""
        return self._roots.get(model)

    async def get_json(self, path: str) -> Any:
        """Raises EngineError unless it answers 200 with JSON."""
        async with self._http.request("GET", path) as response:
            body = await response.body()
        if response.status != 200:
            hint = "; name the file of its API key, ,key-file=FILE" if response.status in _NO_KEY else ""
            raise EngineError(f"engine {self.spec.url}: GET {path} answered {response.status}{hint}")
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(f"engine {self.spec.url}: GET {path} answered no JSON: {error}") from error

    async def running_adapters(self) -> tuple[list[str], int] | None:
        """Adapters that run or are waited for, and for how many there is room, by vLLM's metrics; None: not told."""
        async with self._http.request("GET", "/metrics") as response:
            page = await response.body()
        return read_adapters(page.decode(errors="replace")) if response.status == 200 else None

    async def pool(self) -> int | None:
        """Blocks of its pool, by vLLM's metrics; None: not told."""
        async with self._http.request("GET", "/metrics") as response:
            page = await response.body()
        return read_pool(page.decode(errors="replace")) if response.status == 200 else None

    async def is_alive(self, timeout_s: float) -> bool:
        """Whether /health answers in time. False: it lives but is late or ill.

        Raises:
            EngineGone: nothing listens there.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with self._http.request("GET", "/health") as response:
                    await response.body()
        except TimeoutError:
            return False
        return response.status < 500

    async def tokenize(self, body: dict[str, Any], timeout_s: float) -> list[int] | None:
        """The prompt's tokens by the engine's own /tokenize (vLLM); None where it tells none."""
        async with asyncio.timeout(timeout_s):
            async with self._http.request("POST", "/tokenize", msgspec.json.encode(body)) as response:
                raw = await response.body()
        return read_tokens(raw) if response.status == 200 else None

    def send(self, path: str, body: bytes, taker: Taker, headers: bytes = b"") -> Exchange:
        """Post a request; its answer goes to `taker`, as it comes. For `headers` see `HttpClient.post`."""
        return self._http.send(self._http.post(path, body, headers), taker)

    async def whole(self, path: str, body: bytes) -> Answer:
        """Send a request that is not streamed."""
        async with self._http.request("POST", path, body) as response:
            raw = await response.body()
        usage = read_usage(raw) if response.status == 200 else None
        return Answer(response.status, content_type(response.headers), raw, usage)

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[Event | Answer]:
        """Send a streamed request: events as they come, or one Answer where the engine refuses.

        The stream is whole only if its last event `is_done`; without it the engine broke off.
        """
        async with self._http.request("POST", path, body) as response:
            kind = content_type(response.headers)
            if response.status != 200 or "text/event-stream" not in kind:
                yield Answer(response.status, kind, await response.body(), None)
                return
            pending = b""
            async for chunk in response:
                *whole, pending = (pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
                for raw in whole:
                    yield read_event(raw + b"\n\n")

    def close(self) -> None:
        self._http.close()


def read_adapters(page: str) -> tuple[list[str], int] | None:
    """What the newest `vllm:lora_requests_info` of a metrics page says: its value is the time it was told."""
    rows = [line.rpartition("} ") for line in page.splitlines() if line.startswith("vllm:lora_requests_info{")]
    if not rows:
        return None
    labels = dict(_LABEL.findall(max(rows, key=lambda row: _time(row[2]))[0]))
    names = f"{labels.get('running_lora_adapters', '')},{labels.get('waiting_lora_adapters', '')}".split(",")
    return [name for name in names if name], _whole(labels.get("max_lora", "")) or 1


def read_pool(page: str) -> int | None:
    """From `vllm:cache_config_info`; of several ranks the first."""
    line = next((line for line in page.splitlines() if line.startswith("vllm:cache_config_info{")), "")
    return _whole(dict(_LABEL.findall(line)).get("num_gpu_blocks", ""))


def _whole(label: str) -> int | None:
    """A number above 0, up to 18 digits; None: it is none."""
    return int(label) or None if label.isdecimal() and len(label) <= 18 else None


def _time(value: str) -> float:
    """What is told of a row, without when, which may follow; before all others if it is no number."""
    try:
        return float(value.split()[0])
    except (ValueError, IndexError):
        return -math.inf


def data_of(raw: bytes) -> bytes:
    """What an event says, without its name, number and remarks; empty where it says nothing."""
    if raw.startswith(b"data:") and b"\n" not in raw[5:].rstrip():
        return raw[5:].strip()
    return b"\n".join(line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:"))


def read_event(raw: bytes) -> Event:
    """Read one event; one we cannot read passes through unread."""
    data = data_of(raw)
    if data == b"[DONE]":
        return Event(raw, is_done=True)
    try:
        body = _read_body(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Event(raw)
    text = "".join((c.text or (c.delta.content if c.delta else None) or "") for c in body.choices)
    return Event(raw, text, bool(body.choices), body.usage)


class Events:
    """A stream of events that goes by: what the client is to have of it, and what is to be learned from it.

    Attributes:
        began: something was read.
        tokens: events with a choice in what was read last.
        usage: the last that was told.
        is_done: the stream is whole.
    """

    def __init__(self, keeps_usage: bool, shape: Callable[[Event], bytes] | None = None) -> None:
        """
        Args:
            keeps_usage: the client asked for the event that tells the usage alone.
            shape: how an event other than the last goes to the client; None: as it is.
        """
        self.began = False
        self.tokens = 0
        self.usage: SeenUsage | None = None
        self.is_done = False
        self._keeps_usage = keeps_usage
        self._shape = shape
        self._pending = b""

    @property
    def pending_bytes(self) -> int:
        """Of an event that has not ended."""
        return len(self._pending)

    def read(self, data: bytes) -> bytes:
        """What of `data` goes to the client.

        Whole events that tell no usage go as they are: inside of a JSON string a quote is escaped and a line never
        ends, so what is looked for is found nowhere else.
        """
        self.began = True
        is_plain = self._shape is None and not self._pending and data[-2:] == b"\n\n" and b'_tokens"' not in data
        if is_plain and b"[DONE]" not in data and b"\r" not in data:
            self.tokens = data.count(_CHOICES) - data.count(b'"choices":[]') - data.count(b'"choices": []')
            return data
        return self._read_each(data)

    def end(self) -> bytes:
        """The body is complete: what still goes to the client. A [DONE] may lack its blank line, nothing else may."""
        return self.read(b"\n\n") if data_of(self._pending) == b"[DONE]" else b""

    def _read_each(self, data: bytes) -> bytes:
        self.tokens, passed = 0, []
        *whole, self._pending = (self._pending + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for raw in whole:
            event = read_event(raw + b"\n\n")
            self.tokens += event.has_choices
            self.usage = event.usage or self.usage
            self.is_done = self.is_done or event.is_done
            if event.has_choices or self._keeps_usage or event.usage is None:
                passed.append(event.raw if self._shape is None or event.is_done else self._shape(event))
        return b"".join(passed)


def with_usage(body: bytes) -> bytes:
    """The same request, asking for usage at the end of the stream.

    `body` is a JSON object that asks for none. What it has of stream_options goes: told twice, they would be an error
    to some engines, and to others the last would count.
    """
    if b'"stream_options"' in body:
        fields = _read_fields(body)
        fields.pop("stream_options", None)
        body = msgspec.json.encode(fields)
    return INCLUDE_USAGE + body.lstrip()[1:]


def read_tokens(raw: bytes) -> list[int] | None:
    """The tokens in an answer of /tokenize; None if it tells none, or what cannot be tokens."""
    try:
        return _read_tokens(raw).tokens
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def read_usage(raw: bytes) -> SeenUsage | None:
    """The usage of a whole answer; None if it tells none, or cannot be read."""
    try:
        return _read_used(raw).usage
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def content_type(headers: dict[str, str]) -> str:
    return headers.get("content-type", "application/json")
