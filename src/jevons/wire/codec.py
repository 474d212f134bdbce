"""KV events as vLLM 0.32 writes them; `control.shapes` and `control.reading` read them.

frames   [topic] [seq: 8 bytes, big endian, from 0] [payload: msgpack, see `control.shapes`]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from jevons.base.ids import BlockHash
from jevons.control.shapes import Malformed
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, EngineHash, KvEvent
from jevons.kv.hashing import wire_hash

_SEQ_BYTES = 8


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
