"""Which block of a tier to give up when another needs its place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class Lru(Generic[K]):
    """The least recently used."""

    def __init__(self) -> None:
        self._order: OrderedDict[K, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def insert(self, key: K, size_bytes: int, worth_s: float, now_s: float) -> None:
        self._order[key] = None

    def hit(self, key: K, now_s: float) -> None:
        self._order.move_to_end(key)

    def remove(self, key: K) -> None:
        self._order.pop(key, None)

    def victim(self, is_kept: Callable[[K], bool]) -> K | None:
        for key in self._order:
            if not is_kept(key):
                del self._order[key]
                return key
        return None
