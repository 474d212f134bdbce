"""What a router knows, as it is handed to another one or kept for its next life."""

from __future__ import annotations

import msgspec

from jevons.base.ids import WorkerId
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


class Measured(msgspec.Struct, frozen=True, array_like=True):
    """A step, or several in a row, that took so long. The first four as in `perf.measured.Load`."""

    steps: float
    tokens: float
    token_context: float
    decodes: float
    seconds: float


class WorkerState(msgspec.Struct, frozen=True):
    """A worker: what its source of events holds, and its latest measurements, from which its prices are learned."""

    worker: WorkerId
    source: SourceState | None
    measured: list[Measured] = []
