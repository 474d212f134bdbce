"""The workers: started or attached, watched, their events fed to the router, their losses told to who waits.

    embedded   Process ─ Channel ─ Link       tokens in, tokens out
    attached   OpenAIEngine ─ Attached        requests in, server-sent events out

Both tell the router when they are up, late or gone; the router decides, this room only acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from jevons.base.errors import EngineError, EngineGone
from jevons.base.ids import RequestId, WorkerId
from jevons.config import Settings
from jevons.control.router import Router
from jevons.engine.http_exchange import Exchange
from jevons.engine.openai import OpenAIEngine
from jevons.engine.specs import EngineSpec
from jevons.facts.worker import Health, WorkerFacts
from jevons.serve.feed import EventsAt, feed
from jevons.serve.link import Link, keep_alive
from jevons.serve.pulse import PROBE_S, Pulse
from jevons.wire.channel import AgentConfig
from jevons.wire.sources import Sources
from jevons.wire.turns import Turnstile, in_slices

log = logging.getLogger("jevons.fleet")

TICK_S = 0.1
SUSPECTS_A_TURN = 16  # a thousand engines of a host that stands are all late at once
PROBE_TIMEOUT_S = 0.5
POOL_TIMEOUT_S = 5.0  # a page of metrics may be long, and a thousand engines are asked at once
MEET_S = 3.0  # so long at most a first request waits until all engines are met
ADAPTERS_S = 5.0  # between looks at which adapters an engine serves and runs
NO_ADAPTERS_S = 60.0  # where it had none
RETRY_S = 1.0  # an engine that is down is looked for so often at least

Clock = Callable[[], float]


def worker_of(spec: EngineSpec) -> WorkerId:
    """What an attached engine is called, or one of its ranks."""
    of_rank = "" if spec.rank is None else f"@{spec.rank}"
    return WorkerId(spec.address.authority + spec.address.base + of_rank)


class Attached:
    """The front's end of one attached engine."""

    def __init__(
        self,
        spec: EngineSpec,
        router: Router,
        sources: Sources,
        now_s: Clock,
        turns: Turnstile,
        on_met: Callable[[WorkerId], None],
    ) -> None:
        self.id = worker_of(spec)
        self.url = spec.url
        self._missing = asyncio.Event()  # KV events, as far as we can tell
        self.pulse = Pulse(self.id, router.roster, now_s, self._look_for_events)
        self.engine = OpenAIEngine(spec, self.lost)
        self.model: str | None = None
        self.context_tokens: int | None = None
        self.on_join: Callable[[WorkerId], None] = lambda _: None  # told whenever it has come up
        self._spec = spec
        self._router = router
        self._sources = sources
        self._now_s = now_s
        self._turns = turns
        self._on_met = on_met
        self._active: dict[RequestId, Exchange | None] = {}
        self._started: set[RequestId] = set()
        self._told = ""  # why it is not there, as it was said last

    async def watch(self, on_model: Callable[[Attached], Awaitable[None]]) -> None:
        """Probe the engine until cancelled; `on_model` is called whenever it has come up."""
        pause_s = PROBE_S
        while True:
            try:
                await self._turns.pass_through()
                await self._introduce()
                if self._told:
                    log.info("engine %s: is there", self.url)
                pause_s, self._told = PROBE_S, ""
                await on_model(self)
                await self._probe(on_model)
            except (EngineError, TimeoutError) as error:
                self._tell(error)
            self._on_met(self.id)  # it is not there: that is known now
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_S, 1.5 * pause_s)

    def _tell(self, error: Exception) -> None:
        """Say once why it is not there. One that answers something else stays so until somebody does something."""
        why = str(error) or f"engine {self.url}: does not answer"
        if why != self._told:
            level = logging.INFO if isinstance(error, EngineGone | TimeoutError) else logging.WARNING
            log.log(level, "%s; it gets no work until it is there", why)
            self._told = why

    @property
    def is_idle(self) -> bool:
        """Whether it owes nobody an answer."""
        return not self._active

    def enter(self, id: RequestId, exchange: Exchange | None = None) -> None:
        """A request begins here; without an exchange, a gateway sent it."""
        self._active[id] = exchange
        self.pulse.asked()

    def started(self, id: RequestId) -> None:
        """Something of its answer was sent to the client."""
        self._started.add(id)

    def heard(self) -> None:
        """Something of an answer came."""
        self.pulse.is_heard = True

    def lost(self) -> None:
        """A connection to it was closed: it may have ended, and be back already."""
        self.pulse.wake()
        if self._spec.replays is not None:
            self._router.doubt(self.id)
            self._missing.set()

    def _look_for_events(self) -> None:
        """It has come to rest: what it said last may be lost, or all that it said since it started anew."""
        if self._spec.replays is not None:
            self._router.check(self.id)
        self._missing.set()

    def leave(self, id: RequestId) -> None:
        self._active.pop(id, None)
        self._started.discard(id)
        if not self._active:
            self.pulse.rests()

    def give_up_unstarted(self) -> None:
        for id, exchange in list(self._active.items()):
            if id not in self._started and exchange is not None:
                exchange.abort("it hangs")

    def drop(self) -> None:
        for exchange in list(self._active.values()):
            if exchange is not None:
                exchange.abort("lost")

    async def _introduce(self) -> None:
        models = await asyncio.wait_for(self.engine.models(anew=True), PROBE_TIMEOUT_S)
        if not models:
            raise EngineError(f"engine {self._spec.url}: serves no model")
        self.model, self.context_tokens = next(iter(models.items()))
        others = [name for name in models if name != self.model and name not in self.engine.aliases]
        if others:
            told = ", ".join(others[:4]) + (", …" if others[4:] else "")
            log.warning("engine %s: lists several models: of it %s is served, not %s", self.url, self.model, told)
        facts = WorkerFacts(
            id=self.id,
            model=self.model,
            kind="openai",
            sends_events=self._spec.events is not None,
            adapters=self.engine.adapters,
            adapter_numbers=self.engine.adapter_numbers,
            rank=self._spec.rank,
            chip=self._spec.chip,
            chips=self._spec.chips,
        )
        await self._turns.pass_through()
        self._router.join(facts)
        self.pulse.heard()
        self.on_join(self.id)

    async def _learn_pool(self) -> None:
        """Ask how many blocks its pool has; nothing depends on it but what pages show and rehearse."""
        while True:
            await self._turns.pass_through()
            try:
                pool = await asyncio.wait_for(self.engine.pool(), POOL_TIMEOUT_S)
            except (EngineError, TimeoutError):
                await asyncio.sleep(POOL_TIMEOUT_S)  # it is busy, or gone: then whoever probes it ends this
                continue
            if pool is not None:
                self._router.tell_blocks(self.id, pool)
            return

    async def _look_at_adapters(self, on_model: Callable[[Attached], Awaitable[None]]) -> None:
        """Adapters come and go while an engine runs."""
        before = self.engine.adapters
        await asyncio.wait_for(self.engine.models(), PROBE_TIMEOUT_S)
        if self.engine.adapters != before:
            self._router.carry(self.id, self.engine.adapters, self.engine.adapter_numbers)
            await on_model(self)
        if self.engine.adapters:
            told = await asyncio.wait_for(self.engine.running_adapters(), PROBE_TIMEOUT_S)
            if told is not None:
                self._router.on_adapters(self.id, *told)

    async def _probe(self, on_model: Callable[[Attached], Awaitable[None]]) -> None:
        """Returns, or raises EngineGone, when the engine is gone."""
        events, look_s = None, self._now_s() + (0.0 if self.engine.adapters else NO_ADAPTERS_S)
        if self._spec.events is not None:
            at, intake = EventsAt(self._spec.events, self._spec.replays), self._router.intake(self.id)
            on_known = partial(self._on_met, self.id)
            events = asyncio.create_task(feed(intake, self._sources, at, self._missing, on_known))
        else:
            self._on_met(self.id)
        pool = None if events is None else asyncio.create_task(self._learn_pool())
        try:
            while True:
                await self.pulse.due()
                await self._turns.pass_through()
                if await self.engine.is_alive(PROBE_TIMEOUT_S):
                    self.pulse.heard()
                if self._now_s() >= look_s:
                    look_s = self._now_s() + (ADAPTERS_S if self.engine.adapters else NO_ADAPTERS_S)
                    with contextlib.suppress(TimeoutError):
                        await self._look_at_adapters(on_model)
        finally:
            for task in (events, pool):
                if task is not None:
                    task.cancel()
            self._router.gone(self.id)
            self.drop()


