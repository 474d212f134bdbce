"""The connector in vLLM's scheduler: what the tiers hold of a prompt, whether fetching it is worth it, what to save.

    arrives ──look──▶ found ──matched──▶ fetch, and wait ──▶ computed, its blocks saved as they become full

vLLM goes on from the first block that is missing, so what is fetched is a run of blocks from there on. It is as long as
pays: the seconds predicted to bring it are fewer than those to compute it, both as measured here. Other requests are
computed meanwhile. A request waits at most as long as computing the blocks was predicted to take; what has not come by
then is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count, groupby, takewhile
from typing import Any, NamedTuple, Protocol

from jevons.base.clock import Clock
from jevons.base.ids import BlockHash, BlockId
from jevons.engine.vllm.answers import Answers
from jevons.engine.vllm.step import Fetch, Orders, Store, Told
from jevons.facts.block import Tier
from jevons.facts.move import Ask, Found, Look
from jevons.kv.hashing import chain, root
from jevons.kv.layout import Layout
from jevons.perf.measured import GUESS_MOVES, Load, MoveSeconds, StepSeconds
from jevons.policy.source import Compute, Supply

LOOK_S = 0.05  # so long a request waits to hear which tiers hold its blocks
FRESH_S = 2.0  # so long it believes what it heard
# Before steps were measured nobody knows what computing takes; the first ones of a process are slow besides.
ENOUGH_STEPS = 3
FIRST_WAIT_S = 2.0
# A tier that is late or believed to be too slow is tried with one block now and then: a slow moment must not be
# believed for ever.
TRY_EVERY = 16


class Request(Protocol):
    """What is read of a `vllm.v1.request.Request`."""

    @property
    def request_id(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed_tokens(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def cache_salt(self) -> str | None: ...
    @property
    def all_token_ids(self) -> Sequence[int]: ...


class Chosen(NamedTuple):
    """A run of blocks to fetch."""

    first: int
    tiers: Sequence[Tier]  # of each
    wait_s: float


class _Prompt:
    """What is known of one request."""

    def __init__(self, request: Request, block_size: int) -> None:
        self.request = request
        self.salt = request.cache_salt or ""
        self.look: int | None = None  # not answered yet
        self.told_s = 0.0  # when it asked; once it was told, when that was
        self.tiers: Sequence[Tier | None] | None = None
        self.chosen: Chosen | None = None
        self.fetched_at = -1  # preemptions it had had when it last fetched: once for each time it starts
        self.saved: int | None = (
            None  # its first blocks, that are in the tiers or on the way; None until it is computed
        )
        self._block_size = block_size
        self._names: list[BlockHash] = []

    def names(self, end: int) -> list[BlockHash]:
        """Of its first `end` blocks, whose tokens must be known."""
        have = len(self._names)
        if end > have:
            parent = self._names[-1] if have else root(self._block_size, self.salt)
            tokens = self.request.all_token_ids[have * self._block_size : end * self._block_size]
            self._names += chain(tokens, self._block_size, parent)
        return self._names[:end]


class Scheduler:
    """Called by vLLM's scheduler, in its thread.

    Args:
        layout: of a block.
        step_tokens: vLLM computes in one step at most.
        ask: asks the node.
        answers: where the node's answers come.
        clock: the time.
    """

    def __init__(
        self,
        layout: Layout,
        step_tokens: int,
        ask: Callable[[Ask], None],
        answers: Answers,
        clock: Clock,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._block_size, self._page_bytes = layout.block_size, layout.page_bytes
        self._step_tokens = step_tokens
        self._ask, self._answers, self._clock = ask, answers, clock
        self._ids, self._numbers = count(1), count(1)
        self._prompts: dict[str, _Prompt] = {}
        self._looks: dict[int, _Prompt] = {}
        self._queued_bytes: Mapping[Tier, int] = {}
        self._loading: set[str] = set()
        self._fetches: list[Fetch] = []
        self._cancels: list[str] = []
        self._steps: dict[int, Load] = {}  # not told of yet
        self._compute = StepSeconds()
        self._moves = {tier: MoveSeconds(prior) for tier, prior in GUESS_MOVES.items()}
        self._late: set[Tier] = set()  # did not deliver in time when they were last asked
        self._is_stopped = False

    def stop(self) -> None:
        """Fetch and save nothing from now on: blocks of before are not valid any more, for the weights changed, say."""
        self._is_stopped = True
        for id in list(self._prompts):
            self.on_finished(id)

    # Requests

    def on_new(self, request: Request) -> None:
        """A request has arrived: ask for its blocks, so that the answer is there when its turn comes."""
        reason = "reset" if self._is_stopped else _why_not(request)
        if reason:
            self.counts[f"skipped_{reason}"] += 1
            return
        prompt = self._prompts[request.request_id] = _Prompt(request, self._block_size)
        self._look(prompt)

    def matched(self, request: Request, computed_tokens: int) -> int | None:
        """Tokens to fetch after the first `computed_tokens`; None: it is not known yet, ask again."""
        prompt = self._prompts.get(request.request_id)
        if prompt is None or prompt.fetched_at == request.num_preemptions:
            return 0
        if not self._knows(prompt):
            return None
        first, end = computed_tokens // self._block_size, self._end(request)
        held = takewhile(lambda tier: tier is not None, (prompt.tiers or ())[first:end])
        prompt.chosen = self._choose(first, [tier for tier in held if tier is not None])
        return len(prompt.chosen.tiers) * self._block_size

    def sources(self, request: Request, tokens: int) -> dict[Tier, int]:
        """Of so many tokens about to be fetched, how many come from each tier."""
        prompt = self._prompts.get(request.request_id)
        tiers = prompt.chosen.tiers[: tokens // self._block_size] if prompt and prompt.chosen else ()
        return {tier: amount * self._block_size for tier, amount in Counter(tiers).items()}

    def allocated(self, request: Request, blocks: Sequence[int], tokens: int) -> None:
        """The request has `blocks` now, and fetches so many tokens."""
        if not tokens:
            return
        prompt = self._prompts[request.request_id]
        assert prompt.chosen is not None, "vLLM fetches what was matched"
        first, tiers, wait_s = prompt.chosen
        end = first + tokens // self._block_size
        places = [BlockId(block) for block in blocks[first:end]]
        names = prompt.names(end)[first:]
        self._fetches.append(Fetch(request.request_id, names, places, list(tiers[: len(names)]), wait_s))
        self._loading.add(request.request_id)
        prompt.fetched_at = request.num_preemptions

    def on_finished(self, id: str) -> None:
        """A request is over, however it ended."""
        prompt = self._prompts.pop(id, None)
        if prompt is not None and prompt.look is not None:
            del self._looks[prompt.look]
        if id in self._loading:
            self._cancels.append(id)

    # Steps

    def orders(self, scheduled: Mapping[str, int], blocks_of: Callable[[str], Sequence[int]]) -> Orders:
        """What the worker does with the step in which these requests compute so many tokens each."""
        number, load, stores = next(self._numbers), Load(steps=1), []
        for id, tokens in scheduled.items():
            prompt = self._prompts.get(id)
            load = _with(load, prompt.request.num_computed_tokens if prompt else 0, tokens)
            if prompt is not None:
                stores += self._stores(prompt, tokens, blocks_of)
        if scheduled:
            self._steps[number] = load
        fetches, self._fetches = self._fetches, []
        cancels, self._cancels = self._cancels, []
        return Orders(number, fetches, stores, cancels, is_idle=not scheduled)

    def on_told(self, told: Told) -> None:
        """The worker has computed a step."""
        load = self._steps.pop(told.number, None)
        if load is not None:
            self._compute.measured(load, told.seconds)
        for move in told.moves:
            self._moves[move.tier].measured(move.size_bytes, move.seconds)
            self._late.discard(move.tier)
        self._late.update(told.late)

    def on_loaded(self, id: str) -> None:
        """What was fetched for this request is there, or will not come."""
        self._loading.discard(id)

    # Inside

    def _end(self, request: Request) -> int:
        """Blocks that may be fetched: at least one token must be computed, for its logits."""
        return (request.num_tokens - 1) // self._block_size

    def _look(self, prompt: _Prompt) -> None:
        names = prompt.names(self._end(prompt.request))
        prompt.told_s = self._clock.now_s()
        if not names:
            prompt.tiers = ()
            return
        prompt.look = next(self._ids)
        self._looks[prompt.look] = prompt
        self._ask(Look(prompt.look, names))

    def _knows(self, prompt: _Prompt) -> bool:
        self._hear()
        age_s = self._clock.now_s() - prompt.told_s
        if prompt.look is not None:
            if age_s <= LOOK_S:
                return False
            self.counts["look_timeout"] += 1
            del self._looks[prompt.look]
            self._tell(prompt, (), self._clock.now_s())
        elif age_s > FRESH_S:
            self._look(prompt)
        return prompt.look is None

    def _hear(self) -> None:
        for at_s, answer in self._answers.take():
            if isinstance(answer, Found) and answer.id in self._looks:
                self._queued_bytes = answer.queued_bytes
                self._tell(self._looks.pop(answer.id), answer.tiers, at_s)

    def _tell(self, prompt: _Prompt, tiers: Sequence[Tier | None], at_s: float) -> None:
        prompt.look, prompt.tiers, prompt.told_s = None, tiers, at_s

    def _choose(self, first: int, held: Sequence[Tier]) -> Chosen:
        """As many of the blocks as save most.

        A run may end where another tier begins, for each has a constant; nowhere else, since a prompt's later blocks
        cost more to compute and no more to bring.
        """
        supply = Supply({tier: learned.prices for tier, learned in self._moves.items()}, self._queued_bytes)
        compute = Compute(self._compute.prices, self._step_tokens, self._block_size, self._page_bytes)
        size_bytes: Counter[Tier] = Counter()
        amount, best, most_s = 0, 0, 0.0
        for tier, run in groupby(takewhile(lambda tier: tier not in self._late, held)):
            blocks = len(list(run))
            amount += blocks
            size_bytes[tier] += blocks * self._page_bytes
            saved_s = compute.seconds(first, first + amount) - supply.seconds(size_bytes)
            if saved_s > most_s:
                best, most_s = amount, saved_s
        if held and not best:
            self.counts["too_slow"] += 1
            best = int(self.counts["too_slow"] % TRY_EVERY == 0)
        wait_s = compute.seconds(first, first + best)
        if self._compute.samples < ENOUGH_STEPS:
            wait_s = max(wait_s, FIRST_WAIT_S)
        return Chosen(first, held[:best], wait_s)

    def _stores(self, prompt: _Prompt, tokens: int, blocks_of: Callable[[str], Sequence[int]]) -> list[Store]:
        """Blocks that become full in this step. What was there before it is computed came from a pool or a tier.

        A token that vLLM computes before the scheduler knows it has no name yet; the next step saves its block.
        """
        request, size = prompt.request, self._block_size
        if prompt.saved is None:
            prompt.saved = request.num_computed_tokens // size
        first = prompt.saved
        end = min(request.num_computed_tokens + tokens, len(request.all_token_ids)) // size
        if end <= first:
            return []
        prompt.saved = end
        blocks = [BlockId(block) for block in blocks_of(request.request_id)[first:end]]
        return [Store(prompt.names(end)[first:], blocks, first * size, prompt.salt)]


def _with(load: Load, before: int, tokens: int) -> Load:
    """The load with one more sequence, which computes `tokens` after the `before` it has."""
    if tokens == 1:
        return Load(load.steps, load.tokens, load.token_context, load.decodes + 1)
    context = tokens * (before + tokens / 2)
    return Load(load.steps, load.tokens + tokens, load.token_context + context, load.decodes)


def _why_not(request: Any) -> str:
    """Why a request's blocks have no names of ours: what makes them differ is more than tokens and a salt.

    An adapter's name says nothing of its weights, which another of that name may have tomorrow; the tiers outlive us.
    """
    if request.lora_request is not None:
        return "adapter"
    if request.mm_features:
        return "multimodal"
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        return "embeds"
    if getattr(request, "resumable", False):
        return "session"  # its tokens may change
    return ""
