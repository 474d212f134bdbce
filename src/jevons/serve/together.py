"""What one frontend of several answers for all: the pages that tell of the server, and the end of any placement."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jevons.base.ids import WorkerId
from jevons.control.joined import Part, columns, joined
from jevons.control.lived import Lived, Portion, Wanted
from jevons.control.sharing import SharingRouter
from jevons.facts.snapshot import FleetSnapshot, FrontendSnapshot
from jevons.facts.state import WorkerState
from jevons.facts.view import View
from jevons.serve.front import TEXT, Front
from jevons.serve.http import Reply, Request
from jevons.serve.hub import COUNTED
from jevons.serve.pages import added, decode, encode, page_of, side_by_side, text
from jevons.serve.place import PLACED
from jevons.serve.siblings import Siblings
from jevons.wire.gossip import HUB

METRICS, SNAPSHOT, VIEW, LIVED = "metrics", "snapshot", "view", "lived"
WORKERS, STATE, HELD = "workers", "state", "held"
PAGE_S = 1.0
_SHARE = 100  # that takes at most this part of the time
STATE_S = 5.0  # a million blocks of one worker are read, sent and read again in 1 s

_WANTED: msgspec.msgpack.Decoder[Wanted] = msgspec.msgpack.Decoder(Wanted)
_PORTION: msgspec.msgpack.Decoder[Portion] = msgspec.msgpack.Decoder(Portion)
_PART: msgspec.msgpack.Decoder[Part] = msgspec.msgpack.Decoder(Part)
_OWN: msgspec.msgpack.Decoder[FrontendSnapshot] = msgspec.msgpack.Decoder(FrontendSnapshot)


class Together:
    """The handler behind the door of a frontend that has siblings."""

    def __init__(self, front: Front, router: SharingRouter, siblings: Siblings) -> None:
        self._front = front
        self._router = router
        self._siblings = siblings
        self._registry = front.metrics.registry
        self._registry.register(_Gossip(router, siblings))
        siblings.answers |= {
            WORKERS: lambda _: msgspec.msgpack.encode(router.remembered()),
            STATE: self._state,
            HELD: self._hear_placed,
        }

    def __call__(self, request: Request, reply: Reply) -> Coroutine[Any, Any, None] | None:
        if request.method == "GET" and request.path in ("/metrics", "/snapshot"):
            return (self._metrics if request.path == "/metrics" else self._snapshot)(reply)
        if request.path == PLACED and self._siblings.peers and not self._front.desk.holds(request.body):
            return self._placed(request, reply)
        return self._front(request, reply)

    def begin(self) -> None:
        """Share what is placed, before the first request; from now on this is one of those that serve."""
        self._siblings.share(self._router)
        self._siblings.answers |= {
            METRICS: lambda _: self.keep_page(),
            SNAPSHOT: lambda _: msgspec.msgpack.encode(self._own_snapshot()),
            LIVED: self._portion,
            VIEW: lambda _: msgspec.msgpack.encode(self._front.part()),
        }

    async def view(self, seen: int | None = None) -> View:
        """What a page shows of all. `seen`: see `control.joined.columns`."""
        others = [_PART.decode(part) for part in (await self._siblings.gather(VIEW)).values()]
        workers = columns(self._router.columns, os.getpid(), seen)
        return joined(self._front.part(workers), others, self._router.chips())

    async def lived(self, seconds: float) -> Lived:
        """What all answered in the last so many seconds, in the order in which it was done."""
        own, since_s = self._front.lived(seconds), self._front.now_s() - seconds
        answered, silent = list(own.answered), 0
        for number in sorted(self._siblings.peers):
            wanted = Wanted(since_s)
            while (told := await self._siblings.ask(number, LIVED, msgspec.msgpack.encode(wanted))) is not None:
                portion = _PORTION.decode(told)
                if not portion.answered:
                    break
                answered += portion.answered
                wanted = Wanted(since_s, portion.next)
            silent += told is None
        return own._replace(answered=sorted(answered, key=lambda each: each.arrived_s + each.done_s), silent=silent)

    def _portion(self, wanted: bytes) -> bytes:
        return msgspec.msgpack.encode(self._front.placements.lately.portion(_WANTED.decode(wanted)))

    async def keep(self) -> None:
        """Have the hub know what is counted here and the others what is measured, until cancelled."""
        due_s = 0.0
        while True:
            await asyncio.sleep(PAGE_S)
            self._router.grant()
            self._siblings.reassure()
            began_s = time.monotonic()
            if began_s >= due_s:
                self.keep_page()
                due_s = began_s + _SHARE * (time.monotonic() - began_s)

    def end(self) -> None:
        """The last that the others and the hub hear of us."""
        self.keep_page()
        self._siblings.close()

    def keep_page(self) -> bytes:
        """What is counted here. The hub has it before anyone is told, so a sum never falls when we end."""
        page = encode(page_of(self._registry))
        self._siblings.keep_page(page)
        return page

    async def recall(self, workers: Collection[WorkerId]) -> bool:
        """Learn of these workers, which are still to join, what a sibling knows. Returns whether one does."""
        for number in sorted(self._siblings.peers):
            known = await self._siblings.ask(number, WORKERS)
            theirs = set() if known is None else set(msgspec.msgpack.decode(known, type=list[WorkerId]))
            asked = [worker for worker in workers if worker in theirs]
            for worker in asked:  # one after another: all of a large fleet would be 100s of MB on their way at once
                state = await self._siblings.ask(number, STATE, worker.encode(), STATE_S)
                if state is not None:
                    self._router.recall(msgspec.msgpack.decode(state, type=WorkerState))
            if asked:
                return True
        return False

    def _state(self, worker: bytes) -> bytes | None:
        state = self._router.state(WorkerId(worker.decode()))
        return None if state is None else msgspec.msgpack.encode(state)

    async def _metrics(self, reply: Reply) -> None:
        own = self.keep_page()
        pages = {self._siblings.number: own, **await self._siblings.gather(METRICS)}
        ended = await self._siblings.ask(HUB, COUNTED)
        read = {number: decode(page) for number, page in pages.items()}
        sums = added([*read.values(), [] if ended is None else decode(ended)])
        reply.send(200, text(sums + side_by_side(read)), TEXT)

    async def _placed(self, request: Request, reply: Reply) -> None:
        """News of a placement that another may hold: connections go to any of us."""
        if not await self._siblings.gather(HELD, request.body):
            work = self._front(request, reply)  # which says that nobody does
            if work is not None:
                await work
            return
        self._front.metrics.requests.labels(PLACED, "200").inc()
        reply.send(200, b"{}")

    def _hear_placed(self, body: bytes) -> bytes | None:
        return b"" if self._front.desk.holds(body) and self._front.desk.hear(body) else None

    async def _snapshot(self, reply: Reply) -> None:
        others = await self._siblings.gather(SNAPSHOT)
        frontends = [self._own_snapshot(), *map(_OWN.decode, others.values())]
        reply.send(200, msgspec.json.encode(_joined(await self._front.snapshot(), frontends)))

    def _own_snapshot(self) -> FrontendSnapshot:
        fleet = self._router.snapshot([])  # of its own, no workers
        return FrontendSnapshot(
            number=self._siblings.number,
            pid=os.getpid(),
            placements=fleet.placements,
            copies=fleet.copies,
            index_blocks=fleet.index_blocks,
            requests=self._router.open_here,
            requests_elsewhere=self._router.open_there,
            counts=dict(gossip_counts(self._router, self._siblings)),
            recent=fleet.recent,
        )


def gossip_counts(router: SharingRouter, siblings: Siblings) -> Counter[str]:
    return router.counts + siblings.counts


def _joined(fleet: FleetSnapshot, frontends: list[FrontendSnapshot]) -> FleetSnapshot:
    """What all of them did; of the workers what the one that answers believes, where the others' placements count."""
    frontends = sorted(frontends, key=lambda f: f.number)
    return msgspec.structs.replace(
        fleet,
        placements=sum(f.placements for f in frontends),
        copies=sum(f.copies for f in frontends),
        recent=[outcome for f in frontends for outcome in f.recent],
        frontends=[msgspec.structs.replace(f, recent=[]) for f in frontends],
    )


class _Gossip(Collector):
    """What passes between frontends."""

    def __init__(self, router: SharingRouter, siblings: Siblings) -> None:
        self._router = router
        self._siblings = siblings

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        yield GaugeMetricFamily("jevons_frontend_up", "1 for each frontend that answered.", 1)
        yield GaugeMetricFamily("jevons_requests_here", "Unfinished requests it placed.", self._router.open_here)
        yield GaugeMetricFamily("jevons_requests_elsewhere", "… others placed, as heard.", self._router.open_there)
        gossip = CounterMetricFamily("jevons_gossip", "What frontends told and heard, by fate.", labels=["fate"])
        for fate, times in gossip_counts(self._router, self._siblings).items():
            gossip.add_metric([fate], times)
        yield gossip