class Fleet:
    """All workers of one server."""

    def __init__(self, settings: Settings, router: Router, now_s: Clock) -> None:
        self.links: dict[WorkerId, Link] = {}
        self.attached: dict[WorkerId, Attached] = {}
        self.restarts = 0
        self.on_join: Callable[[WorkerId], None] = lambda _: None  # told which attached engine has come up
        self._settings = settings
        self._router = router
        self._sources = Sources()
        self._now_s = now_s
        self._turns = Turnstile()  # of probes; listening and replays have one of their own
        self._unmet: set[WorkerId] = set()  # attached engines not yet known to be there, with what they hold, or not
        self._all_met = asyncio.Event()
        self._all_met.set()
        self._was_met = False  # all were met before

    @property
    def is_met(self) -> bool:
        """Whether all attached engines are known to be there, with what they hold, or not to be."""
        return self._all_met.is_set()

    async def meet(self) -> None:
        """Wait until all attached engines are met, or had the time to be: who is placed before that finds no cache, and
        a thousand requests would all go to the first that came up.
        """
        if not self._all_met.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_met.wait(), MEET_S)
            if self._unmet:
                log.warning(
                    "%d engines are not met after %g s: what they hold is not known yet", len(self._unmet), MEET_S
                )
                self._unmet.clear()
            self._meets_all()

    def _on_met(self, id: WorkerId) -> None:
        self._unmet.discard(id)
        if not self._unmet and not self._all_met.is_set():
            self._meets_all()
            gc.freeze()  # a thousand engines' objects stay as long as we do

    def _meets_all(self) -> None:
        self._was_met = True
        self._all_met.set()

    @property
    def is_ready(self) -> bool:
        """Whether any worker is up, and all attached engines are met."""
        return self._all_met.is_set() and self._has_up()

    def _has_up(self) -> bool:
        return self._router.roster.has_up

    def spec_of(self, worker: WorkerId) -> EngineSpec | None:
        """Of an attached engine; None: it is ours."""
        attached = self.attached.get(worker)
        return None if attached is None else attached.engine.spec

    def add_embedded(self, config: AgentConfig) -> Link:
        link = self.links[config.id] = Link(config.id, self._router, self._sources, self._now_s)
        return link

    def add_attached(self, spec: EngineSpec) -> Attached:
        attached = Attached(spec, self._router, self._sources, self._now_s, self._turns, self._on_met)
        attached.on_join = lambda id: self.on_join(id)
        if not (self._was_met and self._has_up()):  # nobody waits for who joins those that serve
            self._unmet.add(attached.id)
            self._all_met.clear()
        self.attached[attached.id] = attached
        return attached

    def remove_attached(self, id: WorkerId) -> None:
        """An engine is gone for good; who watches it has ended."""
        self.attached.pop(id).engine.close()
        self._router.leave(id)
        self._on_met(id)  # nobody waits for it any more

    def leaving(self, worker: WorkerId, is_leaving: bool) -> None:
        """An engine is about to end, as far as can be seen; or it is not."""
        self._router.leaving(worker, is_leaving)

    def health(self, worker: WorkerId) -> Health:
        return self._router.roster.health(worker)

    def add_remote(self, id: WorkerId, node: str) -> Link:
        link = self.links[id] = Link(id, self._router, self._sources, self._now_s, node)
        return link

    async def keep(self, config: AgentConfig) -> None:
        """As `keep_alive`."""

        def on_restart() -> None:
            self.restarts += 1

        await keep_alive(config, self.links[config.id].live, on_restart)

    async def tick(self) -> None:
        """Notice who has gone silent, until cancelled. That we were stopped, or held up, is not their silence: what
        they said meanwhile is read first.
        """
        given_up: set[WorkerId] = set()
        was_late = False
        while True:
            due_s = self._now_s() + TICK_S
            await asyncio.sleep(TICK_S)
            late_s = self._now_s() - due_s
            if late_s > TICK_S:
                self._router.roster.excuse(late_s)
            was_late, reads_first = late_s > TICK_S, not was_late and late_s > TICK_S
            if reads_first:
                continue
            async for attached in in_slices(list(self.attached.values())):
                attached.pulse.look()
            await asyncio.sleep(0)
            now_s = self._now_s()
            while late := self._router.roster.suspects(now_s, SUSPECTS_A_TURN):
                self._suspect(late)
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            async for id in in_slices(self._router.stalled(now_s)):
                log.warning("worker %s: does nothing about what waits there, no new work for it", id)
            silent = self._router.roster.silent(now_s, self._settings.dead_s)
            async for id in in_slices(silent):
                if id not in given_up:
                    log.warning("worker %s: silent for %.0f s, given up", id, self._settings.dead_s)
                member = self._member(id)
                if member is not None:
                    member.drop()
            given_up = set(silent)

    def _suspect(self, late: list[WorkerId]) -> None:
        for id in late:
            log.warning("worker %s: silent for %.1f s, no new work for it", id, self._settings.hang_s)
            member = self._member(id)
            if self._has_up() and member is not None:
                member.give_up_unstarted()

    def _member(self, id: WorkerId) -> Link | Attached | None:
        """None: it has left meanwhile."""
        return self.links.get(id) or self.attached.get(id)

    def close(self) -> None:
        for attached in self.attached.values():
            attached.engine.close()
        self._sources.close()
