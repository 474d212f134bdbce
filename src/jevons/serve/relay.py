"""The road to attached engines: the client's request goes through as it is, the engine's answer too.

An engine that is lost is replaced by another one: by who answers the same request before anything was sent, by who goes
on with the answer after that (`serve/resume`).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing

import msgspec

from jevons.base.errors import EngineGone, NoWorker
from jevons.base.ids import RequestId, WorkerId
from jevons.engine.http_client import Scope
from jevons.engine.openai import Answer, Event, SeenUsage, with_usage
from jevons.policy.route import Placement
from jevons.serve.call import MAX_ATTEMPTS, Call, Placements
from jevons.serve.fleet import Attached, Fleet
from jevons.serve.http import EVENT_STREAM, NO_CACHE, Reply
from jevons.serve.metrics import Metrics
from jevons.serve.prompts import Prompts
from jevons.serve.record import Finished
from jevons.serve.resume import Rest, Said
from jevons.serve.stream import DONE

# What an engine or a proxy before it answers while it starts, drains or is overloaded: another may do better.
ELSEWHERE = frozenset((502, 503, 504))


class _Seen(msgspec.Struct):
    """What an answer told as it went by."""

    usage: SeenUsage | None = None
    first_s: float | None = None  # when its first token came
    said: Said | None = None  # of a stream
    rest: Rest | None = None  # what is asked for now; None: all of it


class Relay:
    """Sends a call to an attached engine and its answer to the client."""

    def __init__(self, fleet: Fleet, placements: Placements, metrics: Metrics, prompts: Prompts) -> None:
        self._fleet = fleet
        self._placements = placements
        self._metrics = metrics
        self._prompts = prompts

    async def answer(self, call: Call, id: RequestId, placement: Placement, reply: Reply) -> None:
        """Answer `call`, placed as `id`; on another engine if its own is lost.

        Raises:
            EngineGone: it could not be answered, or not to its end; the caller tells the client.
            NoWorker: its engine was lost, and none is left.
        """
        failed: list[WorkerId] = []
        seen = _Seen(said=Said(call.path, call.asked) if call.asked.stream else None)
        while True:
            try:
                await self._attempt(call, id, placement, reply, seen)
                return
            except EngineGone as error:
                failed.append(placement.worker)
                if reply.started and self._is_over(call, reply, seen):
                    return
                if len(failed) >= MAX_ATTEMPTS:
                    raise self._cut(str(error), reply, placement.worker) from error
                if reply.started:
                    seen.rest = self._rest(call, seen, error, placement.worker)
                id = call.attempt()
                self._metrics.retries.labels(placement.worker).inc()
                placement = await self._elsewhere(call, id, reply, seen, failed)

    async def _elsewhere(
        self, call: Call, id: RequestId, reply: Reply, seen: _Seen, failed: list[WorkerId]
    ) -> Placement:
        """Place what is still to come."""

        def place(avoid: Collection[WorkerId]) -> Placement:
            if seen.rest is None:
                return self._placements.place(call, id, call.prompts[0], avoid)
            return self._placements.go_on(call, id, seen.rest.tokens, avoid)

        try:
            return await self._placements.place_again(place, failed, self._fleet.links)
        except NoWorker as none:
            if reply.started:
                raise self._cut(f"engine {failed[-1]} was lost; {none}", reply, failed[-1]) from none
            raise

    def _rest(self, call: Call, seen: _Seen, error: EngineGone, worker: WorkerId) -> Rest:
        """What another engine is asked for. Raises EngineGone where the stream must be cut."""
        said, model = seen.said, call.asked.model
        assert said is not None, "only streams begin before they are whole"
        reason, rest = said.stuck(), None
        if reason is None:
            tail = self._prompts.encode_rest(model, said.text)
            rest = said.rest(call.body, call.prompts[0], tail, self._prompts.context_tokens(model))
        if rest is None:
            self._metrics.cut.labels(worker).inc()
            raise EngineGone(f"{error}; nobody goes on: {reason or 'its tokens are not known here'}") from error
        return rest

    def _is_over(self, call: Call, reply: Reply, seen: _Seen) -> bool:
        """Whether nothing but the end of a stream was missing; then it is sent."""
        if seen.said is None or not seen.said.is_complete() or call.asked.wants_usage:
            return False
        reply.write(seen.said.ending() + DONE)
        reply.end()
        return True

    def _cut(self, why: str, reply: Reply, worker: WorkerId) -> EngineGone:
        if reply.started:
            self._metrics.cut.labels(worker).inc()
        return EngineGone(why)

    async def _attempt(self, call: Call, id: RequestId, placement: Placement, reply: Reply, seen: _Seen) -> None:
        attached = self._fleet.attached[placement.worker]
        scope = attached.enter(id)
        try:
            answer = self._stream if call.asked.stream else self._whole
            await answer(call, id, attached, scope, reply, seen)
            if seen.usage is not None and len(call.prompts) == 1:
                self._placements.finished(call, as_finished(call, placement, seen.usage, seen.first_s))
        finally:
            attached.leave(id)
            self._placements.done(id)

    async def _whole(
        self, call: Call, id: RequestId, attached: Attached, scope: Scope, reply: Reply, seen: _Seen
    ) -> None:
        answer = await attached.engine.whole(call.path, call.body, scope)
        attached.heard()
        if answer.status == 200:
            self._placements.answered(id)
            if answer.usage is not None:
                self._placements.cached(id, answer.usage.cached_tokens, answer.usage.prompt_tokens)
                self._placements.counted(id, answer.usage.completion_tokens)
                self._metrics.output_tokens.labels(attached.id).inc(answer.usage.completion_tokens)
        self._forward(call, answer, attached, reply)
        seen.usage = answer.usage

    def _forward(self, call: Call, answer: Answer, attached: Attached, reply: Reply) -> None:
        if answer.status in ELSEWHERE:
            raise EngineGone(f"engine {attached.id}: answered {answer.status}")
        kind = answer.content_type.encode("latin-1")
        reply.send(answer.status, answer.body, kind, call.headers(attached.id))

    async def _stream(
        self, call: Call, id: RequestId, attached: Attached, scope: Scope, reply: Reply, seen: _Seen
    ) -> None:
        complete, (path, body) = False, _asked_for(call, seen)
        async with aclosing(attached.engine.stream(path, body, scope)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    self._refused(call, event, attached, reply)
                    return
                if not reply.started:
                    reply.start(200, EVENT_STREAM, NO_CACHE + call.headers(attached.id))
                attached.started(id)
                attached.heard()
                self._book(id, attached, event, seen)
                self._send(call, event, reply, seen)
                await reply.drain()
                complete = complete or event.is_done
        if not complete:
            raise EngineGone(f"engine {attached.id}: ended its stream in the middle")
        reply.end()

    def _refused(self, call: Call, answer: Answer, attached: Attached, reply: Reply) -> None:
        """No stream came. Raises EngineGone where one had begun."""
        if reply.started:
            says = answer.body[:200].decode("utf-8", "replace")
            raise EngineGone(f"engine {attached.id}: does not go on with another's answer: {answer.status} {says}")
        self._forward(call, answer, attached, reply)

    def _send(self, call: Call, event: Event, reply: Reply, seen: _Seen) -> None:
        assert seen.said is not None, "it is a stream"
        raw = event.raw if seen.rest is None or event.is_done else seen.said.shaped(event)
        if raw and (event.has_choices or call.asked.stream_options is not None or event.usage is None):
            seen.said.add(raw)
            reply.write(raw)

    def _book(self, id: RequestId, attached: Attached, event: Event, seen: _Seen) -> None:
        if event.has_choices:
            self._placements.token(id, attached.id)
            if seen.first_s is None:
                seen.first_s = self._placements.now_s()
        if event.usage is not None:
            self._placements.cached(id, event.usage.cached_tokens, event.usage.prompt_tokens)
            self._placements.counted(id, event.usage.completion_tokens)
            seen.usage = event.usage if seen.rest is None or seen.said is None else seen.said.whole_usage(event.usage)


def _asked_for(call: Call, seen: _Seen) -> tuple[str, bytes]:
    """The path and the body of what is to be streamed now."""
    if seen.rest is not None and not seen.rest.is_all:
        return seen.rest.path, seen.rest.body
    return call.path, call.body if call.asked.stream_options is not None else with_usage(call.body)


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
