"""Whatever becomes of workers and requests, in any order: the book has what is under way, and then nothing is left."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain

import pytest

from jevons.base.errors import NoWorker
from jevons.base.ids import RequestId, WorkerId
from jevons.control.ledger import Counted
from jevons.control.sharing import SharingRouter
from jevons.facts.event import BlocksRemoved, BlocksStored, KvBatch
from jevons.facts.worker import Health, Role, StepReport, WorkerFacts
from jevons.policy.admit import USUAL, Promise

SIZE = 16
IDS = [WorkerId(f"w{i}") for i in range(6)]
PROMISES = [USUAL, Promise(1e-6, 1e-6), Promise(3_600.0, 3_600.0), Promise(None, 0.05)]


class Sum:
    """What the book must have of one worker."""

    def __init__(self) -> None:
        self.requests = self.decoding = self.context = self.elsewhere = 0
        self.promised = 0.0
        self.waiting: set[int] = set()


class Life:
    """Two routers over the same workers, and all that may happen to them."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        policies = [self.draw.choice(["kv", "kv", "least_loaded", "round_robin", "random"]) for _ in range(2)]
        self.routers = [
            SharingRouter(policy, hang_s=0.8, shadow_ttl_s=20.0, on_news=lambda: None) for policy in policies
        ]
        self.now_s, self.count = 0.0, 0
        self.open: list[dict[RequestId, None]] = [{}, {}]
        self.texts = [[self.draw.randrange(50) for _ in range(320)] for _ in range(3)]

    def step(self) -> None:
        self.now_s += self.draw.random()
        happens: list[Callable[[], None]] = [self.join, self.leave, self.gone, self.drain, self.silence, self.carry]
        happens += [self.events, self.work, self.ask, self.ask, self.ask, self.ask, self.answer, self.answer]
        self.draw.choice([*happens, self.answer, self.answer])()
        for teller, hearer in ((0, 1), (1, 0)):
            if self.draw.random() < 0.9:
                self.routers[hearer].hear(teller, self.routers[teller].take_news(), self.now_s)
            if self.draw.random() < 0.02:  # something was lost on the way
                self.routers[hearer].forget(teller)
                self.routers[teller].take_news()
                self.routers[hearer].hear(teller, self.routers[teller].open_news(), self.now_s)

    # Workers

    def there(self) -> Iterator[tuple[SharingRouter, WorkerId]]:
        """One of the workers, at those routers that know it."""
        id = self.draw.choice(IDS)
        yield from ((r, id) for r in self.routers if id in r.workers())

    def join(self) -> None:
        facts = WorkerFacts(
            id=self.draw.choice(IDS),
            model=self.draw.choice("mn"),
            kind="openai",
            block_size=SIZE,
            sends_events=self.draw.random() < 0.6,
            role=self.draw.choice([Role.BOTH, Role.PREFILL, Role.DECODE]),
            adapters=frozenset(name for name in "pq" if self.draw.random() < 0.3),
        )
        for r in self.routers:
            r.join(facts)
            r.roster.heard(facts.id, self.now_s)

    def leave(self) -> None:
        for r, id in self.there():
            r.leave(id)

    def gone(self) -> None:
        for r, id in self.there():
            r.gone(id)

    def drain(self) -> None:
        is_draining = self.draw.random() < 0.5
        for r, id in self.there():
            r.drain(id, is_draining)

    def carry(self) -> None:
        adapters = self.draw.sample("pqs", self.draw.randrange(3))
        for r, id in self.there():
            r.carry(id, adapters)

    def silence(self) -> None:
        for r in self.routers:
            if self.draw.random() < 0.4:
                r.roster.suspects(self.now_s)
                r.stalled(self.now_s)
            for id in r.workers() if self.draw.random() < 0.5 else ():
                r.roster.heard(id, self.now_s)

    def events(self) -> None:
        blocks, tokens = self.draw.randrange(1, 20), self.draw.choice(self.texts)
        stored = BlocksStored(hashes=list(range(blocks)), tokens=tokens[: blocks * SIZE], block_size=SIZE)
        removed = BlocksRemoved(hashes=[self.draw.randrange(20)])
        event = stored if self.draw.random() < 0.5 else removed
        self.count += self.draw.choice([1, 3])  # some are lost
        for r, id in self.there():
            if r.facts(id).sends_events:
                r.intake(id).on_batch(KvBatch(seq=self.count, events=[event]))

    def work(self) -> None:
        tokens = self.draw.choice([0, 64, 512])
        for r, id in self.there():
            r.on_step(id, StepReport(seconds=0.01, tokens=tokens, token_context=1_000, decodes=2))

    # Requests

    def ask(self) -> None:
        at, draw = self.draw.randrange(2), self.draw
        self.count += 1
        r, id = self.routers[at], RequestId(f"{at}-{self.count}")
        tokens = [*draw.choice(self.texts)[: draw.randrange(1, 320)], draw.randrange(99)]
        model, avoid = draw.choice([None, "m", "n", "p", "q", "nobody's"]), draw.sample(IDS, draw.randrange(3))
        promise, limit = draw.choice(PROMISES), draw.choice([None, 1, 16, 10**9])
        try:
            r.rank(tokens, model=model, avoid=avoid, now_s=self.now_s)
            if draw.random() < 0.8:
                more = {"session": draw.choice(["", "s"]), "tells_first": draw.random() < 0.7}
                r.place(id, tokens, self.now_s, model=model, avoid=avoid, promise=promise, output_tokens=limit, **more)
            else:
                r.go_on(id, tokens, self.now_s, model=model, avoid=avoid, tpot_slo_s=promise.tpot_s)
            self.open[at][id] = None
        except NoWorker:
            pass

    def answer(self) -> None:
        at, draw = self.draw.randrange(2), self.draw
        if not self.open[at]:
            return
        r, id, what = self.routers[at], draw.choice(list(self.open[at])), draw.random()
        if what < 0.5:
            r.on_first(id, self.now_s)
        elif what < 0.6:
            r.on_cached(id, draw.choice([0, 16, 10**6]), draw.choice([None, 100]))
        else:
            r.done(id, draw.choice([None, 0, 5]))
            del self.open[at][id]

    def end(self) -> None:
        """All is answered, and told."""
        for r, those in zip(self.routers, self.open, strict=True):
            for id in those:
                r.done(id)
        for teller, hearer in ((0, 1), (1, 0)):
            self.routers[hearer].hear(teller, self.routers[teller].take_news(), self.now_s)


