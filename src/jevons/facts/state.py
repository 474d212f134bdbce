"""What a router knows, as it is handed to another one or kept for its next life."""

from __future__ import annotations

import msgspec

from jevons.facts.event import EngineHash


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """What a source of KV events holds by its batches up to `seq`.

    `ts` is its clock at that batch: a source that started anew counts from 0 again, and its batch `seq` has another.
    """

    seq: int
    ts: float  # seconds since 1970
    block_size: int  # tokens
    is_degraded: bool = False  # it holds more than that
    theirs: list[EngineHash]  # its names for the blocks
    ours: bytes  # our names in the same order, 16 bytes each
    more: dict[EngineHash, int] = {}  # copies beyond the first, where there are any
