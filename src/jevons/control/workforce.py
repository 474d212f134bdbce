"""The workers of a router: who is there, what is known of each, and who may get work.

They join and leave, are suspected and heard of again, tell what they hold and how long their steps took.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

import msgspec

from jevons.base.ids import WorkerId
from jevons.control.affinity import Adapters, Bases
from jevons.control.book import Book
from jevons.control.columns import Columns
from jevons.control.intake import Intake
from jevons.control.ledger import HERE, Member, NodeTiers
from jevons.control.lessons import LATE_STEP, Lessons
from jevons.control.lived import LivedWorker, lived_worker
from jevons.control.roster import Roster
from jevons.control.scaling import Crewed
from jevons.facts.move import MoveReport
from jevons.facts.snapshot import WorkerSnapshot
from jevons.facts.state import WorkerState
from jevons.facts.view import Workers
from jevons.facts.worker import Health, IndexMode, StepReport, WorkerFacts
from jevons.kv.index import ENTRY_BYTES
from jevons.perf.measured import Load, load_of
from jevons.policy.route import check_policy


class Workforce:
    """The workers of a router, by id and by number."""

    def __init__(self, policy: str, *, hang_s: float, shadow_ttl_s: float) -> None:
        self.policy = policy
        self.roster = Roster(hang_s, self._on_health)
        self._book = Book(check_policy(policy))
        self._hang_s = hang_s
        self._shadow_ttl_s = shadow_ttl_s
        self._nodes: dict[str, NodeTiers] = {}
        self._workers: dict[WorkerId, Member] = {}
        self._members: dict[int, Member] = {}  # by number
        self._resorts: dict[WorkerId, Member] = {}  # suspects and stalled ones
        self._bases = Bases()
        self._recalled: dict[WorkerId, WorkerState] = {}  # of workers that have not joined yet
        self._lessons = Lessons(self._book, self._workers)
        self._columns = Columns(self._book.hub, self._workers, self.roster)
        self._seatings = 0  # workers that came, left or are others
        self._lives = count()

    def bound_index(self, size_bytes: int) -> None:
        """Let the index take so much memory at most, from 1 MB on; before anything is known. See `kv.index`."""
        self._book.index.bound(size_bytes // ENTRY_BYTES)

    def node(self, name: str) -> NodeTiers:
        """What is known of a node's tiers; who is told by their keeper writes it."""
        if name not in self._nodes:
            self._nodes[name] = NodeTiers(name)
        return self._nodes[name]

    def join(self, facts: WorkerFacts, node: str = HERE) -> None:
        """A worker of `node` introduces itself, for the first time or after a restart: it holds nothing we know of."""
        old = self._workers.get(facts.id)
        if old is not None:
            self._end(old)
        learned = self._lessons.begin(facts, old)
        self._seatings += 1
        self._workers[facts.id] = worker = Member(facts, learned, self.node(node), self._book, self._shadow_ttl_s)
        self._members[worker.number] = worker
        worker.life = next(self._lives)
        self._bases.count(facts.model, facts.adapters, 1)
        if old is not None:
            worker.reports_steps = old.reports_steps
        self.carry(facts.id, facts.adapters, facts.adapter_numbers)
        self._tell_up(worker)
        recalled = self._recalled.pop(facts.id, None)
        if recalled is not None:
            self._resume(worker, recalled)

    def carry(self, worker: WorkerId, adapters: Collection[str], numbers: Mapping[int, str] | None = None) -> None:
        """It serves these adapters of its model from now on. `numbers`: what its events may call them instead."""
        known = self._workers[worker]
        if known.intake is not None:
            known.intake.name_adapters(numbers or {})
        if known.adapters.names != frozenset(adapters):
            self._bases.count(known.facts.model, adapters, 1)
            self._bases.count(known.facts.model, known.adapters.names, -1)
            known.adapters = Adapters(adapters)

    def on_adapters(self, worker: WorkerId, running: Sequence[str], slots: int) -> None:
        """It reports which adapters run, and for how many it has room."""
        known = self._workers.get(worker)
        if known is not None:
            known.adapters.tell(running, slots)

    def tell_blocks(self, worker: WorkerId, blocks: int) -> None:
        """Its pool has so many blocks."""
        known = self._workers.get(worker)
        if known is not None and known.facts.blocks != blocks:
            known.facts = msgspec.structs.replace(known.facts, blocks=blocks)
            self._seatings += 1

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone for good."""
        left = self._workers.pop(worker, None)
        if left is not None:
            self._seatings += 1
            left.learned.leave()
            self._lessons.forget(worker)
            self._end(left)
            self._resorts.pop(worker, None)
        self.roster.forget(worker)

    def gone(self, worker: WorkerId) -> bool:
        """A worker ended; it may return. What it held is lost. Returns whether that is news."""
        known = self._workers.get(worker)
        if known is not None:
            known.life = next(self._lives)
            known.forget_blocks()
        return self.roster.gone(worker)

    def doubt(self, worker: WorkerId) -> None:
        """A worker may have started anew unseen: its next replay shows."""
        known = self._workers.get(worker)
        if known is not None and known.intake is not None:
            known.intake.doubt()

    def check(self, worker: WorkerId) -> None:
        """As `doubt`, with no reason to think so."""
        known = self._workers.get(worker)
        if known is not None and known.intake is not None:
            known.intake.check()

    def drain(self, worker: WorkerId, is_draining: bool) -> None:
        """It is to be stopped, so it gets no work while others have room; or it is not, after all."""
        known = self._workers.get(worker)
        if known is not None:
            known.is_draining = is_draining
            self._tell_up(known)

    def leaving(self, worker: WorkerId, is_leaving: bool) -> None:
        """As `drain`, of what others decide: it will end, so that nobody may take it back."""
        known = self._workers.get(worker)
        if known is not None and known.is_leaving is not is_leaving:
            known.is_leaving = is_leaving
            self._tell_up(known)

    def stalled(self, now_s: float) -> list[WorkerId]:
        """Look who does nothing about what waits there: they count as saturated until they do. Costs O(workers).

        Returns:
            those that have just been found.
        """
        found = []
        for id, worker in self._workers.items():
            has_stalled = worker.has_stalled(now_s, self._hang_s)
            if has_stalled is not worker.is_stalled:
                worker.is_stalled = has_stalled
                self._tell_up(worker)
                found += [id] if has_stalled else []
        return found

    def is_saturated(self, worker: WorkerId) -> bool:
        """Whether it gets work only where nobody else is left: what is known of it is stale."""
        return not self._may_work(self._workers[worker])

    # What is known

    def intake(self, worker: WorkerId) -> Intake:
        """Where this worker's KV events go.

        Raises:
            KeyError: no such worker, or it sends no events.
        """
        intake = self._workers[worker].intake
        if intake is None:
            raise KeyError(f"worker {worker} sends no events")
        return intake

    def recall(self, state: WorkerState) -> None:
        """This is what was known of a worker that is still to join."""
        self._recalled[state.worker] = state

    def state(self, worker: WorkerId) -> WorkerState | None:
        """What `recall` takes; None if the worker is unknown. Costs O(blocks)."""
        known = self._workers.get(worker)
        if known is None:
            return self._recalled.get(worker)
        source = None if known.intake is None else known.intake.state()
        return WorkerState(worker, source, self._lessons.lately(worker))

    def remembered(self) -> list[WorkerId]:
        """Of whom there is a `state`: workers, and who was recalled and has not joined yet."""
        return [*self._workers, *(id for id in self._recalled if id not in self._workers)]

    def index_mode(self, worker: WorkerId) -> IndexMode:
        """How far its blocks are known."""
        return self._workers[worker].index_mode

    def facts(self, worker: WorkerId) -> WorkerFacts:
        return self._workers[worker].facts

    def workers(self) -> list[WorkerId]:
        return list(self._workers)

    @property
    def seatings(self) -> int:
        """Rises whenever a worker came, left or is another: as long as it does not, `workers` are the same."""
        return self._seatings

    def worker_snapshots(self) -> Iterator[WorkerSnapshot]:
        """Each of those that are there now as it is when asked for, about 20 µs; who leaves meanwhile is left out."""
        for id in sorted(self._workers):
            worker = self._workers.get(id)
            if worker is not None:
                yield worker.snapshot(self.roster.health(id))

    def columns(self, seen: int | None = None) -> Workers:
        """The workers now, for a page; costs 0.3 µs for each. `seen`: the version of which it knows who they are."""
        return self._columns.workers(self._seatings, seen)

    def crewed(self, now_s: float) -> list[Crewed]:
        """The workers now by model and role; who is drained takes no work."""
        return self._columns.crewed(self._seatings, now_s)

    def chips(self) -> dict[str, int]:
        """Of the workers in the last `columns`, by kind; see `Columns.chips`."""
        return self._columns.chips()

    def lived_workers(self) -> list[LivedWorker]:
        """Who is there, in the order they joined, and what their steps are believed to take."""
        return [lived_worker(self.policy, m.facts, m.block_size, m.learned.prices) for m in self._workers.values()]

    def brought(self) -> dict[str, int]:
        """Tokens that workers brought from each tier, as they reported."""
        found: dict[str, int] = {}
        for node in self._nodes.values():
            for tier, tokens in node.brought.items():
                found[tier] = found.get(tier, 0) + round(tokens)
        return found

    # What they report

    def on_beat(self, worker: WorkerId, now_s: float, step: StepReport | None = None) -> None:
        """A worker lives, and its `step` in progress has run so long.

        Who beats but takes many times as long for it as predicted counts as silent since the step began.
        """
        known, silent_s = self._workers.get(worker), 0.0
        if known is not None and step is not None:
            expected_s = known.learned.prices.seconds(load_of(step))
            silent_s = step.seconds if step.seconds > LATE_STEP * expected_s else 0.0
        self.roster.heard(worker, now_s, silent_s)

    def on_step(self, worker: WorkerId, report: StepReport) -> None:
        """A worker reports one of its steps."""
        known = self._workers.get(worker)
        if known is None:
            return
        known.reports_steps = True
        known.signs += 1
        self._measured(known, load_of(report), report.seconds)
        if report.tokens:
            self._book.computed(known.number, report.tokens)

    def on_tier_counts(self, worker: WorkerId, counts: dict[str, int]) -> None:
        """A worker tells what became of its pages since it started, by reason."""
        known = self._workers.get(worker)
        if known is not None:
            known.tier_counts = counts

    def on_moves(self, worker: WorkerId, reports: Sequence[MoveReport]) -> None:
        """A worker reports what bringing blocks took."""
        known = self._workers.get(worker)
        if known is not None:
            for report in reports:
                known.moves[report.tier].measured(report.size_bytes, report.seconds)
                known.brings(report)
            for member in self._workers.values() if reports else ():
                if member.node == known.node:
                    member.tell_prices()

    # Inside

    def _resume(self, worker: Member, recalled: WorkerState) -> None:
        """Go on from what was known of it before."""
        if recalled.source is not None and worker.intake is not None:
            worker.intake.recall(recalled.source)
        for m in recalled.measured:
            self._measured(worker, Load(m.steps, m.tokens, m.token_context, m.decodes), m.seconds)

    def _measured(self, worker: Member, load: Load, seconds: float) -> None:
        """A step of `worker` took so long."""
        self._lessons.measured(worker, load, seconds)

    def _is_current(self, member: Member) -> bool:
        """Whether it has not joined again, or left, since."""
        return self._workers.get(member.facts.id) is member

    def _end(self, member: Member) -> None:
        del self._members[member.number]
        self._bases.count(member.facts.model, member.adapters.names, -1)
        member.end()

    def _on_health(self, worker: WorkerId, health: Health) -> None:
        known = self._workers.get(worker)
        if known is not None:
            self._tell_up(known)

    def _tell_up(self, worker: Member) -> None:
        """Whether it may work, or only where nobody else is left, may have changed."""
        id, may_work = worker.facts.id, self._may_work(worker)
        self._book.set_up(worker.number, may_work)
        if may_work or self.roster.health(id) is Health.DOWN:
            self._resorts.pop(id, None)
        else:
            self._resorts[id] = worker

    def _may_work(self, worker: Member) -> bool:
        is_kept = worker.is_stalled or worker.is_draining or worker.is_leaving
        return self.roster.health(worker.facts.id) is Health.UP and not is_kept

    @contextmanager
    def _without(self, avoid: Collection[WorkerId]) -> Iterator[None]:
        """These workers get no work meanwhile."""
        those = [self._workers[id].number for id in avoid if id in self._workers and self._may_work(self._workers[id])]
        self._book.set_all_up(those, False)
        try:
            yield
        finally:
            self._book.set_all_up(those, True)