def under_way(r: SharingRouter) -> list[Counted]:
    return [*r._placed.values(), *chain.from_iterable(those.values() for those in r._there.values())]


def sums(r: SharingRouter) -> dict[int, Sum]:
    """By the number of workers that have not joined again since, from what is under way alone."""
    found: defaultdict[int, Sum] = defaultdict(Sum)
    for c in under_way(r):
        here, there = c.member, c.decode
        if r._is_current(here):
            found[here.number].requests += 1
            found[here.number].decoding += c.is_running
            found[here.number].promised += c.promised * c.is_running
            if not c.is_running:
                found[here.number].waiting.add(c.slot)
        if there is not None and r._is_current(there):
            found[there.number].requests += 1
            found[there.number].decoding += 1
            found[there.number].elsewhere += 1
            found[there.number].promised += c.promised
        last = there or here
        if r._is_current(last):
            found[last.number].context += c.prompt_tokens
    return found


def check(r: SharingRouter) -> None:
    book, expected, slots = r._book.hub["workers"], sums(r), [c.slot for c in under_way(r)]
    for id, member in r._workers.items():
        w, s = book[member.number], expected[member.number]
        assert (w["requests"], w["decoding"], w["context"]) == (s.requests, s.decoding, s.context)
        assert w["promised"] == pytest.approx(s.promised, rel=1e-9, abs=1e-6)
        assert (member.promised, set(member.waiting)) == (s.elsewhere, s.waiting)
        assert s.waiting or (w["queued_tokens"], w["queued_context"], w["oldest"], w["newest"]) == (0.0, 0.0, -1, -1)
        assert bool(w["up"]) == r._may_work(member)
        assert (id in r._resorts) == (not w["up"] and r.roster.health(id) is not Health.DOWN)
    numbers, free = {member.number for member in r._workers.values()}, r._book._workers
    assert set(r._members) == numbers == set(range(len(book))) - set(free)
    assert len(numbers) + len(free) == len(book)
    assert (book["kind"][free] == -1).all()
    assert sorted([*slots, *r._book._slots]) == list(range(len(r._book.hub["waits"])))


@pytest.mark.parametrize("seed", range(6))
def test_the_book_has_what_is_under_way_and_nothing_else(seed: int) -> None:
    life = Life(seed)
    for _ in range(600):
        life.step()
        for r in life.routers:
            check(r)
    assert min(r.snapshot().placements for r in life.routers) > 25

    life.end()
    for r in life.routers:
        check(r)
        assert not under_way(r)
        for id in r.workers():
            r.leave(id)
        for _ in range(100):
            r._book.index.sweep(1_000)
        assert len(r._book.index) == 0
        assert not any((r._resorts, r._members, r._book.beside, r.roster.up(), r.roster.has_up))
        assert all(r._bases.model_of(name) is None for name in "pqs")
