"""What a worker without KV events probably holds: what we placed on it, until it expires."""

from __future__ import annotations

from collections import deque
from math import ceil, inf

import numpy as np

from jevons.base.compiled import Ints
from jevons.kv.index import Holding

SHADOW_BLOCK_SIZE = 16  # tokens; finer than most engines, so a partial match is not lost to rounding
# GUESS: 16 tokens a block, so 2 M tokens: more than one accelerator's cache, and a bound on ours.
MAX_SHADOW_BLOCKS = 131_072
_STEPS = 8


class Shadow:
    """Keeps what one worker is believed to hold. Least recently placed blocks go first.

    What is placed within a step of time, an eighth of `ttl_s`, expires together, up to a step later than it had to. A
    block names all before it, so of a prompt that begins as one before it in this step only the rest is looked at.
    """

    def __init__(self, holding: Holding, ttl_s: float) -> None:
        self._holding = holding
        self._ttl_s, self._step_s = ttl_s, ttl_s / _STEPS
        self._until: dict[int, float] = {}  # by block
        self._placed: deque[tuple[float, list[int]]] = deque()  # in order: when blocks expire, which

    def placed(self, names: Ints, now_s: float) -> None:
        """A prompt with these blocks was answered here; names as kernels have them."""
        blocks, known = names.tolist(), self._until
        until_s = ceil(now_s / self._step_s) * self._step_s + self._ttl_s
        rest = blocks[self._placed_already(blocks, until_s) :]
        if rest:
            fresh = [block for block in rest if block not in known]
            known.update(dict.fromkeys(rest, until_s))
            self._placed.append((until_s, rest))
            if fresh:
                self._holding.store_names(np.array(fresh, np.int64))
        self._trim(now_s)

    @property
    def expires_s(self) -> float:
        """When the next block goes, at the earliest."""
        return self._placed[0][0] if self._placed else inf

    def expire(self, now_s: float) -> None:
        self._trim(now_s)

    def reset(self) -> None:
        self._until.clear()
        self._placed.clear()
        self._holding.clear()

    def _placed_already(self, blocks: list[int], until_s: float) -> int:
        """How many of them in this step."""
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high) // 2
            if self._until.get(blocks[middle]) == until_s:
                low = middle + 1
            else:
                high = middle
        return low

    def _trim(self, now_s: float) -> None:
        gone: list[int] = []
        while self._placed:
            until_s, blocks = self._placed[0]
            if until_s > now_s and len(self._until) <= MAX_SHADOW_BLOCKS:
                break
            while blocks and (until_s <= now_s or len(self._until) > MAX_SHADOW_BLOCKS):
                block = blocks.pop()  # the head outlives its tail
                if self._until.get(block) == until_s:
                    del self._until[block]
                    gone.append(block)
            if not blocks:
                self._placed.popleft()
        if gone:
            self._holding.remove_names(np.array(gone, np.int64))
