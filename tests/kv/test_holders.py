"""The kernels of the index against the index of dicts, with a counter for what is promised."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kv.dict_index import DictIndex

from jevons.base.hub import Hub
from jevons.base.ids import BlockHash, WorkerId
from jevons.kv import entries, holders, overlaps

WORKERS = 6
# A few chains that share heads: a name stands for its block and all before it.
CHAINS = [[*range(head), *range(100 * i + head, 100 * i + 8)] for i, head in enumerate((0, 3, 3, 5), 1)]
NAMES = sorted({name for chain in CHAINS for name in chain})

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "drop", "promise", "settle"]),
        st.integers(0, WORKERS - 1),
        st.one_of(
            st.lists(st.sampled_from(NAMES), max_size=6),
            st.builds(lambda chain, depth: chain[:depth], st.sampled_from(CHAINS), st.integers(1, 8)),
        ),
    ),
    max_size=60,
)


def ids(names: list[int]) -> list[BlockHash]:
    return [BlockHash(name.to_bytes(8, "big")) for name in names]


def worker_id(worker: int) -> WorkerId:
    return WorkerId(f"w{worker:04}")


class Kernels:
    """The kernels under test, with room for little, so that they grow."""

    def __init__(self, workers: int = WORKERS) -> None:
        self.hub = Hub(*entries.index_arrays(workers, 4))

    def apply(self, kind: str, worker: int, names: list[int]) -> int:
        h, unknown = self.hub.record[0], 0
        if entries.room(h) < len(names):
            entries.grow_index(self.hub, len(names))
        if kind == "store":
            holders.store(h, worker, np.array(names, np.int64))
        elif kind == "drop":
            unknown = holders.drop(h, worker, np.array(names, np.int64))
        elif kind == "promise":
            holders.promise(h, worker, np.array(names, np.int64))
        else:
            holders.settle(h, worker, np.array(names, np.int64))
        return unknown

    def overlaps(self, names: list[int], most: int) -> list[tuple[int, int]]:
        workers, depths = np.zeros(2 * most, np.int32), np.zeros(2 * most, np.int32)
        count = overlaps.overlaps(self.hub.record[0], np.array(names, np.int64), workers, depths, most)
        return [(int(w), int(d)) for w, d in zip(workers[:count], depths[:count], strict=True)]


class Oracle:
    """What is held and what is promised, with dicts."""

    def __init__(self) -> None:
        self.index = DictIndex()
        self.promised: Counter[tuple[int, int]] = Counter()

    def apply(self, kind: str, worker: int, names: list[int]) -> int:
        if kind == "store":
            self.index.store(worker_id(worker), ids(names))
        elif kind == "drop":
            return self.index.remove(worker_id(worker), ids(names))
        elif kind == "promise":
            self.promised.update((worker, name) for name in names)
        else:
            for name in names:
                self.promised[worker, name] = max(0, self.promised[worker, name] - 1)
        return 0

    def has(self, worker: int, name: int) -> bool:
        return self.index.holds(worker_id(worker), ids([name])[0]) or self.promised[worker, name] > 0

    def overlaps(self, names: list[int]) -> dict[int, int]:
        """As the index of dicts tells it, where what is promised counts as held."""
        seen = DictIndex()
        for worker in range(WORKERS):
            seen.store(worker_id(worker), ids([name for name in names if self.has(worker, name)]))
        depths = seen.overlaps(ids(names))
        return {worker: depths[worker_id(worker)] for worker in range(WORKERS) if worker_id(worker) in depths}


def both(operations: list[tuple[str, int, list[int]]]) -> tuple[Kernels, Oracle]:
    kernels, oracle = Kernels(), Oracle()
    for operation in operations:
        assert kernels.apply(*operation) == oracle.apply(*operation)
    return kernels, oracle


@given(OPERATIONS)
def test_what_is_held_and_promised_is_that_of_the_index_of_dicts(operations: list[tuple[str, int, list[int]]]) -> None:
    kernels, oracle = both(operations)

    for worker in range(WORKERS):
        for name in NAMES:
            assert overlaps.holds(kernels.hub.record[0], worker, name) == oracle.has(worker, name)
        assert kernels.hub["held"][worker] == oracle.index.held(worker_id(worker))
    known = sum(any(oracle.has(worker, name) for worker in range(WORKERS)) for name in NAMES)
    assert kernels.hub.number("blocks_known") == known


@given(OPERATIONS)
def test_overlaps_are_those_of_the_index_of_dicts(operations: list[tuple[str, int, list[int]]]) -> None:
    kernels, oracle = both(operations)

    for names in CHAINS:
        told = kernels.overlaps(names, WORKERS)
        assert dict(told) == oracle.overlaps(names)
        assert len(dict(told)) == len(told)


@given(OPERATIONS, st.integers(1, WORKERS - 1))
def test_of_a_crowd_those_that_hold_more_are_all_told_and_what_is_told_is_right(
    operations: list[tuple[str, int, list[int]]], most: int
) -> None:
    kernels, oracle = both(operations)

    for names in CHAINS:
        told, depths = kernels.overlaps(names, most), oracle.overlaps(names)
        assert all(depths[worker] == depth for worker, depth in told)
        having = [sum(oracle.has(worker, name) for worker in range(WORKERS)) for name in names]
        crowd = next((depth for depth, count in enumerate(having) if count <= most), len(names))
        assert {worker for worker, depth in depths.items() if depth > crowd} <= dict(told).keys()
        assert len(dict(told)) >= min(most, len(depths))


def test_growing_keeps_everything() -> None:
    kernels = Kernels()
    for worker in range(WORKERS):
        kernels.apply("store", worker, [1_000 * chain + i for chain in range(worker + 1) for i in range(40)])

    for chain in range(WORKERS):
        names = [1_000 * chain + i for i in range(40)]
        assert dict(kernels.overlaps(names, WORKERS)) == dict.fromkeys(range(chain, WORKERS), 40)


def test_what_was_given_back_is_used_again() -> None:
    kernels = Kernels()
    for round in range(50):
        for worker in range(WORKERS):
            kernels.apply("store", worker, [round, 1_000 + round])
        for worker in range(WORKERS):
            kernels.apply("drop", worker, [round, 1_000 + round])

    assert kernels.hub.number("blocks_known") == 0
    assert len(kernels.hub["blocks"]) < 40
    assert len(kernels.hub["pairs"]) < 80


def test_a_hole_in_mid_chain_ends_the_overlap_there() -> None:
    kernels, names = Kernels(), CHAINS[0]
    kernels.apply("store", 0, names)
    kernels.apply("store", 1, names)
    kernels.apply("store", 2, names[:1] + names[2:])
    kernels.apply("drop", 0, names[4:5])

    assert dict(kernels.overlaps(names, WORKERS)) == {0: 4, 1: 8, 2: 1}
    assert dict(kernels.overlaps(names, 2))[1] == 8


def test_a_promise_makes_a_worker_told_and_outlives_a_removal() -> None:
    kernels, names = Kernels(), CHAINS[0]
    kernels.apply("promise", 3, names[:1])
    kernels.apply("store", 3, names[:1])
    kernels.apply("drop", 3, names[:1])

    assert dict(kernels.overlaps(names, WORKERS)) == {3: 1}
    assert kernels.hub["held"][3] == 0
    kernels.apply("settle", 3, names[:1])
    assert kernels.overlaps(names, WORKERS) == []


def test_nobody_holds_nothing_of_an_empty_prompt() -> None:
    kernels = Kernels()
    kernels.apply("store", 0, CHAINS[0])

    assert kernels.overlaps([], WORKERS) == []
    assert kernels.overlaps([77_777], WORKERS) == []


@pytest.mark.parametrize("workers", [1, 70, 300])
def test_any_number_of_workers_can_share_a_prefix(workers: int) -> None:
    kernels, names = Kernels(workers), CHAINS[0]
    for worker in range(workers):
        kernels.apply("store", worker, names[: 1 + worker % 8])

    assert dict(kernels.overlaps(names, workers)) == {worker: 1 + worker % 8 for worker in range(workers)}


def test_of_many_that_share_a_prefix_the_few_that_hold_more_are_told() -> None:
    kernels, names = Kernels(300), CHAINS[0]
    for worker in range(300):
        kernels.apply("store", worker, names[:3])
    for worker in (17, 170, 217):
        kernels.apply("store", worker, names[3:])

    told = kernels.overlaps(names, 8)

    assert {worker for worker, depth in told if depth == 8} == {17, 170, 217}
    assert {depth for _, depth in told} == {3, 8}


def test_more_promises_than_can_be_counted_are_all_settled() -> None:
    kernels = Kernels()
    for worker in (0, 1, 1):
        kernels.apply("store", worker, [5])
    h, name, other = kernels.hub.record[0], np.array([5], np.int64), np.array([6], np.int64)
    for _ in range(70_000):
        holders.promise(h, 0, name)
        holders.promise(h, 2, other)
    kernels.apply("drop", 0, [5])

    assert overlaps.holds(h, 0, 5)
    for _ in range(70_000):
        holders.settle(h, 0, name)
        holders.settle(h, 2, other)
    assert not overlaps.holds(h, 0, 5)
    assert not overlaps.holds(h, 2, 6)
    assert kernels.hub.number("blocks_known") == 1


def test_prompts_lie_in_rows_again_where_others_were_given_back() -> None:
    kernels, first, others = Kernels(), list(range(100, 140)), list(range(200, 240))
    for names in (first, others, first):
        kernels.apply("promise", 1, names)
        kernels.apply("settle", 1, names)
    kernels.apply("promise", 2, others)

    assert kernels.hub["blocks"]["key"][:40].tolist() == others
    assert kernels.hub.number("blocks_used") == 40


def test_a_long_prompt_is_kept_apart_from_others_whose_names_share_its_heads() -> None:
    kernels, draw = Kernels(), np.random.default_rng(7)
    chains = [draw.integers(-(1 << 62), 1 << 62, 100).tolist() for _ in range(20)]
    for worker, chain in enumerate(chains):
        kernels.apply("store", worker % WORKERS, chain)
    for worker, chain in enumerate(chains[:10]):
        assert kernels.apply("drop", worker % WORKERS, chain) == 0

    for worker, chain in enumerate(chains):
        assert overlaps.depth_on(kernels.hub.record[0], worker % WORKERS, np.array(chain)) == (
            100 if worker >= 10 else 0
        )
