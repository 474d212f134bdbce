"""Event intake: whatever is lost, repeated or restarted on the way, the index never believes what is not so."""

import random
from collections import deque
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.control.intake import Intake
from jevons.control.orphans import GUESS_EVENTS, Prompted, Prompts
from jevons.control.shapes import decode_batch
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvBatch, KvEvent, KvPayload
from jevons.facts.worker import IndexMode
from jevons.kv.blake2b import name_prompt
from jevons.kv.hashing import block_hashes
from jevons.kv.index import Holding, PrefixIndex

SIZE = 4
TOKENS = list(range(16))
NAMES = block_hashes(TOKENS, SIZE)


def stored(start: int, end: int, **more: object) -> BlocksStored:
    """Blocks start to end of TOKENS, under an engine's numbers 100, 101, …"""
    return BlocksStored(
        hashes=[100 + i for i in range(start, end)],
        parent=100 + start - 1 if start else None,
        tokens=TOKENS[start * SIZE : end * SIZE],
        block_size=SIZE,
        **more,  # type: ignore[arg-type]
    )


def removed(*numbers: int) -> BlocksRemoved:
    return BlocksRemoved(hashes=list(numbers))


def batch(seq: int, *events: KvEvent) -> KvBatch:
    return KvBatch(seq=seq, events=list(events))


@pytest.fixture
def held() -> Holding:
    return PrefixIndex().holding(0)


@pytest.fixture
def intake(held: Holding) -> Intake:
    return Intake(held)


def test_blocks_get_our_own_names_whatever_the_engine_calls_them(intake: Intake, held: Holding) -> None:
    assert intake.on_batch(batch(0, stored(0, 2), stored(2, 4))) is None

    assert held.depth(NAMES) == 4
    assert (intake.mode, intake.block_size) == (IndexMode.EXACT, SIZE)


def test_amid_a_replay_the_index_does_not_pass_for_exact(intake: Intake) -> None:
    intake.on_replayed(batch(intake.begin_replay(), stored(0, 1)))
    amid = intake.mode
    intake.on_replay_end(complete=True)

    assert (amid, intake.mode) == (IndexMode.NONE, IndexMode.EXACT)


def test_the_salt_of_the_first_block_becomes_part_of_every_name(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 2, extra=[["tenant"], None]), stored(2, 4, extra=[None, None])))

    assert held.depth(block_hashes(TOKENS, SIZE, salt="tenant")) == 4
    assert held.depth(NAMES) == 0


def test_images_and_adapters_are_kept_apart(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 2, extra=[["image-hash", 3], None])))
    intake.on_batch(batch(1, stored(0, 2, adapter="sql")))

    assert held.depth(NAMES) == 0
    assert held.depth(block_hashes(TOKENS, SIZE, adapter="sql")) == 2


def test_a_block_stored_twice_and_removed_once_is_still_there(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 2), stored(0, 2), removed(101)))
    assert held.depth(NAMES) == 2

    intake.on_batch(batch(1, stored(2, 3), removed(101)))
    assert held.depth(NAMES) == 1


def test_a_gap_asks_for_a_replay_and_nothing_is_applied_before_it(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 1)))

    assert intake.on_batch(batch(3, removed(100))) == 1
    assert intake.on_batch(batch(4, stored(3, 4))) is None
    assert intake.awaits_replay
    assert held.depth(NAMES) == 1

    for lost in (batch(1, stored(1, 2)), batch(2, stored(2, 3)), batch(3, removed(100))):
        intake.on_replayed(lost)
    intake.on_replay_end(complete=True)
    assert [held.holds(name) for name in NAMES] == [False, True, True, True]
    assert intake.mode is IndexMode.EXACT


def test_batches_that_come_live_after_a_replay_brought_them_are_not_taken_twice(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(1, stored(1, 2)))
    for seq in range(3):
        intake.on_replayed(batch(seq, stored(seq, seq + 1)))
    intake.on_replay_end(complete=True)

    assert intake.on_batch(batch(2, stored(2, 3))) is None
    intake.on_batch(batch(3, removed(102)))
    assert not held.holds(NAMES[2])


