"""An engine without a model, thousands to a process: its timing comes from a pace, all else is real.

The batcher and the block pool are those of the embedded engine, the KV events go out over ZMQ as vLLM's do. A step
takes what the pace says, on the event loop's clock, divided by `speed`; nothing runs between its begin and its end, so
an idle engine costs nothing and a busy one some 0.1 ms a step.

    submit ──▶ batcher ──schedule──▶ a step, due at begin + pace ──complete──▶ events out, tokens to who asked
                           ▲                                          │
                           └──────────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import msgspec
import zmq
import zmq.asyncio
from msgspec import Meta

from jevons.base.errors import EngineGone
from jevons.base.ids import BlockHash, RequestId
from jevons.control.batch import Batcher, Chunk, Drawn
from jevons.engine.contents import Contents
from jevons.facts.event import KvEvent
from jevons.facts.request import Step, Work
from jevons.kv.pool import BlockPool
from jevons.perf.pace import Pace
from jevons.wire.events import Publisher, in_url

REBIND_S = 5.0  # a port that was just closed is free again within some milliseconds
_REBIND_PAUSE_S = 0.02
_LATE_S = (
    0.25  # an engine makes up for so much delay of the loop; what is more slows it down, or it would never catch up
)
_HANG_S = 0.02  # so often a step that hangs looks whether it may end
GONE = "gone"  # the finish of a step that tells: the engine ended

Told = Callable[[Step], None]


class MockFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine is made of."""

    id: str
    model: str
    blocks: int
    block_size: int = 16  # tokens
    step_tokens: int = 8192  # computed in one step at most
    max_running: int = 256
    context_tokens: int = 1 << 20
    adapters: tuple[str, ...] = ()  # of its model, by their own names
    replay_batches: int = 10_000  # of events kept for who missed them, as many as vLLM keeps
    ports: tuple[int, int] | None = None  # of its events and of their replays; None takes free ones


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """What is wrong with an engine; may be changed while it runs."""

    slowdown: Annotated[float, Meta(gt=0)] = 1.0  # its steps take so many times as long
    event_loss: Annotated[float, Meta(ge=0, le=1)] = 0.0  # share of batches that no subscriber gets; replays have them
    event_lag_s: Annotated[float, Meta(ge=0)] = 0.0  # until a batch is sent
    hangs: bool = False  # no step ends, no probe is answered


class _Running(NamedTuple):
    """The parts of an engine that end with it."""

    batcher: Batcher
    contents: Contents
    publisher: Publisher


