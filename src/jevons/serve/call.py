"""One client request on its way, and what its two roads share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from time import time

from jevons.base.errors import NoWorker, TooLate
from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.policy.admit import Promise
from jevons.policy.route import Placement
from jevons.serve.headers import KEEP, MAX_KEEP_S, MISS, REFUSE, TPOT, TTFT, read_promise, read_seconds
from jevons.serve.http import Request
from jevons.serve.metrics import Metrics
from jevons.serve.openai import ChatRequest, CompletionRequest, read_chat, read_completion
from jevons.serve.record import Finished, Recorder
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
        self.path = request.path
        self.body = request.body
        self.arrived_s = arrived_s
        self.asked: ChatRequest | CompletionRequest = (
            read_chat(request.body) if request.path == CHAT else read_completion(request.body)
        )
        # Seconds after which the client will be back with more of this conversation.
        self.keep_s = read_seconds(request.headers, KEEP, MAX_KEEP_S)
        self.promise = read_promise(request.headers)
        self.id = _fresh_id()
        self.prompts: list[list[int]] = []  # token ids
        self._attempts = 0

    def attempt(self) -> RequestId:
        """A name for one more placement, so that late answers of a lost worker are told apart."""
        self._attempts += 1
        return RequestId(f"{self.id}~{self._attempts}")

    def headers(self, worker: WorkerId) -> bytes:
        """Response headers that let anyone find this request again, in `/snapshot` and in the logs."""
        return b"x-request-id: %b\r\nx-jevons-worker: %b\r\n" % (self.id.encode(), worker.encode())

    def shape(self) -> Shape:
        kind = ChatShape if self.path == CHAT else CompletionShape
        return kind(self.id, int(time()), self.asked.model)


class Placements:
    """The router, as the roads use it: every placement is booked in the metrics when it is over."""

    def __init__(self, router: Router, metrics: Metrics, now_s: Clock, recorder: Recorder | None = None) -> None:
        self._router = router
        self._metrics = metrics
        self._recorder = recorder
        self._since_s: dict[RequestId, float] = {}  # arrival, then the last token
        self._begun: set[RequestId] = set()
        self._tokens: dict[RequestId, int] = {}  # of their answers, so far
        self._going_on: set[RequestId] = set()  # its first token is not the answer's first
        self.now_s = now_s

    def admit(self, call: Call, prompt: list[int], avoid: Collection[WorkerId] = ()) -> None:
        """Refuse a request that would be late on all but these, and wants to be told.

        Raises:
            TooLate: its first token is predicted to come too late, or those after it, even where it is best placed.
            NoWorker: none is there.
        """
        promise, asked = call.promise, call.asked
        if not promise.refuse_late:
            return
        best = self._router.rank(
            prompt,
            salt=asked.cache_salt or "",
            model=asked.model,
            promise=promise,
            output_tokens=asked.output_limit,
            avoid=avoid,
            most=1,
        )[0]
        if self._router.is_saturated(best.worker):
            self._metrics.refused.inc()
            raise TooLate("workers: none has been heard of lately that could take this; come again", RETURN_S)
        again_s = promise.verdict(best.ttft_s, best.tpot_s, self._router.answer_tokens(asked.output_limit))
        if again_s is not None:
            self._metrics.refused.inc()
            hint = f"come again in {again_s:.0f} s, or ask without {MISS}: {REFUSE}"
            raise TooLate(f"{_missed(promise, best)}; {hint}", again_s)

    def place(self, call: Call, id: RequestId, prompt: list[int], avoid: Collection[WorkerId] = ()) -> Placement:
        """Raises NoWorker if none is left."""
        placement = self._router.place(
            id,
            prompt,
            self.now_s(),
            salt=call.asked.cache_salt or "",
            model=call.asked.model,
            avoid=avoid,
            promise=call.promise,
            output_tokens=call.asked.output_limit,
            tells_first=bool(call.asked.stream),
        )
        self._since_s[id] = call.arrived_s
        return placement

    def go_on(self, call: Call, id: RequestId, tokens: list[int], avoid: Collection[WorkerId] = ()) -> Placement:
        """Place what follows the output so far, which `tokens` end with. Raises NoWorker if none is left."""
        now_s = self.now_s()
        placement = self._router.go_on(
            id,
            tokens,
            now_s,
            salt=call.asked.cache_salt or "",
            model=call.asked.model,
            avoid=avoid,
            tpot_slo_s=call.promise.tpot_s,
        )
        self._since_s[id] = now_s
        self._going_on.add(id)
        return placement

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
        now_s = self.now_s()
        gap_s = now_s - self._since_s[id]
        self._since_s[id] = now_s
        is_first = id not in self._begun
        if is_first:
            self._begun.add(id)
            self._router.on_first(id, now_s)
        if not is_first or id in self._going_on:
            self._metrics.itl.labels(worker).observe(gap_s)
        else:
            self._metrics.ttft.labels(worker).observe(gap_s)
        self._tokens[id] = self._tokens.get(id, 0) + tokens
        self._metrics.output_tokens.labels(worker).inc(tokens)

    def counted(self, id: RequestId, tokens: int) -> None:
        """Its engine says that its answer has so many tokens: an event may bring several."""
        self._tokens[id] = tokens

    def answered(self, id: RequestId) -> None:
        """Its whole answer is here; when its first token came is not known."""
        self._router.on_answered(id, self.now_s())

    def cached(self, id: RequestId, tokens: int | None, prompt_tokens: int | None = None) -> None:
        """Its engine says how many of its prompt's tokens it had, of how many as it counts them (None: as we do)."""
        if tokens is not None:
            self._router.on_cached(id, tokens, prompt_tokens)

    def finished(self, call: Call, sequence: Finished) -> None:
        """A sequence of `call` came to its end."""
        if self._recorder is not None:
            self._recorder.answered(sequence, call.asked.cache_salt or "", call.arrived_s, self.now_s())

    def done(self, id: RequestId) -> None:
        """It is over, whichever way."""
        self._since_s.pop(id, None)
        self._begun.discard(id)
        self._going_on.discard(id)
        outcome = self._router.done(id, self._tokens.pop(id, None))
        if outcome is not None:
            self._metrics.placed(outcome)


def _missed(promise: Promise, best: Placement) -> str:
    """Which promise would be missed, and by how much."""
    if promise.ttft_s is not None and best.ttft_s > promise.ttft_s:
        says = f"would be missed, the first token is predicted after {best.ttft_s * 1e3:.0f}"
        return f"{TTFT}: {promise.ttft_s * 1e3:.0f} ms {says}"
    assert promise.tpot_s is not None, "one of them is missed"
    says = f"would be missed, a token after the first is predicted to take {best.tpot_s * 1e3:.1f}"
    return f"{TPOT}: {promise.tpot_s * 1e3:g} ms {says}"
