"""Placements for those who keep their own gateway: where a request should go, and why.

    POST /v1/place   the request's own body ──▶ workers, best first, with predicted seconds and the reason
                     a list of such bodies ──▶ a list of answers, placed one after another
    POST /v1/placed  what became of it: its first token, its end

Without more a placement is advice and changes nothing. With the header `x-jevons-hold-s` it counts against its worker
until it is told that it is over, or so many seconds have passed: a gateway that dies must not leave a worker busy. Of a
list each is held, so that those after it find it there. A promise that would be missed (`x-slo-miss`) is dealt with as
behind our own door.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from jevons.base.errors import NoWorker, RequestError, TooLate
from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.engine.openai import TokenCount
from jevons.engine.specs import EngineSpec
from jevons.policy.admit import Miss
from jevons.policy.route import Placement
from jevons.serve.admission import Admission
from jevons.serve.call import CHAT, COMPLETIONS, Call
from jevons.serve.headers import HOLD, MAX_HOLD_S, MISS, read_promise, read_seconds
from jevons.serve.http import Reply, Request
from jevons.serve.metrics import Metrics
from jevons.serve.openai import UNREADABLE, error_body
from jevons.serve.prompts import Prompts

PLACE, PLACED = "/v1/place", "/v1/placed"
MOST_IN_LIST = 1024  # bodies


class Ranked(msgspec.Struct, frozen=True):
    """One worker that could take the request."""

    worker: WorkerId
    url: str | None  # of an attached engine; None: a worker of this server, reached through its door
    rank: int | None  # to send there as `x-data-parallel-rank`; None: nothing
    ttft_s: float  # predicted seconds to the first token
    tpot_s: float  # predicted seconds for each token after it
    cached_tokens: int  # of the prompt, predicted
    decode: WorkerId | None  # who goes on after the first token; None: the same
    reason: str


class Advice(msgspec.Struct, frozen=True):
    """The answer of `/v1/place`."""

    id: str | None  # to tell what became of it; None: nothing is counted
    model: str
    policy: str
    prompt_tokens: int  # of all its prompts
    workers: list[Ranked]  # best first
    downgraded: bool = False  # its promise would be missed: nothing is promised any more


class News(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a placement: the body of `/v1/placed`."""

    id: str
    event: Literal["first_token", "done"]
    cached_tokens: TokenCount | None = None  # of the prompt, as the engine reports them
    prompt_tokens: TokenCount | None = None  # as it counts them; None: as we do
    completion_tokens: TokenCount | None = None  # of the whole answer, which came to its end


class _Held(NamedTuple):
    """A placement that counts."""

    worker: WorkerId
    timer: asyncio.TimerHandle  # that ends it


