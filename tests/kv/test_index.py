"""The live index against one of plain dicts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kv.dict_index import DictIndex

from jevons.base.ids import BlockHash, WorkerId
from jevons.kv.hashing import block_hashes
from jevons.kv.index import Holding, PrefixIndex

WORKERS = 5
# A few chains that share heads, so that random operations hit the same blocks.
CHAINS = [block_hashes([*range(shared), *range(100 * i, 100 * i + 24)], 4) for i, shared in enumerate((0, 8, 8, 16))]
BLOCKS = sorted({name for names in CHAINS for name in names})

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "remove", "clear"]),
        st.integers(0, WORKERS - 1),
        st.lists(st.sampled_from(BLOCKS), max_size=6),
    ),
    max_size=60,
)


def held_by(count: int) -> tuple[PrefixIndex, list[Holding]]:
    index = PrefixIndex()
    return index, [index.holding(worker) for worker in range(count)]


@given(OPERATIONS)
def test_what_is_held_is_that_of_the_dicts_holes_and_duplicates_included(
    operations: list[tuple[str, int, list[BlockHash]]],
) -> None:
    (index, holdings), dicts = held_by(WORKERS), DictIndex()
    for kind, worker, names in operations:
        id = WorkerId(str(worker))
        if kind == "store":
            holdings[worker].store(names)
            dicts.store(id, names)
        elif kind == "remove":
            assert holdings[worker].remove(names) == dicts.remove(id, names)
        else:
            holdings[worker].clear()
            dicts.clear(id)

    for names in CHAINS:
        assert index.overlaps(names) == {int(worker): depth for worker, depth in dicts.overlaps(names).items()}
    for worker, holding in enumerate(holdings):
        assert len(holding) == dicts.held(WorkerId(str(worker)))
        assert all(holding.holds(name) == dicts.holds(WorkerId(str(worker)), name) for name in BLOCKS)
    index.sweep(1 << 20)
    assert len(index) == len(dicts)


def test_what_was_cleared_is_swept_away_and_its_room_is_used_again() -> None:
    index, (a, b) = held_by(2)
    for _ in range(200):
        for names in CHAINS:
            a.store(names)
            b.store(names)
        a.clear()
        b.clear()

    assert index.overlaps(CHAINS[0]) == {}
    index.sweep(1 << 20)
    assert len(index) == 0
    assert index.hub.number("blocks_used") < 8_000, "entries are used again"
    assert len(index.hub["held"]) <= 64, "numbers of holders are used again"


def test_what_others_store_anew_before_it_is_swept_away_is_not_taken_for_the_next_ones_with_its_number() -> None:
    index, (gone, other) = held_by(2)
    names = block_hashes(list(range(16_000)), 4)
    gone.store(names[:1])
    other.store(names[:1])
    other.remove(names[:1])
    gone.remove(names[:1])  # pairs at the beginning of their array are free again
    gone.store(names)
    number = gone.holder
    gone.clear()
    index.sweep(100)
    other.store(names[-1:])
    index.sweep(len(names) - int(index.hub.number("sweep_at")))  # once around
    new = [index.holding(worker) for worker in range(2, 6)]

    assert number in [holding.holder for holding in new]
    assert index.overlaps(names[-1:]) == {1: 1}


def test_the_index_grows_with_what_it_is_told() -> None:
    index, (a, b) = held_by(2)
    names = block_hashes(list(range(80_000)), 4)
    a.store(names)
    b.store(names[:12_000])

    assert index.overlaps(names) == {0: 20_000, 1: 12_000}


def test_removing_what_is_unknown_is_counted_and_harmless() -> None:
    index, (a,) = held_by(1)

    assert a.remove(CHAINS[0][:2]) == 2
    assert index.overlaps(CHAINS[0]) == {}


def test_of_a_crowd_those_are_told_that_got_it_last_as_others_come_and_go() -> None:
    (index, holdings), names = held_by(80), CHAINS[0]
    for holding in holdings[:60]:
        holding.store(names)
    told = [index.overlaps(names)]
    for holding in holdings[60:]:
        holding.store(names)
    told.append(index.overlaps(names))
    for holding in holdings[70:]:
        holding.remove(names)
    told.append(index.overlaps(names))
    holdings[5].remove(names)
    holdings[5].store(names)
    told.append(index.overlaps(names))
    for holding in holdings[40:60]:
        holding.remove(names[:1])
    told.append(index.overlaps(names))

    last = [range(28, 60), range(48, 80), range(38, 70), [5, *range(39, 70)], [5, *range(19, 40), *range(60, 70)]]
    assert [sorted(depths) for depths in told] == [sorted(workers) for workers in last]
    assert all(set(depths.values()) == {len(names)} for depths in told)


@pytest.mark.parametrize("workers", [1, 30])
def test_any_number_of_workers_can_share_a_prefix(workers: int) -> None:
    (index, holdings), names = held_by(workers), CHAINS[0]
    for i, holding in enumerate(holdings):
        holding.store(names[: 1 + i % len(names)])

    assert index.overlaps(names) == {i: 1 + i % len(names) for i in range(workers)}