class MockEngine:
    """One engine. For one event loop.

    Args:
        pace: seconds of its steps.
        host: where its events can be had.
        context: of ZMQ, one for all engines of a process.
        speed: so many times faster than real time.
        seed: of what chance decides: which events are lost.
    """

    def __init__(
        self,
        facts: MockFacts,
        pace: Pace,
        host: str,
        context: zmq.asyncio.Context,
        *,
        speed: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.facts = facts
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self._pace = pace
        self._host = host
        self._context = context
        self._speed = speed
        self._draw = random.Random(f"{seed} {facts.id}")
        self._told: dict[RequestId, Told] = {}
        self._prompts: dict[RequestId, int] = {}  # tokens of each
        self._ports: tuple[int, int] | None = None  # of its events, the same after a restart
        self._reserved: list[socket.socket] = []  # on those ports
        self._running: _Running | None = None
        self._replays: asyncio.Task[None] | None = None
        self._step: asyncio.TimerHandle | None = None
        self._late: set[asyncio.TimerHandle] = set()  # batches of events that are sent later
        self._late_s = 0.0  # when the last of those is sent
        self._due_s = 0.0  # end of the step under way, or of the last one

    @property
    def is_up(self) -> bool:
        return self._running is not None

    @property
    def endpoints(self) -> tuple[str, str]:
        """Of its events and of their replays; known from its first start on."""
        assert self._ports is not None, "it was started"
        live, replay = (f"tcp://{in_url(self._host)}:{port}" for port in self._ports)
        return live, replay

    @property
    def load(self) -> tuple[int, int, float]:
        """Sequences running, sequences waiting, share of its blocks in use."""
        if self._running is None:
            return 0, 0, 0.0
        batcher = self._running.batcher
        return batcher.running, batcher.waiting, 1 - batcher.pool.free / batcher.pool.blocks

    @property
    def preemptions(self) -> int:
        return 0 if self._running is None else self._running.batcher.preemptions

    def held(self) -> list[BlockHash]:
        """Names of the blocks a prompt can reuse here: what a router should believe."""
        return [] if self._running is None else self._running.batcher.pool.names()

    def warm(self) -> None:
        """Have the pace's kernel loaded: no step must wait for it."""
        self._pace.seconds(1, 0, 1, 1)

    async def start(self) -> None:
        """Begin with an empty cache, numbering events from 0.

        Raises:
            OSError: its ports are taken.
        """
        assert self._running is None, "it is up"
        if self._ports is None:
            self._ports = self._reserve()
        publisher = await self._bind()
        f = self.facts
        batcher = Batcher(
            BlockPool(f.blocks, f.block_size),
            step_tokens=f.step_tokens,
            max_running=f.max_running,
            context_tokens=f.context_tokens,
        )
        self._running = _Running(batcher, Contents(f.blocks, f.block_size), publisher)
        self._replays = asyncio.get_running_loop().create_task(publisher.serve_replays())
        self.counts["starts"] += 1

    def close(self) -> None:
        """End for good."""
        self.crash()
        for each in self._reserved:
            each.close()

    def crash(self) -> None:
        """End at once, as a killed process does: who waits is told, what was held is lost."""
        running, self._running = self._running, None
        if running is None:
            return
        assert self._replays is not None, "it was started"
        self._replays.cancel()
        for timer in (self._step, *self._late):
            if timer is not None:
                timer.cancel()
        self._step = None
        self._late.clear()
        running.publisher.close()
        told, self._told = self._told, {}
        self._prompts.clear()
        for id, tell in told.items():
            tell(Step(id=id, finish=GONE))

    def submit(self, work: Work, told: Told) -> None:
        """Run `work`; `told` gets its steps, up to the one with a finish.

        Raises:
            EngineGone: it is down.
            CapacityError: it could never fit.
        """
        if self._running is None:
            raise EngineGone(f"engine {self.facts.id}: is down")
        self._running.batcher.add(work)
        self._told[work.id], self._prompts[work.id] = told, len(work.prompt)
        self.counts["requests"] += 1
        if self._step is None:
            self._begin(asyncio.get_running_loop().time())

    def cancel(self, id: RequestId) -> None:
        """Nobody waits for `id` any more; does nothing if it is over."""
        if self._told.pop(id, None) is not None and self._running is not None:
            self._running.batcher.cancel(id)
            self._running.contents.forget(id)
            del self._prompts[id]
            self.counts["aborted"] += 1

    def _reserve(self) -> tuple[int, int]:
        """Its ports stay bound while nothing listens there: of an engine that restarts, one could be given to whatever
        connects somewhere in that moment.
        """
        for port in self.facts.ports or (0, 0):
            reserved = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
            self._reserved.append(reserved)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((self._host, port))
        live, replays = (int(each.getsockname()[1]) for each in self._reserved)
        return live, replays

    async def _bind(self) -> Publisher:
        """The old sockets are closed by another thread, which takes a moment."""
        until_s = time.monotonic() + REBIND_S
        topic = f"kv@{self.facts.id}@{self.facts.model}"
        while True:
            try:
                return Publisher(
                    self._host, topic, context=self._context, ports=self._ports, keeps=self.facts.replay_batches
                )
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() > until_s:
                    raise OSError(error.errno, f"engine {self.facts.id}: events on {self._ports}: {error}") from error
            await asyncio.sleep(_REBIND_PAUSE_S)

    def _begin(self, at_s: float) -> None:
        """Begin the next step, if there is work, at a time that may have passed already: the loop's delay is not the
        engine's.
        """
        assert self._running is not None, "only an engine that is up computes"
        chunks = self._running.batcher.schedule(at_s)
        if not chunks:
            self._step = None
            self._publish(self._running.batcher.pool.drain_events())
            return
        seconds = _seconds(self._pace, chunks) * self.faults.slowdown / self._speed
        self._due_s = at_s + seconds
        self._step = asyncio.get_running_loop().call_at(self._due_s, self._end, chunks)

    def _end(self, chunks: Sequence[Chunk]) -> None:
        """The step is over. Events go first, so that who has read the answer can already be routed by them."""
        assert self._running is not None, "a crash cancels the step"
        if self.faults.hangs:
            self._step = asyncio.get_running_loop().call_later(_HANG_S, self._end, chunks)
            return
        batcher, contents, _ = self._running
        drawn = [self._drawn(contents, chunk) for chunk in chunks]
        steps = batcher.complete(chunks, drawn, self._due_s)
        self.counts["steps"] += 1
        self._publish(batcher.pool.drain_events())
        for step in steps:
            self._tell(contents, step)
        if self._running is not None:  # who was told may have ended it
            self._begin(max(self._due_s, asyncio.get_running_loop().time() - _LATE_S))

    def _drawn(self, contents: Contents, chunk: Chunk) -> Drawn | None:
        if chunk.id not in self._told:
            return None  # cancelled meanwhile
        token = contents.write(chunk)
        return None if token is None else Drawn(token)

    def _tell(self, contents: Contents, step: Step) -> None:
        told = self._told[step.id]
        self.counts["output_tokens"] += len(step.tokens)
        if step.cached_tokens is not None:
            self.counts["prompt_tokens"] += self._prompts[step.id]
            self.counts["cached_tokens"] += step.cached_tokens
        if step.finish is not None:
            contents.forget(step.id)
            del self._told[step.id], self._prompts[step.id]
            self.counts[f"finished_{step.finish}"] += 1
        told(step)

    def _publish(self, events: list[KvEvent]) -> None:
        if not events:
            return
        loop = asyncio.get_running_loop()
        if not (self.faults.event_lag_s > 0 or self._late):
            self._send(events)
            return

        def send() -> None:
            self._late.discard(timer)
            self._send(events)

        self._late_s = max(self._late_s, loop.time() + self.faults.event_lag_s)  # in order, whatever the lag becomes
        timer = loop.call_at(self._late_s, send)
        self._late.add(timer)

    def _send(self, events: list[KvEvent]) -> None:
        assert self._running is not None, "a crash cancels what is sent later"
        is_lost = self._draw.random() < self.faults.event_loss
        self.counts["batches_lost"] += is_lost
        self.counts["batches"] += 1
        self._running.publisher.publish(time.time(), events, is_lost=is_lost)


def _seconds(pace: Pace, chunks: Sequence[Chunk]) -> float:
    """Of a step. A chunk of one token that draws counts as a decode, whatever it belongs to."""
    prompts = [c for c in chunks if len(c.tokens) > 1 or c.sampling is None]
    tokens = sum(len(c.tokens) for c in prompts)
    pairs = sum(len(c.tokens) * (2 * c.start + len(c.tokens) - 1) // 2 for c in prompts)
    decodes = len(chunks) - len(prompts)
    context = sum(c.start for c in chunks) - sum(c.start for c in prompts)
    return pace.seconds(tokens, pairs, decodes, context)
