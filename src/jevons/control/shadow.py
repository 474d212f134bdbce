"""What a worker without KV events probably holds: what we placed on it, until it expires."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from jevons.base.ids import BlockHash, WorkerId
from jevons.kv.index import PrefixIndex

SHADOW_BLOCK_SIZE = 16  # tokens; finer than most engines, so a partial match is not lost to rounding
# GUESS: 16 tokens a block, so 2 M tokens: more than one accelerator's cache, and a bound on ours.
MAX_SHADOW_BLOCKS = 131_072


class Shadow:
    """Keeps `index` for one worker. Least recently placed blocks go first."""

    def __init__(self, worker: WorkerId, index: PrefixIndex, ttl_s: float) -> None:
        self._worker = worker
        self._index = index
        self._ttl_s = ttl_s
        self._until: OrderedDict[BlockHash, float] = OrderedDict()

    def placed(self, hashes: Sequence[BlockHash], now_s: float) -> None:
        """A prompt with these blocks was answered here."""
        fresh = [name for name in hashes if name not in self._until]
        self._index.store(self._worker, fresh)
        for name in reversed(hashes):  # the head is touched last, so it outlives its tail
            self._until[name] = now_s + self._ttl_s
            self._until.move_to_end(name)
        self._trim(now_s)

    def expire(self, now_s: float) -> None:
        self._trim(now_s)

    def reset(self) -> None:
        self._until.clear()
        self._index.clear(self._worker)

    def _trim(self, now_s: float) -> None:
        while self._until:
            name, until = next(iter(self._until.items()))
            if until > now_s and len(self._until) <= MAX_SHADOW_BLOCKS:
                return
            del self._until[name]
            self._index.remove(self._worker, [name])
