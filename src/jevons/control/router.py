"""The router's state and decisions, without I/O.

Events, reports and requests go in; placements come out. `serve.front` drives it with sockets, the twin with simulated
time. Neither decides anything itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

import msgspec
import numpy as np

from jevons.base.errors import NoWorker
from jevons.base.ids import RequestId, WorkerId
from jevons.control.affinity import Adapters, Last, Sessions
from jevons.control.beside import promised
from jevons.control.board import APART, WHOLE
from jevons.control.book import Book
from jevons.control.columns import Columns
from jevons.control.intake import Intake
from jevons.control.ledger import HERE, Counted, Member, NodeTiers, Placed, Prompt
from jevons.control.lived import LivedWorker, lived_worker
from jevons.control.roster import Roster
from jevons.facts.block import Tier
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvBatch, KvEvent, KvPayload
from jevons.facts.move import MoveReport
from jevons.facts.snapshot import FleetSnapshot, Outcome, WorkerSnapshot
from jevons.facts.state import Measured, WorkerState
from jevons.facts.view import Workers
from jevons.facts.worker import Health, IndexMode, Role, StepReport, WorkerFacts
from jevons.kv.groups import names_in
from jevons.kv.index import ENTRY_BYTES
from jevons.perf.kin import Kin, WorkerSeconds
from jevons.perf.measured import Load, load_of
from jevons.policy.admit import USUAL, Promise
from jevons.policy.belief import confidence
from jevons.policy.route import KV, Placement, check_policy, prompt_load, usual_streams
from jevons.policy.source import NOTHING, Compute, Plan, Supply, plan

RECENT_OUTCOMES = 256
# A step may take so many times its prediction before its worker counts as silent, and a first token before it counts as
# stalled. Below is noise: on cores that something else uses too, a step takes 2 to 3 times as long.
LATE_STEP = 4.0
# What an attached engine loads from its host's memory is not told in bytes: GUESS, Llama-3.1-8B's, in 16 bits. What is
# learned of how long it takes makes up for it.
GUESS_TOKEN_BYTES = 131_072
LATELY = 32  # measurements of a worker handed on: of two or more alike, all that `perf.measured` remembers


class _Chosen(NamedTuple):
    """Who computes a prompt, who goes on (None: the same), and how long each token is predicted to take there."""

    member: Member
    after: Member | None
    tpot_s: float


class _Wish(NamedTuple):
    """Where a prompt may go."""

    prompt: Prompt
    model: str | None
    avoid: Collection[WorkerId]
    last: Last | None  # where its session was


class _Ask(NamedTuple):
    """What is to be placed."""

    id: RequestId
    prompt: Prompt
    session: str
    promised: float  # usual streams that it counts for besides while it runs
    output_tokens: int | None  # it may have
    tells_first: bool
    now_s: float


class Router:
    """Places requests on workers and keeps account of what it placed."""

    def __init__(self, policy: str = "kv", *, hang_s: float = 0.8, shadow_ttl_s: float = 120.0) -> None:
        self._book = Book(check_policy(policy))
        self._is_kv = check_policy(policy) == KV
        self.policy = policy
        self.roster = Roster(hang_s, self._on_health)
        self._hang_s = hang_s
        self._shadow_ttl_s = shadow_ttl_s
        self._shadows_expire_s = inf  # none before
        self._nodes: dict[str, NodeTiers] = {}
        self._kins: dict[tuple[Any, ...], Kin] = {}  # by what makes workers alike
        self._workers: dict[WorkerId, Member] = {}
        self._members: dict[int, Member] = {}  # by number
        self._resorts: dict[WorkerId, Member] = {}  # suspects and stalled ones
        self._recalled: dict[WorkerId, WorkerState] = {}  # of workers that have not joined yet
        self._lately: dict[WorkerId, deque[Measured]] = {}  # by the worker it was measured on
        self._placed: dict[RequestId, Placed] = {}
        self._sessions = Sessions()
        self._copies = 0  # prompts computed once more on purpose
        self._bases: dict[str, str] = {}  # adapter → the model it is of
        self._recent: deque[Outcome] = deque(maxlen=RECENT_OUTCOMES)
        self._seatings = 0  # workers that came, left or are others
        self._columns = Columns(self._book.hub, self._workers, self.roster)

    def bound_index(self, size_bytes: int) -> None:
        """Let the index take so much memory at most, from 1 MB on; before anything is known. See `kv.index`."""
        self._book.index.bound(size_bytes // ENTRY_BYTES)

    # Workers

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
        learned = self._learned(facts, old)
        self._seatings += 1
        self._workers[facts.id] = worker = Member(facts, learned, self.node(node), self._book, self._shadow_ttl_s)
        self._members[worker.number] = worker
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
            known.intake.adapters = numbers or {}
        if known.adapters.names != frozenset(adapters):
            known.adapters = Adapters(adapters)
        self._bases.update(dict.fromkeys(adapters, known.facts.model))

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
            self._lately.pop(worker, None)
            self._end(left)
            self._resorts.pop(worker, None)
        self.roster.forget(worker)

    def gone(self, worker: WorkerId) -> bool:
        """A worker ended; it may return. What it held is lost. Returns whether that is news."""
        known = self._workers.get(worker)
        if known is not None:
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
        return WorkerState(worker, source, list(self._lately.get(worker, ())))

    def facts(self, worker: WorkerId) -> WorkerFacts:
        return self._workers[worker].facts

    def answer_tokens(self, limit: int | None) -> float:
        """How long an answer is expected to be that may have so many tokens; None: not told."""
        return self._book.answer_tokens(limit)

    def workers(self) -> list[WorkerId]:
        return list(self._workers)

    # Requests

    def place(  # noqa: PLR0913 — what one request asks for, each by its name
        self,
        request: RequestId,
        tokens: Sequence[int],
        now_s: float,
        *,
        salt: str = "",
        model: str | None = None,
        session: str = "",
        avoid: Collection[WorkerId] = (),
        promise: Promise = USUAL,
        output_tokens: int | None = None,
        tells_first: bool = True,
    ) -> Placement:
        """Choose a worker, or one for the prompt and one for the rest, and count the work against it until `done`.

        Args:
            request: a name not in use.
            tokens: the prompt, at least one token.
            salt: what keeps this tenant's cache apart.
            model: only workers that serve it, or the model it is an adapter of, with it; None for any.
            session: of whose requests each goes on from the one before: where no index is known of the worker of the
                last one, it is taken to hold that. "" for none.
            avoid: workers that have failed this request.
            promise: the sooner its first token, the less streams weigh that wait for it; the sooner each token after
                it, the more it weighs while it runs.
            output_tokens: it may have; None: not told.
            tells_first: its first token will be told; otherwise only its answer, when that is whole.

        Raises:
            NoWorker: none is left.
        """
        wish = self._wish(self._prompt(tokens, salt, model), model, avoid, session)
        self._book.count_arrival(now_s)
        self._book.promise(promise, output_tokens)
        promised = self._promised(promise, output_tokens)
        self._expire_shadows(now_s)
        with self._without(wish.avoid):
            whole, apart = self._gather(WHOLE, wish), self._gather(APART, wish)
            ask = _Ask(request, wish.prompt, session, promised, output_tokens, tells_first, now_s)
            return self._count(ask, whole, apart)

    def rank(  # noqa: PLR0913 — as `place`
        self,
        tokens: Sequence[int],
        *,
        salt: str = "",
        model: str | None = None,
        session: str = "",
        promise: Promise = USUAL,
        output_tokens: int | None = None,
        avoid: Collection[WorkerId] = (),
        most: int | None = None,
    ) -> list[Placement]:
        """Where a prompt could go now: first where `place` would put it, then other workers for it by the seconds that
        all concerned would wait. Nothing is counted. Of policies other than kv only the first is told.

        Args:
            most: so many placements at most; None: all.

        Raises:
            NoWorker: there is none.
        """
        wish = self._wish(self._prompt(tokens, salt, model), model, avoid, session)
        with self._without(wish.avoid):
            self._book.promise(promise, output_tokens)
            whole, apart = self._gather(WHOLE, wish), self._gather(APART, wish)
            return self._ranked(len(tokens), whole, apart, most)

    def _ranked(self, prompt_tokens: int, whole: int, apart: int, most: int | None) -> list[Placement]:
        """The candidates of both desks, so many each, in order; the turn stays as it was."""
        turn = self._book.hub.number("turn")
        best, c = self._conclude(prompt_tokens, whole, apart)
        self._book.hub.set("turn", turn)
        alike = self._book.candidates(*((WHOLE, whole) if best.member.desk == WHOLE else (APART, apart)))
        order = np.lexsort((alike["worker"], alike["waiting_s"] + alike["answer_s"]))
        found = [self._placement(best, prompt_tokens, c)]
        for at in order[:most]:  # the chosen one is among them, and passed over
            o = alike[at]
            if o["worker"] == c["worker"]:
                continue
            tpot_s = float(o["tpot_s"]) if best.after is None else best.tpot_s
            chosen = _Chosen(self._members[int(o["worker"])], best.after, tpot_s)
            found.append(self._placement(chosen, prompt_tokens, o))
        return found[:most]

    def go_on(  # noqa: PLR0913 — as `place`
        self,
        request: RequestId,
        tokens: Sequence[int],
        now_s: float,
        *,
        salt: str = "",
        model: str | None = None,
        avoid: Collection[WorkerId] = (),
        tpot_slo_s: float | None = None,
    ) -> Placement:
        """Choose a worker for what follows: `tokens` are a prompt and the output so far. Otherwise like `place`."""
        wish, promise = self._wish(self._prompt(tokens, salt, model), model, avoid, ""), Promise(tpot_s=tpot_slo_s)
        self._book.promise(promise, None)
        promised = self._promised(promise, None)
        self._expire_shadows(now_s)
        with self._without(wish.avoid):
            rest = self._gather(WHOLE, wish)
            apart = 0 if rest else self._gather(APART, wish)
            return self._count(_Ask(request, wish.prompt, "", promised, None, True, now_s), rest, apart)

    def device_s(self, request: RequestId) -> float:
        """Predicted seconds of devices of a placed request's own: its prompt, and its share of its answer's steps."""
        return self._placed[request].device_s

    def on_first(self, request: RequestId, now_s: float) -> None:
        """The first token of `request` arrived."""
        placed = self._placed.get(request)
        if placed is not None and placed.first_s is None:
            placed.first_s = now_s
            self.on_answered(request, now_s)

    def on_answered(self, request: RequestId, now_s: float) -> None:
        """The prompt of `request` is computed, who knows since when: its answer is here."""
        placed = self._placed[request]
        if not placed.is_running:
            self._begin(placed, now_s)

    def on_cached(self, request: RequestId, cached_tokens: int, prompt_tokens: int | None = None) -> None:
        """The engine reports how many of the prompt's tokens it had.

        Args:
            prompt_tokens: as it counts them; None: as we do. Ours are no tokens where we have no tokenizer of it.
        """
        placed = self._placed.get(request)
        if placed is not None:
            placed.cached_tokens, placed.cached_share = cached_tokens, None
            if prompt_tokens:
                placed.cached_share = cached_tokens / prompt_tokens

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

    def done(self, request: RequestId, output_tokens: int | None = None) -> Outcome | None:
        """The request is over, whichever way. Returns what was predicted and measured; None if it is unknown.

        Args:
            output_tokens: of its answer, where that came to its end.
        """
        placed = self._placed.pop(request, None)
        if placed is None:
            return None
        if output_tokens is not None:
            self._book.count_answer(output_tokens)
            there = placed.decode or placed.member
            self._sessions.note(placed.session, Last(there.facts.id, placed.prompt_tokens + output_tokens))
        self._end_counted(placed)
        if self._is_current(placed.member):
            self._learn(placed.member, placed)
            if placed.cached_tokens is not None:
                self._book.confirm(placed.member.number, placed.claimed_tokens, placed.found_tokens)
        outcome = Outcome(
            id=request,
            worker=placed.placement.worker,
            prompt_tokens=placed.prompt_tokens,
            predicted_ttft_s=placed.placement.ttft_s,
            ttft_s=None if placed.first_s is None else placed.first_s - placed.placed_s,
            predicted_cached_tokens=placed.placement.cached_tokens,
            cached_tokens=placed.cached_tokens,
            device_s=self._device_s(placed, output_tokens or 0),
            saved_s=_saved_s(placed),
            chip=placed.member.facts.chip,
        )
        self._recent.append(outcome)
        return outcome

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

    def snapshot(self) -> FleetSnapshot:
        """The state now; costs O(workers)."""
        return FleetSnapshot(
            policy=self.policy,
            placements=int(self._book.hub.number("turn")),
            copies=self._copies,
            index_blocks=len(self._book.index),
            index_forgotten=self._book.index.forgotten,
            workers=[self._worker_snapshot(w) for _, w in sorted(self._workers.items())],
            recent=list(self._recent),
            tiers=self.node(HERE).state,
            nodes={name: n.state for name, n in sorted(self._nodes.items()) if name != HERE and n.state is not None},
        )

    def columns(self, seen: int | None = None) -> Workers:
        """The workers now, for a page; costs 0.3 µs for each. `seen`: the version of which it knows who they are."""
        return self._columns.workers(self._seatings, seen)

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

    # Inside

    def _learned(self, facts: WorkerFacts, old: Member | None) -> WorkerSeconds:
        """What is known of its seconds, from before or from those that are alike."""
        alike = (facts.model, facts.kind, facts.role, facts.step_tokens, facts.max_running)
        kin = self._kins.setdefault(alike, Kin())
        if old is None:
            return WorkerSeconds(kin)
        if old.learned.kin is kin:
            return old.learned
        old.learned.leave()  # it is another one now
        return WorkerSeconds(kin)

    def _resume(self, worker: Member, recalled: WorkerState) -> None:
        """Go on from what was known of it before."""
        if recalled.source is not None and worker.intake is not None:
            worker.intake.recall(recalled.source)
        for m in recalled.measured:
            self._measured(worker, Load(m.steps, m.tokens, m.token_context, m.decodes), m.seconds)

    def _measured(self, worker: Member, load: Load, seconds: float) -> None:
        """A step of `worker` took so long."""
        lately = self._lately.setdefault(worker.facts.id, deque(maxlen=LATELY))
        lately.append(Measured(load.steps, load.tokens, load.token_context, load.decodes, seconds))
        was_alike = worker.learned.is_alike
        are_new = worker.learned.measured(load, seconds)
        if are_new:
            for member in self._workers.values():
                if member.learned.kin is worker.learned.kin and member.learned.is_alike:
                    self._book.set_prices(member.number, member.learned.prices)
        elif not (was_alike and worker.learned.is_alike):
            self._book.set_prices(worker.number, worker.learned.prices)

    def _is_current(self, member: Member) -> bool:
        """Whether it has not joined again, or left, since."""
        return self._workers.get(member.facts.id) is member

    def _end(self, member: Member) -> None:
        del self._members[member.number]
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
        return self.roster.health(worker.facts.id) is Health.UP and not worker.is_stalled

    @contextmanager
    def _without(self, avoid: Collection[WorkerId]) -> Iterator[None]:
        """These workers get no work meanwhile."""
        those = [self._workers[id].number for id in avoid if id in self._workers and self._may_work(self._workers[id])]
        self._book.set_all_up(those, False)
        try:
            yield
        finally:
            self._book.set_all_up(those, True)

    def _expire_shadows(self, now_s: float) -> None:
        if now_s < self._shadows_expire_s:
            return
        shadows = [worker.shadow for worker in self._workers.values() if worker.shadow is not None]
        for shadow in shadows:
            shadow.expire(now_s)
        self._shadows_expire_s = min((shadow.expires_s for shadow in shadows), default=inf)

    def _prompt(self, tokens: Sequence[int], salt: str, model: str | None) -> Prompt:
        return Prompt(tokens, salt, model if model is not None and model in self._bases else "")

    def _wish(self, prompt: Prompt, model: str | None, avoid: Collection[WorkerId], session: str) -> _Wish:
        """Where a prompt for `model` may go: for an adapter to its model's workers, but those that do not serve it."""
        if prompt.adapter:
            model = self._bases[prompt.adapter]
            others = (id for id, w in self._workers.items() if prompt.adapter not in w.adapters.names)
            avoid = {*avoid, *(id for id in others if self._workers[id].facts.model == model)}
        return _Wish(prompt, model, avoid, self._sessions.last(session) if session else None)

    def _gather(self, desk: int, wish: _Wish) -> int:
        """Candidates of a desk: of those that are up, else of suspects and stalled ones, for work on a slow worker
        beats none at all. Returns how many there are."""
        if not self._book.block_sizes(wish.model, desk):
            return 0  # nobody of this kind ever joined
        count = self._gather_up(desk, wish)
        if count:
            return count
        suspects = [
            worker.number for id, worker in self._resorts.items() if worker.desk == desk and id not in wish.avoid
        ]
        self._book.set_all_up(suspects, True)
        count = self._gather_up(desk, wish) if suspects else 0
        self._book.set_all_up(suspects, False)
        return count

    def _gather_up(self, desk: int, wish: _Wish) -> int:
        count, prompt, model = 0, wish.prompt, wish.model
        if self._is_kv:
            for size in self._book.block_sizes(model, desk):
                count = self._book.gather(desk, count, prompt.names(size), model, size)
            count = self._recall(desk, count, wish)
            if self._book.beside:
                count = self._look_beside(desk, count, wish)
        else:
            worker = self._book.pick(desk, model)
            if worker >= 0:
                self._book.put_alone(desk, worker, prompt.names(self._members[worker].block_size or 0))
                count = 1
        if any(len(node.holdings) for node in self._nodes.values()):
            for candidate in self._book.candidates(desk, count):
                self._add_tiers(candidate, prompt)
        for candidate in self._book.candidates(desk, count) if prompt.adapter else ():
            candidate["bring_s"] += self._members[int(candidate["worker"])].adapters.load_s(prompt.adapter)
        return count

    def _recall(self, desk: int, count: int, wish: _Wish) -> int:
        """Where no index is known of the worker where its session was last, that is taken to hold what was said there.
        Returns how many candidates there are then."""
        worker = None if wish.last is None else self._workers.get(wish.last.worker)
        if worker is None or wish.last is None or worker.index_mode is not IndexMode.NONE or worker.desk != desk:
            return count
        if wish.model not in (None, worker.facts.model) or not self._book.hub["workers"][worker.number]["up"]:
            return count
        at, count = self._book.candidate_of(desk, count, worker.number)
        c = self._book.candidates(desk, count)[at]
        c["cached"] = max(int(c["cached"]), min(wish.last.tokens, len(wish.prompt.tokens) - 1))
        return count

    def _look_beside(self, desk: int, count: int, wish: _Wish) -> int:
        """What their other tiers and groups of layers make of candidates, and who is one by these alone. Returns how
        many there are then."""
        sizes = self._book.block_sizes(wish.model, desk)
        for size in sizes:
            found, _ = self._book.index.find(names_in(wish.prompt.names(size), Tier.DRAM))
            for number in found.tolist():
                if (
                    number >= 0
                    and self._may_take(self._members[number], desk, size, wish)
                    and self._book.has_room(desk, count)
                ):
                    _, count = self._book.candidate_of(desk, count, number)
        workers = self._book.hub["workers"]
        for c in self._book.candidates(desk, count):
            number = int(c["worker"])
            if number in self._book.beside:
                member, size = self._members[number], int(c["block_size"])
                held, loaded = member.reach(wish.prompt.names(size), int(c["depth"]))
                c["depth"] = held
                c["cached"] = int((held + loaded) * float(confidence(workers[number])) + 0.5) * size
                c["bring_s"] = (
                    member.learned.kin.loads.prices.seconds(loaded * size * GUESS_TOKEN_BYTES) if loaded else 0.0
                )
        return count

    def _may_take(self, worker: Member, desk: int, block_size: int, wish: _Wish) -> bool:
        return (
            worker.desk == desk
            and worker.block_size == block_size
            and wish.model in (None, worker.facts.model)
            and bool(self._book.hub["workers"][worker.number]["up"])
        )

    def _add_tiers(self, candidate: Any, prompt: Prompt) -> None:
        """What it would bring from its node's tiers counts as cached, and is waited for."""
        worker = self._members[int(candidate["worker"])]
        coming = self._from_tiers(worker, prompt, int(candidate["cached"]))
        if coming.blocks:
            assert worker.facts.pages is not None, "it brings blocks"
            candidate["cached"] += len(coming.blocks) * worker.facts.pages.block_size
            candidate["bring_s"] = coming.seconds if coming.wait_s else 0.0  # otherwise it computes meanwhile

    def _from_tiers(self, worker: Member, prompt: Prompt, held_tokens: int) -> Plan:
        """What `worker` would bring from its node's tiers, by the rule it goes by itself."""
        pages, holdings = worker.facts.pages, self.node(worker.node).holdings
        if pages is None or not len(holdings):
            return NOTHING
        named = prompt.named(pages.block_size)
        names = named.hashes[: named.reusable]
        start = -(-held_tokens // pages.block_size)
        supply = Supply({tier: learned.prices for tier, learned in worker.moves.items()}, {})
        is_measured = worker.learned.samples > 0
        prices, step_tokens = worker.learned.prices, worker.facts.step_tokens
        compute = Compute(prices, step_tokens, pages.block_size, pages.size_bytes, is_measured)
        return plan(holdings.nearest(pages.fingerprint, names[start:]), start, supply, compute)

    def _promised(self, promise: Promise, output_tokens: int | None) -> float:
        """Usual streams that a request counts for besides while it runs."""
        if promise.tpot_s is None:
            return 0.0
        return usual_streams(promise.tpot_s, self._book.answer_tokens(output_tokens))

    def _count(self, ask: _Ask, whole: int, apart: int) -> Placement:
        """Conclude, and keep account of it."""
        prompt, prompt_tokens = ask.prompt, len(ask.prompt.tokens)
        chosen, c = self._conclude(prompt_tokens, whole, apart)
        self._book.want()
        self._copies += int(self._book.hub.number("is_copy"))
        worker, after = chosen.member, chosen.after
        placement = self._placement(chosen, prompt_tokens, c)
        own = prompt_load(prompt_tokens, placement.cached_tokens)
        answer_tokens = self._book.answer_tokens(ask.output_tokens)
        token_s = chosen.tpot_s / (int(c["requests"]) + 1)  # each step is for all that are in it
        untold_s = 0.0 if ask.tells_first else answer_tokens * placement.tpot_s
        named = prompt.named(worker.block_size) if worker.block_size else None
        names = prompt.names(0) if named is None else named.names[int(c["depth"]) :]
        loaded = 0
        if worker.number in self._book.beside:
            loaded = worker.reach(prompt.names(worker.block_size or 0), int(c["depth"]))[1]
            names = promised(names, worker.windows)
        placed = Placed(
            placement=placement,
            member=worker,
            decode=after,
            slot=self._book.wait(worker.number, prompt_tokens, placement.cached_tokens, names),
            names=names,
            prompt_tokens=prompt_tokens,
            claimed_tokens=(int(c["depth"]) + loaded) * int(c["block_size"]),
            loaded_tokens=loaded * int(c["block_size"]),
            session=ask.session,
            hashes=[] if named is None or worker.shadow is None else named.hashes,
            prompted=None if named is None or prompt.adapter or not worker.has_holes else named.prompted,
            placed_s=ask.now_s,
            ahead=Load(
                tokens=float(c["queued_tokens"]) + own.tokens,
                token_context=float(c["queued_context"]) + own.token_context,
            ),
            decoding=int(c["decoding"]),
            promised=ask.promised,
            token_s=token_s,
            device_s=worker.learned.prices.seconds(own) + answer_tokens * token_s,
            patience_s=LATE_STEP * (placement.ttft_s + untold_s),
        )
        self._count_waiting(placed)
        self._sessions.note(ask.session, Last((after or worker).facts.id, prompt_tokens))
        for member in (worker, after) if prompt.adapter else ():
            if member is not None:
                member.adapters.use(prompt.adapter)
        self._placed[ask.id] = placed
        return placement

    def _count_waiting(self, counted: Counted) -> None:
        """A request that has a slot waits on its worker."""
        counted.member.waiting[counted.slot] = counted
        if counted.decode is not None:
            counted.decode.promised += 1
            self._book.count_decode(counted.decode.number, 1, counted.promised)
        self._book.attend((counted.decode or counted.member).number, counted.prompt_tokens)

    def _begin(self, counted: Counted, now_s: float) -> None:
        """Its prompt is computed."""
        counted.is_running = True
        member = counted.member
        member.signs += 1
        if self._is_current(member):
            self._unwait(counted)
            self._book.count_decode(member.number, 1, counted.promised)
            if member.shadow is not None:
                member.shadow.placed(counted.hashes, now_s)
                self._shadows_expire_s = min(self._shadows_expire_s, member.shadow.expires_s)
            if member.intake is not None and counted.prompted is not None:
                member.intake.on_prompted(counted.prompted)

    def _end_counted(self, counted: Counted) -> None:
        """It counts no more."""
        if self._is_current(counted.member):
            if counted.is_running:
                self._book.count_decode(counted.member.number, -1, counted.promised)
            else:
                self._unwait(counted)
        if counted.decode is not None and self._is_current(counted.decode):
            counted.decode.promised -= 1
            self._book.count_decode(counted.decode.number, -1, counted.promised)
        drew = counted.decode or counted.member
        if self._is_current(drew):
            self._book.attend(drew.number, -counted.prompt_tokens)
        self._book.free(counted.slot)

    def _conclude(self, prompt_tokens: int, whole: int, apart: int) -> tuple[_Chosen, Any]:
        """Who is chosen among the first so many candidates of each desk, and the prompt's candidate."""
        there, chosen = self._book.conclude(prompt_tokens, whole, apart)
        if there < 0 and chosen < 0:
            raise NoWorker(f"no worker can take a prompt of {prompt_tokens} tokens: 0 candidates")
        desk, at = (WHOLE, chosen) if there < 0 else (APART, there)
        c = self._book.candidates(desk, at + 1)[at]
        after, tpot_s = None, float(c["tpot_s"])
        if there >= 0 and chosen >= 0:
            going_on = self._book.candidates(WHOLE, chosen + 1)[chosen]
            after, tpot_s = self._members[int(going_on["worker"])], float(going_on["tpot_s"])
        return _Chosen(self._members[int(c["worker"])], after, tpot_s), c

    def _placement(self, chosen: _Chosen, prompt_tokens: int, c: Any) -> Placement:
        worker, after, cached, seconds = chosen.member, chosen.after, int(c["cached"]), float(c["seconds"])
        reason = (
            f"{cached} of {prompt_tokens} tokens cached, {c['queued_tokens']:.0f} queued, "
            f"{c['decoding']} decoding: first token in {seconds:.3f} s"
        )
        if after is not None:
            reason += f", the rest on {after.facts.id}"
        decode = None if after is None else after.facts.id
        return Placement(worker.facts.id, self.policy, seconds, cached, reason, decode, chosen.tpot_s)

    def _device_s(self, placed: Placed, output_tokens: int) -> float:
        """Seconds of devices that a request took: its prompt, if it was computed, and its share of steps."""
        cached = placed.placement.cached_tokens if placed.cached_tokens is None else placed.found_tokens
        own = prompt_load(placed.prompt_tokens, cached)
        prompt_s = placed.member.learned.prices.seconds(own) if placed.is_running else 0.0
        return prompt_s + output_tokens * placed.token_s

    def _unwait(self, counted: Counted) -> None:
        del counted.member.waiting[counted.slot]
        self._book.unwait(counted.slot, counted.member.number, counted.names)

    def _learn(self, worker: Member, placed: Placed) -> None:
        """Where steps go unreported, learn from the time to first token, with the cached tokens as they really were."""
        cached = placed.cached_tokens
        if worker.reports_steps or placed.first_s is None:
            return
        tokens, context = placed.ahead.tokens, placed.ahead.token_context
        if cached is not None:
            own = prompt_load(placed.prompt_tokens, placed.placement.cached_tokens)
            real = prompt_load(placed.prompt_tokens, placed.found_tokens)
            tokens += real.tokens - own.tokens
            context += real.token_context - own.token_context
        steps = max(1.0, -(-tokens // worker.facts.step_tokens))
        load = Load(steps=steps, tokens=tokens, token_context=context, decodes=steps * placed.decoding)
        seconds = placed.first_s - placed.placed_s
        if placed.loaded_tokens:
            self._learn_load(worker, placed, seconds - worker.learned.prices.seconds(load))
            return
        self._measured(worker, load, seconds)

    def _learn_load(self, worker: Member, placed: Placed, seconds: float) -> None:
        """What it waited for besides is what loading took, of all that was found. Once slow says little: who is
        believed to be slow gets no work that would show that it is not."""
        missing = 0 if placed.cached_tokens is None else max(0, placed.claimed_tokens - placed.found_tokens)
        size_bytes, loads = (placed.loaded_tokens - missing) * GUESS_TOKEN_BYTES, worker.learned.kin.loads
        if size_bytes > 0:
            loads.measured(size_bytes, min(seconds, LATE_STEP * loads.prices.seconds(size_bytes)))

    def _worker_snapshot(self, worker: Member) -> WorkerSnapshot:
        prices, w = worker.learned.prices, self._book.hub["workers"][worker.number]
        return WorkerSnapshot(
            id=worker.facts.id,
            model=worker.facts.model,
            kind=worker.facts.kind,
            rank=worker.facts.rank,
            role=worker.facts.role,
            pid=worker.facts.pid,
            health=self.roster.health(worker.facts.id),
            is_stalled=worker.is_stalled,
            index=worker.index_mode,
            block_size=worker.block_size,
            held_blocks=worker.held_blocks,
            dram_blocks=worker.in_dram,
            queued_tokens=round(float(w["queued_tokens"])),
            decoding=int(w["decoding"]) - worker.promised,
            requests=int(w["requests"]) - worker.promised,
            prefill_tokens_per_s=prices.prefill_rate,
            step_s=prices.per_step_s,
            measurements=worker.learned.samples,
            adapters=worker.adapters.loaded,
            index_confidence=float(confidence(w)),
            tier_counts=worker.tier_counts,
            event_counts=dict(worker.intake.counts) if worker.intake is not None else {},
        )


def _saved_s(placed: Placed) -> float:
    """Seconds of its worker's chips that computing what was cached would have taken."""
    if not placed.cached_tokens:
        return 0.0
    tokens, prices = placed.prompt_tokens, placed.member.learned.prices
    saved_s = prices.seconds(prompt_load(tokens, 0)) - prices.seconds(prompt_load(tokens, placed.found_tokens))
    return saved_s * placed.member.facts.chips


_FIRST_BLOCK = {
    "type": "BlockStored",
    "block_hashes": [2],
    "parent_block_hash": None,
    "token_ids": list(range(32)),
    "block_size": 32,
}


def warm() -> None:
    """Have all that a router calls compiled, or read from where it was kept: a placement must not wait for it."""
    router, tokens = Router(), list(range(64))
    for name, role in (("both", Role.BOTH), ("prompts", Role.PREFILL)):
        router.join(WorkerFacts(id=WorkerId(name), model="", kind="", block_size=16, role=role))
        router.roster.heard(WorkerId(name), 0.0)
        stored = BlocksStored(hashes=[1], tokens=tokens[:16], block_size=16)
        events: list[KvEvent] = [stored, BlocksRemoved(hashes=[1]), AllCleared(), stored]
        router.intake(WorkerId(name)).on_batch(KvBatch(seq=0, events=events))
        router.intake(WorkerId(name)).on_batch(KvPayload(1, msgspec.msgpack.encode([0.0, [_FIRST_BLOCK]])))
    router.join(WorkerFacts(id=WorkerId("new"), model="", kind=""))
    router.roster.heard(WorkerId("new"), 0.0)
    router.place(RequestId("s"), tokens, 0.0, session="s", avoid={WorkerId("both"), WorkerId("prompts")})
    router.done(RequestId("s"))
    router.place(RequestId("s"), tokens, 0.0, session="s")
    router.done(RequestId("s"))
    router.leave(WorkerId("new"))
    for _ in range(2):
        worker = router.place(RequestId(""), tokens, 0.0).worker
        router.on_step(worker, StepReport(seconds=0.1, tokens=8, token_context=64, decodes=0))
        router.on_first(RequestId(""), 0.0)
        router.done(RequestId(""), 1)
    router.leave(WorkerId("both"))
