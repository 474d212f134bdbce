"""One client request on its way, and what its two roads share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import cached_property
from time import time

import msgspec

from jevons.base.compiled import Ints
from jevons.base.errors import NoWorker, RequestError
from jevons.base.ids import RequestId, WorkerId
from jevons.control.gate import Gate
from jevons.control.lived import BLOCK, Finished, Lately
from jevons.control.router import Router
from jevons.control.watch import Watch
from jevons.policy.admit import USUAL
from jevons.policy.route import Placement
from jevons.serve.headers import (
    KEEP,
    MAX_KEEP_S,
    MAX_PRIORITY,
    read_priority,
    read_promise,
    read_seconds,
    read_session,
    read_tenant,
    read_trace,
)
from jevons.serve.http import Request
from jevons.serve.metrics import Metrics
from jevons.serve.openai import ChatRequest, CompletionRequest, read_chat, read_completion
from jevons.serve.record import Recorder
from jevons.serve.stream import ChatShape, CompletionShape, Shape

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_ATTEMPTS = 4  # workers that may be lost under one request before we give up
RETURN_S = 5.0  # an embedded worker that died is back after 2 to 4 s (SmolLM2 on a CPU)
LOOK_S = 0.1

Clock = Callable[[], float]


_random = bytearray()


def _fresh_id() -> str:
    """96 random bits. The system is asked for many at once: each time costs as much as reading the request."""
    if not _random:
        _random.extend(os.urandom(12 * 256))
    taken = _random[-12:].hex()
    del _random[-12:]
    return taken


class Call:
    """A completion request, read and checked.

    Raises:
        RequestError: names the field that is wrong.
    """

    def __init__(self, request: Request, arrived_s: float) -> None:
        coding = request.headers.get("content-encoding", "identity")
        if coding != "identity":
            raise RequestError(f"content-encoding: must be identity, got {coding[:40]!r}; send it plain", status=415)
        self.path = request.path
        self.body = request.body
        self.arrived_s = arrived_s
        self.asked: ChatRequest | CompletionRequest = (
            read_chat(request.body) if request.path == CHAT else read_completion(request.body)
        )
        # Seconds after which the client will be back with more of this conversation.
        self.keep_s = read_seconds(request.headers, KEEP, MAX_KEEP_S)
        self.promise = read_promise(request.headers)
        told = self.asked.priority
        self.priority = read_priority(request.headers) if told is None else told  # the lower, the earlier
        self.tenant = read_tenant(request.headers, self.asked.cache_salt or "")
        self.session = read_session(request.headers, self.asked.cache_salt or "")
        self.is_downgraded = False
        self._traced = read_trace(request.headers)
        self.id = _fresh_id()
        self.prompts: list[Sequence[int]] = []  # token ids
        self.model = self.asked.model  # as its workers call it
        self.is_split = False  # each prompt is placed by itself, by our own workers' road
        self.tells_first = bool(self.asked.stream)  # when its first token comes will be told
        self._attempts = 0

    @cached_property
    def prompt(self) -> Sequence[int]:
        """What is placed: all prompts, one after another, for an engine gets them together."""
        if self.is_split or len(self.prompts) == 1:
            return self.prompts[0]
        return [token for prompt in self.prompts for token in prompt]

    def attempt(self) -> RequestId:
        """A name for one more placement, so that late answers of a lost worker are told apart."""
        self._attempts += 1
        return RequestId(f"{self.id}~{self._attempts}")

    def downgrade(self) -> None:
        """What it was promised cannot be kept: it goes after others of its priority, and nothing is promised."""
        self.promise, self.is_downgraded = USUAL, True
        self.priority = min(self.priority + 1, MAX_PRIORITY)

    def headers(self, worker: WorkerId) -> bytes:
        """Response headers that let anyone find this request again, in `/snapshot` and in the logs."""
        downgraded = b"x-jevons-downgraded: 1\r\n" if self.is_downgraded else b""
        return b"x-request-id: %b\r\nx-jevons-worker: %b\r\n%b" % (self.id.encode(), worker.encode(), downgraded)

    def trace(self, lost: int) -> bytes:
        """Request headers by which an engine's logs and traces find this request: the client's, else our name for it.

        Args:
            lost: engines that were lost under it. Another name for each: the last one may run it still.
        """
        name, lines = self._traced
        again = f"-{lost}" if lost else ""
        return f"x-request-id: {name or self.id}{again}\r\n{lines}".encode("latin-1")

    def shape(self) -> Shape:
        kind = ChatShape if self.path == CHAT else CompletionShape
        return kind(self.id, int(time()), self.asked.model)


class _Open(msgspec.Struct):
    """A placement that is not over."""

    since_s: float  # arrival, then the last token
    account: str  # to whom it is charged
    device_s: float  # how many seconds of devices
    goes_on: bool  # its first token is not the answer's first
    has_begun: bool = False
    tokens: int | None = None  # of its answer, so far; None: not known


class Placements:
    """The router, as the roads use it: every placement is booked in the metrics when it is over."""

    def __init__(self, router: Router, metrics: Metrics, now_s: Clock, recorder: Recorder | None = None) -> None:
        self._router = router
        self._metrics = metrics
        self._recorder = recorder
        self._open: dict[RequestId, _Open] = {}
        self.gate = Gate()
        self.on_room: Callable[[], None] | None = None  # told when a worker may have more room, if somebody waits
        self.now_s = now_s
        self.watch = Watch(now_s())
        self.lately = Lately()

    def place(self, call: Call, id: RequestId, prompt: Sequence[int], avoid: Collection[WorkerId] = ()) -> Placement:
        """Raises NoWorker if none is left."""
        placement = self._router.place(
            id,
            prompt,
            self.now_s(),
            salt=call.asked.cache_salt or "",
            model=call.model,
            session=call.session,
            avoid=avoid,
            promise=call.promise,
            output_tokens=call.asked.output_limit,
            tells_first=call.tells_first,
        )
        self.watch.placed(id, placement, len(prompt), self.now_s())
        self._begin(call, id, call.arrived_s, goes_on=False)
        return placement

    def go_on(self, call: Call, id: RequestId, tokens: Sequence[int], avoid: Collection[WorkerId] = ()) -> Placement:
        """Place what follows the output so far, which `tokens` end with. Raises NoWorker if none is left."""
        now_s = self.now_s()
        placement = self._router.go_on(
            id,
            tokens,
            now_s,
            salt=call.asked.cache_salt or "",
            model=call.model,
            avoid=avoid,
            tpot_slo_s=call.promise.tpot_s,
        )
        self.watch.placed(id, placement, len(tokens), now_s)
        self._begin(call, id, now_s, goes_on=True)
        return placement

    def _begin(self, call: Call, id: RequestId, since_s: float, *, goes_on: bool) -> None:
        account, seconds = self.gate.begin(call.tenant), self._router.device_s(id)
        self._open[id] = _Open(since_s, account, seconds, goes_on)
        self.gate.charge(account, seconds, placements=1)

    async def place_again(
        self,
        place: Callable[[Collection[WorkerId]], Placement],
        failed: Collection[WorkerId],
        other: Collection[WorkerId],
    ) -> Placement:
        """Place a request whose worker was lost: where none was lost under it, else where one is back, waiting for it.

        Args:
            place: places it, avoiding some workers.
            failed: workers that were lost under it.
            other: workers of another kind.

        Raises:
            NoWorker: none is there within `RETURN_S`.
        """
        until_s = self.now_s() + RETURN_S
        while True:
            with suppress(NoWorker):
                return place({*failed, *other})
            try:
                return place(other)
            except NoWorker:
                if self.now_s() > until_s:
                    raise
            await asyncio.sleep(LOOK_S)

    def token(self, id: RequestId, worker: WorkerId, tokens: int = 1) -> None:
        """A step's tokens of it are here."""
        now_s, one = self.now_s(), self._open[id]
        gap_s, one.since_s = now_s - one.since_s, now_s
        is_first = not one.has_begun
        if is_first:
            one.has_begun = True
            self._router.on_first(id, now_s)
            self.watch.first(id, now_s)
            self._tell_room()
        if not is_first or one.goes_on:
            self._metrics.itl.labels(worker).observe(gap_s)
            self.watch.gap(gap_s, now_s)
        else:
            self._metrics.ttft.labels(worker).observe(gap_s)
        one.tokens = (one.tokens or 0) + tokens
        self._metrics.output_tokens.labels(worker).inc(tokens)

    def counted(self, id: RequestId, tokens: int) -> None:
        """Its engine says that its answer has so many tokens: an event may bring several."""
        self._open[id].tokens = tokens

    def answered(self, id: RequestId) -> None:
        """Its whole answer is here; when its first token came is not known."""
        self._router.on_answered(id, self.now_s())

    def cached(self, id: RequestId, tokens: int | None, prompt_tokens: int | None = None) -> None:
        """Its engine says how many of its prompt's tokens it had, of how many as it counts them (None: as we do)."""
        if tokens is not None:
            self._router.on_cached(id, tokens, prompt_tokens)

    def names(self, id: RequestId) -> Ints | None:
        """See `Router.names`: of blocks as `control.lived` wants them."""
        return self._router.names(id, BLOCK)

    def finished(self, call: Call, sequence: Finished) -> None:
        """A sequence of `call` came to its end."""
        salt, now_s = call.asked.cache_salt or "", self.now_s()
        self.lately.answered(sequence, salt, call.arrived_s, now_s)
        if self._recorder is not None:
            self._recorder.answered(sequence, salt, call.arrived_s, now_s)

    def done(self, id: RequestId, *, is_answered: bool = False) -> None:
        """It is over, whichever way. `is_answered`: its answer came to its end."""
        one = self._open.pop(id, None)
        tokens = None if one is None else one.tokens
        outcome = self._router.done(id, tokens, is_answered=is_answered)
        if one is not None:
            took_s = one.device_s if outcome is None else outcome.device_s
            self.gate.charge(one.account, took_s - one.device_s)
            self.gate.end(one.account)
        if outcome is not None:
            self._metrics.placed(outcome)
            self.watch.done(outcome, tokens or 0, self.now_s())
        self._tell_room()

    def _tell_room(self) -> None:
        if self.gate.waiting and self.on_room is not None:
            self.on_room()