def test_what_a_replay_cannot_bring_back_shows_and_what_is_known_is_kept(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 2)))
    intake.on_batch(batch(9, stored(2, 3)))
    intake.on_replay_end(complete=False)

    assert held.depth(NAMES) == 3
    assert intake.mode is IndexMode.DEGRADED
    assert intake.counts["lost_batches"] == 8


def test_all_is_forgotten_once_much_of_it_may_have_been_removed_unheard(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 4), stored(0, 4), removed(100, 101)))  # a batch removes two blocks, so far
    intake.on_batch(batch(2))
    intake.on_replay_end(complete=False)

    assert (len(held), intake.counts["forgotten"]) == (0, 4)


def test_blocks_whose_parent_was_lost_are_held_once_a_prompt_tells_it(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 1)))
    intake.on_batch(batch(2, stored(3, 4)))  # 1 and 2 were stored by a batch that is lost
    intake.on_replay_end(complete=False)
    assert (held.depth(NAMES), intake.counts["orphan"]) == (1, 1)

    intake.on_prompted(Prompted(*name_prompt([*TOKENS, 5], SIZE)))
    assert (held.depth(NAMES), intake.counts["recovered"]) == (4, 2)

    intake.on_batch(batch(3, removed(103)))
    assert held.depth(NAMES) == 3
    intake.on_batch(batch(4, removed(102)))  # the engine's name for it is known now, and that of 1 is not: it goes too
    assert [held.holds(name) for name in NAMES] == [True, False, False, False]


def payload(seq: int, *events: dict[str, object]) -> KvPayload:
    return KvPayload(seq, msgspec.msgpack.encode([float(seq), events, 0]))


