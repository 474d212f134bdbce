from __future__ import annotations

from jevons.base.ids import WorkerId
from jevons.control.roster import Roster
from jevons.facts.worker import Health

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")


def test_who_is_late_becomes_suspect_a_few_at_a_time() -> None:
    roster = Roster(hang_s=1.0)
    for worker in (A, B, C):
        roster.heard(worker, 0.0)
    assert [roster.suspects(2.0, most=2) for _ in range(3)] == [[A, B], [C], []]


def test_nobody_was_silent_while_nobody_was_listened_to() -> None:
    roster = Roster(hang_s=1.0)
    roster.heard(A, 0.0)
    roster.heard(B, 0.5)
    roster.excuse(3.0)

    assert roster.suspects(3.9) == []
    assert roster.suspects(4.2) == [A]
    assert roster.silent(4.2, 1.0) == [A]
    assert roster.suspects(4.6) == [B]


def test_somebody_is_up_until_the_last_one_is_not() -> None:
    roster = Roster(hang_s=1.0)
    assert not roster.has_up
    for worker in (A, B, C):
        roster.heard(worker, 0.0)
    roster.gone(A)
    roster.forget(A)
    roster.forget(B)
    assert roster.has_up
    roster.heard(C, 0.0, silent_s=2.0)
    assert roster.health(C) is Health.SUSPECT
    assert not roster.has_up
