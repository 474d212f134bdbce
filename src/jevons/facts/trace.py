"""Recorded requests: a line each of a trace, in Mooncake's format and what later versions and ours add to it."""

from __future__ import annotations

import msgspec

WORKERS, STEPS, REQUESTS = "workers.jsonl", "steps.jsonl", "requests.jsonl"  # files of a record


class TraceRow(msgspec.Struct, gc=False, omit_defaults=True):
    """A request of a trace.

    `hash_ids` name the prompt's content, one for each `block_size` tokens and the last for what is left: equal ids
    stand for equal tokens and equal tokens before them. Where they reach beyond the prompt they name the answer too.
    """

    input_length: int  # tokens
    output_length: int
    timestamp: float | None = None  # milliseconds; None where it follows others
    hash_ids: list[int] = []
    request_id: str = ""
    session_id: str | int | None = None
    wait_for: list[str] = []
    delay: float | None = None  # milliseconds
    tool_wait_ms: float = 0.0
    block_size: int = 0  # tokens behind an id; 0: as usual

    @property
    def is_linked(self) -> bool:
        return self.session_id is not None or bool(self.request_id) or bool(self.wait_for)


class RecordedRow(TraceRow, gc=False, omit_defaults=True, kw_only=True):
    """A request as a server lived through it."""

    worker: str  # where its first token was made
    decode: str | None = None  # where it was to go on, if that was elsewhere
    predicted_ttft_ms: float
    predicted_cached_tokens: int
    ttft_ms: float | None = None  # arrival to first token; None where it is not known
    done_ms: float  # arrival to last token
    cached_tokens: int | None = None  # as the engine reported

    @property
    def tpot_ms(self) -> float | None:
        """One value per request; None of fewer than two tokens."""
        if self.ttft_ms is None or self.output_length < 2:
            return None
        return (self.done_ms - self.ttft_ms) / (self.output_length - 1)


class RecordedWorker(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker of a record, as it introduced itself to a router of this policy."""

    policy: str
    id: str
    model: str
    kind: str
    role: str
    step_tokens: int
    block_size: int | None = None  # tokens
    blocks: int | None = None
    max_running: int | None = None


class RecordedStep(msgspec.Struct, frozen=True, array_like=True):
    """One step of a worker; see `facts.worker.StepReport`."""

    worker: str
    seconds: float
    tokens: int
    token_context: int
    decodes: int
    at_ms: float = 0.0  # when its report came, from the record's beginning