def told(start: int, end: int, **more: object) -> dict[str, object]:
    """As `stored`, in vLLM's words."""
    hashes, tokens = [100 + i for i in range(start, end)], TOKENS[start * SIZE : end * SIZE]
    parent = 100 + start - 1 if start else None
    fields = {"block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens, "block_size": SIZE}
    return {"type": "BlockStored", **fields, **more}


def test_a_source_of_which_orphans_were_heard_first_has_its_next_prompts_named_rightly(
    intake: Intake, held: Holding
) -> None:
    intake.on_batch(payload(7, told(2, 3)))
    intake.on_replay_end(complete=False)
    intake.on_prompted(Prompted(*name_prompt(TOKENS, SIZE)))
    assert intake.block_size == SIZE

    intake.on_batch(payload(8, {**told(0, 1), "block_hashes": [7], "token_ids": [9] * SIZE}))
    assert held.depth(block_hashes([9] * SIZE, SIZE)) == 1


def test_orphans_of_another_group_than_the_first_are_held_once_a_prompt_tells_what_they_go_on_from(
    intake: Intake, held: Holding
) -> None:
    intake.on_batch(payload(7, told(2, 3, group_idx=1, kv_cache_spec_kind="full_attention")))
    intake.on_replay_end(complete=False)
    intake.on_prompted(Prompted(*name_prompt(TOKENS, SIZE)))

    assert held.depth(NAMES) == 3


def test_blocks_of_another_size_than_a_prompt_was_cut_into_are_not_explained_by_it(
    intake: Intake, held: Holding
) -> None:
    intake.on_batch(payload(7, told(2, 3)))
    intake.on_replay_end(complete=False)
    intake.on_prompted(Prompted(*name_prompt(TOKENS, SIZE // 2)))

    assert len(held) == 0


def test_what_many_prompts_go_on_from_is_told_by_any_of_them(intake: Intake, held: Holding) -> None:
    intake.on_batch(payload(7, {**told(1, 2), "block_hashes": [7], "token_ids": [9] * SIZE}))  # of somebody else's
    intake.on_batch(payload(8, told(1, 2)))
    intake.on_replay_end(complete=False)
    intake.on_prompted(Prompted(*name_prompt(TOKENS, SIZE)))

    assert held.depth(NAMES) == 2
    assert held.depth(block_hashes([*TOKENS[:SIZE], *[9] * SIZE], SIZE)) == 2


def test_of_blocks_of_one_token_a_few_must_stand_in_a_prompt_for_it_to_tell_where(
    intake: Intake, held: Holding
) -> None:
    of_one = {"type": "BlockStored", "parent_block_hash": 99, "block_size": 1}
    intake.on_batch(payload(7, {**of_one, "block_hashes": [7], "token_ids": [TOKENS[5]]}))
    intake.on_replay_end(complete=False)
    intake.on_prompted(Prompted(*name_prompt(TOKENS, 1)))
    assert len(held) == 0

    several = {"block_hashes": [1, 2, 3, 4], "token_ids": TOKENS[5:9], "parent_block_hash": 98}
    intake.on_batch(payload(8, {**of_one, **several}))
    assert held.depth(block_hashes(TOKENS, 1)) == 9


class CountedPrompts(Prompts):
    looked = 0

    def of(self, own: Iterable[int]) -> list[Prompted]:
        self.looked += 1
        return super().of(own)


def test_prompts_are_looked_through_for_what_is_new_alone(held: Holding) -> None:
    prompts = CountedPrompts()
    intake = Intake(held, prompts=prompts)
    for seq in range(10, 210, 2):  # orphans of a parent each, and what goes on from them
        first = {**told(1, 3), "block_hashes": [2 * seq, 2 * seq + 1], "parent_block_hash": 1_000 + seq}
        after = {**told(1, 2), "block_hashes": [5_000 + seq], "parent_block_hash": 2 * seq + 1}
        intake.on_batch(payload(seq, {**first, "token_ids": [seq] * 2 * SIZE}))
        intake.on_replay_end(complete=False)
        intake.on_batch(payload(seq + 1, {**after, "token_ids": [seq] * SIZE}))
    assert (intake.counts["orphan"], prompts.looked) == (300, 100)

    for seq in range(210, 310):
        intake.on_batch(payload(seq, told(0, 1)))
    intake.on_prompted(Prompted(*name_prompt(TOKENS, SIZE)))
    assert prompts.looked == 100

    intake.on_prompted(Prompted(*name_prompt([*TOKENS, *[10] * 3 * SIZE], SIZE)))
    assert prompts.looked > 100


def test_orphans_of_one_parent_are_kept_within_a_bound(intake: Intake, held: Holding) -> None:
    for seq in range(7, 7 + 2 * GUESS_EVENTS):
        intake.on_batch(payload(seq, {**told(1, 2), "block_hashes": [5_000 + seq], "token_ids": [seq] * SIZE}))
        intake.on_replay_end(complete=False)
    intake.on_batch(payload(seq + 1, told(0, 1)))

    assert len(held) == 1 + GUESS_EVENTS
    assert held.depth(block_hashes([*TOKENS[:SIZE], *[seq] * SIZE], SIZE)) == 2


@pytest.mark.parametrize("as_payload", [False, True])
def test_what_is_left_of_orphans_of_which_the_end_was_removed_is_held_later(
    intake: Intake, held: Holding, as_payload: bool
) -> None:
    several = payload(7, told(1, 3, extra_keys=[None, None]), {"type": "BlockRemoved", "block_hashes": [102]})
    intake.on_batch(several if as_payload else decode_batch(7, several.payload))
    intake.on_replay_end(complete=False)
    intake.on_batch(batch(8, stored(0, 1)))

    assert held.depth(NAMES) == 2


def test_an_orphan_that_two_prompts_explain_differently_stays_one(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(1, stored(3, 4)))
    intake.on_replay_end(complete=False)
    twice = [*range(50, 50 + SIZE), *TOKENS[3 * SIZE :]]
    intake._contents._orphans.prompted(Prompted(*name_prompt(TOKENS, SIZE)))
    intake.on_prompted(Prompted(*name_prompt(twice, SIZE)))

    assert (len(held), len(intake._contents._orphans)) == (0, 1)


def test_of_all_prompts_those_told_last_are_kept_as_far_as_there_is_room() -> None:
    made = [Prompted(*name_prompt([*range(at, at + 64)], SIZE)) for at in range(100)]
    each = made[0].tokens.nbytes + made[0].names.nbytes
    prompts, one, other = Prompts(most_bytes=40 * each), deque[int](), deque[int]()

    for prompt in made[:30]:
        prompts.add(prompt, one)
    for prompt in made[30:65]:
        prompts.add(prompt, other)
    assert prompts.of(one) == made[22:30]  # the oldest of all went
    assert prompts.of(other) == made[33:65]  # and of each source those before the last GUESS_PROMPTS

    prompts.clear(other)
    for prompt in made[65:97]:
        prompts.add(prompt, one)
    assert (prompts.of(one), prompts.of(other)) == (made[65:97], [])


def test_orphans_are_held_when_what_they_go_on_from_is_told_again(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(1, stored(2, 4)))
    intake.on_replay_end(complete=False)
    intake.on_batch(payload(2, told(0, 2)))

    assert held.depth(NAMES) == 4


@pytest.mark.parametrize("as_payload", [False, True])
def test_an_orphan_that_was_removed_meanwhile_is_not_held_when_what_it_goes_on_from_is_told(
    intake: Intake, held: Holding, as_payload: bool
) -> None:
    intake.on_batch(batch(1, stored(1, 4)))  # what stored the first is lost
    intake.on_replay_end(complete=False)
    if as_payload:
        intake.on_batch(payload(2, {"type": "BlockRemoved", "block_hashes": [102]}))
    else:
        intake.on_batch(batch(2, removed(102)))
    intake.on_batch(batch(3, stored(0, 1)))

    assert [held.holds(name) for name in NAMES] == [True, True, False, False]


def test_a_degraded_worker_is_exact_again_once_it_clears_its_cache(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(5, stored(0, 2)))
    intake.on_replay_end(complete=False)
    assert intake.mode is IndexMode.DEGRADED

    intake.on_batch(batch(6, AllCleared(), stored(0, 1)))
    assert (intake.mode, held.depth(NAMES)) == (IndexMode.EXACT, 1)


def test_a_sequence_number_going_back_clears_the_worker(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 4)))
    intake.on_batch(batch(1))

    intake.on_batch(batch(0, stored(0, 1)))
    assert held.depth(NAMES) == 1
    assert intake.counts["restart"] == 1


def test_a_restart_first_seen_in_mid_count_asks_for_all_from_zero(intake: Intake, held: Holding) -> None:
    for seq in range(8):
        intake.on_batch(batch(seq, stored(0, 1)))

    assert intake.on_batch(batch(3, stored(3, 4))) == 0
    assert held.depth(NAMES) == 0


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (stored(1, 2), "orphan"),
        (stored(0, 1, medium="CPU"), "ignored_tier"),
        (stored(0, 1, group=1), "ignored_group"),
        (stored(0, 1, kind="sliding_window"), "ignored_group"),
        (BlocksStored(hashes=[1, 2], tokens=[1, 2, 3], block_size=2), "misshapen"),
        (removed(55), "unknown_removed"),
        (BlocksRemoved(hashes=[1], medium="CPU"), "ignored_tier"),
    ],
)
def test_every_reject_is_counted_by_its_reason(intake: Intake, held: Holding, event: KvEvent, reason: str) -> None:
    intake.on_batch(batch(0, event))

    assert intake.counts[reason] == len(event.hashes)  # type: ignore[union-attr]
    assert held.depth(NAMES) == 0


