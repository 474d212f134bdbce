"""The bounds that benches tell beside what was reused, held to every choice there is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import combinations

from bench.bounds import BLOCK, Asked, Belady, Lru, reused


def best(asked: Sequence[Asked], blocks: int) -> float:
    """By trying all that a pool could keep after each request; of a chain its leading blocks."""

    def prefixes(held: frozenset[int], ids: Sequence[int]) -> int:
        return next((depth for depth, id in enumerate(ids) if id not in held), len(ids))

    @cache
    def most(number: int, held: frozenset[int]) -> int:
        if number == len(asked):
            return 0
        ids = asked[number].ids
        there = sorted(held | set(ids))
        kept = combinations(there, min(blocks, len(there)))
        return prefixes(held, ids) + max(most(number + 1, frozenset(each)) for each in kept)

    return most(0, frozenset()) * BLOCK / sum(each.prompt_tokens for each in asked)


def some(seed: int) -> list[Asked]:
    """Chains of a tree, two blocks deep, each with a token more than its blocks."""
    draw = random.Random(seed)
    chains = [[root, 10 * root + leaf] for root in (1, 2, 3) for leaf in (1, 2)]
    return [Asked(2 * BLOCK + 1, draw.choice(chains)) for _ in range(8)]


def test_belady_reuses_as_much_as_can_be() -> None:
    for seed in range(12):
        asked = some(seed)
        assert reused(asked, Belady(3, asked)) == best(asked, 3)
        assert reused(asked, Lru(3)) <= best(asked, 3)


def test_what_is_used_again_soon_stays_and_lru_lets_it_go() -> None:
    a, b, c = ([number] for number in (1, 2, 3))
    asked = [Asked(BLOCK + 1, ids) for ids in (a, b, c, a, b)]
    assert reused(asked, Lru(2)) == 0
    assert reused(asked, Belady(2, asked)) == 2 * BLOCK / (5 * (BLOCK + 1))
