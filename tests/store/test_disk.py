"""The disk store: what is put is had again, also by the next process; what no longer fits makes room by age and use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.store.made import (
    FINGERPRINT,
    RECORD,
    SIZE,
    always,
    block,
    get,
    key,
    never,
    numbered,
    outcome,
    page,
    put,
    small,
)

from jevons.base.errors import ConfigError, StoreError
from jevons.facts.block import BlockMeta
from jevons.kv.layout import checksum
from jevons.store.disk import DiskStore, Written
from jevons.store.segment import BLOCKS, HEADERS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    made = small(tmp_path)
    yield made
    made.close()


def on_disk(directory: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in directory.iterdir())


def test_what_is_put_is_had_again(store: DiskStore) -> None:
    assert put(store, range(3)) == Written()
    into = bytearray(SIZE)
    meta = store.get(key(1), memoryview(into))

    assert (bytes(into), meta) == (page(1), block(1)[1])
    assert len(store) == 3
    assert key(1) in store
    assert key(3) not in store


def test_blocks_of_any_size_lie_in_one_segment(tmp_path: Path) -> None:
    store, sizes = DiskStore(tmp_path, 1 << 20), [1, 4096, 0, 70_001]
    store.put([block(number, size) for number, size in enumerate(sizes)], never)

    assert [outcome(store, number, size) for number, size in enumerate(sizes)] == ["right"] * 4
    store.close()


def test_the_next_owner_finds_all_blocks_in_the_order_they_were_put(tmp_path: Path) -> None:
    with_tenant = block(9, tenant=b"of tenant number")
    first = small(tmp_path)
    put(first, [5, 3])
    put(first, range(10, 20))
    first.put([with_tenant], never)
    first.close()
    second = small(tmp_path)

    assert numbered(k for k, _ in second.held()) == [5, 3, *range(10, 20), 9]
    assert dict(second.held())[key(9)] == with_tenant[1]
    assert {outcome(second, number) for number in (3, 5, 9, *range(10, 20))} == {"right"}
    assert not second.counts
    second.close()


def test_reopening_goes_on_in_the_same_segment(tmp_path: Path) -> None:
    for number in range(4):
        store = small(tmp_path)
        put(store, [number])
        store.close()

    assert len(list(tmp_path.glob(f"*{BLOCKS}"))) == 1


def test_a_large_batch_is_written_over_several_segments(tmp_path: Path) -> None:
    store = small(tmp_path, blocks=600)  # more in a segment than one write may have pieces
    assert put(store, range(1500)) == Written()

    assert {outcome(store, number) for number in range(1500)} == {"right"}
    store.close()


def test_a_block_that_is_held_is_not_written_again(store: DiskStore) -> None:
    put(store, [1, 1, 2])
    before = store.used_bytes
    put(store, [2, 1])

    assert store.used_bytes == before == 2 * RECORD


def test_a_dropped_block_is_gone_and_can_be_put_again(store: DiskStore) -> None:
    put(store, range(3))

    assert store.drop(key(1))
    assert not store.drop(key(1))
    assert [outcome(store, number) for number in range(3)] == ["right", "missing", "right"]
    put(store, [1])
    assert outcome(store, 1) == "right"


def test_a_full_store_recycles_its_oldest_segment(store: DiskStore, tmp_path: Path) -> None:
    put(store, range(32))
    written = put(store, [32])

    assert numbered(written.removed) == [0, 1, 2, 3]
    assert numbered(k for k, _ in store.held()) == list(range(4, 33))
    assert outcome(store, 0) == "missing"
    assert store.used_bytes == on_disk(tmp_path) == 29 * RECORD


def test_blocks_used_since_they_were_written_survive_recycling(tmp_path: Path) -> None:
    store = small(tmp_path, blocks=6)
    put(store, range(48))
    written = put(store, [48], lambda k: k in (key(1), key(4)))

    assert numbered(written.removed) == [0, 2, 3, 5]
    assert numbered(k for k, _ in store.held())[-3:] == [1, 4, 48]
    store.close()
    assert outcome(small(tmp_path, blocks=6), 4) == "right"


def test_no_more_than_a_third_of_a_segment_is_kept_so_that_new_blocks_always_fit(tmp_path: Path) -> None:
    store = small(tmp_path, blocks=6)
    for number in range(200):
        written = put(store, [number], always)
        assert written.refused == {}
        assert len(written.removed) in (0, 4)
        assert outcome(store, number) == "right"
    store.close()


def test_a_block_as_large_as_a_segment_leaves_nothing_to_keep(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 7 * 6 * RECORD, segment_bytes=6 * RECORD)
    put(store, range(100), always)
    large = 5 * RECORD
    written = store.put([block(1000, large)], always)

    assert written.refused == {}
    assert outcome(store, 1000, large) == "right"
    store.close()


def test_the_quota_holds_at_every_moment(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 3 * 6 * RECORD, segment_bytes=6 * RECORD)
    largest = 0

    def look(_: object) -> bool:
        nonlocal largest
        largest = max(largest, on_disk(tmp_path))
        return True

    for number in range(100):
        put(store, [number], look)
        look(None)

    assert 2 * 6 * RECORD < largest <= store.size_bytes, "what is kept is copied before the old segment goes"
    store.close()


def test_a_smaller_quota_is_kept_from_the_start(tmp_path: Path) -> None:
    store = small(tmp_path)
    put(store, range(32))
    store.close()
    store = small(tmp_path, segments=3)

    assert numbered(k for k, _ in store.held()) == list(range(20, 32))
    assert on_disk(tmp_path) <= store.size_bytes
    store.close()


def test_blocks_larger_than_the_segments_chosen_at_first_get_larger_ones(tmp_path: Path) -> None:
    store, size = DiskStore(tmp_path, 100_000), 20_000  # eight segments would have 12,500 bytes each
    put(store, range(20))
    for number in range(100, 110):
        assert store.put([block(number, size)], never).refused == {}
        assert on_disk(tmp_path) <= store.size_bytes
    too_large = store.put([block(200, 50_000)], never)  # two of these, and a third of one for recycling, do not fit
    put(store, range(20, 30))

    assert too_large == Written(refused={key(200): "full"})
    assert [outcome(store, number, size) for number in range(107, 110)] == ["right"] * 3
    assert [outcome(store, number) for number in range(20, 30)] == ["right"] * 10
    assert on_disk(tmp_path) <= store.size_bytes
    store.close()


def test_a_block_that_no_segment_can_hold_or_that_is_not_what_it_says_is_refused(store: DiskStore) -> None:
    huge, short = block(1, 4 * RECORD), block(2)
    written = store.put([huge, (*short[:2], short[2][1:]), block(3)], never)

    assert written == Written([], {key(1): "full", key(2): "mismatch"})
    assert store.counts == {"full": 1, "mismatch": 1}
    assert outcome(store, 3) == "right"


def test_reading_into_a_buffer_of_another_size_is_refused_and_the_block_stays(store: DiskStore) -> None:
    put(store, [1])

    with pytest.raises(StoreError, match="a block of 512 bytes read into 100"):
        store.get(key(1), memoryview(bytearray(100)))
    assert outcome(store, 1) == "right"


def test_a_page_that_was_wrong_before_it_came_here_is_not_served(store: DiskStore) -> None:
    store.put([(key(1), BlockMeta(SIZE, checksum(key(1), page(2))), memoryview(page(1)))], never)

    assert outcome(store, 1) == "corrupt"
    assert key(1) not in store


def test_a_closed_store_gives_nothing_and_takes_nothing(store: DiskStore) -> None:
    put(store, [1])
    store.close()

    assert outcome(store, 1) == "missing"
    assert put(store, [2]).refused == {key(2): "gone"}


@pytest.mark.parametrize(
    ("size_bytes", "segment_bytes", "block_bytes", "rule"),
    [
        (10_000, 5_000, 1, "size_bytes: must hold two segments of 5000 bytes and a third of one, 11666 in all, got 10"),
        (10_000, 1_000, 2_000, "segment_bytes: must hold at least one block, which takes 2256 bytes, got 1000"),
        (100_000, None, 64_000, "size_bytes: must hold two segments of 64256 bytes"),
    ],
)
def test_sizes_that_cannot_work_are_refused(
    tmp_path: Path, size_bytes: int, segment_bytes: int | None, block_bytes: int, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        DiskStore(tmp_path, size_bytes, segment_bytes=segment_bytes, block_bytes=block_bytes)


def test_readers_never_see_another_page_while_segments_are_recycled(tmp_path: Path) -> None:
    """Three threads read blocks that one thread writes, and recycles soon after; each read is right or missing."""
    store, newest, done = small(tmp_path, segments=3), [0], threading.Event()

    def read(offset: int) -> set[str]:
        seen = set()
        while not done.is_set():
            seen.add(outcome(store, max(0, newest[0] - offset)))
        return seen

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read, offset) for offset in (0, 6, 11)]
        try:
            for number in range(400):
                put(store, [number], lambda k: k.name[-1] % 2 == 0)
                newest[0] = number
        finally:
            done.set()
        seen = set().union(*(reader.result(30) for reader in readers))

    assert seen <= {"right", "missing"}
    assert "right" in seen
    store.close()


def test_recycling_leaves_no_file_open(tmp_path: Path) -> None:
    store = small(tmp_path, blocks=2)
    put(store, range(40))
    opened = len(os.listdir("/proc/self/fd"))
    for number in range(40, 400):
        put(store, [number], always)
        outcome(store, number)

    assert abs(len(os.listdir("/proc/self/fd")) - opened) <= 1  # recycling several small segments at once
    store.close()
    assert len(os.listdir("/proc/self/fd")) < opened - 8


class DiskMachine(RuleBasedStateMachine):
    """Whatever is put, dropped, recycled and reopened: what the store says it holds, it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.held: set[int] = set()
        self.dropped: set[int] = set()  # may be back after reopening

    @initialize(blocks=st.integers(1, 5), segments=st.integers(2, 4))
    def open(self, blocks: int, segments: int) -> None:
        self.shape = (blocks, segments)
        self.store = small(Path(self.folder.name), *self.shape)

    @rule(numbers=st.lists(st.integers(0, 40), max_size=12), worth=st.sets(st.integers(0, 40)))
    def put(self, numbers: list[int], worth: set[int]) -> None:
        written = put(self.store, numbers, lambda k: numbered([k])[0] in worth)
        assert written.refused == {}
        self.held = (self.held | set(numbers)) - set(numbered(written.removed))
        self.dropped -= set(numbers)

    @rule(number=st.integers(0, 40))
    def drop(self, number: int) -> None:
        assert self.store.drop(key(number)) == (number in self.held)
        self.dropped |= self.held & {number}
        self.held.discard(number)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = small(Path(self.folder.name), *self.shape)
        found = set(numbered(k for k, _ in self.store.held()))
        assert self.held <= found <= self.held | self.dropped
        self.held = found
        assert not self.store.counts

    @rule(number=st.integers(0, 40))
    def get(self, number: int) -> None:
        self.store.counts.clear()
        assert outcome(self.store, number) == ("right" if number in self.held else "missing")
        self.store.counts.clear()

    @invariant()
    def what_it_says_it_holds_it_holds(self) -> None:
        if hasattr(self, "store"):
            assert {k for k, _ in self.store.held()} == {key(number) for number in self.held}
            assert self.store.used_bytes <= self.store.size_bytes

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert all(get(self.store, number) == page(number) for number in self.held)
            self.store.close()
        self.folder.cleanup()


TestDisk: Any = DiskMachine.TestCase
TestDisk.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_blocks_of_another_fingerprint_are_other_blocks(store: DiskStore) -> None:
    put(store, [1])
    stale = key(1, FINGERPRINT[::-1])

    with pytest.raises(StoreError) as refused:
        store.get(stale, memoryview(bytearray(SIZE)))
    assert refused.value.reason == "missing"
    assert outcome(store, 1) == "right"


def test_names_of_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.blocks").write_text("mine")
    store = small(tmp_path)
    put(store, range(100))
    store.close()

    assert (tmp_path / "notes.blocks").read_text() == "mine"
    assert list(tmp_path.glob(f"0*{HEADERS}"))
