"""What the router keeps: of each prompt, of each worker, of each node's tiers. What waits is in `control.book`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
import numpy as np

from jevons.base.compiled import Ints
from jevons.base.ids import BlockHash
from jevons.control.affinity import Adapters
from jevons.control.beside import reached
from jevons.control.book import Book
from jevons.control.intake import Intake
from jevons.control.orphans import Prompted
from jevons.control.shadow import SHADOW_BLOCK_SIZE, Shadow
from jevons.facts.block import Tier
from jevons.facts.move import MoveReport
from jevons.facts.snapshot import TierSnapshot, WorkerSnapshot
from jevons.facts.worker import Health, IndexMode, Role, WorkerFacts
from jevons.kv.blake2b import name_prompt
from jevons.kv.hashing import HASH_BYTES
from jevons.kv.tiers import Holdings
from jevons.perf.kin import WorkerSeconds
from jevons.perf.measured import GUESS_MOVES, Load, MoveSeconds
from jevons.policy.belief import confidence
from jevons.policy.route import ANEW, BLOCKS, Placement, prompt_load

HERE = ""  # the node the router runs on
# Before its first step is measured, an engine may be loading or compiling: GUESS, vLLM's first prompts take as long.
GUESS_FIRST_S = 30.0
NO_NAMES: Ints = np.zeros(0, np.int64)


class Named:
    """A prompt in blocks of one size."""

    def __init__(self, tokens: Sequence[int], size: int, salt: str, adapter: str) -> None:
        self.size = size
        self.prompted = Prompted(*name_prompt(tokens, size, salt, adapter))
        self.names: Ints = self.prompted.names[1::2].copy()  # what the kernels know blocks by
        self.reusable = (len(tokens) - 1) // size  # of them: the last token is always computed

    @property
    def hashes(self) -> list[BlockHash]:
        """The names whole."""
        raw = self.prompted.names.tobytes()
        return [BlockHash(raw[i : i + HASH_BYTES]) for i in range(0, len(raw), HASH_BYTES)]


class Prompt:
    """A prompt, cut into blocks of every size that is asked for, once.

    Args:
        salt: what keeps its tenant's cache apart.
        adapter: whose blocks are unlike those of the model without it; "" for none.
    """

    def __init__(self, tokens: Sequence[int], salt: str, adapter: str = "") -> None:
        self.tokens = tokens
        self.adapter = adapter
        self._salt = salt
        self._named: dict[int, Named] = {}

    def named(self, size: int) -> Named:
        if size not in self._named:
            self._named[size] = Named(self.tokens, size, self._salt, self.adapter)
        return self._named[size]

    def names(self, size: int) -> Ints:
        """Of its blocks that can be reused; none if their size is not known (0)."""
        if not size:
            return NO_NAMES
        named = self.named(size)
        return named.names[: named.reusable]


class Member:
    """What the router keeps of one worker, from when it joins until it joins again or leaves."""

    def __init__(
        self, facts: WorkerFacts, learned: WorkerSeconds, tiers: NodeTiers, book: Book, shadow_ttl_s: float
    ) -> None:
        self.facts = facts
        self.node = tiers.name
        self.moves = tiers.moves
        self._brought = tiers.brought
        self._book = book
        self.number, self.holding = book.add_worker(self._renumbered)
        self.intake: Intake | None = None
        if facts.sends_events:
            on_beside = partial(book.beside.add, self.number)
            self.intake = Intake(self.holding, self._set_kind, book.scratch, on_beside, book.prompts)
        self.shadow = None if facts.sends_events else Shadow(self.holding, shadow_ttl_s)
        self.learned = learned
        self.reports_steps = False
        self.life = -1  # another one whenever all it held is lost
        self.tier_counts: dict[str, int] = {}
        self.waiting: dict[int, Counted] = {}  # requests whose prompt is not computed, by their number, oldest first
        self.adapters = Adapters(facts.adapters)
        self.signs = 0  # of work: steps, first tokens, answers
        self.is_stalled = False
        self.is_draining = False  # it is to be stopped
        self.is_leaving = False  # who starts and stops it has done so already, as far as can be seen
        self._seen = (-1, 0)  # signs at the last look, and when there were new ones
        self._quiet_s = 0.0
        self.promised = 0  # requests that run elsewhere until their first token, then here
        book.set_worker(self.number, {"step_tokens": facts.step_tokens, "whole": 1, "node": book.node(tiers.name)})
        self._set_kind()
        self.tell_prices()

    @property
    def block_size(self) -> int | None:
        if self.shadow is not None:
            return SHADOW_BLOCK_SIZE
        assert self.intake is not None
        return self.intake.block_size or self.facts.block_size

    @property
    def index_mode(self) -> IndexMode:
        return IndexMode.APPROXIMATE if self.intake is None else self.intake.mode

    @property
    def windows(self) -> dict[int, int]:
        """See `control.beside`."""
        return {} if self.intake is None else self.intake.beside.windows

    @property
    def in_dram(self) -> int:
        """Blocks that its engine keeps in its host's memory."""
        return 0 if self.intake is None else self.intake.beside.in_dram

    @property
    def chunk_blocks(self) -> int:
        """Blocks that are kept there as one, see `control.beside`; 0: not known."""
        return 0 if self.intake is None else self.intake.beside.chunk_blocks

    @property
    def held_blocks(self) -> int:
        """On its device, of the group of layers that is followed."""
        beside = 0 if self.intake is None else self.intake.beside.in_dram + self.intake.beside.in_groups
        return len(self.holding) - beside

    def reach(self, names: Ints, depth: int) -> tuple[int, int]:
        """How many leading blocks of a prompt it goes on from; how many after those it loads from its host's memory.

        Args:
            depth: leading blocks that the followed group has in hbm.
        """
        if self.windows and depth:
            depth = reached(self.holding, self.windows, names[:depth])
        if depth == len(names) or self.intake is None or not self.in_dram:
            return depth, 0
        return depth, self.intake.beside.loadable(names, depth)

    @property
    def has_holes(self) -> bool:
        """Whether some of its events are lost."""
        return self.index_mode is IndexMode.DEGRADED

    @property
    def desk(self) -> int:
        """See `control.board`."""
        return int(self.facts.role is Role.PREFILL)

    def tell_prices(self) -> None:
        """What is known of its seconds goes into the book."""
        self._book.set_prices(self.number, self.learned.prices)
        pages = self.facts.pages
        if pages is None:
            self._book.set_worker(self.number, {"takes": ANEW})
            return
        near, far = self.moves[Tier.DRAM].prices, self.moves[Tier.PEER].prices
        token_bytes = pages.size_bytes / pages.block_size
        self._book.set_worker(
            self.number,
            {
                "takes": BLOCKS,
                "near_s": near.per_move_s,
                "near_token_s": near.per_byte_s * token_bytes,
                "far_s": far.per_move_s,
                "far_token_s": far.per_byte_s * token_bytes,
            },
        )

    def brings(self, report: MoveReport) -> None:
        """It brought blocks."""
        pages = self.facts.pages
        if pages is not None:
            tokens = report.size_bytes / pages.size_bytes * pages.block_size
            self._brought[report.tier] = self._brought.get(report.tier, 0.0) + tokens

    def has_stalled(self, now_s: float, least_s: float) -> bool:
        """Whether what waits here is overdue and no work was seen here for as long, `least_s` at least.

        A step, a first token, an answer and a KV event are work; to answer a probe is not.
        """
        oldest = next(iter(self.waiting.values()), None)
        signs = self.signs, 0 if self.intake is None else self.intake.position
        if oldest is None or signs != self._seen:
            self._seen, self._quiet_s = signs, now_s
            return False
        patience_s = max(least_s if self.learned.samples else GUESS_FIRST_S, oldest.patience_s)
        return now_s - max(self._quiet_s, oldest.placed_s) > patience_s

    def forget_blocks(self) -> None:
        """It holds nothing any more."""
        if self.intake is not None:
            self.intake.reset()
        if self.shadow is not None:
            self.shadow.reset()

    def end(self) -> None:
        if self.intake is not None:
            self.intake.end()
        self._book.drop_worker(self.number, self.holding)

    def snapshot(self, health: Health) -> WorkerSnapshot:
        """The state now."""
        prices, w = self.learned.prices, self._book.hub["workers"][self.number]
        return WorkerSnapshot(
            id=self.facts.id,
            model=self.facts.model,
            kind=self.facts.kind,
            rank=self.facts.rank,
            role=self.facts.role,
            pid=self.facts.pid,
            health=health,
            is_stalled=self.is_stalled,
            is_draining=self.is_draining or self.is_leaving,
            index=self.index_mode,
            block_size=self.block_size,
            held_blocks=self.held_blocks,
            dram_blocks=self.in_dram,
            queued_tokens=round(float(w["queued_tokens"])),
            decoding=int(w["decoding"]) - self.promised,
            requests=int(w["requests"]) - self.promised,
            prefill_tokens_per_s=prices.prefill_rate,
            step_s=prices.per_step_s,
            measurements=self.learned.samples,
            adapters=self.adapters.loaded,
            index_confidence=float(confidence(w)),
            tier_counts=self.tier_counts,
            event_counts=dict(self.intake.counts) if self.intake is not None else {},
        )

    def _set_kind(self) -> None:
        self._book.set_kind(self.number, self.facts.model, bool(self.desk), self.block_size or 0)

    def _renumbered(self) -> None:
        self._book.set_worker(self.number, {"holder": self.holding.holder})
        for counted in self.waiting.values():
            self._book.promise_again(self.number, counted.names)


