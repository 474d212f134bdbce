"""Prefill here or there: one worker for all of a request, or one for the prompt and another for what follows.

    whole    decode worker   │ queue │ bring │ compute the prompt: its running streams wait │ ...
    split    prefill worker  │ queue │ bring │ compute the prompt │
             decode worker                                        │ hand over │ ...

Both are predicted in seconds, whoever waits them: our client for the first token and, where it is handed over, for the
second; the streams running on a worker for as long as it computes our prompt. So short and mostly cached prompts stay
whole, and long ones go where they disturb nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from jevons.policy.route import Candidate, prompt_load, ttft_s


class Split(msgspec.Struct, frozen=True):
    """A decision: the prompt on `prefill`, the rest on `decode`; the same worker if it stays whole."""

    prefill: Candidate
    decode: Candidate
    cost_s: float  # predicted seconds of waiting, of everybody concerned


def disturbed_s(prompt_tokens: int, c: Candidate) -> float:
    """Seconds that the streams running on a worker wait, all together, while it computes this prompt."""
    return c.decoding * c.prices.seconds(prompt_load(prompt_tokens, c.cached_tokens))


def split(
    prompt_tokens: int,
    decoders: Sequence[Candidate],
    prefillers: Sequence[Candidate],
    handover_s: Callable[[Candidate, Candidate], float],
) -> Split | None:
    """Choose worker or workers for a prompt.

    Args:
        prompt_tokens: its length.
        decoders: workers that may do all of it, or what follows the first token.
        prefillers: workers that may do the prompt.
        handover_s: of a prefiller and a decoder, seconds to bring the one the blocks that the other has computed.

    Returns:
        The least waiting, all together; whole before split, then the lowest ids. None without decoders.
    """
    options = [
        (ttft_s(prompt_tokens, c) + disturbed_s(prompt_tokens, c), 0, c.worker, c.worker, c, c) for c in decoders
    ]
    for d in decoders:
        join_s = d.prices.seconds(prompt_load(prompt_tokens, prompt_tokens)) * d.requests
        for p in prefillers:
            there_s = ttft_s(prompt_tokens, p) + disturbed_s(prompt_tokens, p)
            options.append((there_s + handover_s(p, d) + join_s, 1, p.worker, d.worker, p, d))
    if not options:
        return None
    cost_s, _, _, _, prefill, decode = min(options, key=lambda option: option[:4])
    return Split(prefill, decode, cost_s)
