"""How many workers are wanted, as pages, metrics and who starts them are told."""

from __future__ import annotations

import msgspec


class WantedWorkers(msgspec.Struct, frozen=True, kw_only=True):
    """Of one role of a model. See `policy.scale`."""

    model: str
    role: str
    wanted: int  # up or starting
    up: int  # that take work
    starting: int  # wanted before, and expected
    reason: str
    prompt_s: float  # seconds of prompts that arrive in each second, of one worker
    tokens_per_s: float  # of answers that are asked for
