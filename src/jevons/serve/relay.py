"""The road to attached engines: the client's request goes through as it is, the engine's answer too.

    begin ──▶ engine ──on_head, on_body …, on_end──▶ client
      ▲          └──on_lost──▶ placed again, on another engine
      └────────────────────────────┘

An engine that is lost is replaced by another one: by who answers the same request before anything was sent, by who goes
on with the answer after that (`serve/resume`).

Everything happens in the read that brings it. Only who must be placed again waits, in a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from jevons.base.compiled import Ints
from jevons.base.errors import EngineGone, NoWorker
from jevons.base.ids import RequestId, WorkerId
from jevons.control.lived import Finished
from jevons.engine.http_exchange import Exchange, Head
from jevons.engine.openai import Events, SeenUsage, content_type, read_usage, with_usage
from jevons.policy.route import Placement
from jevons.serve.call import MAX_ATTEMPTS, Call, Placements
from jevons.serve.deadlines import Deadlines
from jevons.serve.fleet import Attached, Fleet
from jevons.serve.metrics import Metrics
from jevons.serve.prompts import Prompts, PseudoTokens
from jevons.serve.reply import EVENT_STREAM, NO_CACHE, ClientGone, Reply, Stopping
from jevons.serve.resume import Rest, Said
from jevons.serve.stream import DONE

log = logging.getLogger("jevons.relay")

# What an engine or a proxy before it answers while it starts, drains or is overloaded: another may do better. Where
# none does, the last one's answer is told.
ELSEWHERE = frozenset((502, 503, 504))
# What is held of an engine's answer at most: of a whole one (20 log probabilities each of 100,000 tokens take 200 MB),
# and of one event that has not ended.
MOST_ANSWER_BYTES, MOST_EVENT_BYTES = 256 << 20, 8 << 20
AGAIN = ("retry-after", "retry-after-ms")  # when to come again: OpenAI's client heeds both

Over = Callable[[Exception | None, int], None]
"""Told once: what went wrong and was not yet told to the client, else the answer's status."""


class Relay:
    """Sends calls to attached engines and their answers to clients."""

    def __init__(
        self, fleet: Fleet, placements: Placements, metrics: Metrics, prompts: Prompts, timeout_s: float
    ) -> None:
        self.fleet = fleet
        self.placements = placements
        self.metrics = metrics
        self.prompts = prompts
        self.timeout_s = timeout_s
        self.deadlines = Deadlines(timeout_s)

    def answer(self, call: Call, id: RequestId, placement: Placement, reply: Reply, over: Over) -> None:
        """Answer `call`, placed as `id`; on another engine if its own is lost.

        `over` is told EngineGone if it could not be answered to its end, NoWorker if none is left, TimeoutError,
        Stopping or ClientGone.
        """
        _Transfer(self, call, reply, over).begin(id, placement)


