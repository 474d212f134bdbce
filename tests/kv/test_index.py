"""The prefix index against a naive model: a counter for each worker and block."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.ids import BlockHash, WorkerId
from jevons.kv.hashing import block_hashes
from jevons.kv.index import PrefixIndex

WORKERS = [WorkerId(name) for name in "abcde"]
A, B = WORKERS[:2]
# A few chains that share heads, so that random operations hit the same blocks.
CHAINS = [block_hashes([*range(shared), *range(100 * i, 100 * i + 24)], 4) for i, shared in enumerate((0, 8, 8, 16))]
BLOCKS = sorted({name for names in CHAINS for name in names})

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "remove", "clear"]),
        st.sampled_from(WORKERS),
        st.lists(st.sampled_from(BLOCKS), max_size=6),
    ),
    max_size=60,
)


class Naive:
    """What the index promises, with no thought for speed."""

    def __init__(self) -> None:
        self.copies: Counter[tuple[WorkerId, BlockHash]] = Counter()

    def apply(self, kind: str, worker: WorkerId, names: list[BlockHash]) -> None:
        for name in names if kind != "clear" else BLOCKS:
            have = self.copies[worker, name]
            self.copies[worker, name] = {"store": have + 1, "remove": max(0, have - 1), "clear": 0}[kind]

    def overlap(self, worker: WorkerId, names: list[BlockHash]) -> int:
        held = [self.copies[worker, name] > 0 for name in names]
        return held.index(False) if False in held else len(names)


def apply(index: PrefixIndex, kind: str, worker: WorkerId, names: list[BlockHash]) -> None:
    if kind == "store":
        index.store(worker, names)
    elif kind == "remove":
        index.remove(worker, names)
    else:
        index.clear(worker)


@given(OPERATIONS)
def test_overlaps_equal_those_of_the_naive_model_holes_and_duplicates_included(
    operations: list[tuple[str, WorkerId, list[BlockHash]]],
) -> None:
    index, naive = PrefixIndex(), Naive()
    for operation in operations:
        apply(index, *operation)
        naive.apply(*operation)

    for names in CHAINS:
        expected = {w: n for w in WORKERS if (n := naive.overlap(w, names))}
        assert index.overlaps(names) == expected
    for worker in WORKERS:
        assert index.held(worker) == sum(naive.copies[worker, name] > 0 for name in BLOCKS)
    assert len(index) == sum(any(naive.copies[w, name] > 0 for w in WORKERS) for name in BLOCKS)


def test_a_block_stored_twice_and_removed_once_is_still_there() -> None:
    index, names = PrefixIndex(), CHAINS[0]
    index.store(A, names)
    index.store(A, names[:1])

    index.remove(A, names[:1])

    assert index.overlaps(names) == {A: len(names)}


def test_a_hole_in_mid_chain_ends_the_overlap_there() -> None:
    index, names = PrefixIndex(), CHAINS[0]
    index.store(A, names)
    index.store(B, names)

    index.remove(A, names[2:3])

    assert index.overlaps(names) == {A: 2, B: len(names)}


def test_removing_what_is_unknown_is_counted_and_harmless() -> None:
    index = PrefixIndex()

    assert index.remove(A, CHAINS[0][:2]) == 2
    assert index.overlaps(CHAINS[0]) == {}


def test_a_worker_that_left_frees_its_place_for_the_next() -> None:
    index, names = PrefixIndex(), CHAINS[0]
    index.store(A, names)
    index.clear(A)
    index.store(B, names[:1])

    assert index.overlaps(names) == {B: 1}


@pytest.mark.parametrize("workers", [1, 70, 300])
def test_any_number_of_workers_can_share_a_prefix(workers: int) -> None:
    index, names = PrefixIndex(), CHAINS[0]
    for i in range(workers):
        index.store(WorkerId(f"w{i}"), names[: 1 + i % len(names)])

    assert index.overlaps(names) == {WorkerId(f"w{i}"): 1 + i % len(names) for i in range(workers)}
