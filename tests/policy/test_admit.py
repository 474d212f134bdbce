"""What would be late is refused, if it wants to be."""

from __future__ import annotations

from jevons.policy.admit import Promise


def test_what_will_be_in_time_is_admitted() -> None:
    assert Promise(2.0, refuse_late=True).verdict(2.0) is None


def test_what_will_be_late_is_told_when_to_come_again() -> None:
    assert Promise(2.0, refuse_late=True).verdict(5.5) == 4.0
    assert Promise(2.0, refuse_late=True).verdict(2.01) == 1.0


def test_who_would_rather_be_late_than_refused_is_served() -> None:
    assert Promise(2.0).verdict(100.0) is None
    assert Promise().verdict(100.0) is None
