"""A fleet at one moment as a page draws it, live and rehearsed alike: small enough to be told twice a second.

Workers are columns: one entry each, in the order of `Who.ids`. Who they are is told again only when that is other than
the reader has seen.
"""

from __future__ import annotations

import msgspec

from jevons.facts.scaling import WantedWorkers
from jevons.facts.snapshot import TierSnapshot

HEALTHS = ("up", "stalled", "suspect", "down", "draining")  # what the numbers in `Workers.health` stand for


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """Workers, by what does not change while they run."""

    ids: list[str]
    models: list[str]
    roles: list[str]
    chips: list[str]  # "" where that is not known
    chip_counts: list[int]  # of each worker, where its chip is known
    blocks: list[int | None]  # its device pool has; None: not known


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """What each does now."""

    version: int  # another one whenever a worker came, left, or is another
    who: Who | None  # None: as the reader has seen
    health: list[int]
    running: list[int]  # requests past their first token
    waiting: list[int]  # requests before it
    queue_ms: list[int]  # predicted: what is queued there takes so long
    held: list[int]  # blocks in its device pool, as far as is known


class Going(msgspec.Struct, kw_only=True, array_like=True):
    """One request. Times in seconds of the view's clock."""

    id: str
    placed_s: float
    worker: str
    decode: str | None  # who goes on after the first token, if that is another
    prompt_tokens: int
    predicted_cached: int
    predicted_ttft_s: float
    reason: str
    cached_tokens: int | None = None  # as the engine reported
    ttft_s: float | None = None  # placement to first token
    output_tokens: int | None = None  # None: it is under way
    done_s: float | None = None


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took in the last minute, in seconds; None of nothing."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None
    within: float | None  # share that took no longer than `target_s`
    target_s: float


class Reuse(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt tokens of finished requests so far, by where they came from."""

    computed: int
    device: int  # were in the worker's own pool
    tiers: dict[str, int]  # were brought from there
    untold: int  # their engine did not say


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """A second, over the last minute."""

    requests: float
    prompt_tokens: float
    output_tokens: float


class View(msgspec.Struct, frozen=True, kw_only=True):
    source: str  # "live" or "twin"
    title: str
    began: str  # names this run: what was seen of another says nothing
    now_s: float  # since it began, by its own clock
    ends_s: float | None = None  # when the last request of a rehearsal arrives, where that is known
    is_over: bool = False
    policy: str
    workers: Workers
    requests: list[Going]  # the last that were placed, the newest last
    scatter: list[tuple[float, float]]  # seconds to first token of the last finished ones: predicted, measured
    ttft: Times  # placement to first token
    itl: Times
    rates: Rates
    reuse: Reuse
    placed: int
    under_way: int
    finished: int
    waiting_in_front: int = 0
    chip_s: dict[str, float] = {}  # seconds of chips since it began, by kind; "" where that is not known: of workers
    saved_chip_s: dict[str, float] = {}  # that computing what was reused would have taken, the same
    tiers: TierSnapshot | None = None
    scaling: list[WantedWorkers] = []  # live: how many workers are wanted, by model and role
