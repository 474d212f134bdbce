"""The road to attached engines: the client's request goes through as it is, the engine's answer too."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial

import msgspec

from jevons.base.errors import EngineGone
from jevons.base.ids import RequestId, WorkerId
from jevons.engine.http_client import Scope
from jevons.engine.openai import Answer, Event, SeenUsage, with_usage
from jevons.policy.route import Placement
from jevons.serve.call import MAX_ATTEMPTS, Call, Placements
from jevons.serve.fleet import Attached, Fleet
from jevons.serve.http import EVENT_STREAM, NO_CACHE, Reply
from jevons.serve.metrics import Metrics
from jevons.serve.record import Finished

# What an engine or a proxy before it answers while it starts, drains or is overloaded: another may do better.
ELSEWHERE = frozenset((502, 503, 504))


class _Seen(msgspec.Struct):
    """What an answer told as it went by."""

    usage: SeenUsage | None = None
    first_s: float | None = None  # when its first token came


class Relay:
    """Sends a call to an attached engine and its answer to the client."""

    def __init__(self, fleet: Fleet, placements: Placements, metrics: Metrics) -> None:
        self._fleet = fleet
        self._placements = placements
        self._metrics = metrics

    async def answer(self, call: Call, id: RequestId, placement: Placement, reply: Reply) -> None:
        """Answer `call`, placed as `id`; on another engine if its own is lost before anything was sent.

        Raises:
            EngineGone: it could not be answered, or not to its end; the caller tells the client.
            NoWorker: its engine was lost, and none is left.
        """
        failed: list[WorkerId] = []
        while True:
            try:
                await self._attempt(call, id, placement, reply)
                return
            except EngineGone:
                if reply.started:
                    self._metrics.cut.labels(placement.worker).inc()
                    raise
                failed.append(placement.worker)
                if len(failed) >= MAX_ATTEMPTS:
                    raise
                id = call.attempt()
                self._metrics.retries.labels(placement.worker).inc()
                place = partial(self._placements.place, call, id, call.prompts[0])
                placement = await self._placements.place_again(place, failed, self._fleet.links)

    async def _attempt(self, call: Call, id: RequestId, placement: Placement, reply: Reply) -> None:
        attached = self._fleet.attached[placement.worker]
        scope = attached.enter(id)
        try:
            answer = self._stream if call.asked.stream else self._whole
            seen = await answer(call, id, attached, scope, reply)
            if seen.usage is not None and len(call.prompts) == 1:
                self._placements.finished(call, as_finished(call, placement, seen.usage, seen.first_s))
        finally:
            attached.leave(id)
            self._placements.done(id)

    async def _whole(self, call: Call, id: RequestId, attached: Attached, scope: Scope, reply: Reply) -> _Seen:
        answer = await attached.engine.whole(call.path, call.body, scope)
        if answer.status == 200:
            self._placements.answered(id)
            if answer.usage is not None:
                self._placements.cached(id, answer.usage.cached_tokens, answer.usage.prompt_tokens)
                self._placements.counted(id, answer.usage.completion_tokens)
                self._metrics.output_tokens.labels(attached.id).inc(answer.usage.completion_tokens)
        self._forward(call, answer, attached, reply)
        return _Seen(answer.usage)

    def _forward(self, call: Call, answer: Answer, attached: Attached, reply: Reply) -> None:
        if answer.status in ELSEWHERE:
            raise EngineGone(f"engine {attached.id}: answered {answer.status}")
        kind = answer.content_type.encode("latin-1")
        reply.send(answer.status, answer.body, kind, call.headers(attached.id))

    async def _stream(self, call: Call, id: RequestId, attached: Attached, scope: Scope, reply: Reply) -> _Seen:
        asked_usage = call.asked.stream_options is not None
        body = call.body if asked_usage else with_usage(call.body)
        complete, seen = False, _Seen()
        async with aclosing(attached.engine.stream(call.path, body, scope)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    self._forward(call, event, attached, reply)
                    return seen
                if not reply.started:
                    reply.start(200, EVENT_STREAM, NO_CACHE + call.headers(attached.id))
                    attached.started(id)
                self._book(id, attached, event, seen)
                if event.has_choices or asked_usage or event.usage is None:
                    reply.write(event.raw)
                await reply.drain()
                complete = complete or event.is_done
        if not complete:
            raise EngineGone(f"engine {attached.id}: ended its stream in the middle")
        reply.end()
        return seen

    def _book(self, id: RequestId, attached: Attached, event: Event, seen: _Seen) -> None:
        if event.has_choices:
            self._placements.token(id, attached.id)
            if seen.first_s is None:
                seen.first_s = self._placements.now_s()
        if event.usage is not None:
            self._placements.cached(id, event.usage.cached_tokens, event.usage.prompt_tokens)
            self._placements.counted(id, event.usage.completion_tokens)
            seen.usage = event.usage


def as_finished(call: Call, placement: Placement, usage: SeenUsage, first_s: float | None) -> Finished:
    """Its tokens went by as text: their number alone is known."""
    return Finished(
        id=RequestId(call.id),
        prompt=call.prompts[0],
        tokens=(),
        output_tokens=usage.completion_tokens,
        placement=placement,
        first_s=first_s,
        cached_tokens=usage.cached_tokens,
    )
