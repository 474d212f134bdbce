"""Which block a tier gives up next.

Least recently used, but a block may wait the longer for its next use the more it is worth: the victim is the block
whose wait, over its value, is longest.

    value = predicted seconds to compute it again / bytes it takes · (2 if it was used again since it came)

Values are rounded to a quarter of a power of two, so blocks of equal value stand in one queue, oldest first, and only
the heads of a few queues are compared. What was given up is remembered for a while: a block that comes back counts as
used again.

    insert ──▶ queue of its value ──hit──▶ end of the queue of twice that ──victim──▶ remembered
                     └──victim, kept by a lease or pin──▶ aside ──first to go once let go

Chains: a block is useless without those before it, so give the blocks of one prompt in order last to first: then, among
equals, a chain loses its tail before its head.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_STEPS = 4  # levels in a factor of two of value; with one, rounding gave away a third of what worths gain
_LEAST_VALUE = 1e-30  # seconds per byte: none at all; it keeps the logarithm finite


class Evictor(Generic[K]):
    """The blocks of one tier in the order in which they may go. O(1) an operation; times never run backwards."""

    def __init__(self) -> None:
        self._level: dict[K, int] = {}  # of the value of every block here, _STEPS · log2
        self._used_again: set[K] = set()
        self._queues: dict[int, OrderedDict[K, float]] = {}  # by level: when each was last used, oldest first
        self._aside: OrderedDict[K, None] = OrderedDict()  # found kept when it was their turn to go
        self._gone: OrderedDict[K, None] = OrderedDict()  # given up lately, about as many as are here

    def __len__(self) -> int:
        return len(self._level)

    def __contains__(self, key: object) -> bool:
        return key in self._level

    def insert(self, key: K, size_bytes: int, worth_s: float, now_s: float) -> None:
        """A block has come.

        Args:
            key: not here yet.
            size_bytes: at least 1.
            worth_s: predicted seconds to compute it again, as if it began its prompt. That attention makes deep blocks
                dearer is left out on purpose: it would make a chain lose its head before its tail, which was measured
                to cost more than it saves.
            now_s: seconds on any clock that does not run backwards.
        """
        assert key not in self._level, f"block {key!r} came twice"
        level = round(_STEPS * math.log2(max(worth_s / size_bytes, _LEAST_VALUE)))
        if key in self._gone:
            del self._gone[key]
            self._used_again.add(key)
            level += _STEPS
        self._level[key] = level
        self._join(key, level, now_s)

    def hit(self, key: K, now_s: float) -> None:
        """A block that is here was used."""
        level = self._leave(key)
        if key not in self._used_again:
            self._used_again.add(key)
            level += _STEPS
        self._level[key] = level
        self._join(key, level, now_s)

    def remove(self, key: K) -> None:
        """A block that is here is gone for another reason; it is not remembered."""
        self._leave(key)
        del self._level[key]
        self._used_again.discard(key)

    def victim(self, is_kept: Callable[[K], bool], now_s: float) -> K | None:
        """Take out the block to give up next; None if all are kept.

        A kept block whose turn it is goes aside, where each call looks at one of them: one that was let go is the next
        victim within as many calls as blocks are aside, and blocks kept for long cost nothing more. Only when every
        block is aside are all of them asked.
        """
        key = self._let_go(is_kept)
        if key is None:
            key = self._longest_waiting(is_kept, now_s)
        if key is None:
            key = next((key for key in self._aside if not is_kept(key)), None)
        if key is not None:
            self.remove(key)
            self._remember(key)
        return key

    def _let_go(self, is_kept: Callable[[K], bool]) -> K | None:
        """The next block aside, if it is not kept any more."""
        if not self._aside:
            return None
        key = next(iter(self._aside))
        if not is_kept(key):
            return key
        self._aside.move_to_end(key)
        return None

    def _longest_waiting(self, is_kept: Callable[[K], bool], now_s: float) -> K | None:
        """The block in a queue that has waited longest for its value; kept ones before it go aside."""
        while (key := self._oldest(now_s)) is not None and is_kept(key):
            self._drop(key, self._level[key])
            self._aside[key] = None
        return key

    def _oldest(self, now_s: float) -> K | None:
        """The head of the queue whose head has waited longest for its value; of equal waits the least worth."""
        longest, oldest = (-1.0, 0), None
        for level, queue in self._queues.items():
            key, used_s = next(iter(queue.items()))
            wait = ((now_s - used_s) * 2.0 ** (-level / _STEPS), -level)
            if wait > longest:
                longest, oldest = wait, key
        return oldest

    def _remember(self, key: K) -> None:
        self._gone[key] = None
        while len(self._gone) > len(self._level) + 1:
            self._gone.popitem(last=False)

    def _join(self, key: K, level: int, now_s: float) -> None:
        queue = self._queues.get(level)
        if queue is None:
            queue = self._queues[level] = OrderedDict()
        queue[key] = now_s

    def _leave(self, key: K) -> int:
        """Out of its queue; returns its level."""
        level = self._level[key]
        if key in self._aside:
            del self._aside[key]
        else:
            self._drop(key, level)
        return level

    def _drop(self, key: K, level: int) -> None:
        """Out of the queue of `level`, which goes when it is empty: each is looked at for a victim."""
        queue = self._queues[level]
        del queue[key]
        if not queue:
            del self._queues[level]
