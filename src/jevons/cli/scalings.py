"""What started and stopped instances in a rehearsal, in words."""

from __future__ import annotations

from jevons.base.units import clock
from jevons.twin.report import Report

_MOST = 24


def scalings(report: Report) -> list[str]:
    """Each change with its reason: the first and the last of them, where there are many."""
    told = [f"{clock(each.at_s)} {each.role} {each.before} → {each.wanted}: {each.reason}" for each in report.changes]
    if len(told) <= _MOST:
        return told
    half = _MOST // 2
    return [*told[:half], f"… {len(told) - 2 * half} more, all of them with --json …", *told[-half:]]
