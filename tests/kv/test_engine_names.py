"""The table of an engine's names against a dict of them."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.base.ids import BlockHash
from jevons.kv.blake2b import name_chain, name_prompt
from jevons.kv.engine_names import EngineNames, number_of
from jevons.kv.hashing import block_hashes, chain, root

NAMES = [*range(40), -1, 2**63, 2**64 - 2, b"short", b"x" * 32, b"y" + b"x" * 35]


def ours(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "big"))


@settings(max_examples=200, deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.sampled_from(["put", "put", "take"]), st.sampled_from(NAMES)), max_size=300))
def test_names_are_found_until_as_many_copies_are_taken_as_were_put(operations: list[tuple[str, int | bytes]]) -> None:
    table, plain = EngineNames(), dict[int | bytes, list[BlockHash]]()
    for i, (what, name) in enumerate(operations):
        if what == "put":
            table.put(name, ours(i))
            plain[name] = [ours(i)] * (len(plain.get(name, [])) + 1)
        else:
            copies = plain.get(name)
            assert table.take(name) == (copies.pop() if copies else None)
            if not copies:
                plain.pop(name, None)

    assert [table.get(name) for name in NAMES] == [plain.get(name, [None])[0] for name in NAMES]
    assert len(table) == len(plain)


def test_a_table_of_many_is_never_emptier_than_growing_makes_it() -> None:
    table = EngineNames()
    for number in range(20_000):
        table.put(number * 0x9E3779B97F4A7C15 % 2**64, ours(number))

    assert all(table.get(number * 0x9E3779B97F4A7C15 % 2**64) == ours(number) for number in range(20_000))
    assert table.size_bytes <= 24 * 1.25 * 1.25 * 20_000 + 24


def test_signed_and_unsigned_numbers_and_the_ends_of_digests_are_the_same_name() -> None:
    digest = bytes(range(200, 232))

    assert number_of(2**64 - 5) == number_of(-5) == -5
    assert number_of(digest) == number_of(int.from_bytes(digest[-8:], "big"))


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 28, 29, 32, 60, 61, 64, 100, 128])
@given(st.data())
@settings(max_examples=10, deadline=None)
def test_the_kernel_names_blocks_as_hashlib_does(size: int, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=size, max_size=3 * size + 1))
    named = np.zeros(2 * (len(tokens) // size), np.int64)
    name_chain(np.frombuffer(root(size), np.int64), np.array(tokens, np.uint32), size, named)

    assert named.tobytes() == b"".join(chain(tokens, size, root(size)))


@pytest.mark.parametrize("tokens", [[], [1, 2, 3], list(range(40)), array("I", range(33))])
def test_a_prompt_has_the_same_names_by_the_kernel(tokens: list[int]) -> None:
    raw, names = name_prompt(tokens, 16, salt="tenant", adapter="sql")

    assert names.tobytes() == b"".join(block_hashes(tokens, 16, salt="tenant", adapter="sql"))
    assert raw.tolist() == list(tokens)
