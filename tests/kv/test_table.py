"""The hash table of kernels finds what is in it, whatever shares a head and wherever it was put in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jevons.kv.table import LEAST_HEADS, find_from, head_among, insert_at, key_of, name_of, remove_at, split

ENTRY = np.dtype([("key", np.int64), ("link", np.int32)])
MOST = 100  # heads


class Table:
    """Of few heads at first, with room for more."""

    def __init__(self) -> None:
        self.heads, self.entries = np.zeros(MOST, np.int32), np.zeros(len(KEYS), ENTRY)
        self.used, self.mask = LEAST_HEADS, LEAST_HEADS - 1

    def head(self, key: int) -> int:
        return head_among(self.used, self.mask, key)

    def find(self, key: int) -> int:
        return find_from(self.heads[self.head(key)], self.entries, key)

    def grow(self) -> None:
        if self.used < MOST:
            self.used += 1
            self.mask |= self.used - 1
            split(self.heads, self.used, self.mask, self.entries)


# Keys of two heads only, so that lists are long; and some that are far apart.
CROWD = [key for key in range(4_000) if head_among(LEAST_HEADS, LEAST_HEADS - 1, key) in (3, 4)][:24]
KEYS = [*CROWD, -1, 0, (1 << 63) - 1, -(1 << 63), *range(1 << 40, (1 << 40) + 8)]


@given(st.lists(st.tuples(st.sampled_from(["insert", "remove", "grow"]), st.sampled_from(KEYS)), max_size=240))
def test_keys_are_found_where_they_were_put_until_they_are_taken_out(operations: list[tuple[str, int]]) -> None:
    table, places = Table(), dict[int, int]()
    spare = list(range(len(KEYS)))
    for what, key in operations:
        if what == "grow":
            table.grow()
        elif what == "insert" and key not in places:
            places[key] = spare.pop()
            table.entries[places[key]]["key"] = key
            insert_at(table.heads, table.head(key), table.entries, places[key])
        elif what == "remove" and key in places:
            remove_at(table.heads, table.head(key), table.entries, places[key])
            spare.append(places.pop(key))

    assert {key: table.find(key) for key in KEYS} == {key: places.get(key, -1) for key in KEYS}


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 1 << 20))
def test_a_name_comes_back_from_its_key(name: int, owner: int) -> None:
    assert name_of(key_of(name, owner), owner) == name


def test_small_names_of_different_owners_never_meet() -> None:
    names, owners = (0, 1, 2, (1 << 40) - 2, (1 << 40) - 1), (0, 1, 2, 4_095, (1 << 14) - 1)

    assert len({key_of(name, owner) for name in names for owner in owners}) == len(names) * len(owners)