class Engine:
    """A pool of three chains, evicting at random, that numbers its batches and keeps some for replay."""

    def __init__(self, draw: random.Random, keeps: int) -> None:
        self.draw, self.keeps = draw, keeps
        self.chains = [[c, *range(100, 111)] for c in range(3)]
        self.sent = 0  # in all its lives
        self.restart()

    def restart(self) -> None:
        self.copies = [[0, 0, 0] for _ in self.chains]
        self.log: list[KvBatch] = []

    def work(self) -> KvBatch:
        events: list[KvEvent] = []
        for _ in range(self.draw.randrange(1, 4)):
            c = self.draw.randrange(3)
            have = self.copies[c]
            depth = next((i for i, n in enumerate(have) if not n), 3)
            if self.draw.random() < 0.6:
                i = min(depth, 2)  # the next missing one, or one more copy of the last
                have[i] += 1
                tokens = self.chains[c][i * SIZE : (i + 1) * SIZE]
                parent = c * 10 + i - 1 if i else None
                events.append(BlocksStored(hashes=[c * 10 + i], parent=parent, tokens=tokens, block_size=SIZE))
            elif depth:
                i = self.draw.randrange(depth)  # holes happen
                have[i] -= 1
                events.append(BlocksRemoved(hashes=[c * 10 + i]))
        self.sent += 1
        self.log.append(lived(len(self.log), *events, ts=float(self.sent)))
        return self.log[-1]

    def replay(self, start: int) -> list[KvBatch]:
        return self.log[max(start, len(self.log) - self.keeps) :]


