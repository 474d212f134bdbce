"""By how much a promise would be missed, and when to come again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.policy.admit import USUAL, Promise, again_s


def test_what_will_be_in_time_is_not_late() -> None:
    assert Promise(2.0).late_s(2.0, 1.0, 100) == 0
    assert Promise(tpot_s=0.05).late_s(9.0, 0.05, 100) == 0
    assert USUAL.late_s(100.0, 1.0, 100) == 0


def test_a_first_token_is_late_by_its_seconds() -> None:
    assert Promise(2.0).late_s(5.5, 1.0, 100) == 3.5


def test_an_answer_whose_tokens_come_too_slowly_is_late_by_all_of_them() -> None:
    assert Promise(2.0, 0.05).late_s(1.0, 0.0625, 200) == pytest.approx(2.5)
    assert Promise(2.0, 0.05).late_s(6.5, 0.0625, 200) == 4.5


def test_who_is_refused_is_told_to_come_again_in_whole_seconds_at_least_one() -> None:
    assert [again_s(late_s) for late_s in (0.01, 1.0, 3.5)] == [1.0, 1.0, 4.0]


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0, 20), st.floats(0.001, 1), st.floats(1, 1_000))
def test_a_tighter_promise_is_never_kept_where_a_looser_one_is_missed(
    one_s: float, other_s: float, ttft_s: float, tpot_s: float, tokens: float
) -> None:
    tight, loose = Promise(min(one_s, other_s)), Promise(max(one_s, other_s))

    assert tight.late_s(ttft_s, tpot_s, tokens) >= loose.late_s(ttft_s, tpot_s, tokens)
