"""KV events of every shape seen in the wild, as records.

payload  [ts, [event, …], dp_rank]         dp_rank may be missing
         {"ts": …, "events": [event, …]}   vLLM of 2026
event    {"type": "BlockStored", …}        vLLM ≥ 0.3x
         ["BlockStored", …]                older vLLM, SGLang: fields by position
         {"event_id": …, "data": {…}}      TensorRT-LLM's own

Batches of the usual shape are decoded straight into records; whatever does not fit those is read field by field. All
day `control.reading` does without records; what it does not know comes here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, EngineHash, KvBatch, KvEvent

_STORED_FIELDS = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
_REMOVED_FIELDS = ("block_hashes", "medium", "group_idx")


class Malformed(ValueError):
    """A message on an event socket that is not a batch of KV events."""


def decode_batch(seq: int, payload: bytes) -> KvBatch:
    """Read one payload frame.

    Events of unknown kind or shape are left out and counted in `unread`: the rest must not be lost with them.

    Raises:
        Malformed: the payload is no batch at all.
    """
    try:
        batch = _NEWEST.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_any(seq, payload)
    return KvBatch(seq=seq, events=[_event(event) for event in batch.events], rank=batch.rank or 0, ts=batch.ts)


class _Stored(msgspec.Struct, tag_field="type", tag="BlockStored", gc=False):
    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[object] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class _Removed(msgspec.Struct, tag_field="type", tag="BlockRemoved", gc=False):
    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag_field="type", tag="AllBlocksCleared", gc=False):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[_Stored | _Removed | _Cleared]
    rank: int | None = None


_NEWEST = msgspec.msgpack.Decoder(_Batch)


def _event(wire: _Stored | _Removed | _Cleared) -> KvEvent:
    match wire:
        case _Stored():
            return BlocksStored(
                hashes=wire.block_hashes,
                parent=wire.parent_block_hash,
                tokens=wire.token_ids,
                block_size=wire.block_size,
                medium=wire.medium,
                group=wire.group_idx or 0,
                kind=wire.kv_cache_spec_kind,
                window=wire.kv_cache_spec_sliding_window,
                adapter=wire.lora_name or None,
                adapter_number=None if wire.lora_name else wire.lora_id,
                extra=wire.extra_keys,
            )
        case _Removed():
            return BlocksRemoved(hashes=wire.block_hashes, medium=wire.medium, group=wire.group_idx or 0)
        case _Cleared():
            return AllCleared()


def _decode_any(seq: int, payload: bytes) -> KvBatch:
    """A batch of any shape seen. Raises Malformed."""
    try:
        raw = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:  # no hashable key, say
        raise Malformed(f"payload: not msgpack: {error}") from error
    if isinstance(raw, dict):
        raw = [raw.get("ts"), raw.get("events"), raw.get("data_parallel_rank")]
    if not isinstance(raw, list) or len(raw) < 2 or not isinstance(raw[1], list):
        raise Malformed(f"payload: must be [ts, events, rank], got {str(raw)[:80]}")
    decoded = [_decode(event) for event in raw[1]]
    known = [event for events in decoded if events is not None for event in events]
    ts = raw[0] if isinstance(raw[0], int | float) else 0.0
    rank = raw[2] if len(raw) > 2 and isinstance(raw[2], int) else 0
    return KvBatch(seq=seq, events=known, rank=rank, ts=float(ts), unread=decoded.count(None))


def _decode(raw: Any) -> list[KvEvent] | None:
    """What one event of any shape tells; None if it is not one we know."""
    try:
        if isinstance(raw, dict):
            return _decode_native(raw["data"]) if "data" in raw else _decode_named(raw.get("type"), raw)
        if isinstance(raw, list) and raw:
            names = _STORED_FIELDS if raw[0] == "BlockStored" else _REMOVED_FIELDS
            return _decode_named(raw[0], dict(zip(names, raw[1:], strict=False)))
    except (KeyError, TypeError, msgspec.ValidationError):
        pass
    return None


def _decode_named(kind: Any, fields: dict[str, Any]) -> list[KvEvent] | None:
    if kind == "BlockStored":
        return [_stored(fields)]
    if kind == "BlockRemoved":
        return [_removed(fields)]
    return [AllCleared()] if kind == "AllBlocksCleared" else None


def _decode_native(data: dict[str, Any]) -> list[KvEvent] | None:
    """TensorRT-LLM's. A block that it moves to its host memory (`updated`) can be reused as before: it brings it back
    by itself."""
    kind = data["type"]
    if kind == "stored":
        return [_native_stored(data)]
    if kind == "removed":
        return [_removed({"block_hashes": data["block_hashes"]})]
    return [] if kind in ("created", "updated") else None


def _native_stored(data: dict[str, Any]) -> BlocksStored:
    """Its last block may be partial, and is left out."""
    blocks = data["blocks"]
    size = max(len(block["tokens"]) for block in blocks) if blocks else 1
    full = [block for block in blocks if len(block["tokens"]) == size]
    tokens = [token for block in full for token in block["tokens"]]
    extra = [[t["token_extra_id"] for t in b["tokens"] if t.get("token_extra_id")] or None for b in full]
    fields = {
        "block_hashes": [block["block_hash"] for block in full],
        "parent_block_hash": data["parent_hash"],
        "token_ids": [token["token_id"] for token in tokens],
        "block_size": size,
        "lora_id": full[0].get("lora_id") if full else None,
        "extra_keys": extra if any(extra) else None,
    }
    return _stored(fields)


def _stored(fields: dict[str, Any]) -> BlocksStored:
    return msgspec.convert(
        {
            "hashes": fields["block_hashes"],
            "parent": fields["parent_block_hash"],
            "tokens": fields["token_ids"],
            "block_size": fields["block_size"],
            "medium": fields.get("medium"),
            "group": _group(fields.get("group_idx")),
            "kind": fields.get("kv_cache_spec_kind"),
            "window": fields.get("kv_cache_spec_sliding_window"),
            "adapter": fields.get("lora_name") or None,
            "adapter_number": None if fields.get("lora_name") else fields.get("lora_id"),
            "extra": fields.get("extra_keys"),
        },
        BlocksStored,
    )


def _group(number: Any) -> Any:
    """Some builds of vLLM have a list (what images are in each block) where the group's number is in others."""
    return 0 if isinstance(number, list) else number or 0


def _removed(fields: dict[str, Any]) -> BlocksRemoved:
    return msgspec.convert(
        {"hashes": fields["block_hashes"], "medium": fields.get("medium"), "group": fields.get("group_idx") or 0},
        BlocksRemoved,
    )