class Listener:
    """An intake as it is fed: replays are asked for where some are missing, and the engine goes on meanwhile."""

    def __init__(self, engine: Engine, intake: Intake, loss: float) -> None:
        self.engine, self.intake, self.loss = engine, intake, loss
        self.draw = engine.draw
        self.unheard = 0  # events that removed something
        self.is_missing = False

    def hear(self) -> None:
        """The engine does something, which is heard or lost; sometimes it restarts, and a connection is closed."""
        if self.draw.random() < 0.05:
            self.engine.restart()
            self.intake.doubt()
            self.is_missing = True
        made = self.engine.work()
        if self.draw.random() >= self.loss:
            self.is_missing |= self.intake.on_batch(made) is not None
        else:
            self.unheard += sum(isinstance(event, BlocksRemoved) for event in made.events)

    def close_gaps(self, unanswered: float) -> None:
        while self.is_missing or self.intake.awaits_replay:
            self.is_missing = False
            answer = self.engine.replay(self.intake.begin_replay())
            while self.draw.random() < 0.3:
                self.hear()
            is_answered = self.draw.random() >= unanswered
            for each in answer if is_answered else ():
                self.intake.on_replayed(each)
            self.intake.on_replay_end(complete=is_answered)


@given(st.integers(0, 2**32), st.floats(0, 0.4), st.booleans())
def test_through_losses_replays_and_restarts_the_index_equals_the_engine(seed: int, loss: float, long: bool) -> None:
    draw = random.Random(seed)
    engine = Engine(draw, keeps=1_000 if long else 3)
    holding = PrefixIndex().holding(0)
    intake = Intake(holding)
    listener = Listener(engine, intake, loss)
    for _ in range(40):
        listener.hear()
        listener.close_gaps(unanswered=0.3 if long else 0.0)
    intake.check()  # at rest: the last may be lost
    listener.is_missing = True
    listener.loss = 0.0
    listener.close_gaps(unanswered=0.0)
    unheard = listener.unheard

    held = {
        name: engine.copies[c][i] > 0
        for c, tokens in enumerate(engine.chains)
        for i, name in enumerate(block_hashes(tokens, SIZE))
    }
    if intake.mode is IndexMode.EXACT:
        assert {name: holding.holds(name) for name in held} == held
    else:  # batches are lost for good: it may know less than there is, and more only by what was removed unheard
        assert sum(not held[name] for name in held if holding.holds(name)) <= unheard
    assert long is False or intake.mode is IndexMode.EXACT


def test_a_hole_that_opens_during_a_replay_is_closed_by_another(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 1)))
    intake.on_batch(batch(2, stored(2, 3)))
    assert intake.begin_replay() == 1
    intake.on_replayed(batch(1, stored(1, 2)))
    intake.on_batch(batch(4))  # 3 is lost, and not yet in the answer under way
    intake.on_replay_end(complete=True)
    assert (intake.awaits_replay, intake.begin_replay()) == (True, 3)
    intake.on_replayed(batch(3, stored(3, 4)))
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, intake.mode) == (False, IndexMode.EXACT)
    assert held.depth(NAMES) == 4


def test_a_hole_that_a_replay_brings_nothing_of_is_a_loss(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 1)))
    intake.on_batch(batch(2, stored(1, 2)))
    intake.begin_replay()
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, intake.mode) == (False, IndexMode.DEGRADED)
    assert held.depth(NAMES) == 2


