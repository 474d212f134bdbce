"""The breaker: a store that fails is left alone for a while, so that a dead one costs requests nothing.

    WORKING ──`failures` in a row──▶ RESTING ──rest over: one request admitted──▶ PROBING ──it works──▶ WORKING
                                        ▲                                            │
                                        └──────── it fails: the rest doubles ────────┘

One for every tier that is not this machine's own.
"""

from __future__ import annotations

import enum

# Outcomes of a store that works: the block, or a right answer about it. A store whose blocks are corrupt or others than
# asked for is of no more use than one that does not answer, so those words count as failures.
_WORKED = frozenset({None, "missing", "full", "undecryptable"})


class State(enum.StrEnum):
    WORKING = "working"
    RESTING = "resting"
    PROBING = "probing"


class Breaker:
    """
    Args:
        failures: in a row, after which the store rests.
        rest_s: the first rest.
        max_rest_s: the longest; each rest is twice the one before until the store works again.
    """

    def __init__(self, failures: int = 5, rest_s: float = 1.0, max_rest_s: float = 60.0) -> None:
        assert failures >= 1, "a store that never failed is not given a rest"
        assert 0 < rest_s <= max_rest_s, "rests grow"
        self.state = State.WORKING
        self.skipped = 0  # requests that were not admitted
        self._failures = failures
        self._first_rest_s = rest_s
        self._max_rest_s = max_rest_s
        self._streak = 0  # failures in a row while working
        self._rest_s = rest_s  # the rest under way, or the next one
        self._until_s = 0.0  # nobody is admitted before, unless it works

    def admit(self, now_s: float) -> bool:
        """Whether a request may go to the store now; if so, tell `record` how it ended.

        At the end of a rest one may, as a probe. Should nothing be recorded, another may after the longest rest.
        """
        if self.state is State.WORKING:
            return True
        if now_s < self._until_s:
            self.skipped += 1
            return False
        self.state = State.PROBING
        self._until_s = now_s + self._max_rest_s
        return True

    def record(self, now_s: float, lost: str | None) -> None:
        """A request has ended: well (None), or for this reason, a word of `facts.block.LOST`.

        Any success ends a rest. A failure during one is of a request admitted before it, and changes nothing.
        """
        if lost in _WORKED:
            self.state, self._streak, self._rest_s = State.WORKING, 0, self._first_rest_s
        elif lost == "cancelled":
            if self.state is State.PROBING:
                self._until_s = now_s  # the probe taught nothing: the next request may be another
        elif self.state is State.WORKING:
            self._streak += 1
            if self._streak >= self._failures:
                self._rest(now_s)
        elif self.state is State.PROBING:
            self._rest_s = min(2 * self._rest_s, self._max_rest_s)
            self._rest(now_s)

    def _rest(self, now_s: float) -> None:
        self.state = State.RESTING
        self._until_s = now_s + self._rest_s
