"""The front: answers HTTP requests.

    bytes ──▶ Call ──▶ tokens ──▶ placement ──▶ embedded or relay ──▶ stream, or one object

A request of which nothing was sent yet goes to another worker when its own is lost; the client does not notice. One
that is lost in the middle ends with a well-formed error event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from jevons.base.errors import CapacityError, EngineError, JevonsError, NoWorker, RequestError, TooLate
from jevons.config import Settings
from jevons.control.router import Router
from jevons.serve.call import CHAT, COMPLETIONS, Call, Clock, Placements
from jevons.serve.embedded import Embedded
from jevons.serve.fleet import Fleet
from jevons.serve.http import ClientGone, Reply, Request
from jevons.serve.metrics import Metrics
from jevons.serve.openai import error_body, models_body
from jevons.serve.place import PLACE, PLACED, Desk
from jevons.serve.prompts import Prompts
from jevons.serve.record import Recorder
from jevons.serve.relay import Relay
from jevons.serve.stream import error_event

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_POSTED = (CHAT, COMPLETIONS, PLACE, PLACED)
CLIENT_LEFT = 499  # nginx's number for it; nobody is left to read it


class Front:
    """The handler behind the door. `now_s` is a monotonic clock."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        fleet: Fleet,
        prompts: Prompts,
        now_s: Clock,
        recorder: Recorder | None = None,
    ) -> None:
        self.router = router
        self.metrics = Metrics(router, recorder)
        self.placements = Placements(router, self.metrics, now_s, recorder)
        self.embedded: Embedded | None = None  # set where there are embedded workers
        self._timeout_s = settings.request_timeout_s
        self.fleet = fleet
        self.prompts = prompts
        self.now_s = now_s
        self._relay = Relay(fleet, self.placements, self.metrics, prompts)
        self._desk = Desk(router, prompts, self.metrics, now_s, fleet.url_of)
        self._pages: dict[str, Callable[[Reply], None]] = {
            "/v1/models": lambda reply: reply.send(200, models_body(prompts.models())),
            "/health": lambda reply: reply.send(200, b'{"status":"ok"}'),
            "/ready": self._ready,
            "/metrics": lambda reply: reply.send(200, self.metrics.page(), TEXT),
            "/snapshot": lambda reply: reply.send(200, msgspec.json.encode(router.snapshot())),
        }

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Answer one request. Every error of ours becomes OpenAI's error object."""
        began_s, status = self.now_s(), 200
        try:
            if request.method == "POST" and request.path in (CHAT, COMPLETIONS):
                async with asyncio.timeout(self._timeout_s):
                    await self._complete(Call(request, began_s), reply)
            elif request.method == "POST" and request.path == PLACE:
                async with asyncio.timeout(self._timeout_s):
                    await self._desk.place(request, reply)
            elif request.method == "POST" and request.path == PLACED:
                self._desk.placed(request, reply)
            else:
                self._page(request, reply)
        except (JevonsError, TimeoutError) as error:
            status = self._refuse(error, reply)
        except (asyncio.CancelledError, ClientGone):
            status = CLIENT_LEFT
            self.metrics.left.inc()
            raise
        finally:
            endpoint = request.path if request.path in _POSTED else "other"
            self.metrics.requests.labels(endpoint, str(status)).inc()
            self.metrics.seconds.labels(endpoint).observe(self.now_s() - began_s)

    async def _complete(self, call: Call, reply: Reply) -> None:
        call.prompts = await self.prompts.encode(call.asked)
        id = call.attempt()
        self.placements.admit(call, call.prompts[0])
        placement = self.placements.place(call, id, call.prompts[0])
        road: Relay | Embedded | None = self._relay if placement.worker in self.fleet.attached else self.embedded
        assert road is not None, "a worker that is not attached is embedded"
        await road.answer(call, id, placement, reply)

    def _page(self, request: Request, reply: Reply) -> None:
        page = self._pages.get(request.path)
        allowed = ("GET", "HEAD") if page is not None else ("POST",) if request.path in _POSTED else ()
        if not allowed:
            known = ", ".join((*self._pages, *_POSTED))
            raise RequestError(f"path: must be one of {known}, got {request.path[:100]!r}", status=404)
        if page is None or request.method not in allowed:
            rule = " or ".join(allowed)
            raise RequestError(f"method: {request.path} takes {rule}, got {request.method}", status=405)
        page(reply)

    def _ready(self, reply: Reply) -> None:
        ready = self.fleet.is_ready
        reply.send(200 if ready else 503, b'{"ready":%b}' % (b"true" if ready else b"false"))

    def _refuse(self, error: Exception, reply: Reply) -> int:
        """Answer an error; inside a stream, as its last event."""
        why = explain(error)
        message = why.message or f"request: took longer than {self._timeout_s:g} s"
        if reply.started:
            reply.write(error_event(message, why.status))
            reply.end()
        else:
            headers = b"" if why.retry_after_s is None else b"retry-after: %d\r\n" % why.retry_after_s
            reply.send(why.status, error_body(message, why.status, why.param, why.code), headers=headers)
        return why.status


class Why(msgspec.Struct, frozen=True):
    """What a client is told instead of an answer."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None


def explain(error: Exception) -> Why:
    """What each of our errors means to a client, at any door."""
    message = str(error)
    match error:
        case RequestError():
            return Why(error.status, message, error.code, error.param)
        case TooLate():
            return Why(429, message, "too_late", retry_after_s=int(error.retry_after_s))
        case NoWorker() | CapacityError():
            return Why(503, message, "no_worker", retry_after_s=1)
        case EngineError():
            return Why(502, message, "engine_lost")
        case TimeoutError():
            return Why(504, message, "timeout")
    return Why(500, message)
