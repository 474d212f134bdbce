"""KV events read from a payload's bytes by a kernel: what happened goes into arrays, not into objects.

    events  [ kind, where its hashes, tokens, salt and adapter are, … ]      one record each
    hashes  the engine's names, as signed 64-bit numbers
    tokens  token ids

Read are the shapes that engines send all day: arrays and maps, with fields that may be missing. Of anything else, even
in one event of a payload, nothing is taken: `control.shapes` reads that payload, and is what this is held to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import INT, Records, compiled
from jevons.base.hub import Hub, view
from jevons.base.msgpack import (
    NIL,
    Raw,
    digest,
    digest_of,
    first_byte,
    read_array,
    read_bytes,
    read_float,
    read_int,
    read_map,
    read_number,
    read_text,
    skip,
)
from jevons.facts.event import IN_DRAM, SLIDING

TOKEN = np.dtype(np.uint32)
Tokens = np.ndarray[Any, np.dtype[np.uint32]]
EVENT = np.dtype(
    [
        ("kind", np.int64),  # one of those below
        ("fields", np.int64),  # that it has, a bit each
        ("reject", np.int64),  # why its blocks cannot serve, see REASONS; 0: they can
        ("group", np.int64),
        ("says_full", np.int64),  # it is told that its group keeps all tokens
        ("says_other", np.int64),  # … that it does not: 1 a sliding window, 2 something else
        ("window", np.int64),  # tokens that its group keeps, if it is told to be a sliding window; 0: not told
        ("part", np.int64),  # tier and group, where that is not the followed one; see `control.naming`
        ("tier", np.int64),  # of `facts.block.Tier`, by number; -1: one that is not kept apart
        ("hash_at", np.int64),
        ("hashes", np.int64),
        ("token_at", np.int64),
        ("tokens", np.int64),
        ("size", np.int64),  # of a block
        ("has_parent", np.int64),
        ("parent", np.int64),
        ("salt_at", np.int64),
        ("salt", np.int64),  # bytes of the text; 0: none
        ("adapter_at", np.int64),
        ("adapter", np.int64),
        ("adapter_number", np.int64),  # -1: none
        ("keys", np.int64),  # blocks told of in extra_keys; -1: it is left out
        ("first", np.int64),  # the root, where the event is the start of a prompt
        ("second", np.int64),
    ]
)
STORED, REMOVED, CLEARED = 1, 2, 3
# Why blocks are rejected, in the order of its FATES.
IGNORED_TIER, IGNORED_GROUP, MISSHAPEN, PARTIAL, ORPHAN, UNKNOWN, IGNORED_ADAPTER = range(1, 8)
NOT_READ, NO_ROOM = -1, -2
DRAM = 1  # by number, see `facts.block.Tier`

# Fields by number; of events that are arrays, where they stand.
_TYPE, _HASHES, _PARENT, _TOKENS, _SIZE, _LORA_ID, _MEDIUM, _LORA_NAME, _EXTRA, _GROUP, _KIND, _OTHER = range(12)
_WINDOW = 12  # in maps alone: arrays that tell it differ in what stands before
_NAMED = {
    "type": _TYPE,
    "block_hashes": _HASHES,
    "parent_block_hash": _PARENT,
    "token_ids": _TOKENS,
    "block_size": _SIZE,
    "lora_id": _LORA_ID,
    "medium": _MEDIUM,
    "lora_name": _LORA_NAME,
    "extra_keys": _EXTRA,
    "group_idx": _GROUP,
    "kv_cache_spec_kind": _KIND,
    "kv_cache_spec_sliding_window": _WINDOW,
}
_DIGESTS = np.array([digest_of(name) for name in _NAMED], np.int64)
_FIELDS = np.array(list(_NAMED.values()), np.int64)
_IS_STORED, _IS_REMOVED = digest_of("BlockStored"), digest_of("BlockRemoved")
_IS_CLEARED, _EVENTS, _TS = digest_of("AllBlocksCleared"), digest_of("events"), digest_of("ts")
_GPU, _CPU, _PINNED = (digest_of(medium) for medium in ("GPU", *IN_DRAM))
_SLIDING = digest_of(SLIDING)
_FULL, _MLA, _SINK = (digest_of(f"{kind}attention") for kind in ("full_", "mla_", "sink_full_"))
_1, _2, _3, _4 = (np.uint64(i) for i in (1, 2, 3, 4))
_8, _16, _24 = (np.uint32(i) for i in (8, 16, 24))
_NEEDED = 1 << _HASHES | 1 << _PARENT | 1 << _TOKENS | 1 << _SIZE
_FIRST_ROOM = 1 << 10


class Scratch:
    """What a payload is read into. One serves all sources that one thread reads."""

    def __init__(self) -> None:
        arrays = {
            "events": np.zeros(_FIRST_ROOM // 16, EVENT),
            "hashes": np.zeros(_FIRST_ROOM, INT),
            "tokens": np.zeros(16 * _FIRST_ROOM, TOKEN),
            "runs": np.zeros(_FIRST_ROOM // 8, INT),  # and below: for who does what was read, see `control.naming`
            "changed": np.zeros(_FIRST_ROOM, INT),
        }
        used = ("events_used", "hashes_used", "tokens_used", "runs_used", "changed_used", "short")
        self.hub = Hub(arrays, {**dict.fromkeys(used, 0), "ts": 0.0})
        self._arrays = tuple(arrays)

    def grow(self) -> None:
        """Twice the room."""
        for name in self._arrays:
            self.hub.grow(name, 2 * len(self.hub[name]))

    def text(self, raw: bytes, event: int, field: str) -> str:
        """The salt or adapter of an event that was read. Raises UnicodeDecodeError."""
        record = self.hub["events"][event]
        return raw[record[f"{field}_at"] : record[f"{field}_at"] + record[field]].decode()


@compiled
def read(s: Records, raw: Raw) -> int:
    """Read a payload into a scratch. Returns its events' number; NOT_READ: it is of another shape, or none at all;
    NO_ROOM: the scratch is too small."""
    s.events_used = s.hashes_used = s.tokens_used = s.short = 0
    s.ts = 0.0
    fields, at = read_array(raw, 0)
    is_map = at < 0
    if is_map:
        fields, at = read_map(raw, 0)
    has_events = False
    for i in range(fields if at >= 0 else 0):
        are_events, is_ts = i == 1, i == 0
        if is_map:
            length, begin = read_text(raw, at)
            at = begin + length if begin >= 0 else -1
            found = digest(raw, begin, length) if begin >= 0 else 0
            are_events, is_ts = found == _EVENTS, found == _TS
        if is_ts:
            s.ts = read_float(raw, at)
        if at < 0 or (are_events and has_events):
            at = -1
            break
        at = _read_events(s, raw, at) if are_events else skip(raw, at)
        has_events |= are_events
    if s.short:
        return NO_ROOM
    return int(s.events_used) if has_events and at == len(raw) else NOT_READ


@compiled
def _read_events(s: Records, raw: Raw, at: int) -> int:
    count, at = read_array(raw, at)
    for _ in range(count if at >= 0 else 0):
        if at < 0:
            return -1
        if s.events_used == s.events_n:
            s.short = 1
            return -1
        at = _read_event(s, raw, at)
        s.events_used += 1
    return at


@compiled
def _read_event(s: Records, raw: Raw, at: int) -> int:
    event = view(s.events, s.events_n, EVENT)[s.events_used]
    event.kind = event.fields = event.reject = event.group = event.says_full = event.has_parent = 0
    event.says_other = event.window = event.tier = 0
    event.hashes = event.tokens = event.size = event.salt = event.adapter = 0
    event.adapter_number = event.keys = -1
    extra, after = _read_array_event(s, raw, at)
    if after < 0:
        extra, after = _read_map_event(s, raw, at)
    if event.kind == 0 or (event.kind == STORED and event.fields & _NEEDED != _NEEDED):
        return -1
    if event.kind == REMOVED and event.fields & (1 << _HASHES) == 0:
        return -1
    if event.kind == STORED and extra >= 0 and _read_keys(event, raw, extra) < 0:
        return -1
    return after


@compiled
def _read_array_event(s: Records, raw: Raw, at: int) -> tuple[int, int]:
    """Where its extra_keys are, -1 for none, and what follows it."""
    count, at = read_array(raw, at)
    event, extra = view(s.events, s.events_n, EVENT)[s.events_used], -1
    for i in range(count if at >= 0 else 0):
        field = i if i < _OTHER else _OTHER
        if event.kind == REMOVED and i > _HASHES:
            field = _MEDIUM if i == 2 else (_GROUP if i == 3 else _OTHER)
        if field == _EXTRA:
            extra = at
        at = _read_field(s, raw, at, field)
    return extra, at


@compiled
def _read_map_event(s: Records, raw: Raw, at: int) -> tuple[int, int]:
    pairs, at = read_map(raw, at)
    extra = -1
    for _ in range(pairs if at >= 0 else 0):
        length, begin = read_text(raw, at)
        if begin < 0:
            return -1, -1
        field, at = _field_named(digest(raw, begin, length)), begin + length
        if field == _EXTRA:
            extra = at
        at = _read_field(s, raw, at, field)
    return extra, at


@compiled
def _field_named(found: int) -> int:
    for field in range(len(_DIGESTS)):
        if _DIGESTS[field] == found:
            return int(_FIELDS[field])
    return _OTHER


@compiled
def _read_field(s: Records, raw: Raw, at: int, field: int) -> int:
    """Read one field of the event in hand. Returns what follows; -1: it is not what it should be, or told twice."""
    event = view(s.events, s.events_n, EVENT)[s.events_used]
    if field == _OTHER or at < 0:
        return skip(raw, at)
    if event.fields & (1 << field):
        return -1
    event.fields |= 1 << field
    if field == _HASHES:
        return _read_hashes(s, raw, at)
    if field == _TOKENS:
        return _read_tokens(s, raw, at)
    if field in (_TYPE, _MEDIUM, _KIND, _LORA_NAME):
        return _read_text_field(event, raw, at, field)
    if field == _EXTRA:
        return skip(raw, at)
    return _read_int_field(event, raw, at, field)


@compiled
def _read_text_field(event: Records, raw: Raw, at: int, field: int) -> int:
    if first_byte(raw, at) == NIL:
        return at + 1 if field != _TYPE else -1
    length, begin = read_text(raw, at)
    if begin < 0:
        return -1
    if field == _LORA_NAME:
        event.adapter_at, event.adapter = begin, length
    elif field == _TYPE:
        event.kind = _kind(digest(raw, begin, length))
        return begin + length if event.kind else -1
    elif field == _MEDIUM and digest(raw, begin, length) != _GPU:
        found = digest(raw, begin, length)
        event.reject, event.tier = IGNORED_TIER, DRAM if found in (_CPU, _PINNED) else -1
    elif field == _KIND:
        found = digest(raw, begin, length)
        event.says_full = found in (_FULL, _MLA, _SINK)
        event.says_other = 0 if event.says_full else (1 if found == _SLIDING else 2)
        if not event.says_full and event.reject == 0:
            event.reject = IGNORED_GROUP
    return begin + length


@compiled
def _kind(found: int) -> int:
    if found == _IS_STORED:
        return STORED
    if found == _IS_REMOVED:
        return REMOVED
    return CLEARED if found == _IS_CLEARED else 0


@compiled
def _read_int_field(event: Records, raw: Raw, at: int, field: int) -> int:
    if first_byte(raw, at) == NIL:
        return at + 1 if field != _SIZE else -1
    if field == _PARENT:
        event.has_parent = 1
        event.parent, after = _read_hash(raw, at)
        return after
    number, after = read_int(raw, at)
    if field == _SIZE:
        event.size = number
    elif field == _GROUP:
        event.group = number
    elif field == _WINDOW:
        event.window = number
    elif number < 0:
        return -1
    else:
        event.adapter_number = number
    return after


@compiled
def _read_hash(raw: Raw, at: int) -> tuple[int, int]:
    """As `kv.engine_names.number_of`."""
    length, begin = read_bytes(raw, at)
    if begin < 0:
        return read_int(raw, at)
    width = min(length, 8)
    number, after = read_number(raw, begin + length - width, width)
    if length > 32:
        number ^= read_number(raw, begin, 8)[0]
    return number, after


@compiled
def _read_hashes(s: Records, raw: Raw, at: int) -> int:
    event, hashes = view(s.events, s.events_n, EVENT)[s.events_used], view(s.hashes, s.hashes_n, INT)
    count, at = read_array(raw, at)
    event.hash_at, event.hashes = s.hashes_used, count
    if at >= 0 and s.hashes_used + count > s.hashes_n:
        s.short = count <= len(raw)
        return -1
    for i in range(s.hashes_used, s.hashes_used + (count if at >= 0 else 0)):
        if at < 0:
            return -1
        hashes[i], at = _read_hash(raw, at)
    s.hashes_used += count
    return at


@compiled
def _read_tokens(s: Records, raw: Raw, at: int) -> int:
    event, tokens = view(s.events, s.events_n, EVENT)[s.events_used], view(s.tokens, s.tokens_n, TOKEN)
    count, at = read_array(raw, at)
    event.token_at, event.tokens = s.tokens_used, count
    if at >= 0 and s.tokens_used + count > s.tokens_n:
        s.short = count <= len(raw)
        return -1
    if at < 0 or count > len(raw) - at:
        return -1
    at = _read_plain_tokens(raw, at, tokens[s.tokens_used : s.tokens_used + count])
    s.tokens_used += count
    return at


@compiled
def _read_plain_tokens(raw: Raw, at: int, tokens: Tokens) -> int:
    """Without a branch for the kinds that tokens are of: which comes next nobody can foresee."""
    done, last = 0, len(raw) - 4
    while done < len(tokens) and 0 <= at < last:
        p = np.uint64(at)  # an unsigned index is not looked at for being negative
        b = np.int64(raw[p])
        if b > 0xCE or 0x80 <= b < 0xCC:
            break
        width = int(b >= 0xCC) + int(b >= 0xCD) + 2 * int(b >= 0xCE)
        four = (np.uint32(raw[p + _1]) << _24) | (np.uint32(raw[p + _2]) << _16)
        four |= (np.uint32(raw[p + _3]) << _8) | np.uint32(raw[p + _4])
        tokens[np.uint64(done)] = b if width == 0 else np.int64(four) >> (32 - 8 * width)
        at += 1 + width
        done += 1
    for i in range(done, len(tokens)):
        token, at = read_int(raw, at)
        if at < 0 or token < 0 or token >= 1 << 32:
            return -1
        tokens[i] = token
    return at


@compiled
def _read_keys(event: Records, raw: Raw, at: int) -> int:
    """What sets blocks apart: an adapter's name, which is told elsewhere too, and the salt of a prompt's first block.
    Anything else (images, embeddings) is not read."""
    if first_byte(raw, at) == NIL:
        return at + 1
    event.keys, at = read_array(raw, at)
    for block in range(event.keys if at >= 0 else 0):
        if at < 0:
            return -1
        if first_byte(raw, at) == NIL:
            at += 1
            continue
        left, at = read_array(raw, at)
        length, begin = read_text(raw, at)
        if left > 0 and begin >= 0 and _is_adapter(event, raw, length, begin):
            left, at = left - 1, begin + length
            length, begin = read_text(raw, at)
        if left == 1 and begin >= 0 and block == 0 and event.has_parent == 0:
            event.salt_at, event.salt = begin, length
            left, at = 0, begin + length
        if left > 0:
            return -1
    return at


@compiled
def _is_adapter(event: Records, raw: Raw, length: int, begin: int) -> bool:
    if event.adapter == 0 or event.adapter != length:
        return False
    return bool(digest(raw, begin, length) == digest(raw, event.adapter_at, length))
