"""What one engine calls its blocks → what we call them: a hash table of 24 bytes a place, as kernels.

    slots   [ empty | key, first, second | … ]      linear probing; at most 4 of 5 are taken, and it grows by a quarter
           once it is large
    key     54 bits of the engine's number, mixed, and the copies that the engine has of that block, at least 1;
            0: the place is empty

So two numbers that agree in 54 bits of 64 are taken for the same: a new one with one of a million others in one engine
once in 2^34. A table is one engine's: who is gone is forgotten with it, and growing stops nobody for long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import Records, alike, compiled
from jevons.base.hub import Hub, fetch, view
from jevons.base.ids import BlockHash
from jevons.kv.hashing import HASH_BYTES

SLOT = np.dtype([("key", np.int64), ("first", np.int64), ("second", np.int64)])
_SLOT_BYTES = SLOT.itemsize
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number: spreads consecutive numbers evenly
_COPIES = (1 << 10) - 1  # the most; more are as many
_LOW32 = (1 << 32) - 1
_FIRST_SIZE = 256
_SMALL = 4_096  # up to there it doubles, or more: growing costs a few us besides


def number_of(name: int | bytes) -> int:
    """An engine's name for a block as a signed 64-bit number. Of bytes the last eight, as vLLM does where it sends
    numbers; where there are more than 32, the first eight too."""
    if isinstance(name, bytes):
        number = int.from_bytes(name[-8:], "big")
        name = number ^ int.from_bytes(name[:8], "big") if len(name) > 32 else number
    return ((name + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


@compiled
def _key_of(name: int) -> int:
    return (name * _GOLDEN) & ~_COPIES


@compiled
def _home(key: int, size: int) -> int:
    return (((key >> 32) & _LOW32) * size) >> 32


@compiled
def find(h: Records, name: int) -> int:
    """The place of a block; -1: it has none."""
    if h.slots_n == 0:
        return -1
    slots, key = view(h.slots, h.slots_n, SLOT), _key_of(name)
    at = _home(key, h.slots_n)
    while slots[at].key != 0:
        if slots[at].key & ~_COPIES == key:
            return at
        at = at + 1 if at + 1 < h.slots_n else 0
    return -1


@compiled
def fetch_place(h: Records, name: int) -> None:
    """A block will be looked for, or put in, soon."""
    fetch(h.slots + _SLOT_BYTES * _home(_key_of(name), h.slots_n))


@compiled
def put(h: Records, name: int, first: int, second: int) -> None:
    """The engine has one more copy of a block, and we call it so. There must be room."""
    slots, key = view(h.slots, h.slots_n, SLOT), _key_of(name)
    at = _home(key, h.slots_n)
    while slots[at].key != 0 and slots[at].key & ~_COPIES != key:
        at = at + 1 if at + 1 < h.slots_n else 0
    copies = slots[at].key & _COPIES
    h.taken += copies == 0
    slots[at].key = key | min(copies + 1, _COPIES)
    slots[at].first, slots[at].second = first, second


@compiled
def take(h: Records, at: int) -> None:
    """The engine has one copy less of the block at a place; without any it is forgotten."""
    slots = view(h.slots, h.slots_n, SLOT)
    if slots[at].key & _COPIES > 1:
        slots[at].key -= 1
        return
    h.taken -= 1
    gap, at = at, at + 1 if at + 1 < h.slots_n else 0
    while slots[at].key != 0:
        home = _home(slots[at].key, h.slots_n)
        from_home, from_gap = at - home, at - gap
        if (from_home if from_home >= 0 else from_home + h.slots_n) >= (
            from_gap if from_gap >= 0 else from_gap + h.slots_n
        ):
            old = slots[at]
            slots[gap].key, slots[gap].first, slots[gap].second = old.key, old.first, old.second
            gap = at
        at = at + 1 if at + 1 < h.slots_n else 0
    slots[gap].key = 0


@compiled
def room(h: Records) -> int:
    """How many more blocks can be put in."""
    return int(h.slots_n * 4 // 5 - h.taken)


@compiled
def forget_all(h: Records) -> None:
    """The engine has nothing."""
    slots = view(h.slots, h.slots_n, SLOT)
    for at in range(h.slots_n):
        slots[at].key = 0
    h.taken = 0


@alike
@compiled
def _refill(old: Records, slots: Records) -> None:
    """Put all that was in `old` into new, empty slots."""
    for i in range(len(old)):
        if old[i].key != 0:
            at = _home(old[i].key, len(slots))
            while slots[at].key != 0:
                at = at + 1 if at + 1 < len(slots) else 0
            slots[at].key, slots[at].first, slots[at].second = old[i].key, old[i].first, old[i].second


@compiled
def _find(hubs: Records, name: int) -> int:
    return find(hubs[0], name)


@compiled
def _put(hubs: Records, name: int, first: int, second: int) -> None:
    put(hubs[0], name, first, second)


@compiled
def _take(hubs: Records, at: int) -> None:
    take(hubs[0], at)


class EngineNames:
    """One engine's table.

    Args:
        numbers: more that its kernels' caller wants to keep in the same hub.
    """

    def __init__(self, arrays: dict[str, Any] | None = None, numbers: dict[str, int | float] | None = None) -> None:
        self.hub = Hub({"slots": np.zeros(0, SLOT), **(arrays or {})}, {"taken": 0, **(numbers or {})})

    def __len__(self) -> int:
        return int(self.hub.number("taken"))

    @property
    def size_bytes(self) -> int:
        return int(self.hub["slots"].nbytes)

    def get(self, name: int | bytes) -> BlockHash | None:
        """What we call a block that the engine has."""
        at = _find(self.hub.record, number_of(name))
        return None if at < 0 else _name(self.hub["slots"][at])

    def put(self, name: int | bytes, ours: BlockHash) -> None:
        """The engine has one more copy of a block."""
        self.make_room(1)
        first, second = np.frombuffer(ours, np.int64)
        _put(self.hub.record, number_of(name), first, second)

    def take(self, name: int | bytes) -> BlockHash | None:
        """It has one copy less. Returns what we called it; None: it had none."""
        at = _find(self.hub.record, number_of(name))
        if at < 0:
            return None
        ours = _name(self.hub["slots"][at])
        _take(self.hub.record, at)
        return ours

    def make_room(self, more: int) -> bool:
        """So many more can be put in. Returns whether it had to grow: costs 5 ns for each that is there."""
        slots = self.hub["slots"]
        needed = -(-(len(self) + more) * 5 // 4)
        if needed <= len(slots):
            return False
        wider = len(slots) * 5 // 4 if len(slots) > _SMALL else 2 * len(slots)
        self.hub.put("slots", np.zeros(max(_FIRST_SIZE, needed, wider), SLOT))
        _refill(slots, self.hub["slots"])
        return True

    def dump(self) -> bytes:
        """All that is in it, for `load`."""
        slots = self.hub["slots"]
        return bytes(slots[slots["key"] != 0].tobytes())

    def load(self, dump: bytes) -> list[tuple[BlockHash, int]]:
        """What another one was when it dumped itself, instead of what it is. Returns our names with their copies.

        Raises:
            ValueError: this is no dump.
        """
        entries = np.frombuffer(dump, SLOT).copy()  # kernels would be compiled anew for what cannot be written to
        self.clear()
        self.make_room(len(entries))
        _refill(entries, self.hub["slots"])
        self.hub.set("taken", len(entries))
        return [(_name(entry), int(entry["key"]) & _COPIES) for entry in entries]

    def clear(self) -> None:
        """The engine has nothing."""
        self.hub.put("slots", np.zeros(0, SLOT))
        self.hub.set("taken", 0)


def _name(slot: Any) -> BlockHash:
    return BlockHash(slot.tobytes()[-HASH_BYTES:])