def test_a_hole_that_opens_during_a_replay_that_brings_nothing_is_closed_by_another(
    intake: Intake, held: Holding
) -> None:
    assert intake.begin_replay() == 0
    intake.on_batch(batch(2, stored(2, 3)))  # what came before was sent before we heard, and after it had answered
    intake.on_replay_end(complete=True)
    assert (intake.awaits_replay, intake.begin_replay()) == (True, 0)
    for seq in range(3):
        intake.on_replayed(batch(seq, stored(seq, seq + 1)))
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, intake.mode, held.depth(NAMES)) == (False, IndexMode.EXACT, 3)


def lived(seq: int, *events: KvEvent, ts: float) -> KvBatch:
    return KvBatch(seq=seq, events=list(events), ts=ts)


def test_a_doubt_that_is_unfounded_changes_nothing(intake: Intake, held: Holding) -> None:
    first, second = lived(0, stored(0, 1), ts=10.0), lived(1, stored(1, 2), ts=11.0)
    intake.on_batch(first)
    intake.doubt()
    assert intake.begin_replay() == 0
    intake.on_replayed(first)
    intake.on_replayed(second)  # it was lost on the way
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, intake.mode) == (False, IndexMode.EXACT)
    assert held.depth(NAMES) == 2
    assert intake.begin_replay() == 2
    assert not intake.counts["restart"]


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_source_that_restarted_unseen_is_known_anew(intake: Intake, held: Holding, has_begun: bool) -> None:
    intake.on_batch(lived(0, stored(0, 2), ts=10.0))
    anew = lived(0, stored(0, 1), ts=20.0)
    intake.doubt()
    assert intake.begin_replay() == 0
    if has_begun:
        intake.on_replayed(anew)
    intake.on_replay_end(complete=True)
    assert (intake.awaits_replay, intake.begin_replay(), len(held)) == (True, 0, 0)
    if has_begun:
        intake.on_replayed(anew)
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, intake.mode) == (False, IndexMode.EXACT)
    assert held.depth(NAMES) == has_begun
    assert intake.counts["restart"] == 1


def test_a_doubt_waits_for_the_next_replay(intake: Intake, held: Holding) -> None:
    intake.on_batch(lived(0, stored(0, 1), ts=10.0))
    intake.begin_replay()
    intake.doubt()
    intake.on_replayed(lived(1, stored(1, 2), ts=11.0))
    intake.on_replay_end(complete=True)

    assert held.depth(NAMES) == 2
    assert intake.begin_replay() == 0, "it is about what was known when it arose"


def test_without_an_answer_a_doubt_proves_nothing(intake: Intake, held: Holding) -> None:
    intake.on_batch(lived(0, stored(0, 2), ts=10.0))
    intake.doubt()
    intake.begin_replay()
    intake.on_replay_end(complete=False)

    assert (intake.awaits_replay, intake.mode) == (False, IndexMode.EXACT)
    assert held.depth(NAMES) == 2
    assert intake.begin_replay() == 0, "it is asked again"


def test_a_restart_heard_amid_a_replay_asks_for_all_of_the_new_life(intake: Intake, held: Holding) -> None:
    for seq in range(8):
        intake.on_batch(lived(seq, stored(0, 1), ts=10.0 + seq))
    intake.doubt()
    assert intake.begin_replay() == 7
    anew = [lived(seq, stored(seq, seq + 1), ts=20.0 + seq) for seq in range(4)]
    intake.on_batch(anew[3])  # the first three were sent before anybody listened again
    intake.on_replay_end(complete=True)  # from 7 on there is nothing in that life
    assert (intake.awaits_replay, intake.begin_replay(), len(held)) == (True, 0, 0)
    for each in anew:
        intake.on_replayed(each)
    intake.on_replay_end(complete=True)

    assert (intake.mode, held.depth(NAMES), intake.counts["lost_batches"]) == (IndexMode.EXACT, 4, 0)


