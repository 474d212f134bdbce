"""KV events as bytes: vLLM's wire format, read in every shape seen in the wild, written as vLLM 0.32 writes it.

frames   [topic] [seq: 8 bytes, big endian, from 0] [payload: msgpack]
payload  [ts, [event, …], dp_rank]         dp_rank may be missing; a map with these names is accepted too
event    {"type": "BlockStored", …}        vLLM ≥ 0.3x
         ["BlockStored", …]                older vLLM, SGLang: fields by position

Batches of the newest shape are decoded straight into records; whatever does not fit those is read field by field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from jevons.base.ids import BlockHash
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, EngineHash, KvBatch, KvEvent
from jevons.kv.hashing import wire_hash

_SEQ_BYTES = 8
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


def encode_batch(ts: float, events: Sequence[KvEvent], rank: int = 0) -> bytes:
    """The payload frame of one batch, byte for byte as vLLM 0.32 sends it."""
    return msgspec.msgpack.encode([ts, [_encode(event) for event in events], rank])


def encode_seq(seq: int) -> bytes:
    """A sequence number as its frame; -1 is the end of a replay."""
    return seq.to_bytes(_SEQ_BYTES, "big", signed=True)


def decode_seq(frame: bytes) -> int:
    """Raises Malformed unless it is 8 bytes."""
    if len(frame) != _SEQ_BYTES:
        raise Malformed(f"sequence frame: must be {_SEQ_BYTES} bytes, got {len(frame)}")
    return int.from_bytes(frame, "big", signed=True)


def decode_batch(seq: int, payload: bytes) -> KvBatch:
    """Read one payload frame.

    Events of unknown kind or shape are left out and counted in `unread`: the rest must not be lost with them.

    Raises:
        Malformed: the payload is no batch at all.
    """
    try:
        batch = _NEWEST.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
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
                adapter=_adapter_name(wire.lora_name, wire.lora_id),
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"payload: not msgpack: {error}") from error
    if isinstance(raw, dict):
        raw = [raw.get("ts"), raw.get("events"), raw.get("data_parallel_rank")]
    if not isinstance(raw, list) or len(raw) < 2 or not isinstance(raw[1], list):
        raise Malformed(f"payload: must be [ts, events, rank], got {str(raw)[:80]}")
    events = [_decode(event) for event in raw[1]]
    known = [event for event in events if event is not None]
    ts = raw[0] if isinstance(raw[0], int | float) else 0.0
    rank = raw[2] if len(raw) > 2 and isinstance(raw[2], int) else 0
    return KvBatch(seq=seq, events=known, rank=rank, ts=float(ts), unread=len(events) - len(known))


def _encode(event: KvEvent) -> dict[str, Any]:
    match event:
        case BlocksStored():
            return {
                "type": "BlockStored",
                "block_hashes": [_number(h) for h in event.hashes],
                "parent_block_hash": None if event.parent is None else _number(event.parent),
                "token_ids": event.tokens,
                "block_size": event.block_size,
                "lora_id": None,
                "medium": event.medium,
                "lora_name": event.adapter,
                "extra_keys": event.extra or [None] * len(event.hashes),
                "group_idx": event.group,
                "kv_cache_spec_kind": event.kind or "full_attention",
            }
        case BlocksRemoved():
            hashes = [_number(h) for h in event.hashes]
            return {"type": "BlockRemoved", "block_hashes": hashes, "medium": event.medium, "group_idx": event.group}
        case AllCleared():
            return {"type": "AllBlocksCleared"}


def _number(name: EngineHash) -> EngineHash:
    """Our own 16-byte names go out as numbers, as vLLM's do; whatever else it is stays as it is."""
    return wire_hash(BlockHash(name)) if isinstance(name, bytes) and len(name) == 16 else name


def _decode(raw: Any) -> KvEvent | None:
    """One event of either shape; None if it is not one we know."""
    if isinstance(raw, dict):
        kind, fields = raw.get("type"), raw
    elif isinstance(raw, list) and raw:
        kind = raw[0]
        names = _STORED_FIELDS if kind == "BlockStored" else _REMOVED_FIELDS
        fields = dict(zip(names, raw[1:], strict=False))
    else:
        return None
    try:
        if kind == "BlockStored":
            return _stored(fields)
        if kind == "BlockRemoved":
            return _removed(fields)
        return AllCleared() if kind == "AllBlocksCleared" else None
    except (KeyError, TypeError, msgspec.ValidationError):
        return None


def _stored(fields: dict[str, Any]) -> BlocksStored:
    return msgspec.convert(
        {
            "hashes": fields["block_hashes"],
            "parent": fields["parent_block_hash"],
            "tokens": fields["token_ids"],
            "block_size": fields["block_size"],
            "medium": fields.get("medium"),
            "group": fields.get("group_idx") or 0,
            "kind": fields.get("kv_cache_spec_kind"),
            "adapter": _adapter_name(fields.get("lora_name"), fields.get("lora_id")),
            "extra": fields.get("extra_keys"),
        },
        BlocksStored,
    )


def _adapter_name(name: str | None, number: int | None) -> str | None:
    """The adapter's name; its number where only that is told."""
    return name or (None if number is None else f"#{number}")


def _removed(fields: dict[str, Any]) -> BlocksRemoved:
    return msgspec.convert(
        {"hashes": fields["block_hashes"], "medium": fields.get("medium"), "group": fields.get("group_idx") or 0},
        BlocksRemoved,
    )
