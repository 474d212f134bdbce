"""What a worker without KV events probably holds: what we placed on it, until it expires."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import inf

from jevons.base.ids import BlockHash
from jevons.kv.index import Holding

SHADOW_BLOCK_SIZE = 16  # tokens; finer than most engines, so a partial match is not lost to rounding
# GUESS: 16 tokens a block, so 2 M tokens: more than one accelerator's cache, and a bound on ours.
MAX_SHADOW_BLOCKS = 131_072


class Shadow:
    """Keeps what one worker is believed to hold. Least recently placed blocks go first."""

    def __init__(self, holding: Holding, ttl_s: float) -> None:
        self._holding = holding
        self._ttl_s = ttl_s
        self._until: OrderedDict[BlockHash, float] = OrderedDict()

    def placed(self, hashes: Sequence[BlockHash], now_s: float) -> None:
        """A prompt with these blocks was answered here."""
        fresh = [name for name in hashes if name not in self._until]
        self._holding.store(fresh)
        for name in reversed(hashes):  # the head is touched last, so it outlives its tail
            self._until[name] = now_s + self._ttl_s
            self._until.move_to_end(name)
        self._trim(now_s)

    @property
    def expires_s(self) -> float:
        """When the next block goes, at the earliest."""
        return next(iter(self._until.values()), inf)

    def expire(self, now_s: float) -> None:
        self._trim(now_s)

    def reset(self) -> None:
        self._until.clear()
        self._holding.clear()

    def _trim(self, now_s: float) -> None:
        gone = []
        while self._until:
            name, until = next(iter(self._until.items()))
            if until > now_s and len(self._until) <= MAX_SHADOW_BLOCKS:
                break
            del self._until[name]
            gone.append(name)
        self._holding.remove(gone)
