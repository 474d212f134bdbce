"""What a router knows, as it is handed to another one or kept for its next life."""

from __future__ import annotations

import msgspec

from jevons.base.ids import WorkerId


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """What a source of KV events holds by its batches up to `seq`.

    `ts` is its clock at that batch: a source that started anew counts from 0 again, and its batch `seq` has another.
    """

    seq: int
    ts: float  # seconds since 1970
    block_size: int  # tokens
    group: int  # of its KV cache groups the one that is followed; -1: none was named yet
    is_degraded: bool = False  # it holds more than that
    names: bytes  # its blocks, what it calls them and what we do, as `kv.engine_names` has them
    windows: dict[int, int] = {}  # blocks that its other groups look back to
    in_dram: int = 0  # blocks among them that are kept in its host's memory
    in_groups: int = 0  # … that are of other groups


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
