"""The front's end of a worker of our own: tokens in, tokens out; and the process behind it, kept alive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from jevons.base.errors import EngineError, EngineGone
from jevons.base.ids import RequestId, WorkerId
from jevons.control.ledger import HERE
from jevons.control.router import Router
from jevons.facts.request import Step, Work
from jevons.serve.feed import EventsAt, feed
from jevons.serve.substrate import Process
from jevons.wire.channel import TO_FRONT, AgentConfig, Beat, Cancel, Channel, Hello, Steps, Submit, ToFront
from jevons.wire.sources import Sources

log = logging.getLogger("jevons.fleet")

HOST = "127.0.0.1"
GONE = "gone"  # the finish of a step that tells: your worker was lost
RESTART_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # waits before starting a worker again, one after another
STABLE_S = 30.0  # a worker that lived so long starts from the first wait again

Clock = Callable[[], float]


class Link:
    """The front's end of one embedded worker."""

    def __init__(self, id: WorkerId, router: Router, sources: Sources, now_s: Clock, node: str = HERE) -> None:
        self.id = id
        self.node = node
        self.events: tuple[str, str] | None = None  # endpoints of its KV events and their replays; None: as it says
        self.on_hello: Callable[[Hello], None] | None = None
        self._router = router
        self._sources = sources
        self._now_s = now_s
        self._channel: Channel[ToFront] | None = None
        self._waiting: dict[RequestId, asyncio.Queue[Step]] = {}
        self._started: set[RequestId] = set()
        self._feed: asyncio.Task[None] | None = None

    async def live(self, port: int) -> str:
        """Serve the worker at `port` until it is lost; returns why.

        Raises:
            EngineGone: it cannot be connected to.
        """
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_lost(channel: Channel[ToFront], reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        channel = Channel(TO_FRONT, self._on_message, on_lost)
        try:
            await asyncio.get_running_loop().create_connection(lambda: channel, HOST, port)
        except OSError as error:
            raise EngineGone(f"worker {self.id}: {error}") from error
        self._channel = channel
        try:
            return await lost
        finally:
            self._channel = None
            channel.close()
            if self._feed is not None:
                self._feed.cancel()
            self._router.gone(self.id)
            self._fail(list(self._waiting), f"worker {self.id} was lost")

    def submit(self, work: Work, steps: asyncio.Queue[Step]) -> None:
        """Run `work`; its steps, or the news that the worker is gone, come in `steps`."""
        if self._channel is None:
            steps.put_nowait(Step(id=work.id, finish=GONE, error=f"worker {self.id} is gone"))
            return
        self._waiting[work.id] = steps
        self._channel.send(Submit(work))

    def cancel(self, id: RequestId) -> None:
        """Nobody waits for `id` any more; does nothing if it is over."""
        if self._waiting.pop(id, None) is not None and self._channel is not None:
            self._channel.send(Cancel(id))
        self._started.discard(id)

    def give_up_unstarted(self) -> None:
        """Requests without a token go elsewhere: this worker hangs."""
        self._fail([id for id in self._waiting if id not in self._started], f"worker {self.id} hangs")

    def drop(self) -> None:
        """Cut the connection: this worker has been silent too long."""
        if self._channel is not None:
            self._channel.close()

    def _fail(self, ids: list[RequestId], reason: str) -> None:
        for id in ids:
            self._waiting[id].put_nowait(Step(id=id, finish=GONE, error=reason))
            self.cancel(id)

    def _on_message(self, channel: Channel[ToFront], message: ToFront) -> None:
        match message:
            case Steps(steps, report, moves):
                if report is not None:
                    self._router.on_step(self.id, report)
                self._router.on_moves(self.id, moves)
                self._router.on_beat(self.id, self._now_s())
                for step in steps:
                    self._on_step(step)
            case Beat(step, tiers):
                self._router.on_beat(self.id, self._now_s(), step)
                self._router.on_tier_counts(self.id, tiers)
            case Hello():
                if self.on_hello is not None:
                    self.on_hello(message)
                self._router.join(msgspec.structs.replace(message.facts, id=self.id), self.node)
                self._router.on_beat(self.id, self._now_s())
                at = EventsAt(*(self.events or (message.events, message.replays)))
                self._feed = asyncio.create_task(feed(self._router.intake(self.id), self._sources, at, asyncio.Event()))

    def _on_step(self, step: Step) -> None:
        sink = self._waiting.get(step.id)
        if sink is None:
            return  # cancelled, and the worker had not heard of it yet
        if step.finish is None:
            self._started.add(step.id)
        else:
            del self._waiting[step.id]
            self._started.discard(step.id)
        sink.put_nowait(step)


async def keep_alive(
    config: AgentConfig, live: Callable[[int], Awaitable[str]], on_restart: Callable[[], None]
) -> None:
    """Keep one worker process alive, until cancelled.

    Args:
        live: serves the worker at a port until it is lost; returns why.

    Raises:
        EngineError: it cannot be started at all, the first time.
    """
    failures, first = 0, True
    while True:
        began = time.monotonic()
        try:
            reason = await _live(config, live)
        except EngineError as error:
            if first:
                raise
            reason = str(error)
        first = False
        failures = 0 if time.monotonic() - began > STABLE_S else min(failures + 1, len(RESTART_S) - 1)
        on_restart()
        log.warning("worker %s: %s; starting it again", config.id, reason)
        await asyncio.sleep(RESTART_S[max(0, failures - 1)])


async def _live(config: AgentConfig, live: Callable[[int], Awaitable[str]]) -> str:
    process = await Process.start("jevons.serve.agent", config, f"worker {config.id}")
    try:
        return await live(process.port)
    finally:
        await process.stop()
