"""Sequences and the tiers: what is brought is passed over, what is late is computed, and no place is ever shared."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.ids import BlockHash, BlockId, RequestId
from jevons.control.batch import Batcher, Chunk, Drawn
from jevons.control.restore import LOOK_S, SAVE_S, Restore
from jevons.facts.block import Tier
from jevons.facts.move import Arrived, Ask, Bring, Cancel, Computed, Found, Keep, Look, Missed, Over, Save
from jevons.facts.request import Sampling, Step, Work
from jevons.kv.hashing import block_hashes
from jevons.kv.pool import BlockPool
from jevons.perf.measured import MovePrices, MoveSeconds, Prices
from jevons.policy.source import WAIT_SHARE

SIZE = 4
FAST = Prices(per_step_s=1.0, per_token_s=1.0, per_token_context_s=0.0, per_decode_s=1.0)  # beside any tier: slow


def batcher(blocks: int = 16, step_tokens: int = 8, page_blocks: int = 1) -> Batcher:
    pool = BlockPool(blocks, SIZE)
    made = Batcher(
        pool,
        step_tokens=step_tokens,
        max_running=4,
        context_tokens=1_000,
        restore=Restore(pool, page_bytes=1_000, step_tokens=step_tokens, page_blocks=page_blocks),
    )
    made.prices = FAST
    return made


def work(name: str, prompt: list[int], max_tokens: int = 2, keep_s: float = 0.0) -> Work:
    return Work(
        id=RequestId(name), prompt=prompt, max_tokens=max_tokens, sampling=Sampling(), stop_ids=[], keep_s=keep_s
    )


def asked(b: Batcher) -> list[Ask]:
    assert b.restore is not None
    return b.restore.drain_asks()


def one(b: Batcher, kind: type[Ask]) -> Ask:
    found = [ask for ask in asked(b) if isinstance(ask, kind)]
    assert len(found) == 1
    return found[0]


def shapes(chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
    return [(c.start, len(c.tokens)) for c in chunks]


def complete(b: Batcher, chunks: Sequence[Chunk], now_s: float = 0.0) -> list[Step]:
    return b.complete(chunks, [Drawn(1) if c.sampling is not None else None for c in chunks], now_s)


def look(b: Batcher, tiers: list[Tier | None], now_s: float = 0.0) -> None:
    """Answer the look that the next `schedule` asks."""
    assert b.schedule(now_s) == []
    ask = one(b, Look)
    assert isinstance(ask, Look)
    b.on_answer(Found(ask.id, tiers, {}), now_s)


def bring(b: Batcher, now_s: float = 0.0) -> Bring:
    ask = one(b, Bring)
    assert isinstance(ask, Bring)
    return ask


def test_blocks_that_a_tier_holds_are_brought_and_only_the_rest_is_computed() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [Tier.DRAM] * 3)
    assert b.schedule(0.0) == []  # everything waits for the blocks

    ask = bring(b)
    assert ask.names == block_hashes(list(range(14)), SIZE)
    b.on_answer(Arrived(ask.id, [(0, Tier.DRAM), (1, Tier.DRAM), (2, Tier.DRAM)]), 0.001)
    b.on_answer(Over(ask.id), 0.001)
    chunks = b.schedule(0.002)

    assert shapes(chunks) == [(12, 2)]
    assert complete(b, chunks)[0].cached_tokens == 12


def test_what_has_not_come_after_a_tenth_of_its_computing_time_is_computed() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [Tier.DRAM] * 3)
    b.schedule(0.0)
    ask = bring(b)
    b.on_answer(Arrived(ask.id, [(0, Tier.DRAM)]), 0.01)
    saved_s = 12.0 + 2  # 12 tokens in 2 steps

    assert b.schedule(saved_s * 0.1 - 0.01) == []
    assert b.schedule(saved_s * 0.1 + 0.01) == []
    assert isinstance(one(b, Cancel), Cancel)  # nobody may write there while it is computed
    b.on_answer(Missed(ask.id, [(1, "cancelled"), (2, "cancelled")]), 1.5)
    b.on_answer(Over(ask.id), 1.5)
    assert shapes(b.schedule(1.5)) == [(4, 8)]


def test_a_tier_that_is_silent_until_the_deadline_is_not_waited_for_again() -> None:
    b = batcher()
    b.add(work("a", list(range(14)), max_tokens=1))
    look(b, [Tier.DISK] * 3)
    b.schedule(0.0)
    ask = bring(b)
    b.schedule(1.401)
    b.on_answer(Missed(ask.id, [(i, "cancelled") for i in range(3)]), 1.401)
    b.on_answer(Over(ask.id), 1.401)
    while b.running:
        complete(b, b.schedule(2.0))
    asked(b)

    b.add(work("b", list(range(100, 114))))
    look(b, [Tier.DISK] * 3, now_s=3.0)

    assert shapes(b.schedule(3.0))[0][0] == 0  # computed at once, from the front
    assert bring(b).names[0] == block_hashes(list(range(100, 114)), SIZE)[2]  # while the back may come


def test_a_step_is_held_back_for_an_answer_that_is_due_before_it_would_cost_more_than_it_saves() -> None:
    b = batcher()
    assert b.restore is not None
    b.add(work("busy", [1], max_tokens=9))
    complete(b, b.schedule(0.0))
    b.add(work("a", list(range(10, 24))))
    chunks = b.schedule(1.0)
    asked(b)

    due_s = b.restore.due_s
    assert due_s is not None
    hold_s = b.hold_s(chunks, step_s=1.0, now_s=1.0)
    assert (shapes(chunks), hold_s) == ([(1, 1)], due_s - 1.0)
    assert b.hold_s([*chunks, *chunks], step_s=1.9 * hold_s, now_s=1.0) == WAIT_SHARE * 1.9 * hold_s / 2
    assert b.hold_s(chunks, step_s=1.0, now_s=due_s) == 0.0
    assert batcher().hold_s(chunks, step_s=1.0, now_s=1.0) == 0.0


def test_while_a_slow_tier_delivers_from_the_back_the_front_is_computed() -> None:
    b = batcher()
    assert b.restore is not None
    b.restore._learned[Tier.DISK] = MoveSeconds(MovePrices(0.001, 0.004))  # a block takes as long as its tokens
    b.add(work("a", list(range(25))))
    look(b, [Tier.DISK] * 6)
    chunks = b.schedule(0.0)
    ask = bring(b)
    names = block_hashes(list(range(25)), SIZE)

    assert shapes(chunks) == [(0, 8)]
    assert ask.names[0] == names[5]  # the last one first
    complete(b, chunks)
    b.on_answer(Arrived(ask.id, [(i, Tier.DISK) for i in range(len(ask.names))]), 1.0)
    b.on_answer(Over(ask.id), 1.0)
    computed = 8
    while (chunks := b.schedule(2.0))[0].sampling is None:
        computed += len(chunks[0].tokens)
        complete(b, chunks)
    assert computed == 24 - len(ask.names) * SIZE
    assert shapes(chunks) == [(24, 1)]


def test_where_computing_meets_what_is_still_to_come_the_rest_is_computed() -> None:
    b = batcher()
    assert b.restore is not None
    b.restore._learned[Tier.DISK] = MoveSeconds(MovePrices(0.001, 0.004))
    b.add(work("a", list(range(25))))
    look(b, [Tier.DISK] * 6)
    complete(b, b.schedule(0.0))
    ask = bring(b)
    while chunks := b.schedule(1.0):
        complete(b, chunks)
    assert isinstance(one(b, Cancel), Cancel)

    b.on_answer(Missed(ask.id, [(i, "cancelled") for i in range(len(ask.names))]), 2.0)
    b.on_answer(Over(ask.id), 2.0)
    assert shapes(b.schedule(2.0))[0][0] == 24 - len(ask.names) * SIZE


def test_a_hole_in_what_the_tiers_hold_is_computed() -> None:
    b = batcher()
    b.add(work("a", list(range(17))))
    look(b, [Tier.DRAM, None, Tier.DRAM, Tier.DRAM])
    b.schedule(0.0)
    ask = bring(b)
    b.on_answer(Arrived(ask.id, [(0, Tier.DRAM), (1, Tier.DRAM), (2, Tier.DRAM)]), 0.0)
    b.on_answer(Over(ask.id), 0.0)

    chunks = b.schedule(0.0)
    assert shapes(chunks) == [(4, 4)]
    complete(b, chunks)
    assert shapes(b.schedule(0.0)) == [(16, 1)]


def test_a_corrupt_block_is_computed_and_those_after_it_are_kept() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [Tier.DISK] * 3)
    b.schedule(0.0)
    ask = bring(b)
    b.on_answer(Missed(ask.id, [(1, "corrupt")]), 0.0)
    b.on_answer(Arrived(ask.id, [(0, Tier.DISK), (2, Tier.DISK)]), 0.0)
    b.on_answer(Over(ask.id), 0.0)

    assert shapes(b.schedule(0.0)) == [(4, 4)]
    assert b.restore is not None
    assert b.restore.counts["corrupt"] == 1


def test_a_look_without_an_answer_is_not_waited_for_long() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    assert b.schedule(0.0) == []
    assert b.restore is not None
    assert b.restore.wake_s == LOOK_S

    assert shapes(b.schedule(LOOK_S + 0.01)) == [(0, 8)]
    assert b.restore.counts["look_timeout"] == 1


def test_computed_blocks_are_saved_and_brought_ones_are_not_saved_again() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [Tier.DRAM, None, None])
    b.schedule(0.0)
    ask = bring(b)
    b.on_answer(Arrived(ask.id, [(0, Tier.DRAM)]), 0.0)
    b.on_answer(Over(ask.id), 0.0)
    complete(b, b.schedule(0.0))

    save = one(b, Save)
    assert isinstance(save, Save)
    assert (save.names, save.depths) == (block_hashes(list(range(14)), SIZE)[1:], [4, 8])


@pytest.mark.parametrize("page_blocks", [1, 2])
def test_the_pages_that_a_step_will_fill_are_saved_ahead_of_it_and_no_others(page_blocks: int) -> None:
    b, prompt = batcher(step_tokens=12, page_blocks=page_blocks), list(range(27))
    page = SIZE * page_blocks
    names = block_hashes(prompt, page)
    b.add(work("a", prompt))
    look(b, [None] * (26 // page))
    saved: list[BlockHash] = []
    for end in (12, 24, 27):
        chunks = b.schedule(0.0)
        assert b.save_ahead(chunks) == (end < 27)
        if end < 27:
            save = one(b, Save)
            assert isinstance(save, Save)
            assert (save.is_ahead, save.names) == (True, names[len(saved) : end // page])
            assert save.depths == [page * names.index(each) for each in save.names]
            table = chunks[0].table
            first = names.index(save.names[0]) * page_blocks
            assert save.places == table[first : first + len(save.names) * page_blocks]
            saved += save.names
            complete(b, chunks)
            assert asked(b) == [Computed(save.id)]
            b.on_answer(Over(save.id), 0.0)
    assert saved == names[: 24 // page]


def test_a_step_that_is_given_up_takes_back_what_was_saved_ahead_of_it_and_the_next_saves_it() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [None] * 3)
    b.save_ahead(b.schedule(0.0))
    first = one(b, Save)
    assert isinstance(first, Save)
    b.give_up()
    assert asked(b) == [Cancel(first.id)]

    chunks = b.schedule(1.0)
    b.save_ahead(chunks)
    second = one(b, Save)
    assert isinstance(second, Save)
    assert (second.names, second.is_ahead) == (first.names, True)
    b.on_answer(Over(first.id, refused=2), 1.0)
    complete(b, chunks, 1.0)
    assert asked(b) == [Computed(second.id)]


def test_who_is_cancelled_in_mid_step_has_nothing_saved() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [None] * 3)
    chunks = b.schedule(0.0)
    b.save_ahead(chunks)
    save = one(b, Save)
    assert isinstance(save, Save)
    b.cancel(RequestId("a"))
    assert complete(b, chunks) == []

    assert asked(b) == [Cancel(save.id)]
    b.on_answer(Over(save.id, refused=2), 0.0)
    assert b.pool.free == 16


def test_what_finds_no_room_ahead_of_a_step_is_saved_after_it() -> None:
    b = batcher(blocks=8)
    b.add(work("a", list(range(22))))
    look(b, [None] * 5)
    saves: list[Ask] = []
    for is_room in (True, True, False):  # half of the pool may be on its way
        chunks = b.schedule(0.0)
        assert b.save_ahead(chunks) == is_room
        saves += [ask for ask in asked(b) if isinstance(ask, Save)]
        if not is_room:
            b.on_answer(Over(saves[0].id), 0.0)  # type: ignore[union-attr]
        complete(b, chunks)
    last = one(b, Save)
    assert isinstance(last, Save)
    assert (last.is_ahead, last.names) == (False, block_hashes(list(range(22)), SIZE)[4:])
    assert b.restore is not None
    assert "save_backlog" not in b.restore.counts


def test_a_step_may_take_longer_than_a_save_that_is_ahead_of_it() -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [None] * 3)
    chunks = b.schedule(0.0)
    b.save_ahead(chunks)
    save = one(b, Save)
    assert isinstance(save, Save)
    complete(b, chunks, SAVE_S + 1.0)
    b.schedule(SAVE_S + 2.0)
    assert asked(b) == [Computed(save.id)]

    b.schedule(2 * SAVE_S + 1.1)
    assert asked(b) == [Cancel(save.id)]


def test_a_place_that_is_being_saved_is_not_given_out() -> None:
    b = batcher(blocks=8)
    b.add(work("a", list(range(9)), max_tokens=1))
    look(b, [None, None])
    complete(b, b.schedule(0.0))
    complete(b, b.schedule(0.0))
    save = one(b, Save)
    assert isinstance(save, Save)
    assert (b.running, b.pool.free) == (0, 6)

    b.on_answer(Over(save.id), 0.0)
    assert b.pool.free == 8


def test_a_save_that_takes_too_long_is_given_up() -> None:
    b = batcher()
    b.add(work("a", list(range(9)), max_tokens=1))
    look(b, [None, None])
    complete(b, b.schedule(0.0))
    complete(b, b.schedule(0.0))
    save = one(b, Save)
    b.schedule(SAVE_S + 0.1)

    cancel = one(b, Cancel)
    assert isinstance(cancel, Cancel)
    assert isinstance(save, Save)
    assert cancel.id == save.id
    assert b.pool.free < 16  # until it is over
    b.on_answer(Over(save.id, refused=2), SAVE_S + 0.2)
    assert b.pool.free == 16


def test_who_says_it_will_be_back_has_its_blocks_kept() -> None:
    b = batcher()
    b.add(work("a", list(range(9)), max_tokens=1, keep_s=60.0))
    look(b, [None, None])
    complete(b, b.schedule(0.0))
    complete(b, b.schedule(0.0))

    keep = one(b, Keep)
    assert keep == Keep(block_hashes(list(range(9)), SIZE), 60.0)


class World:
    """Tiers that answer when they like, and memory whose content is checked at every use."""

    def __init__(self, seed: int, blocks: int, page_blocks: int) -> None:
        self.draw = random.Random(seed)
        self.batcher = batcher(blocks, page_blocks=page_blocks)
        self.page_blocks = page_blocks
        assert self.batcher.restore is not None
        if seed % 2:  # as slow as computing: blocks come from the back while the front is computed
            self.batcher.restore._learned[Tier.DRAM] = MoveSeconds(MovePrices(0.001, 0.004))
        self.pages: dict[BlockId, tuple[int, ...]] = {}  # every token up to the last one written
        self.store: dict[BlockHash, tuple[int, ...]] = {}
        self.pending: list[Ask] = []
        self.cancelled: set[int] = set()
        self.computed: set[int] = set()
        self.now_s = 0.0
        self._tokens: dict[RequestId, list[int]] = {}

    def turn(self) -> list[Step]:
        self.now_s += self.draw.choice([0.001, 0.01, 1.0])
        for _ in range(self.draw.randrange(4)):
            self._answer_one()
        chunks = self.batcher.schedule(self.now_s)
        self._take_asks()
        if self.draw.random() < 0.8:  # who never does still saves after the step
            self.batcher.save_ahead(chunks)
            self._take_asks()
        if self.draw.random() < 0.1:
            self._break_off(chunks)
            return []
        for chunk in chunks:
            self._compute(chunk)
        for _ in range(self.draw.randrange(2)):
            self._answer_one()
        steps = complete(self.batcher, chunks)
        self._take_asks()
        return steps

    def _break_off(self, chunks: Sequence[Chunk]) -> None:
        """A step is given up: what it was to fill holds something else now, and tiers may answer before they hear."""
        for chunk in chunks:
            for block in range(-(-chunk.start // SIZE), -(-(chunk.start + len(chunk.tokens)) // SIZE)):
                self.pages[chunk.table[block]] = (-1,)
        self._answer_one()
        self.batcher.give_up()
        self._take_asks()

    def settle(self) -> None:
        while self.pending:
            self._answer_one()
            self._take_asks()

    def _take_asks(self) -> None:
        assert self.batcher.restore is not None
        for ask in self.batcher.restore.drain_asks():
            if isinstance(ask, Cancel):
                self.cancelled.add(ask.id)
            elif isinstance(ask, Computed):
                self.computed.add(ask.id)
            elif not isinstance(ask, Keep):
                self.pending.append(ask)

    def _compute(self, chunk: Chunk) -> None:
        whole, end = self._tokens[chunk.id], chunk.start + len(chunk.tokens)
        assert list(chunk.tokens) == whole[chunk.start : end]
        for block in range(-(-chunk.start // SIZE)):
            held = self.pages[chunk.table[block]]
            assert held == tuple(whole[: min((block + 1) * SIZE, chunk.start)]), "a place holds its sequence's tokens"
        for block in range(chunk.start // SIZE, -(-end // SIZE)):
            self.pages[chunk.table[block]] = tuple(whole[: min((block + 1) * SIZE, end)])
        if chunk.sampling is not None:
            whole.append(1)

    def add(self, work: Work) -> None:
        self._tokens[work.id] = list(work.prompt)
        self.batcher.add(work)

    def _answer_one(self) -> None:
        if not self.pending:
            return
        ask = self.pending.pop(self.draw.randrange(len(self.pending)))
        match ask:
            case Look(id, names):
                tiers = [Tier.DRAM if name in self.store else None for name in names]
                self._tell(Found(id, tiers, {}))
            case Save():
                self._save(ask)
            case Bring(id, names, places):
                for index, name in enumerate(names):
                    if self.draw.random() < 0.2 or name not in self.store:
                        self._tell(Missed(id, [(index, "missing")]))
                    elif id in self.cancelled and self.draw.random() < 0.5:
                        self._tell(Missed(id, [(index, "cancelled")]))
                    else:
                        self._fill(self._places(places, index), self.store[name])
                        self._tell(Arrived(id, [(index, Tier.DRAM)]))
                self._tell(Over(id))

    def _save(self, ask: Save) -> None:
        if ask.id in self.cancelled:
            self._tell(Over(ask.id, refused=len(ask.names)))
        elif ask.is_ahead and ask.id not in self.computed:
            self.pending.append(ask)  # nobody may read it yet
        else:
            for index, name in enumerate(ask.names):
                last = self.pages[self._places(ask.places, index)[-1]]
                assert block_hashes(last, SIZE * self.page_blocks)[-1] == name, "a place stays while it is saved"
                self.store[name] = last
            self._tell(Over(ask.id))

    def _places(self, places: Sequence[BlockId], index: int) -> Sequence[BlockId]:
        return places[index * self.page_blocks : (index + 1) * self.page_blocks]

    def _fill(self, places: Sequence[BlockId], tokens: tuple[int, ...]) -> None:
        for after, place in enumerate(reversed(places)):
            self.pages[place] = tokens[: len(tokens) - after * SIZE]

    def _tell(self, answer: Found | Arrived | Missed | Over) -> None:
        self.batcher.on_answer(answer, self.now_s)


@given(seed=st.integers(0, 2**32), blocks=st.integers(9, 24), page_blocks=st.integers(1, 3))
def test_whatever_the_tiers_answer_and_when_every_token_is_computed_on_the_right_content(
    seed: int, blocks: int, page_blocks: int
) -> None:
    world = World(seed, blocks, page_blocks)
    draw = random.Random(seed)
    prefixes = [[draw.randrange(50) for _ in range(draw.randrange(1, 22))] for _ in range(3)]
    finished: set[RequestId] = set()
    names = [RequestId(f"r{i}") for i in range(12)]
    for name in names:
        prompt = draw.choice(prefixes) + [draw.randrange(50) for _ in range(draw.randrange(1, 9))]
        world.add(work(name, prompt, max_tokens=draw.randrange(1, 4)))
        for _ in range(draw.randrange(6)):
            finished |= {s.id for s in world.turn() if s.finish}
        if draw.random() < 0.1 and world.batcher.cancel(name):
            finished.add(name)
    for _ in range(2_000):
        if not (world.batcher.waiting or world.batcher.running):
            break
        finished |= {s.id for s in world.turn() if s.finish}
    world.settle()

    assert finished == set(names)
    assert world.batcher.restore is not None
    assert (world.batcher.pool.free, world.batcher.restore.in_use) == (blocks, 0)


@pytest.mark.parametrize("tier", [Tier.DRAM, Tier.DISK, Tier.REMOTE])
def test_what_moving_takes_is_measured_and_reported(tier: Tier) -> None:
    b = batcher()
    b.add(work("a", list(range(14))))
    look(b, [tier] * 3)
    b.schedule(0.0)
    ask = bring(b)
    b.on_answer(Arrived(ask.id, [(i, tier) for i in range(len(ask.names))]), 0.03)

    assert b.restore is not None
    reports = b.restore.drain_reports()
    assert [(r.tier, r.size_bytes, r.seconds) for r in reports] == [(tier, 1_000 * len(ask.names), 0.03)]
