"""What a worker without KV events probably holds: what we placed on it, until it expires.

table   [ block → the last step that it was placed in | … ]     see `kv.engine_names`
queue   [ block, step | … ]                                     a ring, in the order in which they expire
"""

from __future__ import annotations

from math import ceil, inf

import numpy as np

from jevons.base.compiled import INT, Ints, Records, alike, compiled, grown
from jevons.base.hub import view
from jevons.kv.engine_names import SLOT, EngineNames, find, put, room, take
from jevons.kv.index import Holding

SHADOW_BLOCK_SIZE = 16  # tokens; finer than most engines, so a partial match is not lost to rounding
# GUESS: 16 tokens a block, so 2 M tokens: more than one accelerator's cache, and a bound on ours.
MAX_SHADOW_BLOCKS = 131_072
_STEPS = 8
_PLACED = np.dtype([("block", np.int64), ("step", np.int64)])
_FIRST_ROOM = 256
_FULL = -1


@compiled
def _until_s(s: Records, step: int) -> float:
    """When what was placed in a step expires."""
    return float(step * s.step_s + s.ttl_s)


@compiled
def _is_placed(s: Records, name: int, step: int) -> bool:
    """Whether a block was placed in this step."""
    at = find(s, name)
    return bool(at >= 0 and view(s.slots, s.slots_n, SLOT)[at].first == step)


@compiled
def _placed_already(s: Records, names: Ints, step: int) -> int:
    """How many of these blocks, from the first on, were placed in this step. A block names all before it, so there are
    no others; unless some went because they were too many."""
    low, high = 0, len(names) if s.cut_step < step else 0
    while low < high:
        middle = (low + high) // 2
        if _is_placed(s, names[middle], step):
            low = middle + 1
        else:
            high = middle
    return low


@alike
@compiled
def _place(shadows: Records, names: Ints, step: int) -> int:
    """These blocks are placed. Returns how many were not known, they are in `found` then; _FULL: nothing was done."""
    s = shadows[0]
    if min(room(s), s.queue_n - s.queued, s.found_n) < len(names):
        return _FULL
    slots, queue, found = (
        view(s.slots, s.slots_n, SLOT),
        view(s.queue, s.queue_n, _PLACED),
        view(s.found, s.found_n, INT),
    )
    begin, fresh = _placed_already(s, names, step), 0
    for at in range(len(names) - 1, begin - 1, -1):  # the head outlives its tail
        if s.cut_step < step or not _is_placed(s, names[at], step):
            last = queue[(s.oldest + s.queued) % s.queue_n]
            last.block, last.step = names[at], step
            s.queued += 1
    for at in range(begin, len(names)):
        known = find(s, names[at])
        if known >= 0:
            slots[known].first = step
        else:
            put(s, names[at], step, 0)
            found[fresh] = names[at]
            fresh += 1
    return fresh


@alike
@compiled
def _expire(shadows: Records, now_s: float, most: int) -> int:
    """Blocks whose time is over are forgotten, and the oldest beyond so many. Returns how many, they are in `found`: if
    that is full there may be more."""
    s = shadows[0]
    slots, queue, found = (
        view(s.slots, s.slots_n, SLOT),
        view(s.queue, s.queue_n, _PLACED),
        view(s.found, s.found_n, INT),
    )
    gone, s.expires_s = 0, np.inf
    while s.queued > 0 and gone < s.found_n:
        oldest = queue[s.oldest]
        if _until_s(s, oldest.step) > now_s and s.taken <= most:
            break
        s.oldest = (s.oldest + 1) % s.queue_n
        s.queued -= 1
        at = find(s, oldest.block)
        if at >= 0 and slots[at].first == oldest.step:
            found[gone] = oldest.block
            gone += 1
            take(s, at)
            if _until_s(s, oldest.step) > now_s:
                s.cut_step = oldest.step
    if s.queued > 0:
        s.expires_s = _until_s(s, queue[s.oldest].step)
    return gone


class Shadow:
    """Keeps what one worker is believed to hold. Least recently placed blocks go first.

    What is placed within a step of time, an eighth of `ttl_s`, expires together, up to a step later than it had to. A
    block names all before it, so of a prompt that begins as one before it in this step only the rest is looked at.
    """

    def __init__(self, holding: Holding, ttl_s: float) -> None:
        self._holding = holding
        self._step_s = ttl_s / _STEPS
        arrays = {"queue": np.zeros(_FIRST_ROOM, _PLACED), "found": np.zeros(_FIRST_ROOM, np.int64)}
        times = {"ttl_s": float(ttl_s), "step_s": self._step_s, "expires_s": inf}
        # The last step of which some went because they were too many.
        self._table = EngineNames(arrays, {"oldest": 0, "queued": 0, "cut_step": -1, **times})

    def __len__(self) -> int:
        """Blocks in the order in which they expire; those that were placed again are still there where they were."""
        return int(self._table.hub.number("queued"))

    def placed(self, names: Ints, now_s: float) -> None:
        """A prompt with these blocks was answered here; names as kernels have them."""
        hub, step = self._table.hub, ceil(now_s / self._step_s)
        while (fresh := _place(hub.record, names, step)) == _FULL:
            self._grow(len(names))
        if fresh:
            self._holding.store_names(hub["found"][:fresh])
        self.expire(now_s)

    @property
    def expires_s(self) -> float:
        """When the next block goes, at the earliest."""
        return float(self._table.hub.number("expires_s"))

    def expire(self, now_s: float) -> None:
        hub = self._table.hub
        while gone := _expire(hub.record, float(now_s), MAX_SHADOW_BLOCKS):
            self._holding.remove_names(hub["found"][:gone])

    def reset(self) -> None:
        self._table.clear()
        for name, value in (("oldest", 0), ("queued", 0), ("cut_step", -1), ("expires_s", inf)):
            self._table.hub.set(name, value)
        self._holding.clear()

    def _grow(self, more: int) -> None:
        """Room for so many more blocks."""
        hub = self._table.hub
        self._table.make_room(more)
        if len(hub["found"]) < more:
            hub.put("found", np.zeros(2 * more, np.int64))
        if len(hub["queue"]) < len(self) + more:
            queue = np.roll(hub["queue"], -hub.number("oldest"))
            hub.put("queue", grown(queue, 2 * (len(queue) + more)))
            hub.set("oldest", 0)
