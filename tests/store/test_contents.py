"""What this node believes a shared store holds: listings, its own writes and what gets have taught, put together."""

from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey
from jevons.store.contents import Contents

F = b"F" * 16


def key(number: int, fingerprint: bytes = F) -> BlockKey:
    return BlockKey(fingerprint, BlockHash(number.to_bytes(16, "big")))


def names(*numbers: int) -> set[BlockHash]:
    return {key(number).name for number in numbers}


def held(contents: Contents, fingerprint: bytes = F) -> list[int]:
    return [number for number in range(20) if contents.holds(key(number, fingerprint))]


def listed(contents: Contents, *numbers: int, is_whole: bool = True) -> None:
    contents.begin(F)
    contents.found(F, names(*numbers))
    contents.end(F, is_whole)


def test_a_whole_listing_adds_what_is_new_and_forgets_what_is_gone() -> None:
    contents = Contents(100)
    listed(contents, 1, 2, 3)
    listed(contents, 2, 3, 4)

    assert held(contents) == [2, 3, 4]


def test_a_listing_cut_short_only_adds() -> None:
    contents = Contents(100)
    listed(contents, 1, 2, 3)
    listed(contents, 4, is_whole=False)

    assert held(contents) == [1, 2, 3, 4]


def test_what_a_listing_has_found_counts_before_it_ends() -> None:
    contents = Contents(100)
    contents.begin(F)
    contents.found(F, names(1))

    assert held(contents) == [1]


def test_a_block_written_behind_the_back_of_a_listing_stays() -> None:
    contents = Contents(100)
    contents.begin(F)
    contents.found(F, names(5))
    contents.add(key(1))  # its place in the list has been passed
    contents.end(F, is_whole=True)

    assert held(contents) == [1, 5]


def test_a_block_dropped_during_a_listing_does_not_come_back_with_its_end() -> None:
    contents = Contents(100)
    contents.begin(F)
    contents.found(F, names(1, 2))
    contents.discard(key(1))
    contents.end(F, is_whole=True)

    assert held(contents) == [2]


def test_a_spoilt_block_is_not_held_though_listed_until_it_is_written_again() -> None:
    contents = Contents(100)
    listed(contents, 1, 2)
    contents.quarantine(key(1))
    listed(contents, 1, 2)
    assert held(contents) == [2]

    contents.add(key(1))
    listed(contents, 1, 2)
    assert held(contents) == [1, 2]


def test_a_spoilt_block_that_somebody_removed_is_forgotten() -> None:
    contents = Contents(100)
    listed(contents, 1)
    contents.quarantine(key(1))
    listed(contents, 2)

    assert len(contents) == 1


def test_fingerprints_are_kept_apart() -> None:
    contents = Contents(100)
    contents.add(key(1, b"G" * 16))
    listed(contents, 2)

    assert (held(contents), held(contents, b"G" * 16)) == ([2], [1])


def test_no_more_names_are_remembered_than_the_limit_whoever_brings_them() -> None:
    contents = Contents(3)
    contents.add(key(9, b"G" * 16))
    contents.begin(F)

    assert contents.found(F, names(1, 2))
    assert not contents.found(F, names(2, 3, 4))
    contents.end(F, is_whole=False)
    contents.add(key(5))
    contents.quarantine(key(6))
    assert len(contents) == 3
