"""Event intake: whatever is lost, repeated or restarted on the way, the index never believes what is not so."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.control.intake import Intake
from jevons.control.orphans import Prompted
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


def test_an_orphan_that_two_prompts_explain_differently_stays_one(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(1, stored(3, 4)))
    intake.on_replay_end(complete=False)
    twice = [*range(50, 50 + SIZE), *TOKENS[3 * SIZE :]]
    intake._orphans.prompted(Prompted(*name_prompt(TOKENS, SIZE)))
    intake.on_prompted(Prompted(*name_prompt(twice, SIZE)))

    assert (len(held), len(intake._orphans)) == (0, 1)


def test_orphans_are_held_when_what_they_go_on_from_is_told_again(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(1, stored(2, 4)))
    intake.on_replay_end(complete=False)
    told = {"block_hashes": [100, 101], "parent_block_hash": None, "token_ids": TOKENS[:8], "block_size": SIZE}
    payload = [{"type": "BlockStored", **told}]
    intake.on_batch(KvPayload(2, msgspec.msgpack.encode([0.0, payload])))

    assert held.depth(NAMES) == 4


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
        self.log.append(batch(len(self.log), *events))
        return self.log[-1]

    def replay(self, start: int) -> list[KvBatch]:
        return self.log[max(start, len(self.log) - self.keeps) :]


def hand_over(engine: Engine, intake: Intake, made: KvBatch) -> None:
    start = intake.on_batch(made)
    if start is not None:
        for old in engine.replay(start):
            intake.on_replayed(old)
        intake.on_replay_end(complete=True)


@given(st.integers(0, 2**32), st.floats(0, 0.4), st.booleans())
def test_through_losses_replays_and_restarts_the_index_equals_the_engine(seed: int, loss: float, long: bool) -> None:
    draw = random.Random(seed)
    engine = Engine(draw, keeps=1_000 if long else 3)
    holding = PrefixIndex().holding(0)
    intake = Intake(holding)
    unheard = 0
    for _ in range(40):
        # The first batch after a restart arrives: numbers alone cannot tell a restart whose batches are all lost up to
        # the one expected. Live, the broken connection tells (see Router.gone).
        restarted = draw.random() < 0.05
        if restarted:
            engine.restart()
        made = engine.work()
        if restarted or draw.random() >= loss:
            hand_over(engine, intake, made)
        else:
            unheard += sum(isinstance(event, BlocksRemoved) for event in made.events)
    hand_over(engine, intake, engine.work())  # one that arrives tells of all that were lost before it

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
    assert intake.begin_replay() == 1


def test_without_an_answer_a_doubt_proves_nothing(intake: Intake, held: Holding) -> None:
    intake.on_batch(lived(0, stored(0, 2), ts=10.0))
    intake.doubt()
    intake.begin_replay()
    intake.on_replay_end(complete=False)

    assert (intake.awaits_replay, intake.mode) == (False, IndexMode.EXACT)
    assert held.depth(NAMES) == 2
    assert intake.begin_replay() == 0, "it is asked again"
