"""Continuous batching: which tokens of which sequences the next step computes.

    add ──▶ waiting ──admit──▶ running: prompt in chunks, then one token a step ──▶ finished
               ▲                  │
               └──── preempt ─────┘   (no block left: the last gives its blocks back and starts again)

Every step has a budget of tokens. Running sequences come first, one token each; what is left goes to prompts, by
priority, then first come first served, cut into chunks. A prompt whose next block is just being computed for another
sequence waits for it instead of computing it twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from jevons.base.errors import CapacityError
from jevons.base.ids import BlockHash, BlockId, RequestId
from jevons.control.progress import Progress
from jevons.control.restore import Coming, Restore
from jevons.facts.move import Answer
from jevons.facts.request import Sampling, Step, TokenLogprob, Work
from jevons.kv.hashing import chain
from jevons.kv.pool import BlockPool, FullBlocks
from jevons.perf.measured import GUESS_PRICES, Prices
from jevons.policy.source import WAIT_SHARE

# So long a handover waits for its blocks to be saved: a millisecond as a rule. Then the other worker computes them.
HANDOVER_S = 0.5


class Chunk(msgspec.Struct, frozen=True):
    """Tokens of one sequence to compute in this step, and whether the token after them is wanted."""

    id: RequestId
    tokens: Sequence[int]  # at least one
    start: int  # position of tokens[0]; all before are in the pages
    table: Sequence[BlockId]  # blocks of positions 0 to start + len(tokens) - 1
    sampling: Sampling | None  # None in mid-prompt
    draw: int  # number of the output token drawn


class Drawn(msgspec.Struct, frozen=True):
    """A token an engine drew."""

    token: int
    logprob: TokenLogprob | None = None


class Batcher:
    """The waiting and running sequences of one engine, and its block pool."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        step_tokens: int,
        max_running: int,
        context_tokens: int,
        restore: Restore | None = None,
    ) -> None:
        self.pool = pool
        self.restore = restore
        self.prices: Prices = GUESS_PRICES  # of this engine's steps; who measures them sets it
        self.context_tokens = min(context_tokens, pool.blocks * pool.block_size)
        self._step_tokens = step_tokens
        self._max_running = max_running
        self._waiting: deque[Progress] = deque()
        self._running: list[Progress] = []
        self._leaving: list[tuple[Progress, float]] = []  # to be handed over, once saved or at that time
        self._coming: Counter[BlockHash] = Counter()  # blocks that running prompts will fill
        self.preemptions = 0
        self._now_s = 0.0  # of the call under way

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, work: Work) -> None:
        """Queue a sequence.

        Raises:
            CapacityError: with its output it could never fit.
        """
        need = len(work.prompt) + work.max_tokens
        if need > self.context_tokens:
            raise CapacityError(
                f"{len(work.prompt)} prompt tokens + {work.max_tokens} output tokens = {need}: "
                f"this worker holds at most {self.context_tokens} for one sequence"
            )
        self._queue(Progress(work, self.pool.block_size))

    def cancel(self, id: RequestId) -> bool:
        """Drop a sequence wherever it is. Returns whether it was there."""
        for seq in self._running:
            if seq.work.id == id:
                self._running.remove(seq)
                self._release(seq)
                return True
        for seq in self._waiting:
            if seq.work.id == id:
                self._waiting.remove(seq)
                self._leave(seq)
                return True
        return False

    def schedule(self, now_s: float) -> list[Chunk]:
        """The next step's work; empty if there is none now. `complete` must follow, or `give_up`."""
        self._now_s = now_s
        if self.restore is not None:
            self.restore.expire(now_s)
        budget = self._step_tokens
        chunks: list[Chunk] = []
        preemptions = self.preemptions
        for seq in list(self._running):  # decoding sequences first: each is one token, and somebody reads along
            if seq.left == 1 and seq in self._running:
                budget -= self._take(seq, 1, chunks)
        for seq in sorted(self._running, key=_priority):
            if seq.left > 1 and seq in self._running:
                budget = self._begin(budget, chunks, preemptions, seq.work.priority)
            if budget > 0 and seq.left > 1 and seq in self._running:
                budget -= self._take(seq, budget, chunks)
        self._begin(budget, chunks, preemptions)
        kept = {seq.work.id for seq in self._running}
        return [c for c in chunks if c.id in kept]  # a later sequence may have preempted an earlier one's turn

    def hold_s(self, chunks: Sequence[Chunk], step_s: float, now_s: float) -> float:
        """So long it pays to hold back this step for answers that are due: who waits for them joins it, not the next.

        Holding costs each of the step's sequences as much; going without costs who waits the step's predicted `step_s`.
        Where answers are expected too late for that they still get a tenth of it: copying beside a step takes many
        times as long as before it, and would be believed to be slow for ever.
        """
        due_s = self.restore.due_s if self.restore is not None else None
        if due_s is None or due_s <= now_s:
            return 0.0
        hold_s = due_s - now_s
        return hold_s if hold_s * len(chunks) < step_s else WAIT_SHARE * step_s / len(chunks)

    def save_ahead(self, chunks: Sequence[Chunk]) -> bool:
        """This step is about to run: offer the pages it will fill, to be copied meanwhile. Returns whether any are.

        `complete` or `give_up` must follow. Only of prompts: a page of what is generated takes many steps to fill.
        """
        if self.restore is not None:
            by_id = {seq.work.id: seq for seq in self._running}
            for chunk in chunks:
                if len(chunk.tokens) > 1:
                    by_id[chunk.id].offer_ahead(self.restore, chunk.start + len(chunk.tokens), self.prices)
        return any(seq.is_ahead for seq in self._running)

    def give_up(self) -> None:
        """The step was not finished: what it computed is not booked, and nothing of it is saved."""
        if self.restore is not None:
            for seq in self._running:
                seq.give_up_ahead(self.restore)

    def complete(self, chunks: Sequence[Chunk], drawn: Sequence[Drawn | None], now_s: float) -> list[Step]:
        """Book what a step computed. Sequences cancelled meanwhile are passed over."""
        self._now_s = now_s
        by_id = {seq.work.id: seq for seq in self._running}
        steps = []
        for chunk, token in zip(chunks, drawn, strict=True):
            seq = by_id.get(chunk.id)
            if seq is None:
                continue
            seq.computed = chunk.start + len(chunk.tokens)
            if self.restore is not None:
                seq.book_ahead(self.restore, now_s)
            self._seal(seq)
            self._pass_over(seq)
            if token is not None:
                steps.append(self._advance(seq, token))
        return steps

    def on_answer(self, answer: Answer, at_s: float) -> None:
        """The tiers answered, at this time."""
        assert self.restore is not None, "only who asks is answered"
        self.restore.on_answer(answer, at_s)
        for seq in self._running:
            self._pass_over(seq)

    @property
    def leaving(self) -> int:
        """Sequences to be handed over."""
        return len(self._leaving)

    def handed_over(self, now_s: float) -> list[Step]:
        """Sequences whose blocks have reached the tiers, or had the time to: others may go on with them."""
        ready = [seq for seq, until_s in self._leaving if until_s <= now_s or not self._is_saving(seq)]
        if ready:
            self._leaving = [(seq, until_s) for seq, until_s in self._leaving if seq not in ready]
        return [Step(id=seq.work.id, finish="handover") for seq in ready]

    @property
    def wake_s(self) -> float | None:
        """When something will be due that no answer brings, the earliest."""
        waits = [until_s for _, until_s in self._leaving]
        if self.restore is not None and self.restore.wake_s is not None:
            waits.append(self.restore.wake_s)
        return min(waits, default=None)

    # Inside

    def _queue(self, seq: Progress) -> None:
        """Behind all that go before it or came before it."""
        self._waiting.insert(bisect_right(self._waiting, seq.work.priority, key=_priority), seq)

    def _is_saving(self, seq: Progress) -> bool:
        return self.restore is not None and any(self.restore.is_saving(id) for id in seq.saves)

    def _begin(self, budget: int, chunks: list[Chunk], preemptions: int, before: int | None = None) -> int:
        """Start those that wait, or those of a priority before this. Returns what is left of the budget.

        Args:
            preemptions: when this step began: who just gave way must not come back in it.
        """
        while budget > 0 and len(self._running) < self._max_running and self.preemptions == preemptions:
            taken = self._admit(before)
            if taken is None:
                break
            budget -= self._take(taken, budget, chunks)
        return budget

    def _take(self, seq: Progress, budget: int, chunks: list[Chunk]) -> int:
        """Give `seq` up to `budget` tokens of this step. Returns how many."""
        count = min(seq.left, budget)
        if self.restore is not None:
            page = seq.computed // self.restore.page_tokens
            if self.restore.is_held(seq.coming, page, self._now_s):
                return 0
            limit = self.restore.limit(seq.coming, page)
            if limit is not None:
                count = min(count, limit * self.restore.page_tokens - seq.computed)
        if not self._grow(seq, seq.computed + count):
            return 0
        end = seq.computed + count
        wants = end == len(seq.tokens)
        chunks.append(
            Chunk(
                id=seq.work.id,
                tokens=seq.tokens[seq.computed : end],
                start=seq.computed,
                table=seq.table,
                sampling=seq.work.sampling if wants else None,
                draw=seq.outputs,
            )
        )
        return count

    def _grow(self, seq: Progress, tokens: int) -> bool:
        """Have blocks for `tokens` tokens, taking them from who may go last if need be. False if `seq` gave way."""
        need = -(-tokens // self.pool.block_size) - len(seq.table)
        while need > 0 and not self.pool.can_allocate(need):
            last = max(reversed(self._running), key=_priority)  # the youngest of those that may go last
            self._preempt(last)
            if last is seq:
                return False
        if need > 0:
            seq.table.extend(self.pool.allocate(need))
        return True

    def _admit(self, before: int | None) -> Progress | None:
        """Start the first waiting sequence that fits and need not wait for a block in the making."""
        for seq in self._waiting:
            if before is not None and seq.work.priority >= before:
                return None
            reusable = seq.names[: (len(seq.tokens) - 1) // self.pool.block_size]
            found = self.pool.match(reusable)
            if len(found) < len(reusable) and self._coming[reusable[len(found)]]:
                continue
            need = -(-len(seq.tokens) // self.pool.block_size) - len(found)
            if not self.pool.can_allocate(need, found):
                return None  # in order: a later, smaller one must not starve it
            if not self._knows_tiers(seq, len(found)):
                continue
            self._waiting.remove(seq)
            self._start(seq, found)
            return seq
        return None

    def _knows_tiers(self, seq: Progress, found: int) -> bool:
        if self.restore is None:
            return True
        depth = -(-found // self.restore.page_blocks)
        return self.restore.knows(seq.coming, seq.wanted(self.restore), depth, self._now_s)

    def _start(self, seq: Progress, found: list[BlockId]) -> None:
        self.pool.take(found)
        seq.table = list(found)
        seq.sealed = len(found)
        seq.computed = len(found) * self.pool.block_size
        if seq.cached_tokens is None:
            seq.cached_tokens = min(seq.computed, len(seq.work.prompt))
        self._coming.update(seq.names[seq.sealed :])
        self._running.append(seq)
        if self.restore is not None:
            self._bring(seq, self.restore)

    def _bring(self, seq: Progress, restore: Restore) -> None:
        """Bring pages beyond those the pool has, if any tier holds them."""
        pages, depth = seq.wanted(restore), -(-len(seq.table) // restore.page_blocks)
        seq.offered = len(seq.table) // restore.page_blocks
        if restore.has_any(seq.coming, depth):
            seq.table += self.pool.allocate(len(pages) * restore.page_blocks - len(seq.table))
            restore.begin(seq.coming, pages, seq.table, depth, self.prices, self._now_s)

    def _pass_over(self, seq: Progress) -> None:
        """Blocks that came from the tiers are as good as computed, once all before them are."""
        if self.restore is None:
            return
        here, size = seq.coming.here, self.restore.page_tokens
        page, inside = divmod(seq.computed, size)
        if inside or page not in here:
            return
        while page in here:
            here.discard(page)
            page += 1
        passed = page * size - seq.computed
        seq.computed += passed
        if seq.outputs == len(seq.work.emitted) and seq.cached_tokens is not None:
            seq.cached_tokens = min(seq.cached_tokens + passed, len(seq.work.prompt))
        self._seal(seq, is_computed=False)

    def _seal(self, seq: Progress, *, is_computed: bool = True) -> None:
        """Name the blocks that are full now; those that were computed here go to the tiers too."""
        size = self.pool.block_size
        full = seq.computed // size
        if full <= seq.sealed:
            return
        if full > len(seq.names):
            start = len(seq.names)
            parent = seq.names[-1] if seq.names else seq.root
            seq.names += chain(seq.tokens[start * size : full * size], size, parent)
        fresh = seq.names[seq.sealed : full]
        self.pool.seal(
            seq.table[seq.sealed : full],
            FullBlocks(
                hashes=fresh,
                tokens=seq.tokens[seq.sealed * size : full * size],
                parent=seq.names[seq.sealed - 1] if seq.sealed else None,
                salt=seq.work.salt,
                adapter=seq.work.adapter,
            ),
        )
        self._arrived(fresh)
        seq.sealed = full
        if self.restore is not None:
            seq.offer(self.restore, self.prices, self._now_s, is_computed=is_computed)

    def _advance(self, seq: Progress, drawn: Drawn) -> Step:
        seq.tokens.append(drawn.token)
        seq.outputs += 1
        finish = None
        if drawn.token in seq.work.stop_ids:
            finish = "stop"
        elif seq.outputs >= seq.work.max_tokens:
            finish = "length"
        first = seq.outputs == len(seq.work.emitted) + 1
        if finish is None and seq.work.hand_over:
            self._running.remove(seq)
            self._release(seq)
            self._leaving.append((seq, self._now_s + HANDOVER_S))
        if finish is not None:
            self._running.remove(seq)
            if self.restore is not None and seq.work.keep_s:
                self.restore.keep(seq.page_names(self.restore)[: seq.offered], seq.work.keep_s)
            self._release(seq)
        return Step(
            id=seq.work.id,
            tokens=[drawn.token],
            logprobs=[drawn.logprob] if drawn.logprob is not None else [],
            finish=finish,
            cached_tokens=seq.cached_tokens if first else None,
        )

    def _preempt(self, seq: Progress) -> None:
        self.preemptions += 1
        self._running.remove(seq)
        self._release(seq)
        seq.computed, seq.sealed, seq.offered, seq.table, seq.coming = 0, 0, 0, [], Coming()
        self._waiting.insert(bisect_left(self._waiting, seq.work.priority, key=_priority), seq)

    def _release(self, seq: Progress) -> None:
        self._arrived(seq.names[seq.sealed :])
        self._leave(seq)
        self.pool.release(seq.table)

    def _leave(self, seq: Progress) -> None:
        if self.restore is not None:
            seq.give_up_ahead(self.restore)
            self.restore.leave(seq.coming, self._now_s)

    def _arrived(self, names: Sequence[BlockHash]) -> None:
        for name in names:
            left = self._coming[name] - 1
            if left > 0:
                self._coming[name] = left
            else:
                del self._coming[name]


def _priority(seq: Progress) -> int:
    return seq.work.priority
