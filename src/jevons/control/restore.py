"""Blocks that come back from the tiers and go out to them, for one engine's sequences. No I/O.

    waiting ──look──▶ found ──bring──▶ held, or computed from the front meanwhile ──arrived, missed, over──▶ computed
    computed blocks ──save──▶ over
    blocks of a step ──save ahead──▶ (step runs) ──computed──▶ over
                                          └──give up──▶ over, nothing saved

What it wants done is asked (`drain_asks`), what came of it is told (`on_answer`). While a Bring or a Save is under way
its places have a user in the pool, so nobody else writes them, whatever becomes of the sequence. Every ask has a
deadline; past it the sequence goes on without.

The tiers keep pages, which may cover several of the pool's blocks: everything here is counted in pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count

import msgspec

from jevons.base.ids import BlockHash, BlockId
from jevons.facts.block import Tier
from jevons.facts.move import (
    Answer,
    Arrived,
    Ask,
    Bring,
    Cancel,
    Computed,
    Found,
    Keep,
    Look,
    Missed,
    MoveReport,
    Over,
    Save,
)
from jevons.kv.pool import BlockPool
from jevons.perf.measured import GUESS_MOVES, GUESS_PRICES, Load, MoveSeconds, Prices
from jevons.policy.source import Compute, Plan, Supply, plan

LOOK_S = 0.25  # so long a prompt waits to hear which tiers hold its blocks
FRESH_S = 2.0  # so long it believes what it heard
LATE = 2.0  # answers are expected within so many times what they are predicted to take
SAVE_S = 5.0
SAVING_SHARE = 0.5  # of the pool's blocks may be on their way to the tiers
NEVER_S = float("inf")


class Pages(msgspec.Struct, frozen=True):
    """Consecutive pages of one sequence, to be saved."""

    names: list[BlockHash]
    places: list[BlockId]
    first: int  # its number in the sequence
    salt: str


class Coming:
    """Where the pages of one sequence stand, beyond those the pool had."""

    def __init__(self) -> None:
        self.look: int | None = None  # not answered yet
        self.start = 0  # `tiers` tells of pages from here on
        self.tiers: Sequence[Tier | None] | None = None
        self.told_s = 0.0  # when it asked; once it was told, when that was
        self.here: set[int] = set()  # pages in their places, not yet passed over
        self.under_way: _UnderWay | None = None


class _UnderWay:
    """A Bring that is not over."""

    def __init__(self, ask: Bring, plan: Plan, tiers: Mapping[int, Tier], now_s: float) -> None:
        self.ask = ask
        self.plan = plan
        self.left = set(plan.blocks)
        self.tiers = tiers
        self.began_s = now_s
        self.wait_until_s = now_s + plan.wait_s
        self.is_cancelled = False


class Restore:
    """One engine's traffic with the tiers.

    Args:
        pool: the engine's.
        page_bytes: of one page.
        page_blocks: of the pool, in a page.
        step_tokens: tokens the engine computes in one step at most.
    """

    def __init__(self, pool: BlockPool, *, page_bytes: int, step_tokens: int, page_blocks: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.page_blocks = page_blocks
        self.page_tokens = pool.block_size * page_blocks
        self._pool = pool
        self._page_bytes = page_bytes
        self._step_tokens = step_tokens
        self._ids = count(1)
        self._asks: list[Ask] = []
        self._reports: list[MoveReport] = []
        self._looks: dict[int, Coming] = {}
        self._brings: dict[int, Coming] = {}
        self._saves: dict[int, tuple[Save, float]] = {}  # with its deadline
        self._saving = 0  # places
        self._queued_bytes: Mapping[Tier, int] = {}
        self._look_s = 0.001  # what looks take, as measured lately
        self._learned = {tier: MoveSeconds(prior) for tier, prior in GUESS_MOVES.items()}

    @property
    def in_use(self) -> int:
        """Asks that are not over."""
        return len(self._looks) + len(self._brings) + len(self._saves)

    # Prompts

    def knows(self, coming: Coming, names: Sequence[BlockHash], depth: int, now_s: float) -> bool:
        """Whether it is known which tiers hold the pages of a prompt from `depth` on; asks, if it is not."""
        if depth >= len(names):
            return True
        if coming.look is not None:
            if now_s - coming.told_s <= LOOK_S:
                return False
            self.counts["look_timeout"] += 1
            del self._looks[coming.look]
            self._tell(coming, (), now_s)
        if coming.tiers is not None and coming.start <= depth and now_s - coming.told_s <= FRESH_S:
            return True
        coming.look, coming.start, coming.told_s = next(self._ids), depth, now_s
        self._looks[coming.look] = coming
        self._asks.append(Look(coming.look, list(names[depth:])))
        return False

    def has_any(self, coming: Coming, depth: int) -> bool:
        """Whether some tier holds a page from `depth` on."""
        return any((coming.tiers or ())[depth - coming.start :])

    def begin(
        self,
        coming: Coming,
        names: Sequence[BlockHash],
        table: Sequence[BlockId],
        depth: int,
        prices: Prices,
        now_s: float,
    ) -> int:
        """A sequence starts with `depth` pages of its `names` in the pool: bring what is worth bringing.

        Args:
            table: the sequence's places, from its first block to as many as may be brought.

        Returns:
            Pages that are to come.
        """
        tiers = (coming.tiers or ())[depth - coming.start :][: len(names) - depth]
        supply = Supply({tier: learned.prices for tier, learned in self._learned.items()}, self._queued_bytes)
        is_measured = prices is not GUESS_PRICES
        compute = Compute(prices, self._step_tokens, self.page_tokens, self._page_bytes, is_measured)
        chosen = plan(tiers, depth, supply, compute)
        if chosen.blocks:
            size = self.page_blocks
            places = [place for page in chosen.blocks for place in table[page * size : (page + 1) * size]]
            ask = Bring(next(self._ids), [names[page] for page in chosen.blocks], places)
            held = {depth + i: tier for i, tier in enumerate(tiers) if tier is not None}
            self._pool.take(places)
            coming.under_way = _UnderWay(ask, chosen, held, now_s)
            self._brings[ask.id] = coming
            self._asks.append(ask)
        return len(chosen.blocks)

    def is_held(self, coming: Coming, page: int, now_s: float) -> bool:
        """Whether the sequence, whose next page to compute is `page`, must not be computed now."""
        moving = coming.under_way
        if moving is None:
            return False
        if moving.is_cancelled or not moving.left:
            return moving.is_cancelled or page in moving.plan.blocks  # until nobody writes its places any more
        if moving.plan.wait_s:
            if now_s < moving.wait_until_s:
                return True
            self.counts["too_slow"] += len(moving.left)
        elif page not in moving.left:
            return False
        self._cancel(moving, now_s)
        return True

    def limit(self, coming: Coming, page: int) -> int | None:
        """The first page after `page` that need not be computed, as far as is known."""
        ahead = [p for p in coming.here if p > page]
        if coming.under_way is not None:
            ahead += [p for p in coming.under_way.left if p > page]
        return min(ahead, default=None)

    def leave(self, coming: Coming, now_s: float) -> None:
        """The sequence gives its places back: nothing that is under way is for it any more."""
        if coming.look is not None:
            del self._looks[coming.look]
        if coming.under_way is not None and not coming.under_way.is_cancelled:
            self._cancel(coming.under_way, now_s)

    @property
    def wake_s(self) -> float | None:
        """When a wait will be over, the earliest."""
        waits = [coming.told_s + LOOK_S for coming in self._looks.values()]
        for coming in self._brings.values():
            moving = coming.under_way
            if moving is not None and moving.plan.wait_s and not moving.is_cancelled:
                waits.append(moving.wait_until_s)
        return min(waits, default=None)

    @property
    def due_s(self) -> float | None:
        """When something that a sequence waits for should be here, the earliest."""
        times = [coming.told_s + LATE * self._look_s for coming in self._looks.values()]
        for coming in self._brings.values():
            moving = coming.under_way
            if moving is not None and moving.plan.wait_s and not moving.is_cancelled:
                times.append(moving.began_s + LATE * moving.plan.seconds)
        return min(times, default=None)

    # Blocks that were computed

    def save(self, pages: Pages, prices: Prices, now_s: float) -> int | None:
        """These have become full. Returns the ask, until it is over."""
        if not self._can_save(pages):
            self.counts["save_backlog"] += len(pages.names)
            return None
        return self._save(self._save_of(pages, prices), now_s + SAVE_S)

    def save_ahead(self, pages: Pages, prices: Prices) -> int | None:
        """These will be full when the next step is done: they are copied while it runs.

        `computed` or `give_up` must follow for the ask returned. Without one `save` may be tried after the step.
        """
        if not self._can_save(pages):
            return None
        return self._save(msgspec.structs.replace(self._save_of(pages, prices), is_ahead=True), NEVER_S)

    def computed(self, id: int, now_s: float) -> None:
        """The step that this was ahead of is booked."""
        if id in self._saves:
            self._saves[id] = (self._saves[id][0], now_s + SAVE_S)
            self._asks.append(Computed(id))

    def give_up(self, id: int) -> None:
        """The step that this was ahead of is not booked."""
        if id in self._saves:
            self._asks.append(Cancel(id))

    def is_saving(self, id: int) -> bool:
        return id in self._saves

    def keep(self, names: list[BlockHash], seconds: float) -> None:
        """Who used these blocks will be back."""
        if names:
            self._asks.append(Keep(names, seconds))

    def expire(self, now_s: float) -> None:
        """Give up saves that take too long: their places are needed."""
        for id, (ask, until_s) in list(self._saves.items()):
            if until_s <= now_s:
                self.counts["save_timeout"] += len(ask.names)
                self._saves[id] = (ask, NEVER_S)
                self._asks.append(Cancel(id))

    # Answers

    def on_answer(self, answer: Answer, at_s: float) -> None:
        match answer:
            case Found(id, tiers, queued_bytes):
                coming = self._looks.pop(id, None)
                if coming is not None:
                    self._queued_bytes = queued_bytes
                    self._look_s += 0.2 * (at_s - coming.told_s - self._look_s)
                    self._tell(coming, tiers, at_s)
            case Arrived(id, blocks):
                self._arrived(self._brings[id], [index for index, _ in blocks], at_s)
            case Missed(id, lost):
                self._missed(self._brings[id], lost)
            case Over(id, refused):
                self._over(id, refused)

    def drain_asks(self) -> list[Ask]:
        asks, self._asks = self._asks, []
        return asks

    def drain_reports(self) -> list[MoveReport]:
        """What moves have taken since the last call."""
        reports, self._reports = self._reports, []
        return reports

    # Inside

    def _can_save(self, pages: Pages) -> bool:
        return self._saving + len(pages.places) <= SAVING_SHARE * self._pool.blocks

    def _save_of(self, pages: Pages, prices: Prices) -> Save:
        depths = [(pages.first + i) * self.page_tokens for i in range(len(pages.names))]
        # As if it began its prompt: that attention makes deep blocks dearer would make chains lose their heads first.
        worth_s = prices.seconds(Load(self.page_tokens / self._step_tokens, self.page_tokens))
        return Save(next(self._ids), pages.names, pages.places, depths, pages.salt, worth_s)

    def _save(self, ask: Save, until_s: float) -> int:
        self._pool.take(ask.places)
        self._saving += len(ask.places)
        self._saves[ask.id] = (ask, until_s)
        self._asks.append(ask)
        return ask.id

    def _tell(self, coming: Coming, tiers: Sequence[Tier | None], now_s: float) -> None:
        coming.look, coming.tiers, coming.told_s = None, tiers, now_s

    def _arrived(self, coming: Coming, indices: Sequence[int], now_s: float) -> None:
        moving = coming.under_way
        if moving is None:
            return
        blocks = [moving.plan.blocks[index] for index in indices]
        moving.left.difference_update(blocks)
        coming.here.update(blocks)
        if not moving.left:
            self._measure(moving, now_s)

    def _missed(self, coming: Coming, lost: Sequence[tuple[int, str]]) -> None:
        moving = coming.under_way
        self.counts.update(reason for _, reason in lost)
        if moving is not None:
            moving.left.difference_update(moving.plan.blocks[index] for index, _ in lost)

    def _over(self, id: int, refused: int) -> None:
        coming = self._brings.pop(id, None)
        if coming is not None:
            assert coming.under_way is not None, "a sequence has one Bring at a time"
            self._pool.release(coming.under_way.ask.places)
            coming.under_way = None
            return
        ask, _ = self._saves.pop(id)
        self.counts["saved"] += len(ask.names) - refused
        self._saving -= len(ask.places)
        self._pool.release(ask.places)

    def _cancel(self, moving: _UnderWay, now_s: float) -> None:
        self._measure(moving, now_s)
        moving.is_cancelled = True
        self._asks.append(Cancel(moving.ask.id))

    def _measure(self, moving: _UnderWay, now_s: float) -> None:
        """Learn from what came. What faster tiers took of it is as predicted.

        What did not come in time would have taken longer: as if it came at the rate of the rest, or of half a page.
        Without that a silent tier would be believed to deliver just in time, and be waited for again and again.
        """
        asked = Counter(moving.tiers[page] for page in moving.plan.blocks)
        came = Counter(moving.tiers[page] for page in moving.plan.blocks if page not in moving.left)
        slowest = max(asked, key=list(Tier).index)
        seconds = now_s - moving.began_s
        for tier, pages in came.items():
            if tier is not slowest:
                seconds -= self._learned[tier].prices.seconds(pages * self._page_bytes)
        if seconds > 0:
            pages = asked[slowest]
            seconds *= pages / (came[slowest] or 0.5)
            self._learned[slowest].measured(pages * self._page_bytes, seconds)
            self._reports.append(MoveReport(slowest, pages * self._page_bytes, seconds))
