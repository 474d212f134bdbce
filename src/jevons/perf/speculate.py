"""Speculative decoding: tokens that a small model, or heads of the model itself, guess and the model checks at once."""

from __future__ import annotations

import msgspec

from jevons.perf.roofline import Engine, Work, iteration


class Drafts(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are guessed."""

    tokens: int  # guessed before each check, ≥ 1
    acceptance: float  # probability that a guess is right when those before it are, 0 to below 1
    drafter: Engine | None = None  # None: heads of the model itself, whose time is a part of the check
    way_s: float = 0.0  # to it and back


def accepted(tokens: int, acceptance: float) -> float:
    """Tokens that one check yields by the mean, its own too: 1 + p + … + p^tokens (arXiv 2211.17192, equation 1)."""
    return float(tokens + 1) if acceptance >= 1 else (1 - acceptance ** (tokens + 1)) / (1 - acceptance)


def token_s(engine: Engine, drafts: Drafts, sequences: float, context_tokens: float) -> float:
    """Seconds for a token of each of `sequences`, which have `context_tokens` all together.

    A check computes all guesses and one more token of each sequence, and reads its keys and values once.
    """
    guesses = sequences * drafts.tokens
    check = Work(
        prompt_tokens=guesses,
        prompt_pairs=drafts.tokens * context_tokens,
        decodes=sequences,
        context_tokens=context_tokens,
    )
    seconds = iteration(engine, check).seconds
    if drafts.drafter is not None:
        one = Work(decodes=sequences, context_tokens=context_tokens)
        seconds += drafts.tokens * iteration(drafts.drafter, one).seconds + drafts.way_s
    return seconds / accepted(drafts.tokens, drafts.acceptance)
