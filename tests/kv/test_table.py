"""The hash table of kernels finds what is in it, whatever shares a head and wherever it was put in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jevons.kv.table import empty_heads, find, head_of, insert, key_of, name_of, refill, remove

ENTRY = np.dtype([("key", np.int64), ("link", np.int32)])
HEADS = empty_heads(16)
# Keys of two heads only, so that lists are long; and some that are far apart.
CROWD = [key for key in range(4_000) if head_of(HEADS, key) in (3, 4)][:24]
KEYS = [*CROWD, -1, 0, (1 << 63) - 1, -(1 << 63), *range(1 << 40, (1 << 40) + 8)]


@given(st.lists(st.tuples(st.sampled_from(["insert", "remove"]), st.sampled_from(KEYS)), max_size=120))
def test_keys_are_found_where_they_were_put_until_they_are_taken_out(operations: list[tuple[str, int]]) -> None:
    heads, entries, places = empty_heads(16), np.zeros(len(KEYS), ENTRY), dict[int, int]()
    spare = list(range(len(KEYS)))
    for what, key in operations:
        if what == "insert" and key not in places:
            places[key] = spare.pop()
            entries[places[key]]["key"] = key
            insert(heads, entries, places[key])
        elif what == "remove" and key in places:
            remove(heads, entries, places[key])
            spare.append(places.pop(key))

    assert {key: find(heads, entries, key) for key in KEYS} == {key: places.get(key, -1) for key in KEYS}

    wider = empty_heads(256)
    refill(wider, heads, entries)
    assert {key: find(wider, entries, key) for key in KEYS} == {key: places.get(key, -1) for key in KEYS}


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 1 << 20))
def test_a_name_comes_back_from_its_key(name: int, owner: int) -> None:
    assert name_of(key_of(name, owner), owner) == name


def test_small_names_of_different_owners_never_meet() -> None:
    names, owners = (0, 1, 2, (1 << 40) - 2, (1 << 40) - 1), (0, 1, 2, 4_095, (1 << 14) - 1)

    assert len({key_of(name, owner) for name in names for owner in owners}) == len(names) * len(owners)


def test_heads_are_the_power_of_two_nearest_to_the_entries() -> None:
    counts = (1, 16, 17, 23, 1_000, (1 << 20) + 1)

    assert [len(empty_heads(count)) for count in counts] == [16, 16, 16, 32, 1024, 1 << 20]
