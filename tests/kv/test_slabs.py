"""Places for pages of several sizes: none overlaps another, none is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import ConfigError
from jevons.kv.slabs import ALIGN, Slabs


def test_a_memory_of_one_page_has_one_place() -> None:
    slabs = Slabs(ALIGN, ALIGN)
    assert slabs.allocate(ALIGN) == 0
    assert slabs.allocate(ALIGN) is None

    slabs.free(0)
    assert slabs.allocate(100) == 0


def test_a_memory_below_one_page_is_refused_with_both_sizes() -> None:
    with pytest.raises(ConfigError, match=r"dram_bytes: must hold at least one block \(5000 bytes.*got 4096; raise it"):
        Slabs(ALIGN, 5_000)


def test_a_later_page_size_that_fits_no_slab_is_refused() -> None:
    slabs = Slabs(64 * ALIGN, ALIGN)
    with pytest.raises(ConfigError, match="cannot hold blocks"):
        slabs.check(slabs.slab_bytes + 1)


def test_a_slab_that_is_empty_again_serves_another_page_size() -> None:
    slabs = Slabs(8 * ALIGN, ALIGN)
    offsets = [slabs.allocate(ALIGN) for _ in range(8)]
    assert slabs.allocate(2 * ALIGN) is None

    for offset in offsets:
        assert offset is not None
        slabs.free(offset)
    assert slabs.allocate(2 * ALIGN) is not None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=200), st.integers(4, 80))
def test_places_never_overlap_and_all_come_back(ops: list[tuple[bool, int]], pages: int) -> None:
    slabs = Slabs(pages * ALIGN, ALIGN)
    held: dict[int, int] = {}
    for takes, number in ops:
        size = (number + 1) * ALIGN
        if takes:
            offset = slabs.allocate(size)
            if offset is not None:
                assert offset + size <= pages * ALIGN
                assert all(offset + size <= o or o + s <= offset for o, s in held.items())
                held[offset] = size
        elif held:
            slabs.free(sorted(held)[number % len(held)])
            del held[sorted(held)[number % len(held)]]
    assert slabs.used_bytes == sum(held.values())

    for offset in held:
        slabs.free(offset)
    assert slabs.used_bytes == 0
    room = pages * ALIGN // slabs.slab_bytes * (slabs.slab_bytes // ALIGN)
    assert [slabs.allocate(ALIGN) for _ in range(room)].count(None) == 0