def test_a_restart_is_known_by_a_gap_too(intake: Intake, held: Holding) -> None:
    intake.on_batch(lived(0, stored(0, 2), ts=10.0))
    anew = [lived(seq, stored(3 - seq, 4 - seq), ts=20.0 + seq) for seq in (0, 1, 2)]
    intake.on_batch(anew[2])
    assert intake.begin_replay() == 0
    for each in anew:
        intake.on_replayed(each)
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, len(held), intake.counts["restart"]) == (True, 0, 1)


def test_a_doubt_is_about_what_was_known_when_it_arose(intake: Intake, held: Holding) -> None:
    intake.on_batch(lived(0, stored(0, 2), ts=10.0))
    intake.doubt()
    intake.begin_replay()
    anew = [lived(0, stored(0, 1), ts=20.0), lived(1, stored(1, 2), ts=21.0)]
    intake.on_batch(anew[1])  # passes for what comes next
    intake.on_replay_end(complete=False)
    intake.doubt()
    assert intake.begin_replay() == 0
    intake.on_replayed(anew[0])
    intake.on_replayed(anew[1])
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, intake.counts["restart"]) == (True, 1)


def test_a_doubt_before_anything_is_known_voids_the_replay_under_way(intake: Intake, held: Holding) -> None:
    intake.begin_replay()
    intake.doubt()
    intake.on_replayed(lived(0, stored(0, 2), ts=10.0))  # sent before the restart
    intake.on_replay_end(complete=True)
    assert (intake.awaits_replay, intake.begin_replay(), len(held)) == (True, 0, 0)
    intake.on_replayed(lived(0, stored(0, 1), ts=20.0))
    intake.on_replay_end(complete=True)

    assert (intake.awaits_replay, intake.mode, len(held)) == (False, IndexMode.EXACT, 1)


def check(intake: Intake, *answer: KvBatch) -> bool:
    """Returns whether the source is taken for another one, by that answer."""
    intake.check()
    intake.begin_replay()
    for each in answer:
        intake.on_replayed(each)
    intake.on_replay_end(complete=True)
    return intake.awaits_replay


def test_who_never_had_a_batch_in_a_replay_is_not_taken_for_another_one_because_of_that(intake: Intake) -> None:
    first = lived(0, stored(0, 2), ts=10.0)
    intake.on_batch(first)

    assert not check(intake)
    assert not check(intake, first)
    assert check(intake), "it keeps them, and this one is gone"


def test_who_keeps_few_batches_is_not_taken_for_another_one(intake: Intake, held: Holding) -> None:
    lives = [lived(seq, stored(0, 1), ts=10.0 + seq) for seq in range(9)]
    intake.on_batch(lives[0])
    assert not check(intake, lives[0])
    intake.on_batch(lives[8])
    assert intake.begin_replay() == 0
    for each in lives[6:]:
        intake.on_replayed(each)
    intake.on_replay_end(complete=True)

    assert (intake.mode, intake.counts["lost_batches"], intake.counts["restart"]) == (IndexMode.DEGRADED, 5, 0)


@pytest.mark.parametrize("had", [0, 1])
def test_what_was_passed_over_while_no_replay_was_answered_is_had_by_a_later_one(
    intake: Intake, held: Holding, had: int
) -> None:
    lives = [lived(seq, stored(seq, seq + 1), ts=10.0 + seq) for seq in range(3)]
    intake.on_batch(lives[0])
    intake.on_batch(lives[2])
    intake.begin_replay()
    intake.on_replay_end(complete=False)
    assert (intake.mode, held.depth(NAMES)) == (IndexMode.DEGRADED, 1)
    assert intake.begin_replay() == 0
    for each in lives[had:]:
        intake.on_replayed(each)
    intake.on_replay_end(complete=True)

    assert intake.mode is (IndexMode.DEGRADED if had else IndexMode.EXACT)
    assert held.depth(NAMES) == (1 if had else 3)
    assert intake.begin_replay() == 3, "once"


def test_a_batch_that_cannot_be_read_raises_no_doubt(intake: Intake, held: Holding) -> None:
    intake.on_batch(lived(0, stored(0, 2), ts=10.0))
    intake.on_batch(KvPayload(1, b"\xc1"))

    assert not check(intake)
    assert held.depth(NAMES) == 2
