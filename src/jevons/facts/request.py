"""What is asked of an engine, and what it answers, token by token."""

from __future__ import annotations

import msgspec

from jevons.base.ids import RequestId


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 leave all tokens in. The draw for output position p depends
    on (`seed`, p) alone, so a request that continues on another worker draws the same. `logprobs` None reports none,
    n reports the chosen token's and the n most likely ones'.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0  # 0 to 2**64 - 1
    logprobs: int | None = None  # 0 to 20


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sequence to run: the prompt as tokens, and when to stop.

    `emitted` are output tokens that were already produced elsewhere: they are computed with the prompt and not sent
    again, and the first token drawn is number `len(emitted)`. `salt` keeps tenants' caches apart, `adapter` what
    is computed with it. Whoever asks will be
    back within `keep_s` seconds: until then the tiers keep its blocks. With `hand_over` the worker draws one token and
    leaves the rest to another. The lower its `priority`, the earlier it is computed.
    """

    id: RequestId
    prompt: list[int]  # token ids, at least one
    max_tokens: int  # output tokens in all, `emitted` included, at least 1
    sampling: Sampling
    stop_ids: list[int]  # token ids that end the output; sent, with finish "stop"
    emitted: list[int] = []
    salt: str = ""
    adapter: str = ""
    keep_s: float = 0.0
    hand_over: bool = False
    priority: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log of the probability of one sampled token, and of the likeliest others at its place."""

    logprob: float
    top: list[tuple[int, float]] = []


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one iteration of an engine produced for one sequence.

    `cached_tokens` (prompt tokens not computed because their blocks were there) comes with the first step.
    `finish` is None while more will come, then one of "stop", "length", "cancelled", "error", or "handover": its blocks
    are in the tiers, another worker can go on.
    """

    id: RequestId
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    finish: str | None = None
    cached_tokens: int | None = None
    error: str | None = None
