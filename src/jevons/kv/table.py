"""A hash table of 64-bit keys: where in an array of entries a key is.

    heads   [ 0 | 8 | 3 | 0 | … ]     entry + 1; as many are in use as entries ever were, see `head_among`
    entries [ 0 | 1 | 2 … ]           records with fields `key` and `link`, to the next of the same head;
                                      they keep their place as long as they live

Keys that follow one another have heads that do: the blocks of a made-up prompt are numbered in a row, and are then
found sixteen to a cache line. Keys that are hashes lose nothing by it.

A large table lies in memory that is far away: a head, and the entry it names, are a wait each. Who looks up many keys
asks for the head of each `AHEAD_HEAD` before its turn, and for the entry `AHEAD_ENTRY` before, so that waits overlap.
"""

from __future__ import annotations

from jevons.base.compiled import Places, Records, compiled

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number: spreads consecutive numbers evenly
_LOW = (1 << 35) - 1
LEAST_HEADS = 16
AHEAD_HEAD, AHEAD_ENTRY = 16, 8
HEAD_BYTES = 4


@compiled
def key_of(name: int, owner: int) -> int:
    """One key for a name and its owner. Names below 2^40 with owners below 2^14 never meet; hashes hardly ever do."""
    return name + owner * _GOLDEN


@compiled
def name_of(key: int, owner: int) -> int:
    """The name again."""
    return key - owner * _GOLDEN


@compiled
def spread(key: int) -> int:
    """Its last bits say which head a key has."""
    mixed = (key >> 3) * _GOLDEN
    mixed ^= (mixed >> 29) & _LOW
    return (mixed << 3) + (key & 7)


@compiled
def head_among(used: int, mask: int, key: int) -> int:
    """The head of a key where any number of heads are in use, from two on.

    The last of them share their keys with those that have no number of their own yet: one head more takes over keys of
    one other, see `split`, so a table grows by one head at a time.

    Args:
        mask: ones, as many as it takes to write the number of the last.
    """
    head = spread(key) & mask
    return head if head < used else head & (mask >> 1)


@compiled
def find_from(first: int, entries: Records, key: int) -> int:
    """The entry of `key`, or -1, where its head says `first`."""
    entry = int(first) - 1
    while entry >= 0 and entries[entry].key != key:
        entry = int(entries[entry].link)
    return entry


@compiled
def insert_at(heads: Places, head: int, entries: Records, entry: int) -> None:
    """Make `entry` findable by its key, which has that head and no other entry."""
    entries[entry].link = heads[head] - 1
    heads[head] = entry + 1


@compiled
def remove_at(heads: Places, head: int, entries: Records, gone: int) -> None:
    """Entry `gone`, whose key has that head, is found no more."""
    entry = heads[head] - 1
    if entry == gone:
        heads[head] = entries[gone].link + 1
        return
    while entries[entry].link != gone:
        entry = entries[entry].link
    entries[entry].link = entries[gone].link


@compiled
def split(heads: Places, used: int, mask: int, entries: Records) -> None:
    """Of so many heads in use the last is new: it takes over what is its of the one that had it."""
    old, new = (used - 1) & (mask >> 1), used - 1
    entry, heads[old] = heads[old] - 1, 0
    while entry >= 0:
        after = entries[entry].link
        insert_at(heads, new if spread(entries[entry].key) & mask == new else old, entries, entry)
        entry = after