class Counted(msgspec.Struct, kw_only=True):
    """A request that counts against its worker, until it is done."""

    member: Member
    decode: Member | None
    slot: int  # its number in the book
    prompt_tokens: int
    names: Ints  # of the blocks its worker was to compute
    shadowed: Ints  # of all its full blocks; where it is remembered what was placed on its worker
    prompted: Prompted | None = None  # where its events are known to have holes
    promised: float  # usual streams that it counts for besides while it runs
    placed_s: float
    patience_s: float  # so long its worker may show no sign of work
    is_running: bool = False  # its prompt is computed


class Placed(Counted, kw_only=True):
    """A request placed here."""

    placement: Placement
    claimed_tokens: int  # of them its worker holds, or will, by the index
    loaded_tokens: int = 0  # … in its host's memory
    named: Named | None = None  # its prompt in its worker's blocks, where these are of the model without an adapter
    session: str
    ahead: Load  # queued before it, and its own part
    decoding: int  # sequences decoding when it was placed
    device_s: float  # predicted, that are its own
    token_s: float  # of devices, for each token of its answer
    first_s: float | None = None
    cached_tokens: int | None = None
    cached_share: float | None = None  # of the prompt, where the engine counts its tokens otherwise than we do

    @property
    def found_tokens(self) -> int:
        """What the engine had, in tokens as we count them."""
        assert self.cached_tokens is not None, "asked once it is reported"
        found = self.cached_tokens if self.cached_share is None else round(self.cached_share * self.prompt_tokens)
        return max(0, min(found, self.prompt_tokens))

    @property
    def saved_s(self) -> float:
        """Seconds of its worker's chips that computing what was cached would have taken."""
        if not self.cached_tokens:
            return 0.0
        tokens, prices = self.prompt_tokens, self.member.learned.prices
        saved_s = prices.seconds(prompt_load(tokens, 0)) - prices.seconds(prompt_load(tokens, self.found_tokens))
        return saved_s * self.member.facts.chips

    def taken_s(self, output_tokens: int) -> float:
        """Seconds of devices that it took: its prompt, if it was computed, and its share of steps."""
        cached = self.placement.cached_tokens if self.cached_tokens is None else self.found_tokens
        own = prompt_load(self.prompt_tokens, cached)
        prompt_s = self.member.learned.prices.seconds(own) if self.is_running else 0.0
        return prompt_s + output_tokens * self.token_s

    def seen(self, first_s: float) -> tuple[Load, float]:
        """What was done until its first token, with the cached tokens as they really were, and how long it took."""
        tokens, context = self.ahead.tokens, self.ahead.token_context
        if self.cached_tokens is not None:
            own = prompt_load(self.prompt_tokens, self.placement.cached_tokens)
            real = prompt_load(self.prompt_tokens, self.found_tokens)
            tokens += real.tokens - own.tokens
            context += real.token_context - own.token_context
        steps = max(1.0, -(-tokens // self.member.facts.step_tokens))
        load = Load(steps=steps, tokens=tokens, token_context=context, decodes=steps * self.decoding)
        return load, first_s - self.placed_s


class NodeTiers:
    """What is known of a node's tiers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holdings = Holdings()
        # What bringing takes, of all workers there: who was slow once and gets no work would stay slow for ever.
        self.moves = {tier: MoveSeconds(prior) for tier, prior in GUESS_MOVES.items()}
        self.state: TierSnapshot | None = None  # as their keeper told last
        self.brought: dict[str, float] = {}  # tokens that workers brought, by tier

    def lost(self) -> None:
        """Their keeper is away."""
        self.holdings.clear()
        self.state = None
