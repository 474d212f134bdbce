"""What a source held before a restart of ours is believed only if it is still the same source."""

import msgspec
import pytest

from jevons.base.ids import WorkerId
from jevons.control.intake import Intake
from jevons.control.router import Router
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvBatch, KvEvent
from jevons.facts.state import SourceState, WorkerState
from jevons.facts.worker import IndexMode, StepReport, WorkerFacts
from jevons.kv.hashing import block_hashes
from jevons.kv.index import Holding, PrefixIndex

SIZE = 4
TOKENS = list(range(16))
NAMES = block_hashes(TOKENS, SIZE)


def stored(start: int, end: int) -> BlocksStored:
    parent = 100 + start - 1 if start else None
    hashes: list[int | bytes] = [100 + i for i in range(start, end)]
    return BlocksStored(hashes=hashes, parent=parent, tokens=TOKENS[start * SIZE : end * SIZE], block_size=SIZE)


def batch(seq: int, *events: KvEvent, life: float = 1_000.0) -> KvBatch:
    return KvBatch(seq=seq, events=list(events), ts=life + seq)


def before() -> SourceState:
    """A source that holds the first three blocks, the second one twice, at batch 1."""
    intake = Intake(PrefixIndex().holding(0))
    intake.on_batch(batch(0, stored(0, 2)))
    intake.on_batch(batch(1, stored(1, 3)))
    state = intake.state()
    assert state is not None
    return state


@pytest.fixture
def held() -> Holding:
    return PrefixIndex().holding(0)


@pytest.fixture
def intake(held: Holding) -> Intake:
    recalled = Intake(held)
    recalled.recall(before())
    return recalled


def replay(intake: Intake, *batches: KvBatch) -> int:
    """As the driver does it; returns where it was to begin."""
    start = intake.begin_replay()
    for each in batches:
        if each.seq >= start:
            intake.on_replayed(each)
    intake.on_replay_end(complete=True)
    return start


def test_nothing_is_believed_before_the_source_has_shown_that_it_is_the_same(intake: Intake, held: Holding) -> None:
    assert held.depth(NAMES) == 0
    assert intake.mode is IndexMode.NONE


def test_the_replay_goes_on_from_the_last_batch_taken(intake: Intake, held: Holding) -> None:
    start = replay(intake, batch(0, stored(0, 2)), batch(1, stored(1, 3)), batch(2, stored(3, 4)))

    assert start == 1
    assert held.depth(NAMES) == 4
    assert (intake.mode, intake.block_size, intake.awaits_replay) == (IndexMode.EXACT, SIZE, False)
    assert intake.counts["recalled"] == 3


def test_copies_are_recalled_too(intake: Intake, held: Holding) -> None:
    replay(intake, batch(1, stored(1, 3)))

    intake.on_batch(batch(2, BlocksRemoved(hashes=[101])))
    assert held.depth(NAMES) == 3
    intake.on_batch(batch(3, BlocksRemoved(hashes=[101])))
    assert held.depth(NAMES) == 1


def test_a_source_that_started_anew_and_counted_further_is_asked_for_all(intake: Intake, held: Holding) -> None:
    life = [batch(seq, stored(0, 1) if seq == 0 else AllCleared(), life=2_000.0) for seq in range(2)]
    life += [batch(2, stored(0, 4), life=2_000.0)]

    replay(intake, *life)
    assert held.depth(NAMES) == 0
    assert intake.awaits_replay
    assert replay(intake, *life) == 0

    assert held.depth(NAMES) == 4
    assert (intake.mode, intake.counts["recall_refused"]) == (IndexMode.EXACT, 1)


def test_a_source_that_started_anew_and_said_little_since_is_asked_for_all(intake: Intake, held: Holding) -> None:
    replay(intake, batch(0, stored(0, 1), life=2_000.0))
    assert intake.awaits_replay

    replay(intake, batch(0, stored(0, 1), life=2_000.0))
    assert held.depth(NAMES) == 1


def test_what_comes_meanwhile_is_kept_for_after_the_proof(intake: Intake, held: Holding) -> None:
    intake.begin_replay()
    intake.on_batch(batch(3, stored(3, 4)))

    replay(intake, batch(1, stored(1, 3)), batch(2))

    assert held.depth(NAMES) == 4
    assert intake.counts["lost_batches"] == 0


def test_a_window_that_has_moved_past_what_was_recalled_leaves_the_source_degraded(
    intake: Intake, held: Holding
) -> None:
    late = batch(9, stored(0, 1))
    replay(intake, late)
    replay(intake, late)

    assert (intake.mode, held.depth(NAMES)) == (IndexMode.DEGRADED, 1)


def test_without_an_answer_nothing_is_recalled(intake: Intake, held: Holding) -> None:
    intake.begin_replay()
    intake.on_replay_end(complete=False)

    assert (held.depth(NAMES), intake.counts["recall_refused"]) == (0, 1)


def test_a_source_that_counts_from_0_as_we_listen_is_a_new_one(intake: Intake, held: Holding) -> None:
    intake.on_batch(batch(0, stored(0, 1), life=2_000.0))

    assert intake.begin_replay() == 1
    assert held.depth(NAMES) == 1


def test_batches_without_a_time_cannot_be_known_again() -> None:
    intake = Intake(PrefixIndex().holding(0))
    intake.on_batch(KvBatch(seq=0, events=[stored(0, 2)]))
    assert intake.state() is None


def test_a_router_recalls_a_worker_when_it_joins_and_hands_on_what_it_recalls() -> None:
    router, id = Router(), WorkerId("a")
    state = WorkerState(id, before(), [])
    router.recall(state)
    assert router.state(id) == state

    router.join(WorkerFacts(id=id, model="m", kind="openai"))
    assert router.state(id) == state
    assert router.intake(id).begin_replay() == 1

    router.gone(id)
    assert router.intake(id).begin_replay() == 0


def test_what_was_measured_before_is_known_at_once() -> None:
    old, new, id = Router(), Router(), WorkerId("a")
    facts = WorkerFacts(id=id, model="m", kind="openai")
    old.join(facts)
    for tokens in range(100, 2_000, 100):
        old.on_step(id, StepReport(seconds=0.01 + tokens * 1e-5, tokens=tokens, token_context=0, decodes=0))
    state = old.state(id)
    assert state is not None
    new.recall(state)
    new.join(facts)

    (before_restart,), (after,) = old.snapshot().workers, new.snapshot().workers
    assert after.prefill_tokens_per_s == pytest.approx(before_restart.prefill_tokens_per_s)
    assert after.measurements == before_restart.measurements


def test_names_that_cannot_be_read_are_refused_and_all_is_asked_for_again(held: Holding) -> None:
    intake = Intake(held)
    intake.recall(msgspec.structs.replace(before(), names=b"cut off"))
    replay(intake, batch(1, stored(1, 3)))

    assert intake.counts["recall_refused"] == 1
    assert intake.awaits_replay
    assert held.depth(NAMES) == 0
