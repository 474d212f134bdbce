"""The connector in vLLM's worker: brings blocks for requests that wait, saves blocks that are full.

A request is loaded when its Bring is over, however that ended; blocks that did not come, and all after the first of
them, are reported as load errors, and vLLM computes them. Each wait has a deadline, at which the Bring is cancelled:
the node's thread never waits for the keeper, so its Over comes at once, and nobody writes the blocks any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

from jevons.base.clock import Clock
from jevons.base.ids import BlockId
from jevons.engine.vllm.answers import Answers
from jevons.engine.vllm.layout import Pool
from jevons.engine.vllm.step import Fetch, Orders, Store, Told
from jevons.facts.block import Tier
from jevons.facts.move import Arrived, Ask, Bring, Cancel, Missed, MoveReport, Over, Save
from jevons.kv.layout import Layout

IDLE_S = 0.005  # a step that computes nothing waits so long for something to come, instead of spinning


class _Loading:
    """A Bring that is not over."""

    def __init__(self, fetch: Fetch, now_s: float) -> None:
        self.fetch = fetch
        self.began_s = now_s
        self.until_s = now_s + fetch.wait_s
        self.came: Counter[Tier] = Counter()
        self.left = set(range(len(fetch.names)))
        self.is_late = False


class Worker:
    """Called by vLLM's model runner, in its thread.

    Args:
        layout: of a block.
        pool: vLLM's blocks.
        ask: asks the node.
        answers: where the node's answers come.
        clock: the time.
    """

    def __init__(
        self,
        layout: Layout,
        pool: Pool,
        ask: Callable[[Ask], None],
        answers: Answers,
        clock: Clock,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._block_size, self._page_bytes = layout.block_size, layout.page_bytes
        self._pool = pool
        self._ask, self._answers, self._clock = ask, answers, clock
        self._ids = count(1)
        self._loading: dict[int, _Loading] = {}
        self._saving: dict[int, list[BlockId]] = {}  # slots
        self._loaded: set[str] = set()
        self._errors: set[int] = set()
        self._moves: list[MoveReport] = []
        self._late: list[Tier] = []
        self._began_s = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._began_s = self._clock.now_s()

    def load(self, orders: Orders) -> None:
        """Start what this step asks for; what is under way goes on."""
        for fetch in orders.fetches:
            id = next(self._ids)
            self._loading[id] = _Loading(fetch, self._clock.now_s())
            self._ask(Bring(id, fetch.names, fetch.blocks))
        for id, loading in self._loading.items():
            if loading.fetch.request in orders.cancels:
                self._ask(Cancel(id))

    def end(self, orders: Orders) -> Told:
        """The step is computed: save what became full in it."""
        seconds = self._clock.now_s() - self._began_s
        self._hear()  # slots may be free again
        for store in orders.stores:
            self._save(store)
        moves, self._moves = self._moves, []
        late, self._late = self._late, []
        return Told(orders.number, seconds, moves, late)

    def loaded(self, is_idle: bool) -> set[str]:
        """Requests whose loads ended since the last call; `take_errors` tells what of them did not come."""
        self._hear(IDLE_S if is_idle and self._loading else 0.0)
        self._expire()
        loaded, self._loaded = self._loaded, set()
        return loaded

    def take_errors(self) -> set[int]:
        """vLLM's blocks that did not come, of the requests `loaded` told of last."""
        errors, self._errors = self._errors, set()
        return errors

    # Inside

    def _save(self, store: Store) -> None:
        slots = self._pool.set_aside(store.blocks)
        taken = len(slots)
        self.counts["save_backlog"] += len(store.blocks) - taken
        if taken:
            id = next(self._ids)
            self._saving[id] = slots
            depths = [store.depth + i * self._block_size for i in range(taken)]
            self._ask(Save(id, store.names[:taken], slots, depths, store.salt))

    def _expire(self) -> None:
        now_s = self._clock.now_s()
        for id, loading in self._loading.items():
            if loading.until_s <= now_s and not loading.is_late:
                self.counts["load_timeout"] += 1
                loading.is_late = True
                self._ask(Cancel(id))

    def _hear(self, wait_s: float = 0.0) -> None:
        for at_s, answer in self._answers.take(wait_s):
            match answer:
                case Arrived(id, blocks):
                    self._arrived(self._loading[id], blocks)
                case Missed(_, blocks):
                    self.counts.update(reason for _, reason in blocks)
                case Over(id, refused):
                    self._over(id, refused, at_s)

    def _arrived(self, loading: _Loading, blocks: Sequence[tuple[int, Tier]]) -> None:
        loading.left.difference_update(index for index, _ in blocks)
        loading.came.update(tier for _, tier in blocks)

    def _over(self, id: int, refused: int, at_s: float) -> None:
        if id in self._saving:
            slots = self._saving.pop(id)
            self._pool.give_back(slots)
            self.counts["saved"] += len(slots) - refused
            self.counts["not_saved"] += refused
            return
        loading = self._loading.pop(id)
        fetch = loading.fetch
        good = min(loading.left, default=len(fetch.names))
        self._errors.update(fetch.blocks[good:])
        self._loaded.add(fetch.request)
        self.counts["loaded"] += good
        self.counts["load_errors"] += len(fetch.names) - good
        self._measure(loading, at_s)

    def _measure(self, loading: _Loading, at_s: float) -> None:
        """What came took so long; what faster tiers took of it is a small part."""
        if loading.is_late:
            self._late.append(max(loading.fetch.tiers, key=list(Tier).index))
        elif loading.came:
            slowest = max(loading.came, key=list(Tier).index)
            seconds = at_s - loading.began_s
            self._moves.append(MoveReport(slowest, loading.came[slowest] * self._page_bytes, seconds))
