"""What is known of a worker, and what it reports."""

from __future__ import annotations

import enum

import msgspec

from jevons.base.ids import WorkerId


class Health(enum.StrEnum):
    """Whether a worker may be given work."""

    UP = "up"
    SUSPECT = "suspect"  # has not been heard of for a moment: no new work, what it runs goes on
    DOWN = "down"  # gone: what it ran is lost


class Role(enum.StrEnum):
    """What a worker computes of a request."""

    BOTH = "both"
    PREFILL = "prefill"  # the prompt and the first token
    DECODE = "decode"  # the tokens after it, and prompts that are short or mostly cached


class IndexMode(enum.StrEnum):
    """Where the knowledge of a worker's blocks comes from."""

    EXACT = "exact"  # its own KV events, no hole
    DEGRADED = "degraded"  # its KV events, but some were lost: it may hold more or less until it starts anew
    APPROXIMATE = "approximate"  # our own placements, with expiry: it sends no events
    NONE = "none"  # its events are expected, none has come yet


class PageFacts(msgspec.Struct, frozen=True):
    """What a worker's blocks are in the tiers."""

    fingerprint: bytes
    block_size: int  # tokens
    size_bytes: int


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it introduces itself."""

    id: WorkerId
    model: str
    kind: str  # "reference" or "openai"
    block_size: int | None = None  # tokens; None until its first event tells
    blocks: int | None = None  # its device pool
    step_tokens: int = 2048  # prompt tokens it computes in one step at most (vLLM's default, see its docs)
    max_running: int | None = None  # sequences it advances together at most; None: not told
    sends_events: bool = True
    pid: int | None = None  # of its process, where that is on this host and ours
    role: Role = Role.BOTH
    adapters: frozenset[str] = frozenset()  # of `model`, that it serves by their own names
    adapter_numbers: dict[int, str] = {}  # their names, by what its KV events may call them instead
    rank: int | None = None  # of several data-parallel ones behind one URL; None: it is alone there
    chip: str = ""  # of the catalog; "" where it is not known
    chips: int = 1  # of that kind, that it runs on
    pages: PageFacts | None = None  # its blocks in the tiers; None where it cannot use them


class StepReport(msgspec.Struct, frozen=True, array_like=True):
    """One step of an engine, as measured by itself."""

    seconds: float
    tokens: int  # prompt tokens computed
    token_context: int  # sum over those tokens of the tokens before each
    decodes: int  # running sequences advanced
