"""Time as an argument: the seam between live and simulated, and a clock moved by hand."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed moment; never goes back."""

    def now_s(self) -> float: ...


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "a clock never goes back"
        self._now_s += seconds
