"""Events in arrays (`control.reading`) become changes of what a worker holds, under our names, by a kernel.

    runs     [ what, where it ends in `changed`, … ]    what is stored, then removed, then stored … in this order
    changed  our names, as the index knows them

One call does a whole payload: reads it, names its blocks by their tokens, and keeps what the engine calls them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import INT, Records, compiled
from jevons.base.hub import view
from jevons.base.ids import BlockHash
from jevons.base.msgpack import Raw
from jevons.control.reading import (
    CLEARED,
    EVENT,
    IGNORED_GROUP,
    IGNORED_TIER,
    MISSHAPEN,
    NO_ROOM,
    ORPHAN,
    PARTIAL,
    REMOVED,
    STORED,
    TOKEN,
    UNKNOWN,
    read,
)
from jevons.kv.blake2b import name
from jevons.kv.engine_names import SLOT, EngineNames, find, forget_all, put, room, take
from jevons.kv.hashing import root

# What became of blocks, by number; the names are those of the counts. Why blocks were rejected comes first.
FATES = ("", "ignored_tier", "ignored_group", "misshapen", "partial", "orphan", "unknown_removed", "stored", "removed")
_STORED, _REMOVED = FATES.index("stored"), FATES.index("removed")
ONE_STORE = 1 << 40  # and so many blocks: all that a payload does is to store them, the first of `changed`
SPECIAL = -3  # blocks have another size, or prompts begin with a salt or an adapter: their roots are to be told


def source_names() -> EngineNames:
    """What the kernels keep of one source."""
    numbers: dict[str, int | float] = {
        "group": -1,  # whose blocks are followed: the first one said to keep all tokens
        "size": 0,  # tokens in a block; 0: not told yet
        "first": 0,  # the root of a prompt without salt and adapter
        "second": 0,
        "ts": 0.0,  # its clock at the last payload taken
    }
    return EngineNames({"fates": np.zeros(len(FATES), np.int64)}, numbers)


def set_size(names: EngineNames, size: int) -> None:
    """The source's blocks have so many tokens."""
    first, second = root_numbers(size, "", "")
    for field, number in (("size", size), ("first", first), ("second", second)):
        names.hub.set(field, number)


def root_numbers(size: int, salt: str, adapter: str) -> tuple[int, int]:
    """The root of a chain, as kernels have it."""
    return halves(root(size, salt, adapter))


def halves(ours: BlockHash) -> tuple[int, int]:
    """A name as kernels have it."""
    first, second = np.frombuffer(ours, np.int64)
    return int(first), int(second)


@compiled
def take_payload(scratches: Records, sources: Records, raw: Raw) -> int:
    """Read a payload and do what it tells. Returns how many runs there are, or ONE_STORE and more; otherwise nothing
    was done: see `read`, and SPECIAL. NO_ROOM may mean the source's table too."""
    s, n = scratches[0], sources[0]
    status = read(s, raw)
    if status < 0:
        return status
    if room(n) < s.hashes_used:
        return NO_ROOM
    if _set_roots(s, n) > 0:
        return SPECIAL
    return _apply(s, n)


@compiled
def apply(scratches: Records, sources: Records) -> int:
    """Do what was read, once its roots are told. Returns the same."""
    return _apply(scratches[0], sources[0])


@compiled
def _set_roots(s: Records, n: Records) -> int:
    """Returns how many events need a root of their own, or tell of blocks of another size."""
    events, special = view(s.events, s.events_n, EVENT), 0
    for i in range(s.events_used):
        event = events[i]
        if event.kind == STORED and event.has_parent == 0:
            event.first, event.second = n.first, n.second
            special += event.size != n.size or event.salt > 0 or event.adapter > 0 or event.adapter_number >= 0
        elif event.kind == STORED:
            special += event.size > n.size
    return special


@compiled
def _apply(s: Records, n: Records) -> int:
    events = view(s.events, s.events_n, EVENT)
    s.changed_used = s.runs_used = 0
    for i in range(s.events_used):
        kind, before = events[i].kind, s.changed_used
        if kind == STORED:
            _take_stored(s, n, i)
        elif kind == REMOVED:
            _take_removed(s, n, i)
        else:
            forget_all(n)
        if kind == CLEARED or s.changed_used > before:
            _add_run(s, kind)
    n.ts = s.ts
    if s.runs_used == 1 and view(s.runs, s.runs_n, INT)[0] == STORED:
        return int(ONE_STORE + s.changed_used)
    return int(s.runs_used)


@compiled
def _add_run(s: Records, kind: int) -> None:
    runs = view(s.runs, s.runs_n, INT)
    if kind == CLEARED or s.runs_used == 0 or runs[2 * s.runs_used - 2] != kind:
        s.runs_used += 1
    runs[2 * s.runs_used - 2], runs[2 * s.runs_used - 1] = kind, s.changed_used


@compiled
def _take_stored(s: Records, n: Records, i: int) -> None:
    event, fates = view(s.events, s.events_n, EVENT)[i], view(n.fates, n.fates_n, INT)
    parent = find(n, event.parent) if event.has_parent else -1
    event.reject = _reject(n, event, parent)
    fates[event.reject if event.reject else _STORED] += event.hashes
    if event.reject:
        return
    n.size = max(n.size, event.size)
    first, second = np.uint64(event.first), np.uint64(event.second)
    if event.has_parent:
        slots = view(n.slots, n.slots_n, SLOT)
        first, second = np.uint64(slots[parent].first), np.uint64(slots[parent].second)
    hashes, tokens = view(s.hashes, s.hashes_n, INT), view(s.tokens, s.tokens_n, TOKEN)
    changed = view(s.changed, s.changed_n, INT)
    for block in range(event.hashes):
        first, second = name(first, second, tokens, event.token_at + block * event.size, event.size)
        put(n, hashes[event.hash_at + block], int(np.int64(first)), int(np.int64(second)))
        changed[s.changed_used + block] = np.int64(second)
    s.changed_used += event.hashes


@compiled
def _reject(n: Records, event: Any, parent: int) -> int:
    """Why the blocks of an event cannot serve as a prefix here; 0: they can."""
    if event.reject:
        return int(event.reject)
    if n.group < 0 and event.says_full:
        n.group = event.group
    if event.group != max(n.group, 0):
        return IGNORED_GROUP
    if event.size < 1 or event.tokens != event.hashes * event.size or event.keys not in (-1, event.hashes):
        return MISSHAPEN
    if event.size < n.size:
        return PARTIAL
    return ORPHAN if event.has_parent and parent < 0 else 0


@compiled
def _take_removed(s: Records, n: Records, i: int) -> None:
    event, fates = view(s.events, s.events_n, EVENT)[i], view(n.fates, n.fates_n, INT)
    reject = IGNORED_TIER if event.reject == IGNORED_TIER else (IGNORED_GROUP if event.group != max(n.group, 0) else 0)
    if reject:
        fates[reject] += event.hashes
        return
    hashes, changed = view(s.hashes, s.hashes_n, INT), view(s.changed, s.changed_n, INT)
    slots, begin = view(n.slots, n.slots_n, SLOT), s.changed_used
    for block in range(event.hash_at, event.hash_at + event.hashes):
        at = find(n, hashes[block])
        if at >= 0:
            changed[s.changed_used] = slots[at].second
            s.changed_used += 1
            take(n, at)
    fates[_REMOVED] += s.changed_used - begin
    fates[UNKNOWN] += event.hashes - (s.changed_used - begin)
