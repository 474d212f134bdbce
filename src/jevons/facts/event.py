"""KV events: what an engine says happened to its blocks.

Names are the engine's own (64-bit numbers or bytes), opaque to us: `control.intake` recomputes ours from the tokens.
"""

from __future__ import annotations

import msgspec

EngineHash = int | bytes
IN_DRAM = ("CPU", "CPU_PINNED")  # media of blocks that an engine keeps in its host's memory: vLLM's word, SGLang's
SLIDING = "sliding_window"  # kind of a group whose layers look back so far and no further


class BlocksStored(msgspec.Struct, frozen=True, kw_only=True):
    """These blocks can be reused from now on. Their tokens lie one after another in `tokens`."""

    hashes: list[EngineHash]
    parent: EngineHash | None = None  # the block before hashes[0]; None where hashes[0] starts a prompt
    tokens: list[int]
    block_size: int
    medium: str | None = None  # "GPU" for the device pool, whatever the device; None means the same
    group: int = 0  # which KV cache group, of models that have several
    kind: str | None = None  # "full_attention", "sliding_window", …; None means full
    window: int | None = None  # tokens, of a sliding window
    adapter: str | None = None  # LoRA name
    adapter_number: int | None = None  # where its engine tells no name
    extra: list[list[object] | None] | None = None  # per block: cache salt, image hashes …


class BlocksRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """One copy of each of these blocks is gone; another copy may still be there."""

    hashes: list[EngineHash]
    medium: str | None = None
    group: int = 0


class AllCleared(msgspec.Struct, frozen=True):
    """Every block of this engine is gone."""


KvEvent = BlocksStored | BlocksRemoved | AllCleared


class KvBatch(msgspec.Struct, frozen=True):
    """Events of one engine step, numbered without holes from 0 by their source."""

    seq: int
    events: list[KvEvent]
    rank: int = 0  # data-parallel rank
    ts: float = 0.0  # the engine's wall clock, seconds since 1970
    unread: int = 0  # events in this batch of a kind or shape we do not know


class KvPayload(msgspec.Struct, frozen=True, gc=False):
    """A batch as it came: not decoded yet."""

    seq: int
    payload: bytes  # msgpack
