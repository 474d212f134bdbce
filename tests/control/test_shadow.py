"""What a worker without KV events is believed to hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil, inf

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jevons.base.compiled import Ints
from jevons.control import shadow as module
from jevons.control.book import Book
from jevons.control.shadow import Shadow
from jevons.kv.index import Holding


def names(blocks: Sequence[int]) -> Ints:
    return np.array(blocks, np.int64) * 0x1234567 + 1


def make() -> tuple[Shadow, Holding]:
    _, holding = Book(0).add_worker(lambda: None)
    return Shadow(holding, 10.0), holding


def test_a_block_is_held_until_the_last_prompt_that_had_it_expires() -> None:
    shadow, holding = make()
    shadow.placed(names([1, 2, 3]), 0.0)
    shadow.placed(names([1, 2]), 5.0)
    shadow.expire(10.0)
    assert (holding.depth_of(names([1, 2, 3])), shadow.expires_s) == (2, 15.0)
    shadow.expire(15.0)
    assert (len(holding), shadow.expires_s) == (0, inf)


def test_of_too_many_blocks_the_tail_of_the_oldest_prompt_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SHADOW_BLOCKS", 5)
    shadow, holding = make()
    shadow.placed(names([1, 2, 3]), 0.0)
    shadow.placed(names([4, 5, 6]), 1.0)
    assert len(holding) == 5
    assert holding.depth_of(names([1, 2, 3])) == 2
    assert holding.depth_of(names([4, 5, 6])) == 3


def test_a_prompt_that_lost_its_head_to_others_within_a_step_of_time_gets_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SHADOW_BLOCKS", 8)
    shadow, holding = make()
    shadow.placed(names([1, 2, 3, 4]), 0.0)
    shadow.placed(names([11, 12, 13, 14, 15, 16]), 0.0)  # the first prompt's 3 and 4 have to go
    shadow.placed(names([1, 2, 3, 4]), 0.0)  # they come back as the newest, and 1 and 2, the oldest now, go for them
    shadow.placed(names([1, 2, 3, 4]), 0.0)
    assert holding.depth_of(names([1, 2, 3, 4])) == 4


def test_a_prompt_placed_twice_within_a_step_of_time_is_kept_once() -> None:
    shadow, holding = make()
    for turn in range(200):
        shadow.placed(names([*range(20), 100 + turn % 7]), 1.0 + turn * 0.001)
    assert len(shadow) == 27
    shadow.expire(11.2)
    assert holding.depth_of(names([*range(20), 103])) == 21
    shadow.expire(11.25)
    assert len(holding) == 0


def test_a_worker_that_begins_anew_holds_nothing() -> None:
    shadow, holding = make()
    shadow.placed(names([1, 2, 3]), 0.0)
    shadow.reset()
    shadow.expire(100.0)
    assert len(holding) == 0
    shadow.placed(names([1, 2]), 101.0)
    assert len(holding) == 2


class Plain:
    """What `Shadow` is held to: the same in plain Python, for few blocks."""

    def __init__(self, ttl_s: float, most: int) -> None:
        self._ttl_s, self._step_s, self._most = ttl_s, ttl_s / 8, most
        self.until: dict[int, float] = {}
        self._placed: deque[tuple[int, float]] = deque()  # block, when it expires, in order

    def placed(self, blocks: Sequence[int], now_s: float) -> None:
        until_s = ceil(now_s / self._step_s) * self._step_s + self._ttl_s
        rest = [block for block in blocks if self.until.get(block) != until_s]
        self.until.update(dict.fromkeys(rest, until_s))
        self._placed += [(block, until_s) for block in reversed(rest)]
        self.expire(now_s)

    @property
    def expires_s(self) -> float:
        return self._placed[0][1] if self._placed else inf

    def expire(self, now_s: float) -> None:
        while self._placed and (self.expires_s <= now_s or len(self.until) > self._most):
            block, until_s = self._placed.popleft()
            if self.until.get(block) == until_s:
                del self.until[block]


# Conversations: which one it is of, how many of its blocks it has, and how long after the one before.
PROMPTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400), st.sampled_from([0.0, 0.1, 1.3, 6.0, 30.0])))


@given(PROMPTS)
@example([(1, 255, 0.0), (5, 396, 0.0), (2, 274, 0.0), (1, 73, 0.0), (1, 299, 0.0)])
def test_it_holds_what_the_rule_says(prompts: list[tuple[int, int, float]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_SHADOW_BLOCKS", 700)
        (shadow, holding), plain, now_s = make(), Plain(10.0, 700), 0.0
        for talk, size, later_s in prompts:
            now_s += later_s
            shadow.expire(now_s)
            plain.expire(now_s)
            blocks = names(range(1_000 * talk, 1_000 * talk + size))
            shadow.placed(blocks, now_s)
            plain.placed(blocks.tolist(), now_s)
            assert shadow.expires_s == plain.expires_s
            assert len(holding) == len(plain.until)
        assert all(holding.depth_of(np.array([block])) == 1 for block in plain.until)
