"""The front: answers HTTP requests.

    bytes ──▶ Call ──▶ tokens ──▶ placement ──▶ embedded or relay ──▶ stream, or one object

A request of which nothing was sent yet goes to another worker when its own is lost; the client does not notice. One
that is lost in the middle ends with a well-formed error event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec

from jevons.base.errors import CapacityError, EngineError, JevonsError, NoWorker, RequestError, TooLate
from jevons.base.ids import RequestId
from jevons.config import Settings
from jevons.control.joined import NOBODY, Part
from jevons.control.ledger import HERE
from jevons.control.lived import Lived
from jevons.control.router import Router
from jevons.facts.scaling import WantedWorkers
from jevons.facts.snapshot import FleetSnapshot
from jevons.facts.view import View, Workers
from jevons.policy.route import Placement
from jevons.serve.admission import Admission
from jevons.serve.call import CHAT, COMPLETIONS, Call, Clock, Placements
from jevons.serve.embedded import Embedded
from jevons.serve.fleet import Fleet
from jevons.serve.heads import Request
from jevons.serve.metrics import Metrics
from jevons.serve.mounts import Mounts
from jevons.serve.openai import error_body, model_body, models_body
from jevons.serve.place import PLACE, PLACED, Desk
from jevons.serve.prompts import NO_MODEL, Prompts
from jevons.serve.record import Recorder
from jevons.serve.relay import Relay
from jevons.serve.reply import ClientGone, Reply, Stopping
from jevons.serve.stream import error_event
from jevons.wire.turns import in_slices

log = logging.getLogger("jevons.front")

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_POSTED = (CHAT, COMPLETIONS, PLACE, PLACED)
MODEL = "/v1/models/"  # and its name
INTERNAL = "internal error: it is logged on the server"
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
        self.metrics = Metrics(router, recorder, prompts)
        self.placements = Placements(router, self.metrics, now_s, recorder)
        self.embedded: Embedded | None = None  # set where there are embedded workers
        self.wanted: list[WantedWorkers] = []  # set where it is looked at
        self.state: Mapping[str, int] = {}  # what became of what is kept in a file, set where there is one
        self.metrics.watch(self.placements.gate)
        self.admission = Admission(router, self.placements, self.metrics)
        self._timeout_s = settings.request_timeout_s
        self.fleet = fleet
        self.prompts = prompts
        self.now_s = now_s
        self._relay = Relay(fleet, self.placements, self.metrics, prompts, settings.request_timeout_s)
        self.mounts = Mounts({})  # pages of other rooms
        self.desk = Desk(router, prompts, self.metrics, self.admission, fleet.spec_of)
        self._pages: dict[str, Callable[[Reply], Coroutine[Any, Any, None] | None]] = {
            "/v1/models": lambda reply: reply.send(200, models_body(prompts.models())),
            "/health": lambda reply: reply.send(200, b'{"status":"ok"}'),
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/snapshot": self._snapshot,
        }

    async def snapshot(self) -> FleetSnapshot:
        """The fleet as the router knows it, who waits in front of it, and what encodes prompts here. Other work goes on
        between its workers.
        """
        workers = [worker async for worker in in_slices(self.router.worker_snapshots())]
        encoders = {name: tokenizer.encoder for name, tokenizer in self.prompts.encoders().items()}
        gate = self.placements.gate.snapshot()
        state = {fate: times for fate, times in self.state.items() if times}
        more = {"tokenizers": encoders, "gate": gate, "state": state, "scaling": self.wanted}
        return msgspec.structs.replace(self.router.snapshot(workers), **more)

    def view(self, seen: int | None = None) -> View:
        """The same for a page that asks twice a second. `seen`: see `Router.columns`."""
        return self._view(self.router.columns(seen))

    def part(self, workers: Workers = NOBODY) -> Part:
        """The same, to be joined with what siblings see."""
        watch, now_s = self.placements.watch, self.now_s()
        since_s = now_s - watch.began_s
        ttft, itl = watch.ttft.counts(since_s).tolist(), watch.itl.counts(since_s).tolist()
        return Part(view=self._view(workers), began_s=watch.began_s, ttft=ttft, itl=itl)

    def _view(self, workers: Workers) -> View:
        watch, now_s = self.placements.watch, self.now_s()
        since_s = now_s - watch.began_s
        return View(
            source="live",
            title=", ".join(self.prompts.models()),
            began=f"{watch.began_s:.6f}",
            now_s=since_s,
            policy=self.router.policy,
            workers=workers,
            requests=watch.requests(),
            scatter=watch.scatter(),
            ttft=watch.ttft.times(since_s, watch.slo.ttft_s),
            itl=watch.itl.times(since_s, watch.slo.tpot_s),
            rates=watch.rates(now_s),
            reuse=watch.reuse(self.router.brought()),
            placed=watch.placed_count,
            under_way=watch.under_way,
            finished=watch.finished,
            waiting_in_front=self.placements.gate.waiting,
            chip_s={chip: count * since_s for chip, count in self.router.chips().items()},
            saved_chip_s=watch.saved_chip_s(),
            tiers=self.router.node(HERE).state,
            scaling=self.wanted,
        )

    def lived(self, seconds: float) -> Lived:
        """The last so many seconds, to be rehearsed; as far back as is kept."""
        answered = self.placements.lately.since(self.now_s() - seconds)
        return Lived(self.router.policy, self.router.lived_workers(), answered)

    def __call__(self, request: Request, reply: Reply) -> Coroutine[Any, Any, None] | None:
        """Answer one request. Every error of ours becomes OpenAI's error object."""
        if request.method == "POST" and request.path in (CHAT, COMPLETIONS):
            return self._complete(request, reply)
        return self._run(request.path, self.now_s(), reply, self._other(request, reply))

    def _complete(self, request: Request, reply: Reply) -> Coroutine[Any, Any, None] | None:
        """What needs no waiting is done at once; the rest is returned."""
        began_s = self.now_s()
        try:
            call = Call(request, began_s)
            reply.id = call.id
            prompts = self.prompts.encode_now(call.asked) if self.fleet.is_met else None
            work = self._later(call, reply) if prompts is None else self._place(call, prompts, reply)
        except Exception as error:  # the edge: a bug must cost one request, and count as one
            self._over(request.path, began_s, reply, error)
            return None
        return None if work is None else self._run(request.path, began_s, reply, work)

    async def _later(self, call: Call, reply: Reply) -> None:
        await self.fleet.meet()
        work = self._place(call, await self.prompts.encode(call.asked), reply)
        if work is not None:
            await work

    def _place(self, call: Call, prompts: list[Sequence[int]], reply: Reply) -> Coroutine[Any, Any, None] | None:
        """Give the call to whom it is placed on. What is returned answers it; None: callbacks do."""
        call.prompts, call.is_split = prompts, self.embedded is not None
        call.model = self.prompts.model_of(call.model)
        id = call.attempt()
        placement = self.admission.enter_now(call, id)
        return self._wait(call, id, reply) if placement is None else self._give(call, id, placement, reply)

    async def _wait(self, call: Call, id: RequestId, reply: Reply) -> None:
        work = self._give(call, id, await self.admission.wait(call, id), reply)
        if work is not None:
            await work

    def _give(self, call: Call, id: RequestId, placement: Placement, reply: Reply) -> Coroutine[Any, Any, None] | None:
        """To the road of its worker. What is returned answers it; None: callbacks do."""
        if placement.worker in self.fleet.attached:
            self._relay.answer(call, id, placement, reply, partial(self._over, call.path, call.arrived_s, reply))
            return None
        assert self.embedded is not None, "a worker that is not attached is embedded"
        return self.embedded.answer(call, id, placement, reply)

    async def _run(self, path: str, began_s: float, reply: Reply, work: Coroutine[Any, Any, None]) -> None:
        """Wait for what answers, or gives the answer into others' hands."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await work
        except (Exception, asyncio.CancelledError) as error:  # the edge, as above
            self._over(path, began_s, reply, error)
            if isinstance(error, asyncio.CancelledError | ClientGone):
                raise
        else:
            if reply.answerer is None:
                self._over(path, began_s, reply, None)

    async def _other(self, request: Request, reply: Reply) -> None:
        if request.method == "POST" and request.path == PLACE:
            await self.fleet.meet()
            await self.desk.place(request, reply)
        elif request.method == "POST" and request.path == PLACED:
            self.desk.placed(request, reply)
        elif self.mounts.has(request.path):
            await self.mounts.answer(request, reply)
        else:
            work = self._page(request, reply)
            if work is not None:
                await work

    def _over(self, path: str, began_s: float, reply: Reply, error: BaseException | None, status: int = 200) -> None:
        """A request has ended: tell the client what went wrong, and count it."""
        if isinstance(error, asyncio.CancelledError):
            error = reply.cancelled()
        if isinstance(error, ClientGone):
            status = CLIENT_LEFT
            self.metrics.left.inc()
        elif error is not None:
            status = self._refuse(error, reply)
        self.count(path, status)
        self.metrics.seconds.labels(_endpoint(path)).observe(self.now_s() - began_s)

    def count(self, path: str, status: int) -> None:
        """A request is answered, by the door itself where it could not be read."""
        self.metrics.requests.labels(_endpoint(path), str(status)).inc()

    def _page(self, request: Request, reply: Reply) -> Coroutine[Any, Any, None] | None:
        page = self._pages.get(request.path)
        if page is None and request.path.startswith(MODEL):
            page = partial(self._model, unquote(request.path.removeprefix(MODEL)))
        allowed = ("GET", "HEAD") if page is not None else ("POST",) if request.path in _POSTED else ()
        if not allowed:
            tops = (path for path in self.mounts.paths if path.count("/") == 1)
            known = ", ".join((*_POSTED, *self._pages, *tops))
            raise RequestError(f"path: must be one of {known}, got {request.path[:100]!r}", status=404)
        if request.method == "OPTIONS":
            reply.send(200, b"", headers=_allow(allowed))
            return None
        if page is None or request.method not in allowed:
            raise NotAllowed(request, allowed)
        return page(reply)

    def _model(self, name: str, reply: Reply) -> None:
        models = self.prompts.models()
        if name not in models:
            there = ", ".join(sorted(models)) or "none yet"
            raise RequestError(f"model: {name[:100]!r} is not served here; there is {there}", "model", 404, NO_MODEL)
        reply.send(200, model_body(name, models[name]))

    async def _metrics(self, reply: Reply) -> None:
        pieces = [piece async for piece in in_slices(self.metrics.pieces())]
        reply.send(200, b"".join(pieces), TEXT)

    async def _snapshot(self, reply: Reply) -> None:
        reply.send(200, msgspec.json.encode(await self.snapshot()))

    def _ready(self, reply: Reply) -> None:
        ready = self.fleet.is_ready
        reply.send(200 if ready else 503, b'{"ready":%b}' % (b"true" if ready else b"false"))

    def _refuse(self, error: BaseException, reply: Reply) -> int:
        """Answer an error; inside a stream, as its last event."""
        why = explain(error)
        if why.message == INTERNAL:
            log.error("%s %s failed", reply.request.method, reply.request.path, exc_info=error)
        message = why.message or f"request: took longer than {self._timeout_s:g} s"
        if reply.started and not reply.ended:
            reply.write(error_event(message, why.status, why.code))
            reply.end()
        elif not reply.started:
            headers = b"" if why.retry_after_s is None else b"retry-after: %d\r\n" % why.retry_after_s
            if reply.id:
                headers += b"x-request-id: %b\r\n" % reply.id.encode()
            if isinstance(error, NotAllowed):
                headers += _allow(error.allowed)
            reply.send(why.status, error_body(message, why.status, why.param, why.code), headers=headers)
        return why.status


class NotAllowed(RequestError):
    """The path takes other methods."""

    def __init__(self, request: Request, allowed: Sequence[str]) -> None:
        rule = " or ".join(allowed)
        super().__init__(f"method: {request.path} takes {rule}, got {request.method}", status=405)
        self.allowed = allowed


def _allow(methods: Sequence[str]) -> bytes:
    return f"allow: {', '.join((*methods, 'OPTIONS'))}\r\n".encode()


def _endpoint(path: str) -> str:
    """As the metrics name it."""
    return path if path in _POSTED else "other"


class Why(msgspec.Struct, frozen=True):
    """What a client is told instead of an answer."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None


def explain(error: BaseException) -> Why:
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
        case Stopping():
            return Why(503, message, "stopping", retry_after_s=1)
        case JevonsError():
            return Why(500, message)
    return Why(500, INTERNAL)