class _Transfer:
    """One call on its way: the taker of its engine's answer, and the answerer of its client."""

    def __init__(self, relay: Relay, call: Call, reply: Reply, over: Over) -> None:
        self._relay = relay
        self._placements = relay.placements
        self._call = call
        self._reply = reply
        self._over = over
        self._failed: list[WorkerId] = []
        self._placement: Placement
        self._id: RequestId
        self._attached: Attached
        self._exchange: Exchange
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._events: Events | None = None  # of a stream
        self._first_s: float | None = None
        self._said = Said(call.path, call.asked) if call.asked.stream else None
        self._rest: Rest | None = None  # what is asked for now; None: all of it

    def begin(self, id: RequestId, placement: Placement) -> None:
        """Send it to the worker it is placed on."""
        self._relay.deadlines.start(self, self.on_late, self._placements.now_s() - self._call.arrived_s)
        self._id, self._placement = id, placement
        self._head, self._body, self._body_bytes, self._events = None, [], 0, None
        self._attached = attached = self._relay.fleet.attached[placement.worker]
        self._reply.answerer = self
        path, body = self._asked_for()
        self._exchange = attached.engine.send(path, body, self, self._call.trace(len(self._failed)))
        if self._reply.is_full:
            self.on_full()
        attached.enter(id, self._exchange)

    # What the engine answers

    def on_head(self, head: Head) -> None:
        self._head = head
        if self._said is not None and head.status == 200 and "text/event-stream" in content_type(head.headers):
            shape = None if self._rest is None else self._said.shaped
            self._events = Events(self._call.asked.wants_usage, shape)

    def on_body(self, data: bytes) -> None:
        if self._events is None:
            self._body.append(data)
            self._body_bytes += len(data)
            if self._body_bytes > MOST_ANSWER_BYTES:
                self._exchange.abort(f"its answer has more than {MOST_ANSWER_BYTES} bytes")
            return
        self._attached.heard()
        begins = not self._events.began
        passed = self._events.read(data)
        if not self._reply.started:
            self._reply.start(200, EVENT_STREAM, NO_CACHE + self._call.headers(self._attached.id), passed)
        else:
            self._reply.write(passed)
        if begins:
            self._attached.started(self._id)
        if passed and self._said is not None:
            self._said.add(passed)
        if self._events.tokens:
            if self._first_s is None:
                self._first_s = self._placements.now_s()
            self._placements.token(self._id, self._attached.id, self._events.tokens)
        if self._events.pending_bytes > MOST_EVENT_BYTES:
            self._exchange.abort(f"an event of its stream has more than {MOST_EVENT_BYTES} bytes")

    def on_end(self) -> None:
        try:
            if self._events is None:
                self._whole()
                return
            self._reply.write(self._events.end())
            if self._events.is_done:
                self._streamed(self._events.usage)
            else:
                self.on_lost(EngineGone(f"engine {self._attached.id}: ended its stream in the middle"))
        except Exception as error:  # the edge: a bug must cost one request, not leave its client waiting
            log.exception("the answer to %s failed", self._call.id)
            self._end(EngineGone(f"internal error: {type(error).__name__}, it is logged on the server"))

    def on_lost(self, error: EngineGone) -> None:
        worker = self._attached.id
        self._attached.lost()
        if self._events is not None and self._events.is_done:  # only the message's end was missing
            self._streamed(self._events.usage)
            return
        self._leave()
        self._failed.append(worker)
        if self._reply.started and self._is_over():
            self._end(None, 200)
        elif len(self._failed) >= MAX_ATTEMPTS:
            self._cut(str(error))
        elif self._reply.started and (reason := self._take_up()) is not None:
            self._cut(f"{error}; nobody goes on: {reason}")
        else:
            self._relay.metrics.retries.labels(worker).inc()
            self._relay.deadlines.end(self)
            self._reply.run(self._again())

    # What the client does, and the clock

    def on_client_gone(self) -> None:
        if self._events is not None and self._events.is_done:  # it has all, and did not wait for the message's end
            self._exchange.resume()  # if it is paused, for nobody would read that end
            self._streamed(self._events.usage)
            return
        self._exchange.leave()
        self._leave()
        self._end(ClientGone())

    def on_full(self) -> None:
        self._exchange.pause()

    def on_room(self) -> None:
        self._exchange.resume()

    def on_late(self) -> None:
        self._give_up(TimeoutError())

    def on_stop(self) -> None:
        self._give_up(Stopping())

    def _give_up(self, error: Exception) -> None:
        """Its engine answers still, and may not go on."""
        self._exchange.leave()
        if self._events is not None and self._events.is_done:
            self._streamed(self._events.usage)
            return
        if self._reply.started:
            self._relay.metrics.cut.labels(self._attached.id).inc()
        self._leave()
        self._end(error)

    # Another engine

    def _take_up(self) -> str | None:
        """What another engine is asked for goes into `_rest`. Returns why nobody could go on, else None."""
        said, context_tokens = self._said, self._relay.prompts.context_tokens(self._call.asked.model)
        assert said is not None, "only streams begin before they are whole"
        reason = said.stuck()
        if reason is not None:
            return reason
        self._rest = said.rest(self._call.body, self._call.prompts[0], self._tail(said), context_tokens)
        return None if self._rest is not None else "its tokens are not known here"

    def _is_over(self) -> bool:
        """Whether nothing but the end of a stream was missing; then it is sent."""
        said = self._said
        if said is None or not said.is_complete(self._tail(said)) or self._call.asked.wants_usage:
            return False
        self._reply.end(said.ending() + DONE)
        return True

    def _tail(self, said: Said) -> Sequence[int] | None:
        """Tokens of what was said; None: not known here, or those of the prompt are not."""
        if isinstance(self._call.prompts[0], PseudoTokens):
            return None
        return self._relay.prompts.encode_rest(self._call.asked.model, said.text)

    async def _again(self) -> None:
        """Place it once more, where it was not lost yet, within the time that is left."""
        self._reply.answerer = None
        call, placements = self._call, self._placements
        id = call.attempt()

        def place(avoid: Collection[WorkerId]) -> Placement:
            if self._rest is None:
                return placements.place(call, id, call.prompt, avoid)
            return placements.go_on(call, id, self._rest.tokens, avoid)

        left_s = call.arrived_s + self._relay.timeout_s - placements.now_s()
        try:
            async with asyncio.timeout(left_s):
                placement = await placements.place_again(place, self._failed, self._relay.fleet.links)
        except NoWorker as none:
            if self._reply.started:
                self._cut(f"engine {self._failed[-1]} was lost; {none}")
            else:
                self._end(none)
        except TimeoutError as late:
            self._end(late)
        except asyncio.CancelledError:
            self._end(self._reply.cancelled())
            raise
        else:
            self.begin(id, placement)

    def _cut(self, why: str) -> None:
        """It cannot be answered, or not to its end."""
        if self._reply.started:
            self._relay.metrics.cut.labels(self._failed[-1]).inc()
        self._end(EngineGone(why))

    # Inside

    def _asked_for(self) -> tuple[str, bytes]:
        """The path and the body of what is asked for now."""
        call = self._call
        if self._rest is not None and not self._rest.is_all:
            return self._rest.path, self._rest.body
        adds_usage = call.asked.stream and not call.asked.wants_usage
        return call.path, with_usage(call.body) if adds_usage else call.body

    def _whole(self) -> None:
        head, worker = self._head, self._attached.id
        assert head is not None, "it has ended"
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self._reply.started:
            says = f"{head.status} {body[:200].decode('utf-8', 'replace')}"
            self.on_lost(EngineGone(f"engine {worker}: does not go on with another's answer: {says}"))
            return
        if head.status in ELSEWHERE and len(self._failed) + 1 < MAX_ATTEMPTS:
            self.on_lost(EngineGone(f"engine {worker}: answered {head.status}"))
            return
        self._attached.heard()
        if head.status == 200:
            self._placements.answered(self._id)
            usage = read_usage(body)
            if usage is not None:
                self._relay.metrics.output_tokens.labels(worker).inc(usage.completion_tokens)
            self._used(usage)
        self._leave(is_answered=head.status == 200)
        kind = content_type(head.headers).encode("latin-1")
        self._reply.send(head.status, body, kind, self._call.headers(worker) + _when_again(head.headers))
        self._end(None, head.status)

    def _streamed(self, usage: SeenUsage | None) -> None:
        """The client has all of a stream, up to [DONE]."""
        self._used(usage)
        self._leave(is_answered=True)
        self._reply.end()
        self._end(None, 200)

    def _used(self, usage: SeenUsage | None) -> None:
        """It is answered whole; the engine tells what it took."""
        if usage is None:
            return
        self._placements.cached(self._id, usage.cached_tokens, usage.prompt_tokens)
        self._placements.counted(self._id, usage.completion_tokens)
        if len(self._call.prompts) == 1:
            whole = usage if self._rest is None or self._said is None else self._said.whole_usage(usage)
            names = self._placements.names(self._id)
            self._placements.finished(self._call, as_finished(self._call, self._placement, whole, self._first_s, names))

    def _leave(self, *, is_answered: bool = False) -> None:
        """Its engine has nothing more to do with it."""
        self._attached.leave(self._id)
        self._placements.done(self._id, is_answered=is_answered)

    def _end(self, error: Exception | None, status: int = 0) -> None:
        self._relay.deadlines.end(self)
        self._reply.answerer = None
        self._exchange.forget()  # it knows us and we know it: only a collection would find that nobody needs either
        self._over(error, status)


def _when_again(headers: dict[str, str]) -> bytes:
    """Header lines of an answer that say when to come again."""
    return "".join(f"{name}: {headers[name]}\r\n" for name in AGAIN if name in headers).encode("latin-1")


def as_finished(
    call: Call, placement: Placement, usage: SeenUsage, first_s: float | None, names: Ints | None
) -> Finished:
    """Its tokens went by as text: their number alone is known. `names`: see `Placements.names`."""
    prompt, cached_tokens = call.prompts[0], usage.cached_tokens
    if cached_tokens is not None and usage.prompt_tokens:  # its engine may count others than we do
        cached_tokens = round(cached_tokens / usage.prompt_tokens * len(prompt))
    return Finished(
        id=RequestId(call.id),
        prompt=prompt,
        tokens=(),
        output_tokens=usage.completion_tokens,
        placement=placement,
        first_s=first_s,
        cached_tokens=cached_tokens,
        names=names,
    )
