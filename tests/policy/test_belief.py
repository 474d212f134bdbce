"""An index is believed as far as it was right of late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.control.board import WORKER
from jevons.policy.belief import CLAIMS_FADE, GUESS_CLAIMED_TOKENS, GUESS_EVICTED_SHARE, confidence, confirm


def believed(*claims: tuple[int, int]) -> float:
    w: Any = np.zeros(1, WORKER)[0]
    for claimed, cached in claims:
        confirm(w, claimed, cached)
    return float(confidence(w))


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 7_000)), max_size=60))
def test_belief_is_the_share_of_the_last_claims_that_was_there(claims: list[tuple[int, int]]) -> None:
    claimed = confirmed = 0.0
    for told, cached in claims:
        if told:
            claimed, confirmed = claimed * CLAIMS_FADE + told, confirmed * CLAIMS_FADE + min(told, cached)
    share = (GUESS_CLAIMED_TOKENS + confirmed) / (GUESS_CLAIMED_TOKENS + claimed)

    assert believed(*claims) == pytest.approx(min(1.0, share / (1 - GUESS_EVICTED_SHARE)))
    assert 0 < believed(*claims) <= 1


def test_who_claims_nothing_is_not_judged() -> None:
    assert believed() == believed(*[(0, 500)] * 100) == 1.0


def test_a_block_evicted_in_a_bad_moment_is_no_lie() -> None:
    assert believed((4_096, 4_064), (512, 480)) == 1.0


def test_what_was_there_beyond_a_claim_does_not_make_up_for_what_was_not() -> None:
    assert believed(*[(1_000, 0), (1_000, 2_000)] * 50) == pytest.approx(believed(*[(1_000, 0), (1_000, 1_000)] * 50))


def test_who_is_right_again_is_believed_again() -> None:
    lies, truths = [(1_000, 0)] * 100, [(1_000, 1_000)] * 200

    assert believed(*lies) < 0.1
    assert believed(*lies, *truths) > 0.99
