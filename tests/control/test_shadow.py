"""What a worker without KV events is believed to hold."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import pytest

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


def test_a_prompt_placed_twice_within_a_step_of_time_is_kept_once() -> None:
    shadow, holding = make()
    for turn in range(200):
        shadow.placed(names([*range(20), 100 + turn % 7]), 1.0 + turn * 0.001)
    assert sum(len(blocks) for _, blocks in shadow._placed) == 27
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
