"""Whether a source of KV events is still in the life in which it was known: who starts anew counts from 0 again.

Numbers alone cannot tell: what a new life says first may be lost, up to the number that was expected. A replay tells
that holds the last batch taken: in the same life it has the same time still.
"""

from __future__ import annotations

from typing import NamedTuple


class Mark(NamedTuple):
    """The last batch taken when a doubt arose."""

    seq: int
    ts: float  # the source's clock, seconds since 1970
    is_grave: bool  # a connection was closed: that the batch is not there is proof enough


class Doubts:
    """Of one source. What is asked is about the oldest batch in doubt: later ones may be of another life already."""

    def __init__(self) -> None:
        self._next: Mark | None = None  # for the next replay to settle
        self._asked: Mark | None = None  # for the one under way

    def add(self, mark: Mark) -> None:
        self._next = _older(self._next, mark)

    def clear(self) -> None:
        self._next = self._asked = None

    def begin(self) -> int | None:
        """A replay is about to be asked for. Returns the number of the batch that is to be in it."""
        self._asked, self._next = _older(self._asked, self._next), None
        return None if self._asked is None else self._asked.seq

    def on_replayed(self, seq: int, ts: float) -> bool:
        """A batch of the replay, in rising order. Returns whether it shows another life."""
        asked = self._asked
        if asked is None or seq < asked.seq:
            return False
        self._asked = None
        return asked.is_grave if seq > asked.seq else ts != asked.ts

    def is_open(self, seq: int) -> bool:
        """Whether batch `seq` of a replay will settle something."""
        return self._asked is not None and seq >= self._asked.seq

    def on_end(self, is_complete: bool, keeps_batches: bool, last_heard: int) -> bool:
        """The replay is over. Returns whether it shows another life, by what is not in it.

        Args:
            keeps_batches: others of this source had some in them.
            last_heard: the highest number that came by itself meanwhile; -1: none did.
        """
        asked = self._asked
        if asked is None or not is_complete:
            return False  # one that was not answered is settled by the next
        self._asked = None
        return asked.is_grave or (keeps_batches and last_heard <= asked.seq)


def _older(one: Mark | None, other: Mark | None) -> Mark | None:
    if one is None or other is None:
        return one or other
    return min(one, other)._replace(is_grave=one.is_grave or other.is_grave)
