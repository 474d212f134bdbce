"""Blocks kept until a time because somebody said they will be back: an agent that runs a tool, a user who types."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable
from itertools import count
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class _Pin(NamedTuple):
    until_s: float
    size_bytes: int
    turn: int  # tells it from another pin of the same key; breaks ties, so that keys are never compared


class Pins(Generic[K]):
    """Which blocks of one tier are pinned, up to a limit, so that hints cannot fill it. O(log n) a block."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.pinned_bytes = 0  # never above the limit
        self.refused = 0  # blocks that the limit turned away, ever
        self._pins: dict[K, _Pin] = {}
        self._lapses: list[tuple[float, int, K]] = []  # for each pin: when to look at it, its turn
        self._turns = count()

    def __len__(self) -> int:
        return len(self._pins)

    def keep(self, keys: Iterable[K], size_bytes: int, until_s: float, now_s: float) -> int:
        """Pin blocks of `size_bytes` each; those pinned already stay until the later of both times.

        Args:
            keys: a prompt's blocks, first to last: where the limit cuts, its tail goes without.

        Returns:
            How many of `keys`, from the first on, are pinned now.
        """
        self.lapse(now_s)
        keys = list(keys)
        kept = next((i for i, key in enumerate(keys) if not self._keep(key, size_bytes, until_s)), len(keys))
        self.refused += len(keys) - kept
        return kept

    def is_kept(self, key: K, now_s: float) -> bool:
        pin = self._pins.get(key)
        return pin is not None and pin.until_s > now_s

    def drop(self, key: K) -> None:
        """The block is gone, and its pin with it, if it had one."""
        pin = self._pins.pop(key, None)
        if pin is not None:
            self.pinned_bytes -= pin.size_bytes

    def lapse(self, now_s: float) -> None:
        """Forget the pins whose time is over. `keep` does so first."""
        while self._lapses and self._lapses[0][0] <= now_s:
            _, turn, key = heapq.heappop(self._lapses)
            pin = self._pins.get(key)
            if pin is None or pin.turn != turn:
                continue  # dropped meanwhile
            if pin.until_s <= now_s:
                self.drop(key)
            else:  # pinned for longer meanwhile
                heapq.heappush(self._lapses, (pin.until_s, turn, key))

    def _keep(self, key: K, size_bytes: int, until_s: float) -> bool:
        pin = self._pins.get(key)
        if pin is not None:
            self._pins[key] = pin._replace(until_s=max(pin.until_s, until_s))
            return True
        if self.pinned_bytes + size_bytes > self.limit_bytes:
            return False
        pin = self._pins[key] = _Pin(until_s, size_bytes, next(self._turns))
        self.pinned_bytes += size_bytes
        heapq.heappush(self._lapses, (until_s, pin.turn, key))
        return True
