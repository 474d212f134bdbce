"""Kernels of the block pool: which blocks each of many pools holds, who uses them, and which go first.

    blank ──allocate──▶ used ──seal(name)──▶ used, named ──release──▶ free, named ──match + take──▶ used, named
      ▲                   └──release──▶ blank                             └──allocate──▶ used, its name is gone

Several pools share the arrays: a pool is a number of blocks and the order in which its free named ones will go, the one
unused for longest first. A place is an entry of the arrays; it costs memory only once it was used, and heads come into
use one by one as places do (see `kv.table`), so arrays may be as long as all pools together.

What changes of what can be found by name goes to a log, in order, for who keeps an index. Kernels take a hub with the
fields of `pool_arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jevons.base.compiled import FLOAT, INT, SMALL, Ints, Places, Records, compiled, grown, reserved
from jevons.base.hub import Hub, fetch, view
from jevons.kv.table import (
    AHEAD_ENTRY,
    AHEAD_HEAD,
    HEAD_BYTES,
    LEAST_HEADS,
    find_from,
    head_among,
    insert_at,
    key_of,
    name_of,
    remove_at,
    split,
)

POOL = np.dtype(
    [
        ("blocks", np.int64),  # it may hold
        ("blank", np.int64),  # of them free and without a name
        ("free", np.int64),  # free and named
        ("oldest", np.int32),  # of the free named places; -1: none
        ("newest", np.int32),
    ]
)
# Sixteen million of them are what a large fleet's memory goes to: what excludes each other shares a field.
PLACE = np.dtype(
    [
        ("key", np.int64),  # of its name and pool
        ("link", np.int32),  # see `kv.table`; BLANK or FULL where it has no name
        ("older", np.int32),  # neighbours in the order of the free
        ("newer", np.int32),  # or the next one that is spare; of one in use, _NOBODY - how many use it
    ]
)
_PLACE_BYTES = PLACE.itemsize
BLANK, FULL = -2, -3  # FULL: worth keeping but nobody will ask for it by name
_NOBODY = -2
_MOST_HEADS = 1 << 22  # to begin with: 17 MB


def pool_arrays(pool_blocks: Sequence[int], places: int, log: int) -> tuple[dict[str, Any], dict[str, int | float]]:
    """For a hub: pools of so many blocks each, empty, with room for `places` blocks in all and `log` changes."""
    # To take a head into use costs 80 ns, once for each place: of small fleets all are from the beginning.
    heads = max(LEAST_HEADS, min(1 << int(sum(pool_blocks)).bit_length() - 1, _MOST_HEADS))
    pools = np.zeros(len(pool_blocks), POOL)
    pools["blocks"] = pools["blank"] = pool_blocks
    pools["oldest"] = pools["newest"] = -1
    arrays = {
        "pools": pools,
        "places": reserved(np.zeros(0, PLACE), places, large_pages=True),
        "place_heads": reserved(np.zeros(0, np.int32), max(places, heads) + LEAST_HEADS, large_pages=True),
        "log_name": np.zeros(log, np.int64),
        "log_change": np.zeros(log, np.int32),  # pool + 1 where it was stored there, -(pool + 1) where it was removed
        "log_at_s": np.zeros(log),
    }
    numbers: dict[str, int | float] = {
        "places_used": 0,  # ever
        "places_spare": -1,  # the first of those that are spare
        "places_spares": 0,  # how many are
        "place_heads_used": heads,
        "place_mask": heads - 1,  # see `kv.table.head_among`
        "log_end": 0,
        "log_read": 0,
        "now_s": 0.0,
    }
    return arrays, numbers


def grow_places(hub: Hub, places: int) -> None:
    """Room for so many blocks in all pools."""
    used, heads_used = int(hub.number("places_used")), int(hub.number("place_heads_used"))
    hub.put("places", reserved(hub["places"][:used], places, large_pages=True))
    hub.put(
        "place_heads",
        reserved(hub["place_heads"][:heads_used], max(places, heads_used) + LEAST_HEADS, large_pages=True),
    )


def grow_log(hub: Hub, size: int) -> None:
    """Room for `size` changes; what was read is cut off."""
    read, end = hub.number("log_read"), hub.number("log_end")
    for name in ("log_name", "log_change", "log_at_s"):
        hub.put(name, grown(hub[name][read:end], size))
    hub.set("log_read", 0)
    hub.set("log_end", end - read)


@compiled
def has_room(h: Records, blocks: int) -> bool:
    """Whether the arrays have places for so many more blocks."""
    return bool(h.places_n - h.places_used + h.places_spares >= blocks)


@compiled
def _log(h: Records, name: int, change: int, pool: int) -> None:
    at = h.log_end
    view(h.log_name, h.log_name_n, INT)[at] = name
    view(h.log_change, h.log_change_n, SMALL)[at] = change * (pool + 1)
    view(h.log_at_s, h.log_at_s_n, FLOAT)[at] = h.now_s
    h.log_end = at + 1


@compiled
def _find(h: Records, key: int) -> int:
    """The place of `key`, or -1."""
    heads = view(h.place_heads, h.place_heads_n, SMALL)
    return find_from(heads[head_among(h.place_heads_used, h.place_mask, key)], view(h.places, h.places_n, PLACE), key)


@compiled
def _fetch_head(h: Records, key: int) -> None:
    fetch(h.place_heads + HEAD_BYTES * head_among(h.place_heads_used, h.place_mask, key))


@compiled
def _fetch_entry(h: Records, key: int) -> None:
    head = view(h.place_heads, h.place_heads_n, SMALL)[head_among(h.place_heads_used, h.place_mask, key)]
    fetch(h.places + _PLACE_BYTES * (head - 1))


@compiled
def _fetch_ahead(h: Records, pool: int, names: Ints, at: int, end: int) -> None:
    """See `kv.ahead.fetch_ahead`."""
    if at + AHEAD_HEAD < end:
        _fetch_head(h, key_of(names[at + AHEAD_HEAD], pool))
    if at + AHEAD_ENTRY < end:
        _fetch_entry(h, key_of(names[at + AHEAD_ENTRY], pool))


@compiled
def _fetch_oldest(h: Records, pool: int, count: int) -> None:
    """The `count` oldest of the free will lose their names."""
    places, oldest = view(h.places, h.places_n, PLACE), view(h.pools, h.pools_n, POOL)[pool].oldest
    place = oldest
    for _ in range(count):
        if place < 0:
            break
        _fetch_head(h, places[place].key)
        place = places[place].newer
    place = oldest
    for _ in range(count):
        if place < 0:
            break
        _fetch_entry(h, places[place].key)
        place = places[place].newer


@compiled
def _unname(h: Records, pool: int, place: int) -> None:
    """A free place with a name has it no more."""
    heads, places = view(h.place_heads, h.place_heads_n, SMALL), view(h.places, h.places_n, PLACE)
    key = places[place].key
    remove_at(heads, head_among(h.place_heads_used, h.place_mask, key), places, place)
    _log(h, name_of(key, pool), -1, pool)


@compiled
def users_of(place: Records) -> int:
    """Sequences that use it."""
    return int(_NOBODY - place.newer if place.newer < _NOBODY else 0)


@compiled
def match(h: Records, pool: int, names: Ints, found: Places) -> int:
    """Places of the leading blocks of `names` that are in `pool`, into `found`. Returns how many. Changes nothing."""
    for i in range(len(names)):
        _fetch_ahead(h, pool, names, i, len(names))
        place = _find(h, key_of(names[i], pool))
        if place < 0:
            return i
        found[i] = place
    return len(names)


@compiled
def available(h: Records, pool: int) -> int:
    """Blocks of `pool` that nobody uses."""
    pools = view(h.pools, h.pools_n, POOL)
    return int(pools[pool].blank + pools[pool].free)


@compiled
def idle(h: Records, found: Places, count: int) -> int:
    """How many of the first `count` places nobody uses: taking them leaves as many fewer to allocate."""
    places, total = view(h.places, h.places_n, PLACE), 0
    for i in range(count):
        total += users_of(places[found[i]]) == 0
    return total


@compiled
def take(h: Records, pool: int, found: Places, count: int) -> None:
    """Use the first `count` places that `match` found."""
    places = view(h.places, h.places_n, PLACE)
    for i in range(count):
        place = found[i]
        users = users_of(places[place])
        if users == 0:
            _unlink(h, pool, place)
        places[place].newer = _NOBODY - (users + 1)


@compiled
def allocate(h: Records, pool: int, out: Places, first: int, end: int) -> None:
    """Use so many more blocks of `pool`, which are available: their places go to out[first:end]."""
    places, pools = view(h.places, h.places_n, PLACE), view(h.pools, h.pools_n, POOL)
    for i in range(first, end):
        if (i - first) % AHEAD_HEAD == 0 and pools[pool].blank < end - i:
            _fetch_oldest(h, pool, min(AHEAD_HEAD, end - i))
        if pools[pool].blank > 0:
            pools[pool].blank -= 1
            place = h.places_spare
            if place >= 0:
                h.places_spare = places[place].newer
                h.places_spares -= 1
            else:
                place = _new_place(h)
        else:
            place = int(pools[pool].oldest)
            _unlink(h, pool, place)
            if places[place].link != FULL:
                _unname(h, pool, place)
        places[place].newer = _NOBODY - 1
        places[place].link = BLANK
        out[i] = place


@compiled
def _new_place(h: Records) -> int:
    """One that was never used."""
    h.places_used += 1
    if h.places_used > h.place_heads_used:
        h.place_heads_used += 1
        h.place_mask |= h.place_heads_used - 1
        heads, places = view(h.place_heads, h.place_heads_n, SMALL), view(h.places, h.places_n, PLACE)
        split(heads, h.place_heads_used, h.place_mask, places)
    return int(h.places_used - 1)


@compiled
def seal(h: Records, pool: int, table: Places, names: Ints, first: int, end: int) -> None:
    """Blocks first:end of a sequence are full: those are their names. A second copy of a block stays without one."""
    heads, places = view(h.place_heads, h.place_heads_n, SMALL), view(h.places, h.places_n, PLACE)
    for i in range(first, end):
        _fetch_ahead(h, pool, names, i, end)
        key = key_of(names[i], pool)
        head = head_among(h.place_heads_used, h.place_mask, key)
        if find_from(heads[head], places, key) < 0:
            places[table[i]].key = key
            insert_at(heads, head, places, table[i])
            _log(h, names[i], 1, pool)


@compiled
def release(h: Records, pool: int, table: Places, count: int, full: int) -> None:
    """A sequence is done with the `count` blocks of its table, of which the first `full` are full: last to first."""
    places, pools = view(h.places, h.places_n, PLACE), view(h.pools, h.pools_n, POOL)
    for i in range(count - 1, -1, -1):
        place = table[i]
        users = users_of(places[place]) - 1
        if users > 0:
            places[place].newer = _NOBODY - users
            continue
        if places[place].link == BLANK:
            if i < full:
                places[place].link = FULL
            else:
                _spare(h, place)
                pools[pool].blank += 1
                continue
        _append(h, pool, place)


@compiled
def _spare(h: Records, place: int) -> None:
    view(h.places, h.places_n, PLACE)[place].newer = h.places_spare
    h.places_spare = place
    h.places_spares += 1


@compiled
def _append(h: Records, pool: int, place: int) -> None:
    """`place` is the newest of the free."""
    places, pools = view(h.places, h.places_n, PLACE), view(h.pools, h.pools_n, POOL)
    newest = pools[pool].newest
    places[place].older, places[place].newer = newest, -1
    if newest >= 0:
        places[newest].newer = place
    else:
        pools[pool].oldest = place
    pools[pool].newest = place
    pools[pool].free += 1


@compiled
def _unlink(h: Records, pool: int, place: int) -> None:
    places, pools = view(h.places, h.places_n, PLACE), view(h.pools, h.pools_n, POOL)
    older, newer = places[place].older, places[place].newer
    if older >= 0:
        places[older].newer = newer
    else:
        pools[pool].oldest = newer
    if newer >= 0:
        places[newer].older = older
    else:
        pools[pool].newest = older
    pools[pool].free -= 1


@compiled
def keep(h: Records, pool: int, place: Places, names: Ints) -> None:
    """A pool that nobody runs in has these blocks: new ones, or used again. The one unused for longest makes room.

    Args:
        place: [1], to work in.
    """
    for i in range(len(names)):
        if match(h, pool, names[i : i + 1], place) > 0:
            take(h, pool, place, 1)
        else:
            allocate(h, pool, place, 0, 1)
            seal(h, pool, place, names[i : i + 1], 0, 1)
        release(h, pool, place, 1, 1)


@compiled
def forget(h: Records, pool: int) -> None:
    """All that is free in `pool` loses its name, and goes to the blank: its engine ended, with nothing in use."""
    places, pools = view(h.places, h.places_n, PLACE), view(h.pools, h.pools_n, POOL)
    place = pools[pool].oldest
    while place >= 0:
        newer = places[place].newer
        if places[place].link != FULL:
            _unname(h, pool, place)
        places[place].link = BLANK
        _spare(h, place)
        place = newer
    pools[pool].blank += pools[pool].free
    pools[pool].free = 0
    pools[pool].oldest = pools[pool].newest = -1
