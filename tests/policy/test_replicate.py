"""Copies of a prefix that many want: where they pay, and where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jevons.policy.replicate import where_to_copy
from jevons.policy.route import CANDIDATE, Weights, choose, weigh

USUAL: Weights = (0.0, 0.0, float("inf"), 0.0, 20.0, 0.0)
PROMPT = 1_000


def fleet(*workers: dict[str, float]) -> Any:
    """Workers that compute a token in 1 ms, and whose steps take 1 µs longer for each token attended to."""
    made = np.zeros(len(workers), CANDIDATE)
    made["per_token_s"], made["per_context_s"], made["step_tokens"] = 0.001, 1e-6, 10_000
    for i, fields in enumerate(workers):
        made[i]["worker"] = i
        for name, value in fields.items():
            made[i][name] = value
    return made


HOLDER: dict[str, float] = {"cached": 900, "requests": 10, "decoding": 10, "context": 10_000}


def copied(made: Any, wanted: float) -> int:
    return where_to_copy(made, choose(made, PROMPT, USUAL), PROMPT, USUAL, wanted)


def test_a_prefix_that_many_want_is_computed_once_more_before_its_holder_melts() -> None:
    made = fleet(HOLDER, {})
    assert choose(made, PROMPT, USUAL) == 0  # 0.1 s and 20 · 0.5 · 0.02 s for streams that meet, against 1 s

    assert copied(made, 0.0) == -1
    assert copied(made, 4.0) == -1  # a copy costs 0.7 s more, and saves 0.2 s each time; each holder gets half
    assert copied(made, 8.0) == 1


def test_no_copy_is_made_where_it_would_save_nobody_anything() -> None:
    idle_holder: dict[str, float] = {"cached": 900}

    assert copied(fleet(idle_holder, {}), 1_000.0) == -1
    assert copied(fleet(HOLDER, HOLDER | {"cached": 0, "context": 20_000}), 1_000.0) == -1


def test_the_more_hold_it_the_less_one_more_saves() -> None:
    holders = [HOLDER] * 4

    assert copied(fleet(*holders, {}), 8.0) == -1
    assert copied(fleet(*holders, {}), 20.0) == 4


def test_what_candidates_cost_is_told_as_it_was() -> None:
    made = fleet(HOLDER, {})
    choose(made, PROMPT, USUAL)
    before = made.copy()

    copied(made, 8.0)

    assert (made == before).all()
    weigh(made[1], PROMPT, USUAL)
    assert made[1]["waiting_s"] == pytest.approx(1.0)
