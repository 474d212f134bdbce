"""What an engine holds beside its device's first pool: in its host's memory, and in groups of layers kept apart."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.facts.event import KvPayload
from jevons.facts.worker import WorkerFacts
from jevons.perf.measured import Load

SIZE = 16
PROMPT = list(range(10 * SIZE + 1))  # ten blocks that can be reused
A, B = WorkerId("a"), WorkerId("b")


class House:
    """A router before two engines that send events; what they call a block is its number in the prompt."""

    def __init__(self) -> None:
        self.router = Router()
        self._seqs = {A: 0, B: 0}
        self._asked = 0
        for id in (A, B):
            self.router.join(WorkerFacts(id=id, model="m", kind="openai"))
            self.router.roster.heard(id, 0.0)
            self.tell(id)
        self.teach(A, 0.001)
        self.tell(B, another())  # its blocks are as long

    def tell(self, id: WorkerId, *events: dict[str, Any]) -> None:
        """A batch of events, as bytes."""
        payload = msgspec.msgpack.encode([1.0, list(events), 0])
        self.router.intake(id).on_batch(KvPayload(self._seqs[id], payload))
        self._seqs[id] += 1

    def teach(self, id: WorkerId, token_s: float) -> None:
        """Both learn what tokens cost."""
        member = self.router._workers[id]
        for tokens in (100, 500, 1000, 2000) * 5:
            self.router._measured(member, Load(1, tokens, 0, 0), tokens * token_s)

    def best(self) -> tuple[str, int]:
        """Where the prompt would go, and how much of it is expected to be there."""
        first = self.router.rank(PROMPT)[0]
        return first.worker, first.cached_tokens

    def cached(self, id: WorkerId) -> int:
        return next(p.cached_tokens for p in self.router.rank(PROMPT) if p.worker == id)

    def serve(self, ttft_s: float, cached_tokens: int) -> float:
        """Place the prompt, and report what came of it. Returns the seconds that were predicted."""
        self._asked += 1
        id = RequestId(str(self._asked))
        placement = self.router.place(id, PROMPT, 100.0 * self._asked)
        self.router.on_first(id, 100.0 * self._asked + ttft_s)
        self.router.on_cached(id, cached_tokens)
        self.router.done(id, 1)
        return placement.ttft_s

    def worker(self, id: WorkerId) -> Any:
        return next(w for w in self.router.snapshot().workers if w.id == id)


def another() -> dict[str, Any]:
    """A block that is not of the prompt."""
    return {**stored(range(1)), "block_hashes": [99], "token_ids": [7] * SIZE}


def stored(blocks: range, **more: Any) -> dict[str, Any]:
    """Blocks of the prompt."""
    first = blocks.start
    return {
        "type": "BlockStored",
        "block_hashes": [100 + block for block in blocks],
        "parent_block_hash": 100 + first - 1 if first else None,
        "token_ids": PROMPT[first * SIZE : blocks.stop * SIZE],
        "block_size": SIZE,
        **more,
    }


def offloaded(blocks: range) -> list[dict[str, Any]]:
    """As vLLM tells it where it is not told to describe what it offloads."""
    rest: dict[str, Any] = {
        "parent_block_hash": None,
        "token_ids": [],
        "block_size": 0,
        "medium": "CPU",
        "group_idx": 0,
    }
    return [{"type": "BlockStored", "block_hashes": [100 + block], **rest} for block in blocks]


def removed(blocks: range, **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": [100 + block for block in blocks], **more}


def test_blocks_in_the_hosts_memory_count_as_cached_and_take_their_loading() -> None:
    house = House()
    house.tell(A, stored(range(10)))
    in_hbm_s = house.router.rank(PROMPT)[0].ttft_s
    house.tell(A, *offloaded(range(10)))
    house.tell(A, removed(range(4, 10)))
    loads_s = house.router.rank(PROMPT)[0].ttft_s

    assert house.best() == (A, 160)
    assert in_hbm_s < loads_s < 160 * 0.001
    assert (house.worker(A).held_blocks, house.worker(A).dram_blocks) == (4, 10)


def test_who_has_a_prompt_in_its_hosts_memory_alone_is_found() -> None:
    house = House()
    house.tell(A, stored(range(10)), *offloaded(range(10)))
    house.tell(A, removed(range(10)))

    assert house.best() == (A, 160)
    house.tell(A, removed(range(3, 10), medium="CPU"))
    assert house.cached(A) == 48


def test_what_is_gone_from_the_device_ends_what_can_be_loaded_unless_it_is_there() -> None:
    house = House()
    house.tell(A, stored(range(10)), *offloaded(range(3)), *offloaded(range(6, 10)))
    house.tell(A, removed(range(2, 10)))

    assert house.cached(A) == 48  # two blocks on the device, one to load, then a hole


def test_of_chunks_told_by_their_last_block_whole_ones_are_loaded() -> None:
    house = House()
    house.tell(A, stored(range(10)), *(event for last in range(1, 10, 2) for event in offloaded(range(last, last + 1))))
    house.tell(A, removed(range(3, 10)))
    assert house.cached(A) == 160  # three blocks on the device, the second half of a chunk, three chunks
    house.tell(A, removed(range(5, 10), medium="CPU"))
    assert house.cached(A) == 48  # half a chunk: not loaded
    house.tell(A, removed(range(3)))

    assert house.best() == (A, 64)  # nobody has it on its device


def test_copies_are_counted_by_tier() -> None:
    house = House()
    house.tell(A, stored(range(10)), *offloaded(range(10)), *offloaded(range(10)))
    house.tell(A, removed(range(10), medium="CPU"), removed(range(10)))
    assert house.cached(A) == 160
    house.tell(A, removed(range(10), medium="CPU"))

    assert house.cached(A) == 0
    assert house.router.intake(A).counts["removed_beside"] == 20
    assert len(house.router.intake(A)._contents._names) == 0


def test_a_tier_told_of_with_tokens_needs_no_name_from_the_device() -> None:
    house = House()
    house.tell(A, another())  # tells how long its blocks are
    house.tell(A, stored(range(10), medium="CPU_PINNED"))

    assert house.cached(A) == 160


def test_what_nobody_can_name_is_counted_as_ignored() -> None:
    house = House()
    house.tell(A, stored(range(2)), *offloaded(range(5, 8)), stored(range(2, 3), medium="STORAGE"))

    assert house.router.intake(A).counts["ignored_tier"] == 4


def test_what_loading_takes_is_learned() -> None:
    house = House()
    house.tell(A, stored(range(10)), *offloaded(range(10)), removed(range(10)))
    before_s = house.serve(0.5, 160)  # once, for whatever reason
    for _ in range(8):
        house.tell(A, removed(range(10)))  # as if it had evicted again what it loaded
        after_s = house.serve(0.05, 160)

    assert before_s != pytest.approx(0.05, rel=0.3)
    assert after_s == pytest.approx(0.05, rel=0.3)


def hybrid(blocks: range, group: int, **more: Any) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [{"kv_cache_spec_kind": "full_attention"}]
    kinds.append({"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 2 * SIZE + 1})
    return stored(blocks, group_idx=group, **kinds[group], **more)


def test_a_prompt_goes_on_only_where_sliding_windows_find_what_they_look_back_to() -> None:
    house = House()
    house.tell(A, hybrid(range(10), 0), hybrid(range(10), 1))
    assert house.cached(A) == 160
    house.tell(A, removed(range(4), group_idx=1))  # slid out of the window
    assert house.cached(A) == 160
    house.tell(A, removed(range(9, 10), group_idx=1))
    assert house.cached(A) == 144
    house.tell(A, removed(range(4, 8), group_idx=1))

    assert house.cached(A) == 0  # of the window's two blocks never both are there
    assert house.worker(A).held_blocks == 10
    house.tell(A, hybrid(range(4, 6), 1))
    assert house.cached(A) == 96


def test_what_is_to_be_computed_counts_in_all_groups() -> None:
    house = House()
    house.tell(A, hybrid(range(1), 0), hybrid(range(1), 1))
    house.router.place(RequestId("r"), PROMPT, 0.0, avoid=[B])

    assert house.cached(A) == 160


def test_a_second_group_that_keeps_all_must_have_all() -> None:
    house = House()
    full = {"kv_cache_spec_kind": "full_attention"}
    house.tell(A, stored(range(10), group_idx=0, **full), stored(range(7), group_idx=1, **full))

    assert house.cached(A) == 112


def test_tiers_and_groups_are_recalled() -> None:
    house = House()
    house.tell(A, hybrid(range(10), 0), hybrid(range(4), 1))
    house.tell(B, stored(range(10)), *offloaded(range(10)), removed(range(6, 10)))
    states = [house.router.state(id) for id in (A, B)]
    after = House.__new__(House)
    after.router = Router()
    for id, state in zip((A, B), states, strict=True):
        assert state is not None
        after.router.recall(msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=type(state)))
        after.router.join(WorkerFacts(id=id, model="m", kind="openai"))
        after.router.roster.heard(id, 0.0)
        intake = after.router.intake(id)
        intake.begin_replay()
        assert state.source is not None
        intake.on_replayed(KvPayload(state.source.seq, msgspec.msgpack.encode([1.0, [], 0])))
        intake.on_replay_end(complete=True)

    assert (after.cached(A), after.cached(B)) == (64, 160)
    assert [(w.held_blocks, w.dram_blocks) for w in after.router.snapshot().workers] == [
        (10, 0),
        (7, 10),
    ]  # and another one


def test_a_restart_forgets_tiers_and_groups_too() -> None:
    house = House()
    house.tell(A, hybrid(range(10), 0), hybrid(range(10), 1))
    house.tell(B, stored(range(10)), *offloaded(range(10)))
    house.router.gone(A)
    house.router.gone(B)

    assert [(w.held_blocks, w.dram_blocks) for w in house.router.snapshot().workers] == [(0, 0), (0, 0)]
    assert house.router.intake(A).beside.windows == {}
