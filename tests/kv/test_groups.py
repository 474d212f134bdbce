"""Tiers and groups of layers are kept apart, and a prompt is gone on from where all groups can."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jevons.facts.block import Tier
from jevons.kv.groups import FULL, names_in, window_blocks
from jevons.kv.index import PrefixIndex

NAMES = np.random.default_rng(0).integers(1, 1 << 62, 12)
HELD = st.sets(st.integers(0, len(NAMES) - 1))


def goes_on_after(held: list[set[int]], windows: list[int]) -> int:
    """The rule, block by block."""
    for depth in range(len(NAMES), 0, -1):
        reached = [range(0 if back == FULL else max(0, depth - back), depth) for back in windows]
        if all(set(blocks) <= having for blocks, having in zip(reached, held, strict=True)):
            return depth
    return 0


@given(st.lists(st.tuples(HELD, st.sampled_from([FULL, 1, 2, 3, 20])), min_size=1, max_size=3))
def test_a_prompt_is_gone_on_from_where_every_group_can(groups: list[tuple[set[int], int]]) -> None:
    index = PrefixIndex()
    holding, other = index.holding(0), index.holding(1)
    for group, (held, _) in enumerate(groups):
        holding.store_names(NAMES[sorted(held)], group)
        other.store_names(NAMES, group)

    windows = [back for _, back in groups]
    assert holding.reach(NAMES, dict(enumerate(windows))) == goes_on_after([held for held, _ in groups], windows)


def test_a_window_reaches_back_to_what_the_next_token_looks_at() -> None:
    assert [window_blocks(tokens, 16) for tokens in (1, 2, 17, 18, 128)] == [0, 1, 1, 2, 8]


def test_what_lies_in_one_tier_is_not_found_in_another() -> None:
    index = PrefixIndex()
    tiers = {tier: index.holding(0, tier=tier) for tier in Tier}
    for count, holding in enumerate(tiers.values(), 1):
        holding.store_names(NAMES[:count])
        holding.store_names(NAMES[:count])
    tiers[Tier.DRAM].remove_names(NAMES[:1])
    tiers[Tier.DISK].clear()

    assert [index.find(names_in(NAMES, tier))[1].tolist() for tier in (Tier.HBM, Tier.DRAM, Tier.REMOTE)] == [
        [1],
        [2],
        [5],
    ]
    assert [holding.depth_of(NAMES) for holding in tiers.values()] == [1, 2, 0, 4, 5]
    assert [len(holding) for holding in tiers.values()] == [1, 2, 0, 4, 5]


def test_a_copy_removed_in_one_group_stays_in_the_other() -> None:
    index = PrefixIndex()
    holding = index.holding(0)
    holding.store_names(NAMES)
    holding.store_names(NAMES, group=1)

    assert holding.remove_names(NAMES[4:], group=1) == 0
    assert holding.remove_names(NAMES[4:], group=1) == len(NAMES) - 4
    assert holding.depth_of(NAMES) == len(NAMES)
    assert holding.reach(NAMES, {0: FULL, 1: FULL}) == 4
