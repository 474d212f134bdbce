"""The router's state and decisions, without I/O.

Events, reports and requests go in; placements come out. `serve.front` drives it with sockets, the twin with simulated
time. Neither decides anything itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

import msgspec

from jevons.base.ids import RequestId, WorkerId
from jevons.control.intake import Intake
from jevons.control.ledger import HERE, Member, NodeTiers, Placed, Prompt
from jevons.control.roster import Roster
from jevons.facts.block import Tier
from jevons.facts.move import MoveReport
from jevons.facts.snapshot import FleetSnapshot, Outcome, WorkerSnapshot
from jevons.facts.worker import Role, StepReport, WorkerFacts
from jevons.kv.index import PrefixIndex
from jevons.perf.measured import Load, load_of
from jevons.policy.disagg import split
from jevons.policy.route import Candidate, Placement, check_policy, placement, prompt_load, route
from jevons.policy.source import NOTHING, Compute, Plan, Supply, plan

RECENT_OUTCOMES = 256
# A step may take so many times its prediction before its worker counts as silent. Below is noise: on cores that
# something else uses too, a step takes 2 to 3 times as long.
LATE_STEP = 4.0


class Router:
    """Places requests on workers and keeps account of what it placed."""

    def __init__(self, policy: str = "kv", *, hang_s: float = 0.8, shadow_ttl_s: float = 120.0) -> None:
        check_policy(policy)
        self.policy = policy
        self.roster = Roster(hang_s)
        self._shadow_ttl_s = shadow_ttl_s
        self._nodes: dict[str, NodeTiers] = {}
        self._index = PrefixIndex()
        self._workers: dict[WorkerId, Member] = {}
        self._placed: dict[RequestId, Placed] = {}
        self._turn = 0
        self._recent: deque[Outcome] = deque(maxlen=RECENT_OUTCOMES)

    # Workers

    def node(self, name: str) -> NodeTiers:
        """What is known of a node's tiers; who is told by their keeper writes it."""
        return self._nodes.setdefault(name, NodeTiers())

    def join(self, facts: WorkerFacts, node: str = HERE) -> None:
        """A worker of `node` introduces itself, for the first time or after a restart: it holds nothing we know of."""
        old = self._workers.get(facts.id)
        if old is not None:
            self._forget_blocks(old)
        self._workers[facts.id] = worker = Member(facts, node, self._index, self._shadow_ttl_s)
        if old is not None:
            worker.learned, worker.moves = old.learned, old.moves  # the hardware is the same
            worker.reports_steps = old.reports_steps

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone for good."""
        left = self._workers.pop(worker, None)
        if left is not None:
            self._forget_blocks(left)
        self.roster.forget(worker)

    def gone(self, worker: WorkerId) -> bool:
        """A worker ended; it may return. What it held is lost. Returns whether that is news."""
        known = self._workers.get(worker)
        if known is not None:
            self._forget_blocks(known)
        return self.roster.gone(worker)

    def intake(self, worker: WorkerId) -> Intake:
        """Where this worker's KV events go.

        Raises:
            KeyError: no such worker, or it sends no events.
        """
        intake = self._workers[worker].intake
        if intake is None:
            raise KeyError(f"worker {worker} sends no events")
        return intake

    def facts(self, worker: WorkerId) -> WorkerFacts:
        return self._workers[worker].facts

    def workers(self) -> list[WorkerId]:
        return list(self._workers)

    # Requests

    def place(
        self,
        request: RequestId,
        tokens: Sequence[int],
        now_s: float,
        *,
        salt: str = "",
        model: str | None = None,
        avoid: Collection[WorkerId] = (),
    ) -> Placement:
        """Choose a worker, or one for the prompt and one for the rest, and count the work against it until `done`.

        Args:
            request: a name not in use.
            tokens: the prompt, at least one token.
            salt: what keeps this tenant's cache apart.
            model: only workers that serve it; None for any.
            avoid: workers that have failed this request.

        Raises:
            NoWorker: none is left.
        """
        prompt = Prompt(tokens, salt, self._index)
        fits = self._fits(model, avoid)
        decoders = self._candidates(prompt, [w for w in fits if w.facts.role is not Role.PREFILL], now_s)
        prefillers = self._candidates(prompt, [w for w in fits if w.facts.role is Role.PREFILL], now_s)
        if prefillers and decoders:
            placed = self._split(len(tokens), decoders, prefillers)
        else:
            placed = route(self.policy, len(tokens), decoders or prefillers, self._turn)
        return self._count(request, placed, prompt, now_s)

    def go_on(
        self,
        request: RequestId,
        tokens: Sequence[int],
        now_s: float,
        *,
        salt: str = "",
        model: str | None = None,
        avoid: Collection[WorkerId] = (),
    ) -> Placement:
        """Choose a worker for what follows: `tokens` are a prompt and the output so far. Otherwise like `place`."""
        prompt = Prompt(tokens, salt, self._index)
        fits = self._fits(model, avoid)
        rest = self._candidates(prompt, [w for w in fits if w.facts.role is not Role.PREFILL], now_s)
        placed = route(self.policy, len(tokens), rest or self._candidates(prompt, fits, now_s), self._turn)
        return self._count(request, placed, prompt, now_s)

    def on_first(self, request: RequestId, now_s: float) -> None:
        """The first token of `request` arrived."""
        placed = self._placed.get(request)
        if placed is not None and placed.first_s is None:
            placed.first_s = now_s
            self.on_answered(request, now_s)

    def on_answered(self, request: RequestId, now_s: float) -> None:
        """The prompt of `request` is computed, who knows since when: its answer is here."""
        placed = self._placed[request]
        worker = self._workers.get(placed.placement.worker)
        if worker is not None:
            worker.unwait(request)
            worker.running.add(request)
            if worker.shadow is not None:
                worker.shadow.placed(placed.hashes, now_s)

    def on_cached(self, request: RequestId, cached_tokens: int) -> None:
        """The engine reports how many of the prompt's tokens it had."""
        placed = self._placed.get(request)
        if placed is not None:
            placed.cached_tokens = cached_tokens

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
        known.learned.measured(load_of(report), report.seconds)
        if report.tokens:
            known.computed(report.tokens)

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

    def done(self, request: RequestId) -> Outcome | None:
        """The request is over, whichever way. Returns what was predicted and measured; None if it is unknown."""
        placed = self._placed.pop(request, None)
        if placed is None:
            return None
        worker = self._workers.get(placed.placement.worker)
        if worker is not None:
            worker.unwait(request)
            worker.running.discard(request)
            self._learn(worker, placed)
        after = None if placed.placement.decode is None else self._workers.get(placed.placement.decode)
        if after is not None:
            after.promised.discard(request)
        outcome = Outcome(
            id=request,
            worker=placed.placement.worker,
            prompt_tokens=placed.prompt_tokens,
            predicted_ttft_s=placed.placement.ttft_s,
            ttft_s=None if placed.first_s is None else placed.first_s - placed.placed_s,
            predicted_cached_tokens=placed.placement.cached_tokens,
            cached_tokens=placed.cached_tokens,
        )
        self._recent.append(outcome)
        return outcome

    def snapshot(self) -> FleetSnapshot:
        """The state now; costs O(workers)."""
        return FleetSnapshot(
            policy=self.policy,
            placements=self._turn,
            index_blocks=len(self._index),
            workers=[self._worker_snapshot(w) for _, w in sorted(self._workers.items())],
            recent=list(self._recent),
            tiers=self.node(HERE).state,
            nodes={name: n.state for name, n in sorted(self._nodes.items()) if name != HERE and n.state is not None},
        )

    # Inside

    def _fits(self, model: str | None, avoid: Collection[WorkerId]) -> list[Member]:
        return [w for w in self._workers.values() if w.facts.id not in avoid and model in (None, w.facts.model)]

    def _candidates(self, prompt: Prompt, workers: Sequence[Member], now_s: float) -> list[Candidate]:
        """Those of `workers` that may be given work, as they would take this prompt."""
        candidates = []
        for id in self.roster.placeable({worker.facts.id for worker in workers}):
            worker = self._workers[id]
            if worker.shadow is not None:
                worker.shadow.expire(now_s)
            held_tokens, coming = 0, NOTHING
            size = worker.block_size
            if size is not None:
                named = prompt.named(size)
                held_tokens = size * worker.will_hold(named.reusable, named.depths.get(id, 0), self._index)
                coming = self._from_tiers(worker, prompt, held_tokens)
            candidates.append(self._candidate(worker, held_tokens, coming))
        return candidates

    def _split(self, prompt_tokens: int, decoders: list[Candidate], prefillers: list[Candidate]) -> Placement:
        if self.policy != "kv":  # the policies to compare with know no seconds: they always split
            prefill = route(self.policy, prompt_tokens, prefillers, self._turn)
            decode = route(self.policy, prompt_tokens, decoders, self._turn)
            return msgspec.structs.replace(prefill, decode=decode.worker)

        def handover_s(prefill: Candidate, decode: Candidate) -> float:
            one, other = self._workers[prefill.worker], self._workers[decode.worker]
            tier = Tier.DRAM if one.node == other.node else Tier.PEER
            return self._handover_s(other, tier, prompt_tokens, decode)

        chosen = split(prompt_tokens, decoders, prefillers, handover_s)
        assert chosen is not None, "there are decoders"
        after = chosen.decode.worker if chosen.decode is not chosen.prefill else None
        return placement(self.policy, prompt_tokens, chosen.prefill, after)

    def _handover_s(self, worker: Member, tier: Tier, prompt_tokens: int, c: Candidate) -> float:
        """Seconds until `worker` has what of a prompt is computed elsewhere, and its last page computed again.

        Args:
            tier: where it finds the blocks: of its own node, or of another.
        """
        pages = worker.facts.pages
        if pages is None:
            return c.prices.seconds(prompt_load(prompt_tokens, c.cached_tokens))
        missing = max(prompt_tokens - c.cached_tokens, 0) // pages.block_size
        tail = prompt_tokens % pages.block_size + 1
        computed_s = c.prices.seconds(
            msgspec.structs.replace(prompt_load(prompt_tokens, prompt_tokens - tail), steps=1)
        )
        return worker.moves[tier].prices.seconds(missing * pages.size_bytes) + computed_s

    def _from_tiers(self, worker: Member, prompt: Prompt, held_tokens: int) -> Plan:
        """What `worker` would bring from its node's tiers, by the rule it goes by itself."""
        pages, holdings = worker.facts.pages, self.node(worker.node).holdings
        if pages is None or not len(holdings):
            return NOTHING
        names = prompt.named(pages.block_size).reusable
        start = -(-held_tokens // pages.block_size)
        supply = Supply({tier: learned.prices for tier, learned in worker.moves.items()}, {})
        is_measured = worker.learned.samples > 0
        prices, step_tokens = worker.learned.prices, worker.facts.step_tokens
        compute = Compute(prices, step_tokens, pages.block_size, pages.size_bytes, is_measured)
        return plan(holdings.nearest(pages.fingerprint, names[start:]), start, supply, compute)

    def _candidate(self, worker: Member, held_tokens: int, coming: Plan) -> Candidate:
        pages = worker.facts.pages
        return Candidate(
            worker=worker.facts.id,
            cached_tokens=held_tokens + (len(coming.blocks) * pages.block_size if pages is not None else 0),
            bring_s=coming.seconds if coming.wait_s else 0.0,  # otherwise it computes meanwhile
            queued=worker.queued,
            decoding=len(worker.running) + len(worker.promised),
            requests=len(worker.waiting) + len(worker.running) + len(worker.promised),
            prices=worker.learned.prices,
            step_tokens=worker.facts.step_tokens,
            held_blocks=self._index.held(worker.facts.id),
        )

    def _count(self, request: RequestId, placement: Placement, prompt: Prompt, now_s: float) -> Placement:
        self._turn += 1
        worker, prompt_tokens = self._workers[placement.worker], len(prompt.tokens)
        hashes = [] if worker.block_size is None else prompt.named(worker.block_size).hashes
        if placement.decode is not None:
            self._workers[placement.decode].promised.add(request)
        own = prompt_load(prompt_tokens, placement.cached_tokens)
        decoding = len(worker.running)
        ahead = Load(
            tokens=worker.queued.tokens + own.tokens,
            token_context=worker.queued.token_context + own.token_context,
        )
        worker.wait(request, own, hashes)
        self._placed[request] = Placed(
            placement=placement,
            prompt_tokens=prompt_tokens,
            hashes=hashes,
            placed_s=now_s,
            ahead=ahead,
            decoding=decoding,
        )
        return placement

    def _learn(self, worker: Member, placed: Placed) -> None:
        """Where steps go unreported, learn from the time to first token, with the cached tokens as they really were."""
        cached = placed.cached_tokens
        if worker.reports_steps or placed.first_s is None:
            return
        tokens, context = placed.ahead.tokens, placed.ahead.token_context
        if cached is not None:
            own = prompt_load(placed.prompt_tokens, placed.placement.cached_tokens)
            real = prompt_load(placed.prompt_tokens, cached)
            tokens += real.tokens - own.tokens
            context += real.token_context - own.token_context
        steps = max(1.0, -(-tokens // worker.facts.step_tokens))
        load = Load(steps=steps, tokens=tokens, token_context=context, decodes=steps * placed.decoding)
        worker.learned.measured(load, placed.first_s - placed.placed_s)

    def _forget_blocks(self, worker: Member) -> None:
        if worker.intake is not None:
            worker.intake.reset()
        if worker.shadow is not None:
            worker.shadow.reset()

    def _worker_snapshot(self, worker: Member) -> WorkerSnapshot:
        prices = worker.learned.prices
        return WorkerSnapshot(
            id=worker.facts.id,
            model=worker.facts.model,
            kind=worker.facts.kind,
            role=worker.facts.role,
            pid=worker.facts.pid,
            health=self.roster.health(worker.facts.id),
            index=worker.index_mode,
            block_size=worker.block_size,
            held_blocks=self._index.held(worker.facts.id),
            queued_tokens=round(worker.queued.tokens),
            decoding=len(worker.running),
            requests=len(worker.waiting) + len(worker.running),
            prefill_tokens_per_s=prices.prefill_rate,
            step_s=prices.per_step_s,
            measurements=worker.learned.samples,
            tier_counts=worker.tier_counts,
            event_counts=dict(worker.intake.counts) if worker.intake is not None else {},
        )
