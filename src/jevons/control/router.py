"""The router's state and decisions, without I/O.

Events, reports and requests go in; placements come out. `serve.front` drives it with sockets, the twin with simulated
time. Neither decides anything itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from math import inf
from typing import Any, NamedTuple

import numpy as np

from jevons.base.compiled import Ints
from jevons.base.errors import NoWorker
from jevons.base.ids import RequestId, WorkerId
from jevons.control.affinity import Last, Sessions
from jevons.control.beside import promised
from jevons.control.board import APART, WHOLE
from jevons.control.book import ROW, Pick
from jevons.control.candidates import Candidates, Crew, Wish
from jevons.control.ledger import HERE, NO_NAMES, Counted, Member, Placed, Prompt
from jevons.control.lessons import LATE_STEP, learn_load
from jevons.control.workforce import Workforce
from jevons.facts.snapshot import FleetSnapshot, Outcome, WorkerSnapshot
from jevons.perf.measured import Load
from jevons.policy.admit import USUAL, Promise
from jevons.policy.route import Placement, check_policy, prompt_load, usual_streams

RECENT_OUTCOMES = 256
_NOBODY = nullcontext()  # to go without


class _Chosen(NamedTuple):
    """Who computes a prompt, who goes on (None: the same), and how long each token is predicted to take there."""

    member: Member
    after: Member | None
    tpot_s: float


class _Ask(NamedTuple):
    """What is to be placed."""

    id: RequestId
    prompt: Prompt
    session: str
    promised: float  # usual streams that it counts for besides while it runs
    output_tokens: int | None  # it may have
    tells_first: bool
    now_s: float


class Router(Workforce):
    """Places requests on workers and keeps account of what it placed."""

    def __init__(self, policy: str = "kv", *, hang_s: float = 0.8, shadow_ttl_s: float = 120.0) -> None:
        super().__init__(policy, hang_s=hang_s, shadow_ttl_s=shadow_ttl_s)
        crew = Crew(self._workers, self._members, self._resorts, self._nodes)
        self._candidates = Candidates(self._book, check_policy(policy), crew)
        self._placed: dict[RequestId, Placed] = {}
        self._sessions = Sessions()
        self._shadows_expire_s = inf  # none before
        self._copies = 0  # prompts computed once more on purpose
        self._recent: deque[Outcome] = deque(maxlen=RECENT_OUTCOMES)

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
        self._book.arrive(now_s, promise, output_tokens)
        promised = self._promised(promise, output_tokens)
        self._expire_shadows(now_s)
        with self._without(wish.avoid) if wish.avoid else _NOBODY:
            whole, apart = self._candidates.both(wish)
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
        now_s: float = 0.0,
    ) -> list[Placement]:
        """Where a prompt could go now: first where `place` would put it, then other workers for it by the seconds that
        all concerned would wait. Nothing is counted. Of policies other than kv only the first is told.

        Args:
            most: so many placements at most; None: all.
            now_s: forecasts are for then; or for the last arrival, where that was later.

        Raises:
            NoWorker: there is none.
        """
        wish = self._wish(self._prompt(tokens, salt, model), model, avoid, session)
        self._book.pass_time(now_s)
        self._expire_shadows(now_s)
        with self._without(wish.avoid) if wish.avoid else _NOBODY:
            self._book.promise(promise, output_tokens)
            whole, apart = self._candidates.both(wish)
            return self._ranked(len(tokens), whole, apart, most)

    def soonest(
        self,
        tokens: Sequence[int],
        *,
        salt: str = "",
        model: str | None = None,
        session: str = "",
        avoid: Collection[WorkerId] = (),
    ) -> tuple[float, float]:
        """The least seconds to a first token and for each after it that any worker could be predicted to take, had it
        nothing else to do and as much of the prompt as any has. Nothing is counted. Costs O(workers)."""
        wish = self._wish(self._prompt(tokens, salt, model), model, avoid, session)
        with self._without(wish.avoid) if wish.avoid else _NOBODY:
            counts = zip((WHOLE, APART), self._candidates.both(wish), strict=True)
            cached = [int(self._book.candidates(*each)["cached"].max(initial=0)) for each in counts]
            return self._book.soonest(wish.model, len(tokens), max(cached))

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
        self._book.pass_time(now_s)
        self._book.promise(promise, None)
        promised = self._promised(promise, None)
        self._expire_shadows(now_s)
        with self._without(wish.avoid) if wish.avoid else _NOBODY:
            rest = self._candidates.gather(WHOLE, wish)
            apart = 0 if rest else self._candidates.gather(APART, wish)
            return self._count(_Ask(request, wish.prompt, "", promised, None, True, now_s), rest, apart)

    # What becomes of them

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

    def done(self, request: RequestId, output_tokens: int | None = None, *, is_answered: bool = True) -> Outcome | None:
        """The request is over, whichever way. Returns what was predicted and measured; None if it is unknown.

        Args:
            output_tokens: of its answer, as far as it came; None: not known.
            is_answered: it came to its end: others are expected to be as long.
        """
        placed = self._placed.pop(request, None)
        if placed is None:
            return None
        if output_tokens is not None:
            if is_answered:
                self._book.count_answer(output_tokens)
            there = placed.decode or placed.member
            self._sessions.note(placed.session, Last(there.facts.id, there.life, placed.prompt_tokens + output_tokens))
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
            reused_tokens=None if placed.cached_tokens is None else placed.found_tokens,
            device_s=placed.taken_s(output_tokens or 0),
            saved_s=placed.saved_s,
            chip=placed.member.facts.chip,
        )
        self._recent.append(outcome)
        return outcome

    # Told

    def answer_tokens(self, limit: int | None) -> float:
        """How long an answer is expected to be that may have so many tokens; None: not told."""
        return self._book.answer_tokens(limit)

    def device_s(self, request: RequestId) -> float:
        """Predicted seconds of devices of a placed request's own: its prompt, and its share of its answer's steps."""
        return self._placed[request].device_s

    def names(self, request: RequestId, size: int) -> Ints | None:
        """Of its prompt's full blocks, two numbers each as `kv.blake2b.name_prompt` makes them, if its worker's are of
        `size` tokens and of no adapter. Where it goes on, the answer so far is part of the prompt."""
        placed = self._placed.get(request)
        named = None if placed is None else placed.named
        return None if named is None or named.size != size else named.prompted.names

    def snapshot(self, workers: list[WorkerSnapshot] | None = None) -> FleetSnapshot:
        """The state now; costs O(workers), unless these are given."""
        return FleetSnapshot(
            policy=self.policy,
            placements=int(self._book.hub.number("turn")),
            copies=self._copies,
            index_blocks=len(self._book.index),
            index_forgotten=self._book.index.forgotten,
            workers=list(self.worker_snapshots()) if workers is None else workers,
            recent=list(self._recent),
            tiers=self.node(HERE).state,
            nodes={name: n.state for name, n in sorted(self._nodes.items()) if name != HERE and n.state is not None},
        )

    # Inside

    def _ranked(self, prompt_tokens: int, whole: int, apart: int, most: int | None) -> list[Placement]:
        """The candidates of both desks, so many each, in order, as if it arrived; the turn stays as it was."""
        hub = self._book.hub
        turn, crowd = hub.number("turn"), float(hub.number("crowd"))
        hub.set("crowd", crowd + 1.0)
        try:
            best, c = self._conclude(prompt_tokens, whole, apart, counts=False)
        finally:
            hub.set("turn", turn)
            hub.set("crowd", crowd)
        alike = self._book.candidates(*((WHOLE, whole) if best.member.desk == WHOLE else (APART, apart)))
        order = np.lexsort((alike["worker"], alike["waiting_s"] + alike["answer_s"]))
        found = [self._placement(best, prompt_tokens, c)]
        for at in order[:most]:  # the chosen one is among them, and passed over
            o = ROW(*alike[at].item())
            if o.worker == c.worker:
                continue
            tpot_s = o.tpot_s if best.after is None else best.tpot_s
            chosen = _Chosen(self._members[o.worker], best.after, tpot_s)
            found.append(self._placement(chosen, prompt_tokens, o))
        return found[:most]

    def _prompt(self, tokens: Sequence[int], salt: str, model: str | None) -> Prompt:
        return Prompt(tokens, salt, model if model is not None and self._bases.model_of(model) is not None else "")

    def _wish(self, prompt: Prompt, model: str | None, avoid: Collection[WorkerId], session: str) -> Wish:
        """Where a prompt for `model` may go: for an adapter to its model's workers, but those that do not serve it."""
        if prompt.adapter:
            model = self._bases.model_of(prompt.adapter)
            others = (id for id, w in self._workers.items() if prompt.adapter not in w.adapters.names)
            avoid = {*avoid, *(id for id in others if self._workers[id].facts.model == model)}
        return Wish(prompt, model, avoid, self._sessions.last(session) if session else None)

    def _promised(self, promise: Promise, output_tokens: int | None) -> float:
        """Usual streams that a request counts for besides while it runs."""
        if promise.tpot_s is None:
            return 0.0
        return usual_streams(promise.tpot_s, self._book.answer_tokens(output_tokens))

    def _conclude(self, prompt_tokens: int, whole: int, apart: int, *, counts: bool) -> tuple[_Chosen, Pick]:
        """Who is chosen among the first so many candidates of each desk."""
        c = self._book.conclude(prompt_tokens, whole, apart, counts=counts)
        if c.worker < 0:
            raise NoWorker(f"no worker can take a prompt of {prompt_tokens} tokens: 0 candidates")
        after = None if c.after < 0 else self._members[c.after]
        return _Chosen(self._members[c.worker], after, c.tpot_s), c

    def _placement(self, chosen: _Chosen, prompt_tokens: int, c: Any) -> Placement:
        worker, after, cached, seconds = chosen.member, chosen.after, c.cached, c.seconds
        reason = (
            f"{cached} of {prompt_tokens} tokens cached, {c.queued_tokens:.0f} queued, "
            f"{c.decoding} decoding: first token in {seconds:.3f} s"
        )
        if after is not None:
            reason += f", the rest on {after.facts.id}"
        decode = None if after is None else after.facts.id
        return Placement(worker.facts.id, self.policy, seconds, cached, reason, decode, chosen.tpot_s)

    def _count(self, ask: _Ask, whole: int, apart: int) -> Placement:
        """Conclude, and keep account of it."""
        prompt, prompt_tokens = ask.prompt, len(ask.prompt.tokens)
        chosen, c = self._conclude(prompt_tokens, whole, apart, counts=True)
        self._copies += c.is_copy
        worker, after = chosen.member, chosen.after
        placement = self._placement(chosen, prompt_tokens, c)
        own = prompt_load(prompt_tokens, placement.cached_tokens)
        limit = ask.output_tokens
        answer_tokens = c.usual_tokens if limit is None else min(c.usual_tokens, limit)
        token_s = chosen.tpot_s / (c.requests + 1)  # each step is for all that are in it
        untold_s = 0.0 if ask.tells_first else answer_tokens * placement.tpot_s
        named = prompt.named(worker.block_size) if worker.block_size else None
        names = prompt.names(0) if named is None else named.names[c.depth :]
        loaded = 0
        if worker.number in self._book.beside:
            loaded = worker.reach(prompt.names(worker.block_size or 0), c.depth)[1]
            names = promised(names, worker.windows)
        placed = Placed(
            placement=placement,
            member=worker,
            decode=after,
            slot=self._book.wait(
                worker.number, (after or worker).number, prompt_tokens, placement.cached_tokens, names
            ),
            names=names,
            prompt_tokens=prompt_tokens,
            claimed_tokens=(c.depth + loaded) * c.block_size,
            loaded_tokens=loaded * c.block_size,
            session=ask.session,
            shadowed=NO_NAMES if named is None or worker.shadow is None else named.names,
            named=None if prompt.adapter else named,
            prompted=None if named is None or prompt.adapter or not worker.has_holes else named.prompted,
            placed_s=ask.now_s,
            ahead=Load(
                tokens=c.queued_tokens + own.tokens,
                token_context=c.queued_context + own.token_context,
            ),
            decoding=c.decoding,
            promised=ask.promised,
            token_s=token_s,
            device_s=worker.learned.prices.seconds(own) + answer_tokens * token_s,
            patience_s=LATE_STEP * (placement.ttft_s + untold_s),
        )
        self._count_waiting(placed)
        there = after or worker
        self._sessions.note(ask.session, Last(there.facts.id, there.life, prompt_tokens))
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

    def _begin(self, counted: Counted, now_s: float) -> None:
        """Its prompt is computed."""
        counted.is_running = True
        member = counted.member
        member.signs += 1
        if self._is_current(member):
            del member.waiting[counted.slot]
            self._book.begin(counted.slot, member.number, counted.names, counted.promised)
            if member.shadow is not None:
                member.shadow.placed(counted.shadowed, now_s)
                self._shadows_expire_s = min(self._shadows_expire_s, member.shadow.expires_s)
            if member.intake is not None and counted.prompted is not None:
                member.intake.on_prompted(counted.prompted)

    def _unwait(self, counted: Counted) -> None:
        del counted.member.waiting[counted.slot]
        self._book.unwait(counted.slot, counted.member.number, counted.names)

    def _end_counted(self, counted: Counted) -> None:
        """It counts no more."""
        member, is_current = counted.member, self._is_current(counted.member)
        self._book.free(counted.slot)
        if counted.decode is None and counted.is_running and is_current:
            self._book.finish(member.number, counted.prompt_tokens, counted.promised)
            return
        if is_current:
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

    def _learn(self, worker: Member, placed: Placed) -> None:
        """Where steps go unreported, learn from the time to first token."""
        if not worker.reports_steps and placed.first_s is not None:
            load, seconds = placed.seen(placed.first_s)
            if placed.loaded_tokens:
                learn_load(placed, seconds, worker.learned.prices.seconds(load))
            else:
                self._measured(worker, load, seconds)

    def _expire_shadows(self, now_s: float) -> None:
        if now_s < self._shadows_expire_s:
            return
        shadows = [worker.shadow for worker in self._workers.values() if worker.shadow is not None]
        for shadow in shadows:
            shadow.expire(now_s)
        self._shadows_expire_s = min((shadow.expires_s for shadow in shadows), default=inf)
