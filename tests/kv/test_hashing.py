"""Block hashes name prefixes: equal hash, equal prefix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import ConfigError
from jevons.kv.hashing import block_hashes, chain, root

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=200)


def test_only_full_blocks_have_a_hash() -> None:
    assert len(block_hashes(range(40), block_size=16)) == 2


def test_salt_adapter_and_block_size_separate_equal_prompts() -> None:
    kinds = [
        block_hashes(range(32), 16),
        block_hashes(range(32), 16, salt="a"),
        block_hashes(range(32), 16, adapter="a"),
        block_hashes(range(32), 32),
    ]

    assert len({names[0] for names in kinds}) == 4


@given(TOKENS, TOKENS, st.integers(1, 32))
def test_hashes_agree_exactly_as_far_as_the_prompts_do(a: list[int], b: list[int], size: int) -> None:
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    ha, hb = block_hashes(a, size), block_hashes(b, size)

    assert ha[: same // size] == hb[: same // size]
    assert all(x != y for x, y in zip(ha[same // size :], hb[same // size :], strict=False))


@given(TOKENS, st.integers(1, 8), st.integers(0, 10))
def test_a_chain_may_be_hashed_in_parts(tokens: list[int], size: int, blocks: int) -> None:
    cut = min(blocks, len(tokens) // size)
    head = chain(tokens[: cut * size], size, root(size))
    tail = chain(tokens[cut * size :], size, head[-1] if head else root(size))

    assert head + tail == block_hashes(tokens, size)


def test_extra_keys_of_a_block_change_it_and_all_after_it() -> None:
    plain = chain(range(12), 4, root(4))
    with_image = chain(range(12), 4, root(4), [b"", b"image", b""])

    assert [x == y for x, y in zip(plain, with_image, strict=True)] == [True, False, False]


def test_a_block_size_below_one_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="block_size: must be at least 1 token, got 0"):
        block_hashes([1, 2, 3], block_size=0)
