"""The breaker: a dead store costs a few requests and then next to none, and a store that is back is soon in use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.control.breaker import Breaker, State


def broken(now_s: float = 0.0) -> Breaker:
    """Rests for 1 s from `now_s` on, for 8 s at most."""
    breaker = Breaker(failures=3, rest_s=1.0, max_rest_s=8.0)
    for _ in range(3):
        assert breaker.admit(now_s)
        breaker.record(now_s, "timeout")
    return breaker


def test_failures_in_a_row_begin_a_rest_in_which_requests_are_skipped_and_counted() -> None:
    breaker = broken()

    assert breaker.state is State.RESTING
    assert [breaker.admit(now_s) for now_s in (0.0, 0.5, 0.999)] == [False] * 3
    assert breaker.skipped == 3


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = Breaker(failures=2)
    for lost in ("io", None, "io", "missing", "io"):
        breaker.record(0.0, lost)

    assert breaker.state is State.WORKING


@pytest.mark.parametrize("lost", ["missing", "full", "undecryptable", "cancelled"])
def test_right_answers_are_not_failures(lost: str) -> None:
    breaker = Breaker(failures=1)
    breaker.record(0.0, lost)

    assert breaker.admit(0.0)


@pytest.mark.parametrize("lost", ["io", "timeout", "denied", "gone", "corrupt", "mismatch"])
def test_a_store_that_is_of_no_use_gets_a_rest(lost: str) -> None:
    breaker = Breaker(failures=1)
    breaker.record(0.0, lost)

    assert not breaker.admit(0.0)


def test_after_a_rest_one_request_probes_and_its_success_lets_all_in() -> None:
    breaker = broken()

    assert [breaker.admit(1.0), breaker.admit(1.0)] == [True, False]
    breaker.record(1.2, None)
    assert [breaker.admit(1.2), breaker.admit(1.2)] == [True, True]


def test_each_probe_that_fails_doubles_the_rest_up_to_the_longest() -> None:
    breaker, now_s, rests = broken(), 0.0, []
    for rest_s in (1.0, 2.0, 4.0, 8.0, 8.0):
        assert not breaker.admit(now_s + rest_s - 0.001)
        now_s += rest_s
        assert breaker.admit(now_s)
        breaker.record(now_s, "gone")
        rests.append(rest_s)

    assert breaker.state is State.RESTING


def test_a_store_that_worked_again_begins_with_a_short_rest() -> None:
    breaker = broken()
    for now_s, lost in ((1.0, "io"), (3.0, None), (3.0, "io"), (3.0, "io"), (3.0, "io")):
        assert breaker.admit(now_s)
        breaker.record(now_s, lost)

    assert [breaker.admit(3.9), breaker.admit(4.0)] == [False, True]


def test_failures_of_requests_sent_before_the_rest_do_not_lengthen_it() -> None:
    breaker = broken()
    for _ in range(20):
        breaker.record(0.9, "timeout")

    assert breaker.admit(1.0)


def test_a_cancelled_probe_leaves_its_place_to_the_next_request() -> None:
    breaker = broken()
    breaker.admit(1.0)
    breaker.record(1.1, "cancelled")

    assert [breaker.admit(1.1), breaker.admit(1.1)] == [True, False]


def test_a_probe_that_is_never_heard_of_blocks_no_longer_than_the_longest_rest() -> None:
    breaker = broken()
    breaker.admit(1.0)

    assert [breaker.admit(8.9), breaker.admit(9.0)] == [False, True]


@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=200), st.floats(0.0, 300.0))
def test_a_dead_store_costs_few_requests_and_a_revived_one_is_used_within_the_longest_rest(
    gaps_s: list[float], revives_s: float
) -> None:
    breaker, now_s, tried, refused_after_s = Breaker(failures=3, rest_s=1.0, max_rest_s=8.0), 0.0, 0, 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        if breaker.admit(now_s):
            tried += now_s < revives_s
            breaker.record(now_s, "gone" if now_s < revives_s else None)
        elif now_s >= revives_s:
            refused_after_s = now_s - revives_s

    assert tried <= 3 + 3 + min(now_s, revives_s) / 8.0 + 1  # the streak, the rests of 1 to 4 s, then one each 8 s
    assert refused_after_s <= 8.0
