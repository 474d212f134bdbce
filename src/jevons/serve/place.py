"""Placements for those who keep their own gateway: where a request should go, and why.

    POST /v1/place   the request's own body ──▶ workers, best first, with predicted seconds and the reason
                     a list of such bodies ──▶ a list of answers, placed one after another
    POST /v1/placed  what became of it: its first token, its end

Without more a placement is advice and changes nothing. With the header `x-jevons-hold-s` it counts against its worker
until it is told that it is over, or so many seconds have passed: a gateway that dies must not leave a worker busy. Of a
list each is held, so that those after it find it there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from jevons.base.errors import NoWorker, RequestError
from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.engine.openai import EngineSpec, TokenCount
from jevons.policy.admit import Promise
from jevons.policy.route import Placement
from jevons.serve.call import Placements
from jevons.serve.headers import HOLD, MAX_HOLD_S, read_promise, read_seconds, read_session
from jevons.serve.http import Reply, Request
from jevons.serve.metrics import Metrics
from jevons.serve.openai import UNREADABLE, ChatRequest, CompletionRequest, error_body, read_chat, read_completion
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
    prompt_tokens: int
    workers: list[Ranked]  # best first


class News(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a placement: the body of `/v1/placed`."""

    id: str
    event: Literal["first_token", "done"]
    cached_tokens: TokenCount | None = None  # of the prompt, as the engine reports them


class _Told(NamedTuple):
    """What the headers say."""

    hold_s: float
    promise: Promise
    headers: Mapping[str, str]


class _Shape(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()


class Desk:
    """The handlers. `now_s` is a monotonic clock; `spec_of` tells where an attached worker is."""

    def __init__(
        self,
        router: Router,
        prompts: Prompts,
        metrics: Metrics,
        placements: Placements,
        spec_of: Callable[[WorkerId], EngineSpec | None],
    ) -> None:
        self._router = router
        self._prompts = prompts
        self._metrics = metrics
        self._now_s, self._watch = placements.now_s, placements.watch
        self._spec_of = spec_of
        self._held: dict[RequestId, asyncio.TimerHandle] = {}  # what ends them

    async def place(self, request: Request, reply: Reply) -> None:
        """Answer a body of `/v1/chat/completions` or `/v1/completions`; a list of token ids is a prompt of the latter.

        A list of them is answered with a list: nothing is placed if one cannot be read, and what nobody can take has an
        error for an answer.

        Raises:
            RequestError: names the field that is wrong.
            NoWorker: nobody serves the model.
        """
        headers = request.headers
        told = _Told(read_seconds(headers, HOLD, MAX_HOLD_S), read_promise(headers), headers)
        if request.body.lstrip()[:1] == b"[":
            reply.send(200, msgspec.json.encode(await self._place_all(request.body, told)))
            return
        asked = _read(request.body)
        tokens = (await self._prompts.encode(asked))[0]
        reply.send(200, msgspec.json.encode(self._advice(asked, tokens, told)))

    async def _place_all(self, body: bytes, told: _Told) -> list[Advice | msgspec.Raw]:
        if told.hold_s <= 0:
            raise RequestError(f"{HOLD}: must be told with a list: each counts for those after it, and until when?")
        each = [(asked, (await self._encoded(number, asked))) for number, asked in enumerate(_read_all(body))]
        answers: list[Advice | msgspec.Raw] = []
        for asked, tokens in each:
            try:
                answers.append(self._advice(asked, tokens, told))
            except NoWorker as none:
                answers.append(msgspec.Raw(error_body(str(none), 503)))
            await asyncio.sleep(0)  # a long list must not hold up everybody's streams
        return answers

    async def _encoded(self, number: int, asked: ChatRequest | CompletionRequest) -> Sequence[int]:
        try:
            return (await self._prompts.encode(asked))[0]
        except RequestError as error:
            raise _in_list(number, error) from error

    def _advice(self, asked: ChatRequest | CompletionRequest, tokens: Sequence[int], told: _Told) -> Advice:
        salt, id, now_s = asked.cache_salt or "", None, self._now_s()
        wants: dict[str, Any] = {
            "salt": salt,
            "model": asked.model,
            "session": read_session(told.headers, salt),
            "promise": told.promise,
            "output_tokens": asked.output_limit,
        }
        ranked = self._router.rank(tokens, **wants, now_s=now_s)
        if told.hold_s > 0:
            id = RequestId(f"placed-{secrets.token_hex(12)}")
            counted = self._router.place(id, tokens, now_s, **wants, tells_first=False)
            ranked = [counted, *(other for other in ranked if other.worker != counted.worker)]
            self._watch.placed(id, counted, len(tokens), now_s)
            self._held[id] = asyncio.get_running_loop().call_later(told.hold_s, self._expire, id)
        workers = [self._told(placement) for placement in ranked]
        return Advice(id, asked.model, self._router.policy, len(tokens), workers)

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
        if id not in self._held:
            return False
        if news.cached_tokens is not None:
            self._router.on_cached(id, news.cached_tokens)
        if news.event == "first_token":
            now_s = self._now_s()
            self._router.on_first(id, now_s)
            self._watch.first(id, now_s)
        else:
            self._end(id)
        return True

    def close(self) -> None:
        """Nothing is held any more."""
        for id in list(self._held):
            self._end(id)

    def _expire(self, id: RequestId) -> None:
        self._metrics.expired.inc()
        self._end(id)

    def _end(self, id: RequestId) -> None:
        self._held.pop(id).cancel()
        outcome = self._router.done(id)
        if outcome is not None:
            self._metrics.placed(outcome)
            self._watch.done(outcome, 0, self._now_s())

    def _told(self, placement: Placement) -> Ranked:
        p, spec = placement, self._spec_of(placement.worker)
        url, rank = (None, None) if spec is None else (spec.url, spec.rank)
        return Ranked(p.worker, url, rank, p.ttft_s, p.tpot_s, p.cached_tokens, p.decode, p.reason)


def _news(body: bytes) -> News:
    try:
        return msgspec.json.decode(body, type=News)
    except UNREADABLE as error:
        raise RequestError(f"body: {error}") from error


def _read_all(body: bytes) -> list[ChatRequest | CompletionRequest]:
    try:
        bodies = msgspec.json.decode(body, type=list[msgspec.Raw])
    except UNREADABLE as error:
        raise RequestError(f"body: {error}") from error
    if len(bodies) > MOST_IN_LIST:
        raise RequestError(f"body: must list at most {MOST_IN_LIST} requests, got {len(bodies)}; ask several times")
    found = []
    for number, one in enumerate(bodies):
        try:
            found.append(_read(bytes(one)))
        except RequestError as error:
            raise _in_list(number, error) from error
    return found


def _in_list(number: int, error: RequestError) -> RequestError:
    return RequestError(f"[{number}]: {error}", error.param, error.status, error.code)


def _read(body: bytes) -> ChatRequest | CompletionRequest:
    try:
        is_chat = bool(bytes(msgspec.json.decode(body, type=_Shape).messages))
    except UNREADABLE:
        is_chat = True  # what is wrong with it is said there
    return read_chat(body) if is_chat else read_completion(body)
