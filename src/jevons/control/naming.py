"""Events in arrays (`control.reading`) become changes of what a worker holds, under our names, by a kernel.

    runs     [ what, where it ends in `changed`, … ]    what is stored, then removed, then stored … in this order
    changed  our names, as the index knows them

One call does a whole payload: reads it, names its blocks by their tokens, and keeps what the engine calls them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import INT, Records, alike, compiled
from jevons.base.hub import view
from jevons.base.ids import BlockHash
from jevons.base.msgpack import Raw
from jevons.control.reading import (
    CLEARED,
    DRAM,
    EVENT,
    IGNORED_GROUP,
    IGNORED_TIER,
    MISSHAPEN,
    ORPHAN,
    PARTIAL,
    STORED,
    TOKEN,
    UNKNOWN,
    read,
)
from jevons.kv.blake2b import name
from jevons.kv.engine_names import SLOT, EngineNames, fetch_place, find, forget_all, put, room, take
from jevons.kv.groups import TIERS, salt_of
from jevons.kv.hashing import root

# What became of blocks, by number; the names are those of the counts. Why blocks were rejected comes first.
_REASONS = ("", "ignored_tier", "ignored_group", "misshapen", "partial", "orphan", "unknown_removed", "ignored_adapter")
FATES = (*_REASONS, "stored", "removed", "stored_beside", "removed_beside")
_STORED, _REMOVED = FATES.index("stored"), FATES.index("removed")
_STORED_BESIDE, _REMOVED_BESIDE = FATES.index("stored_beside"), FATES.index("removed_beside")
ONE_STORE = 1 << 40  # and so many blocks: all that a payload does is to store them, the first of `changed`
# Blocks have another size, prompts begin with a salt or an adapter, a tier or group is told of for the first time: who
# asked is to see to it.
SPECIAL = -3
FULL = -4  # the source's table; what was read is there still
MOST_GROUPS = 62  # of layers that are kept apart: a bit each


def source_names() -> EngineNames:
    """What the kernels keep of one source."""
    numbers: dict[str, int | float] = {
        "group": -1,  # whose blocks are followed: the first one said to keep all tokens
        "groups": 0,  # that are known, a bit each
        "in_dram": 0,  # blocks; see `control.beside`
        "in_groups": 0,  # …, of each group but the one that is followed
        "offloads": 0,  # 1: something was kept in dram
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


@alike
@compiled
def take_payload(scratches: Records, sources: Records, raw: Raw) -> int:
    """Read a payload and do what it tells. Returns how many runs there are, or ONE_STORE and more; otherwise nothing
    was done: see `read`, SPECIAL and FULL."""
    status = read(scratches[0], raw)
    return status if status < 0 else _take_read(scratches[0], sources[0])


@alike
@compiled
def take_read(scratches: Records, sources: Records) -> int:
    """Do what was read, once there is room for it. Returns the same."""
    return _take_read(scratches[0], sources[0])


@compiled
def _take_read(s: Records, n: Records) -> int:
    if room(n) < s.hashes_used:
        return FULL
    return SPECIAL if _set_roots(s, n) > 0 else _apply(s, n)


@alike
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
        special += _is_new(n, event)
        if event.kind == STORED and event.tokens == 0 and event.adapter_number < 0 and part_told(n, event) > 0:
            continue  # it is known by the engine's name or not at all
        if event.kind == STORED and event.has_parent == 0:
            event.first, event.second = n.first, n.second
            special += event.size != n.size or event.salt > 0 or event.adapter > 0 or event.adapter_number >= 0
        elif event.kind == STORED:
            special += event.size > n.size or (event.adapter_number > 0 and event.adapter == 0)
    return special


@compiled
def _is_new(n: Records, event: Any) -> bool:
    """Whether it is of a tier or a group that was not told of before."""
    if event.kind != STORED or event.tier < 0:
        return False
    if event.tier == DRAM:
        return bool(n.offloads == 0)
    is_told = event.says_full or (event.says_other == 1 and event.window > 0)
    return bool(is_told and 0 <= event.group < MOST_GROUPS and (n.groups >> event.group) & 1 == 0)


@compiled
def part_told(n: Records, event: Any) -> int:
    """Which tier and group, besides the one that is followed, an event tells of, as in `kv.groups`; 0: none that is
    kept apart."""
    if event.reject not in (0, IGNORED_TIER, IGNORED_GROUP):
        return 0
    followed = max(n.group, 0)
    if event.group == followed:
        return DRAM if event.tier == DRAM and event.says_other == 0 else 0
    if event.tier not in (0, DRAM) or not 0 <= event.group < MOST_GROUPS:
        return 0
    return int(TIERS * (event.group + 1) + event.tier) if (n.groups >> event.group) & 1 else 0


@compiled
def _apply(s: Records, n: Records) -> int:
    events = view(s.events, s.events_n, EVENT)
    s.changed_used = s.runs_used = begin = 0
    while begin < s.events_used:
        end = begin + 1
        while events[begin].kind == STORED and end < s.events_used and events[end].kind == STORED:
            end += 1
        _apply_alike(s, n, begin, end)
        begin = end
    n.ts = s.ts
    if s.runs_used == 1 and view(s.runs, s.runs_n, INT)[0] == STORED:
        return int(ONE_STORE + s.changed_used)
    return int(s.runs_used)


@compiled
def _apply_alike(s: Records, n: Records, begin: int, end: int) -> None:
    """Events one after another that all store, or a single other one. What stores in the followed group goes first: it
    tells tokens, and of a group with a window vLLM tells the names alone that it has kept, perhaps before."""
    events, beside = view(s.events, s.events_n, EVENT), 0
    for i in range(begin, end):
        events[i].part = part_told(n, events[i]) if events[i].kind != CLEARED else 0
        beside += events[i].part > 0
    for i in range(begin, end):
        if events[i].part == 0:
            _apply_one(s, n, i)
    for i in range(begin, end if beside > 0 else begin):
        if events[i].part > 0:
            _apply_one(s, n, i)


@compiled
def _apply_one(s: Records, n: Records, i: int) -> None:
    event = view(s.events, s.events_n, EVENT)[i]
    kind, part, before = event.kind, event.part, s.changed_used
    if kind == CLEARED:
        forget_all(n)
        n.in_dram = n.in_groups = 0
    elif part > 0:
        if kind == STORED:
            _take_beside(s, n, i, part)
        else:
            _take_removed_beside(s, n, i, part)
    elif kind == STORED:
        _take_stored(s, n, i)
    else:
        _take_removed(s, n, i)
    if kind == CLEARED or s.changed_used > before:
        _add_run(s, kind)


@compiled
def _add_run(s: Records, kind: int) -> None:
    runs = view(s.runs, s.runs_n, INT)
    if kind == CLEARED or s.runs_used == 0 or runs[2 * s.runs_used - 2] != kind:
        s.runs_used += 1
    runs[2 * s.runs_used - 2], runs[2 * s.runs_used - 1] = kind, s.changed_used


@compiled
def _take_stored(s: Records, n: Records, i: int) -> None:
    event, fates = view(s.events, s.events_n, EVENT)[i], view(n.fates, n.fates_n, INT)
    is_known, first, second = True, event.first, event.second
    if event.has_parent:
        is_known, first, second = _known_as(n, event.parent, 0)
    event.reject = _reject(n, event, is_known)
    fates[event.reject if event.reject else _STORED] += event.hashes
    if event.reject:
        return
    n.size = max(n.size, event.size)
    one, other = np.uint64(first), np.uint64(second)
    hashes, tokens = view(s.hashes, s.hashes_n, INT), view(s.tokens, s.tokens_n, TOKEN)
    changed = view(s.changed, s.changed_n, INT)
    for block in range(event.hashes):
        fetch_place(n, hashes[event.hash_at + block])
    for block in range(event.hashes):
        one, other = name(one, other, tokens, event.token_at + block * event.size, event.size)
        put(n, hashes[event.hash_at + block], int(np.int64(one)), int(np.int64(other)))
        changed[s.changed_used + block] = np.int64(other)
    s.changed_used += event.hashes


@compiled
def _known_as(n: Records, called: int, part: int) -> tuple[bool, int, int]:
    """What we call a block in the followed group in hbm, by what the engine calls it: known there, in dram or in
    `part`. The first tells whether it is known."""
    slots = view(n.slots, n.slots_n, SLOT)
    for there in (0, DRAM, part):
        salt = salt_of(there)
        at = find(n, called ^ salt)
        if at >= 0:
            return True, int(slots[at].first), int(slots[at].second ^ salt)
    return False, 0, 0


@compiled
def _take_beside(s: Records, n: Records, i: int, part: int) -> None:
    """Blocks are stored in another tier or group: under the names that they are known by, or that their tokens tell."""
    event, fates = view(s.events, s.events_n, EVENT)[i], view(n.fates, n.fates_n, INT)
    hashes, tokens = view(s.hashes, s.hashes_n, INT), view(s.tokens, s.tokens_n, TOKEN)
    changed, begin, salt = view(s.changed, s.changed_n, INT), s.changed_used, salt_of(part)
    are_told = event.size > 0 and event.size == n.size and event.tokens == event.hashes * event.size
    are_told &= event.keys in (-1, event.hashes)
    known, first, second = True, event.first, event.second
    if event.has_parent:
        known, first, second = _known_as(n, event.parent, part)
    for block in range(event.hashes):
        called = hashes[event.hash_at + block]
        is_named, its_first, its_second = _known_as(n, called, part)
        if is_named:
            first, second = its_first, its_second
        elif known and are_told:
            at = event.token_at + block * event.size
            one, other = name(np.uint64(first), np.uint64(second), tokens, at, event.size)
            first, second = int(np.int64(one)), int(np.int64(other))
        known = is_named or (known and are_told)
        if known:
            _put_beside(n, called ^ salt, (first, second ^ salt), part)
            changed[s.changed_used] = second ^ salt
            s.changed_used += 1
    fates[_STORED_BESIDE] += s.changed_used - begin
    fates[_unkept(part)] += event.hashes - (s.changed_used - begin)


@compiled
def _put_beside(n: Records, called: int, ours: tuple[int, int], part: int) -> None:
    is_new = find(n, called) < 0
    n.in_dram += is_new and part == DRAM
    n.in_groups += is_new and part != DRAM
    put(n, called, ours[0], ours[1])


@compiled
def _unkept(part: int) -> int:
    """What becomes of blocks there that nobody can name."""
    return IGNORED_TIER if part % TIERS == DRAM else IGNORED_GROUP


@compiled
def _take_removed_beside(s: Records, n: Records, i: int, part: int) -> None:
    event, fates = view(s.events, s.events_n, EVENT)[i], view(n.fates, n.fates_n, INT)
    hashes, changed = view(s.hashes, s.hashes_n, INT), view(s.changed, s.changed_n, INT)
    slots, begin, salt = view(n.slots, n.slots_n, SLOT), s.changed_used, salt_of(part)
    for block in range(event.hash_at, event.hash_at + event.hashes):
        at = find(n, hashes[block] ^ salt)
        if at < 0:
            continue
        changed[s.changed_used] = slots[at].second
        s.changed_used += 1
        take(n, at)
        is_gone = find(n, hashes[block] ^ salt) < 0
        n.in_dram -= is_gone and part == DRAM
        n.in_groups -= is_gone and part != DRAM
    fates[_REMOVED_BESIDE] += s.changed_used - begin
    fates[_unkept(part)] += event.hashes - (s.changed_used - begin)


@compiled
def _reject(n: Records, event: Any, is_known: bool) -> int:
    """Why the blocks of an event cannot serve as a prefix here; 0: they can. `is_known`: what they go on from."""
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
    return 0 if is_known else ORPHAN


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
