"""One request of a gateway, from its headers to the end of its answer: what Envoy says in, what it is told out.

    request headers ─ body ─ trailers ──▶ the pick        response headers ─ body ─ trailers ──▶ the account of it

When the pick can be made depends on how Envoy sends the body. In full duplex it waits for us: the answer to the headers
is held back until the body is whole. Buffered, the headers are let pass and the pick comes with the body. Otherwise the
headers have left before the body comes, and the pick is made by load alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from jevons.base.errors import CapacityError, JevonsError, RequestError
from jevons.engine.openai import SeenUsage, read_event, read_usage
from jevons.serve.call import Placements
from jevons.serve.extproc import (
    Malformed,
    Mode,
    Modes,
    Part,
    Said,
    answer_at_once,
    go_on,
    send_to,
    stream,
)
from jevons.serve.front import explain
from jevons.serve.headers import FAIRNESS, TPOT, TTFT
from jevons.serve.http import Request
from jevons.serve.metrics import Metrics
from jevons.serve.openai import error_body
from jevons.serve.picker import Pick, Picker
from jevons.serve.relay import as_finished

# What gateways and their clients call our headers: as the extension named them at first, or llm-d does now.
ALIASES = {
    "x-gateway-inference-fairness-id": FAIRNESS,
    "x-llm-d-router-inference-fairness-id": FAIRNESS,
    "x-llm-d-slo-ttft-ms": TTFT,
    "x-llm-d-router-slo-ttft-ms": TTFT,
    "x-llm-d-slo-tpot-ms": TPOT,
    "x-llm-d-router-slo-tpot-ms": TPOT,
}
ENDPOINT = "picker"  # its label in the metrics
_SENT_BACK = (Mode.FULL_DUPLEX_STREAMED, Mode.GRPC)
_EVENT_BYTES = 1 << 20  # an event longer than that is not read


class Room:
    """Bytes of bodies that all exchanges together may hold while they come.

    Args:
        body_bytes: of one body.
    """

    def __init__(self, total_bytes: int, body_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.body_bytes = body_bytes
        self.held_bytes = 0

    def take(self, held_bytes: int, size_bytes: int) -> None:
        """So many more of a body that holds so many.

        Raises:
            RequestError: it is too large (413), or all together are (503).
        """
        if held_bytes + size_bytes > self.body_bytes:
            raise RequestError(f"body: must be at most {self.body_bytes} bytes, more were sent", status=413)
        if self.held_bytes + size_bytes > self.total_bytes:
            raise CapacityError(f"body: {self.held_bytes} bytes of other requests are held already; come again")
        self.held_bytes += size_bytes

    def free(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes


class Exchange:
    """The state of one. `now_s` is a monotonic clock."""

    def __init__(
        self, picker: Picker, placements: Placements, metrics: Metrics, room: Room, now_s: Callable[[], float]
    ) -> None:
        self.pick: Pick | None = None
        self.is_refused = False  # the client was answered by us: nothing follows
        self._picker = picker
        self._placements = placements
        self._metrics = metrics
        self._room = room
        self._now_s = now_s
        self._modes = Modes()
        self._request: Request | None = None
        self._subset: frozenset[str] | None = None
        self._arrived_s = now_s()
        self._body: list[bytes] = []
        self._held_bytes = 0
        self._answer: _Answer | None = None
        self._parts: dict[Part, Callable[[Said], Awaitable[list[bytes]]]] = {
            Part.REQUEST_HEADERS: self._on_request,
            Part.REQUEST_BODY: self._on_request_body,
            Part.REQUEST_TRAILERS: self._on_request_trailers,
            Part.RESPONSE_HEADERS: self._on_response,
            Part.RESPONSE_BODY: self._on_response_body,
            Part.RESPONSE_TRAILERS: self._on_response_trailers,
        }

    async def on(self, said: Said) -> list[bytes]:
        """What to answer.

        Raises:
            Malformed: it cannot come here.
        """
        if said.wants_no_reply:
            return []  # a gateway that only shows us its requests: they are placed by somebody else
        try:
            return await self._parts[said.part](said)
        except JevonsError as error:
            return [self.refuse(error)]

    def refuse(self, error: Exception) -> bytes:
        """The client is answered this error."""
        why = explain(error)
        self.is_refused = True
        self._count(why.status)
        headers = {"content-type": "application/json"}
        if why.retry_after_s is not None:
            headers["retry-after"] = str(why.retry_after_s)
        body = error_body(why.message, why.status, why.param, why.code)
        return answer_at_once(why.status, body, headers, f"jevons: {why.code or why.status}")

    def close(self) -> bool:
        """The exchange is over, whichever way. Returns whether its answer had not come to its end."""
        self._free()
        if self.pick is None:
            return False
        self._picker.over(self.pick)
        return self._answer is None or self._answer.is_missed

    # The request

    async def _on_request(self, said: Said) -> list[bytes]:
        if self._request is not None:
            raise Malformed("request_headers: came twice")
        self._modes = said.modes or self._modes
        self._subset = said.subset
        self._request = _request(said.headers)
        if said.is_last or not (self._waits_for_body or self._modes.request is Mode.BUFFERED):
            self._picked(self._picker.pick_by_load(self._request, self._subset))
            return [self._sent_to(Part.REQUEST_HEADERS)]
        return [] if self._waits_for_body else [go_on(said.part)]

    async def _on_request_body(self, said: Said) -> list[bytes]:
        if self._request is None:
            raise Malformed("request_body: came before request_headers; set request_header_mode: SEND")
        if self.pick is not None:
            return self._passed(said, self._modes.request)
        self._room.take(self._held_bytes, len(said.body))
        self._held_bytes += len(said.body)
        self._body.append(said.body)
        if said.is_last or self._modes.request is Mode.BUFFERED:
            return await self._pick(said.is_last)
        return []

    async def _on_request_trailers(self, said: Said) -> list[bytes]:
        if self._request is None:
            raise Malformed("request_trailers: came before request_headers; set request_header_mode: SEND")
        before = [] if self.pick is not None else await self._pick(is_last=False)
        return before if self.is_refused else [*before, go_on(said.part)]

    @property
    def _waits_for_body(self) -> bool:
        """Whether Envoy sends the body before the headers are answered."""
        mode = self._modes.request
        return mode is Mode.FULL_DUPLEX_STREAMED or (mode is Mode.STREAMED and self._modes.body_comes_unasked)

    async def _pick(self, is_last: bool) -> list[bytes]:
        """The body is whole: pick, and answer all that waits for it."""
        assert self._request is not None
        self._request.body = body = b"".join(self._body)
        pick = self._picked(await self._picker.pick(self._request, self._subset, self._arrived_s))
        chunks = len(self._body)
        self._free()
        if self._modes.request is Mode.BUFFERED:
            return [self._sent_to(Part.REQUEST_BODY, pick.body)]
        if self._modes.request is Mode.STREAMED:
            return [self._sent_to(Part.REQUEST_HEADERS), *[go_on(Part.REQUEST_BODY)] * chunks]
        whole = body if pick.body is None else pick.body
        back = stream(Part.REQUEST_BODY, whole, is_last) if whole or is_last else ()
        return [self._sent_to(Part.REQUEST_HEADERS, length=len(whole) if pick.body is not None else None), *back]

    def _picked(self, pick: Pick) -> Pick:
        self.pick = pick
        self._metrics.picks.labels("load" if pick.call is None else "prompt").inc()
        self._count(200)
        return pick

    def _sent_to(self, part: Part, body: bytes | None = None, length: int | None = None) -> bytes:
        assert self.pick is not None
        length = len(body) if body is not None else length
        headers = self.pick.headers if length is None else {**self.pick.headers, "content-length": str(length)}
        return send_to(part, self.pick.endpoints, headers, body)

    def _passed(self, said: Said, mode: Mode) -> list[bytes]:
        """A piece of a body that goes on as it is."""
        return list(stream(said.part, said.body, said.is_last)) if mode in _SENT_BACK else [go_on(said.part)]

    def _free(self) -> None:
        self._room.free(self._held_bytes)
        self._held_bytes = 0
        self._body.clear()

    def _count(self, status: int) -> None:
        self._metrics.requests.labels(ENDPOINT, str(status)).inc()
        self._metrics.seconds.labels(ENDPOINT).observe(self._now_s() - self._arrived_s)

    # The response

    async def _on_response(self, said: Said) -> list[bytes]:
        if self._answer is not None:
            raise Malformed("response_headers: came twice")
        if self.pick is None:
            return [go_on(said.part)]  # of the gateway itself
        if said.served is not None:
            was, self.pick = self.pick, self._picker.moved(self.pick, said.served)
            if self.pick is not was:
                self._metrics.retries.labels(was.worker).inc()
        comes = self._modes.response is not Mode.NONE and not said.is_last
        self._answer = _Answer(self.pick, self._picker, self._placements, self._metrics, self._room.body_bytes)
        self._answer.on_headers(said.headers, comes)
        if said.is_last:
            self._answer.done()
        return [go_on(said.part, {"x-jevons-worker": self.pick.worker})]

    async def _on_response_body(self, said: Said) -> list[bytes]:
        if self._answer is not None:
            self._answer.on_body(said.body)
            if said.is_last:
                self._answer.done()
        return self._passed(said, self._modes.response)

    async def _on_response_trailers(self, said: Said) -> list[bytes]:
        if self._answer is not None:
            self._answer.done()
        return [go_on(said.part)]


class _Answer:
    """What is learned from an answer as it goes by: when its first token came, what was cached, when it ended."""

    def __init__(self, pick: Pick, picker: Picker, placements: Placements, metrics: Metrics, most_bytes: int) -> None:
        self.is_missed = True  # more of it is to come
        self._pick = pick
        self._picker = picker
        self._placements = placements
        self._metrics = metrics
        self._most_bytes = most_bytes
        self._is_good = self._is_stream = self._is_readable = self._has_begun = self._is_over = False
        self._unread = b""
        self._usage: SeenUsage | None = None
        self._first_s: float | None = None

    def on_headers(self, headers: dict[str, str], body_comes: bool) -> None:
        self._picker.heard(self._pick)
        self._is_good = headers.get(":status", "200").startswith("2")
        self._is_stream = "text/event-stream" in headers.get("content-type", "")
        self._is_readable = headers.get("content-encoding", "identity") == "identity" and self._pick.call is not None
        if not body_comes:
            self.is_missed = False
            self._begun()

    def on_body(self, data: bytes) -> None:
        if self._is_over:
            return
        self._picker.heard(self._pick)
        if not data or not self._is_good:
            return
        if not (self._is_readable and self._is_stream):
            self._begun()
        if self._is_readable:
            self._unread += data
            if self._is_stream:
                self._read_events()
            if len(self._unread) > (_EVENT_BYTES if self._is_stream else self._most_bytes):
                self._unread, self._is_readable = b"", False

    def done(self) -> None:
        """It is whole."""
        if self._is_over:
            return
        self._is_over, self.is_missed = True, False
        if self._is_good and self._is_readable and not self._is_stream:
            usage = read_usage(self._unread)
            if usage is not None:
                self._metrics.output_tokens.labels(self._pick.worker).inc(usage.completion_tokens)
                self._used(usage)
        call = self._pick.call
        if call is not None and self._usage is not None and len(call.prompts) == 1:
            names = self._placements.names(self._pick.id)
            finished = as_finished(call, self._pick.placement, self._usage, self._first_s, names)
            self._placements.finished(call, finished)
        self._picker.over(self._pick, is_answered=self._is_good)

    def _begun(self) -> None:
        """The engine has computed the prompt. When, a stream tells; a whole answer comes at its end."""
        if self._has_begun or not self._is_good:
            return
        self._has_begun = True
        if self._is_stream and self._pick.call is not None:
            self._token()
        else:
            self._placements.answered(self._pick.id)

    def _token(self) -> None:
        self._has_begun = True
        self._placements.token(self._pick.id, self._pick.worker)
        if self._first_s is None:
            self._first_s = self._placements.now_s()

    def _read_events(self) -> None:
        *whole, self._unread = self._unread.replace(b"\r\n", b"\n").split(b"\n\n")
        for raw in whole:
            event = read_event(raw + b"\n\n")
            if event.has_choices:
                self._token()
            if event.usage is not None:
                self._used(event.usage)

    def _used(self, usage: SeenUsage) -> None:
        self._usage = usage
        self._placements.cached(self._pick.id, usage.cached_tokens, usage.prompt_tokens)


def _request(headers: dict[str, str]) -> Request:
    request = Request()
    request.headers = headers
    for name in ALIASES.keys() & headers:
        headers.setdefault(ALIASES[name], headers[name])
    request.method = headers.get(":method", "")
    request.path, _, request.query = headers.get(":path", "").partition("?")
    return request
