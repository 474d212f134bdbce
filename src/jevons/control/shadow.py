"""What a worker without KV events probably holds: what we placed on it, until it expires."""

from __future__ import annotations

from math import inf

import numpy as np

from jevons.base.compiled import Ints
from jevons.kv.index import Holding

SHADOW_BLOCK_SIZE = 16  # tokens; finer than most engines, so a partial match is not lost to rounding
# GUESS: 16 tokens a block, so 2 M tokens: more than one accelerator's cache, and a bound on ours.
MAX_SHADOW_BLOCKS = 131_072
_TIDY_FROM = 4_096  # blocks listed twice that are left alone


class Shadow:
    """Keeps what one worker is believed to hold. Least recently placed blocks go first.

    What each prompt placed is kept together until it expires: its blocks count as held until the last prompt that had
    them does. Of long prompts most were placed before, so work for each block is left to what goes over all at once.
    """

    def __init__(self, holding: Holding, ttl_s: float) -> None:
        self._holding = holding
        self._ttl_s = ttl_s
        self._until: dict[int, float] = {}  # by block
        self._prompts: dict[int, tuple[float, list[int]]] = {}  # in order: when one expires, its blocks
        self._next = 0  # number of a prompt
        self._listed = 0  # blocks of prompts, however often
        self._tidied = 0  # the prompt to be looked at next for blocks that later ones have too

    def placed(self, names: Ints, now_s: float) -> None:
        """A prompt with these blocks was answered here; names as kernels have them."""
        blocks, known, until_s = names.tolist(), self._until, now_s + self._ttl_s
        if not blocks:
            self._trim(now_s)
            return
        fresh = [block for block in blocks if block not in known]
        if fresh:
            self._holding.store_names(names if len(fresh) == len(blocks) else np.array(fresh, np.int64))
        known.update(dict.fromkeys(blocks, until_s))
        self._prompts[self._next] = until_s, blocks
        self._next += 1
        self._listed += len(blocks)
        if self._listed > 2 * len(known) + _TIDY_FROM:
            self._tidy(4 * len(blocks))
        self._trim(now_s)

    @property
    def expires_s(self) -> float:
        """When the next block goes, at the earliest."""
        return next(iter(self._prompts.values()), (inf, []))[0]

    def expire(self, now_s: float) -> None:
        self._trim(now_s)

    def reset(self) -> None:
        self._until.clear()
        self._prompts.clear()
        self._listed = 0
        self._holding.clear()

    def _trim(self, now_s: float) -> None:
        gone: list[int] = []
        while self._prompts:
            number, (until_s, blocks) = next(iter(self._prompts.items()))
            if until_s > now_s and len(self._until) <= MAX_SHADOW_BLOCKS:
                break
            while blocks and (until_s <= now_s or len(self._until) > MAX_SHADOW_BLOCKS):
                self._listed -= 1
                block = blocks.pop()  # the head outlives its tail
                if self._until.get(block) == until_s:
                    del self._until[block]
                    gone.append(block)
            if not blocks:
                del self._prompts[number]
        if gone:
            self._holding.remove_names(np.array(gone, np.int64))

    def _tidy(self, most: int) -> None:
        """Go on to forget, of older prompts, what later ones have too; so many blocks of them."""
        while most > 0:
            if self._tidied >= self._next:
                self._tidied = next(iter(self._prompts))
            until_s, blocks = self._prompts.get(self._tidied, (0.0, []))
            if blocks:
                kept = [block for block in blocks if self._until.get(block) == until_s]
                self._listed -= len(blocks) - len(kept)
                if kept:
                    self._prompts[self._tidied] = until_s, kept
                else:
                    del self._prompts[self._tidied]
            most -= len(blocks) + 1
            self._tidied += 1
