"""The state of a fleet at one moment, as pages and tools read it."""

from __future__ import annotations

import msgspec

from jevons.base.ids import RequestId, WorkerId
from jevons.facts.scaling import WantedWorkers
from jevons.facts.worker import Health, IndexMode, Role


class WorkerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    id: WorkerId
    model: str
    kind: str
    rank: int | None  # of several data-parallel ones behind one URL; None: it is alone there
    role: Role
    pid: int | None
    health: Health
    is_draining: bool = False  # it is to be stopped: no new work
    is_stalled: bool  # it answers probes and does nothing about what waits there: no new work while others have room
    index: IndexMode
    block_size: int | None
    held_blocks: int
    dram_blocks: int  # that an attached engine keeps in its host's memory
    queued_tokens: int
    decoding: int
    requests: int
    prefill_tokens_per_s: float  # learned so far, of a long run of short prompts
    step_s: float  # learned so far, an empty step
    measurements: int
    index_confidence: (
        float  # share of the cached tokens its index claims that is expected to be there, by what it reported
    )
    adapters: list[str]  # loaded, as far as is known; the last used is last
    event_counts: dict[str, int]
    tier_counts: dict[str, int]  # pages saved, and those that could not be brought, by reason


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request: what was predicted when it was placed, and what was then measured."""

    id: RequestId
    worker: WorkerId
    prompt_tokens: int
    predicted_ttft_s: float
    ttft_s: float | None  # placement to first token; None if none came
    predicted_cached_tokens: int
    cached_tokens: int | None  # as the engine reported; None if it did not
    reused_tokens: int | None = None  # the same in tokens as `prompt_tokens` are counted; None: as it reported
    device_s: float  # seconds of devices it took, by their prices
    saved_s: float = 0.0  # … and those that computing what was cached would have taken, times its worker's chips
    chip: str = ""  # of its worker; "": not known


class TierSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The tiers of a node, as its keeper tells."""

    pid: int  # the keeper's
    dram_bytes: int
    dram_used_bytes: int
    blocks: dict[str, int]  # by tier
    lower_bytes: dict[str, int]  # used, by tier below dram
    leases: int
    clients: int
    waiting_bytes: dict[str, int]  # still to be written, by tier
    counts: dict[str, int]  # what happened or failed, by reason


class FrontendSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One of several processes that serve one port."""

    number: int
    pid: int
    placements: int
    copies: int = 0  # of these, as in a fleet's
    index_blocks: int
    requests: int  # unfinished, placed by it
    requests_elsewhere: int  # … by others, as far as it heard
    counts: dict[str, int]  # what it told and heard, by fate
    recent: list[Outcome] = []  # in a fleet's snapshot they stand together


class TenantSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    id: str  # as its requests name it, or a hash of its key or salt
    placements: int
    waiting: int  # in front
    device_s: float  # seconds of devices for it, as predicted


class GateSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits in front of the workers."""

    waiting: int
    tenants: list[TenantSnapshot]
    forgotten_tenants: int


class FleetSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    policy: str
    placements: int
    index_blocks: int  # distinct blocks known
    copies: int = 0  # placements where their prefix was not, so that those who want it next find it there too
    index_forgotten: int = 0  # blocks of workers that it let go because its memory was short: it is no more exact
    workers: list[WorkerSnapshot]
    recent: list[Outcome]
    tiers: TierSnapshot | None = None  # of this node; None without, and while the keeper is away
    gate: GateSnapshot | None = None  # None: nobody is let in here
    nodes: dict[str, TierSnapshot] = {}  # of others, by their address
    frontends: list[FrontendSnapshot] = []  # where there are several
    state: dict[str, int] = {}  # of the file of what is known: workers loaded, files saved, and what went wrong
    tokenizers: dict[str, str] = {}  # by model: what encodes its prompts, and why where that is the slow one
    scaling: list[WantedWorkers] = []  # how many workers are wanted, by model and role