class _Shape(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()


class Desk:
    """The handlers. `now_s` is a monotonic clock; `spec_of` tells where an attached worker is."""

    def __init__(
        self,
        router: Router,
        prompts: Prompts,
        metrics: Metrics,
        admission: Admission,
        spec_of: Callable[[WorkerId], EngineSpec | None],
    ) -> None:
        self._router = router
        self._prompts = prompts
        self._metrics = metrics
        self._admission = admission
        self._placements = admission.placements
        self._spec_of = spec_of
        self._held: dict[RequestId, _Held] = {}
        self._begun: set[RequestId] = set()  # of those: whose first token was told

    async def place(self, request: Request, reply: Reply) -> None:
        """Answer a body of `/v1/chat/completions` or `/v1/completions`; a list of token ids is a prompt of the latter.

        A list of them is answered with a list: nothing is placed if one cannot be read, and what nobody can take has an
        error for an answer. What is held for a client that leaves before it is told is let go.

        Raises:
            RequestError: names the field that is wrong.
            NoWorker: nobody serves the model.
            TooLate: its promise would be missed, and it wants to be told.
        """
        hold_s, held = read_seconds(request.headers, HOLD, MAX_HOLD_S), list[RequestId]()
        try:
            if request.body.lstrip()[:1] == b"[":
                body = msgspec.json.encode(await self._place_all(request, hold_s, held))
            else:
                call = self._call(request, request.body)
                await self._encode(call)
                body = msgspec.json.encode(await self._advice(call, hold_s, held))
        except BaseException:
            for id in held:
                self._end(id)
            raise
        reply.send(200, body)

    async def _place_all(self, request: Request, hold_s: float, held: list[RequestId]) -> list[Advice | msgspec.Raw]:
        if hold_s <= 0:
            raise RequestError(f"{HOLD}: must be told with a list: each counts for those after it, and until when?")
        if read_promise(request.headers).miss is Miss.QUEUE:
            raise RequestError(f"{MISS}: {Miss.QUEUE} goes with one body, got a list: the others would wait for it")
        calls = []
        for number, body in enumerate(_bodies(request.body)):
            try:
                calls.append(self._call(request, bytes(body)))
                await self._encode(calls[-1])
            except RequestError as error:
                raise RequestError(f"[{number}]: {error}", error.param, error.status, error.code) from error
        answers: list[Advice | msgspec.Raw] = []
        for call in calls:
            try:
                answers.append(await self._advice(call, hold_s, held))
            except NoWorker as none:
                answers.append(msgspec.Raw(error_body(str(none), 503, code="no_worker")))
            except TooLate as late:
                answers.append(msgspec.Raw(error_body(str(late), 429, code="too_late")))
            await asyncio.sleep(0)  # a long list must not hold up everybody's streams
        return answers

    def _call(self, request: Request, body: bytes) -> Call:
        """As behind our own door."""
        one = request.again(body)
        one.path = CHAT if _is_chat(body) else COMPLETIONS
        call = Call(one, self._placements.now_s())
        call.tells_first = False  # a gateway need not
        return call

    async def _encode(self, call: Call) -> None:
        call.prompts = await self._prompts.encode(call.asked)
        call.model = self._prompts.model_of(call.model)

    async def _advice(self, call: Call, hold_s: float, held: list[RequestId]) -> Advice:
        if hold_s <= 0:
            if call.promise.miss is Miss.QUEUE:
                raise RequestError(f"{MISS}: {Miss.QUEUE} goes with {HOLD} here: who has waited must count")
            self._admission.check(call)
            ranked, id = self._admission.rank(call), None
        else:
            id, others = RequestId(f"placed-{secrets.token_hex(12)}"), self._admission.rank(call)
            counted = await self._admission.enter(call, id)
            held.append(id)
            timer = asyncio.get_running_loop().call_later(hold_s, self._expire, id)
            self._held[id] = _Held(counted.worker, timer)
            ranked = [counted, *(other for other in others if other.worker != counted.worker)]
        workers = [self._told(placement) for placement in ranked]
        policy, tokens = self._router.policy, len(call.prompt)
        return Advice(id, call.asked.model, policy, tokens, workers, call.is_downgraded)

    def placed(self, request: Request, reply: Reply) -> None:
        """Hear what became of a placement that was held.

        Raises:
            RequestError: the body is wrong, or the placement is over or was never held (404).
        """
        if not self.hear(request.body):
            id = _news(request.body).id[:60]
            raise RequestError(f"id: {id!r} is not held: it is over, or was not asked to be", "id", 404)
        reply.send(200, b"{}")

    def holds(self, body: bytes) -> bool:
        """Whether the placement that `body` tells of is held here, as far as it can be read."""
        try:
            return RequestId(_news(body).id) in self._held
        except RequestError:
            return False

    def hear(self, body: bytes) -> bool:
        """Take what `body` tells of a placement; returns whether it is held here.

        Raises:
            RequestError: it cannot be read.
        """
        news = _news(body)
        id = RequestId(news.id)
        held = self._held.get(id)
        if held is None:
            return False
        if news.cached_tokens is not None:
            self._placements.cached(id, news.cached_tokens, news.prompt_tokens)
        if news.event == "done":
            if news.completion_tokens is not None:
                self._placements.counted(id, news.completion_tokens)
                told = news.completion_tokens - (id in self._begun)
                self._metrics.output_tokens.labels(held.worker).inc(max(0, told))
            self._end(id, is_answered=news.completion_tokens is not None)
        elif id not in self._begun:
            self._begun.add(id)
            self._placements.token(id, held.worker)
        return True

    def close(self) -> None:
        """Nothing is held any more."""
        for id in list(self._held):
            self._end(id)

    def _expire(self, id: RequestId) -> None:
        self._metrics.expired.inc()
        self._end(id)

    def _end(self, id: RequestId, *, is_answered: bool = False) -> None:
        held = self._held.pop(id, None)
        if held is not None:
            held.timer.cancel()
            self._begun.discard(id)
            self._placements.done(id, is_answered=is_answered)

    def _told(self, placement: Placement) -> Ranked:
        p, spec = placement, self._spec_of(placement.worker)
        url, rank = (None, None) if spec is None else (spec.url, spec.rank)
        return Ranked(p.worker, url, rank, p.ttft_s, p.tpot_s, p.cached_tokens, p.decode, p.reason)


def _news(body: bytes) -> News:
    try:
        news = msgspec.json.decode(body, type=News)
    except UNREADABLE as error:
        raise RequestError(f"body: {error}") from error
    cached, prompt = news.cached_tokens, news.prompt_tokens
    if cached is not None and prompt is not None and cached > prompt:
        raise RequestError(f"cached_tokens: must be at most prompt_tokens, got {cached} of {prompt}", "cached_tokens")
    if news.completion_tokens is not None and news.event != "done":
        rule = "goes with the event done, when the answer has come to its end"
        raise RequestError(f"completion_tokens: {rule}, got {news.event}", "completion_tokens")
    return news


def _bodies(body: bytes) -> list[msgspec.Raw]:
    try:
        bodies = msgspec.json.decode(body, type=list[msgspec.Raw])
    except UNREADABLE as error:
        raise RequestError(f"body: {error}") from error
    if len(bodies) > MOST_IN_LIST:
        raise RequestError(f"body: must list at most {MOST_IN_LIST} requests, got {len(bodies)}; ask several times")
    return bodies


def _is_chat(body: bytes) -> bool:
    try:
        return bool(bytes(msgspec.json.decode(body, type=_Shape).messages))
    except UNREADABLE:
        return True  # what is wrong with it is said there
