"""What would be late is refused, if it wants to be."""

from __future__ import annotations

from jevons.policy.admit import Promise


def test_what_will_be_in_time_is_admitted() -> None:
    assert Promise(2.0, refuse_late=True).verdict(2.0, 1.0, 100) is None
    assert Promise(tpot_s=0.05, refuse_late=True).verdict(9.0, 0.05, 100) is None


def test_what_will_be_late_is_told_when_to_come_again() -> None:
    assert Promise(2.0, refuse_late=True).verdict(5.5, 1.0, 100) == 4.0
    assert Promise(2.0, refuse_late=True).verdict(2.01, 1.0, 100) == 1.0


def test_an_answer_whose_tokens_come_too_slowly_is_late_by_all_of_them() -> None:
    assert Promise(2.0, 0.05, refuse_late=True).verdict(1.0, 0.0625, 200) == 3.0
    assert Promise(2.0, 0.05, refuse_late=True).verdict(6.5, 0.0625, 200) == 5.0


def test_who_would_rather_be_late_than_refused_is_served() -> None:
    assert Promise(2.0, 0.05).verdict(100.0, 1.0, 100) is None
    assert Promise().verdict(100.0, 1.0, 100) is None
