"""How many tokens a second a chip decodes for users who are each served at least so fast: a curve, not a constant.

Two chips differ little where many users wait patiently, and much where few are served fast: there one still batches
while the other, at the end of its bandwidth, serves a lone user or nobody. "So many times better" needs a speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from jevons.base.errors import UnknownFigure
from jevons.facts.hardware import Chip
from jevons.facts.llm import Llm, Precision
from jevons.perf.roofline import Engine, Group, Work, iteration
from jevons.perf.room import room_tokens

INTERACTIVITY = {"low": 20.0, "mid": 100.0, "high": 200.0}  # tokens/s of one user: batch work, chat, fast. ASSUMED
CONTEXT_TOKENS = 65_536  # of one sequence: an agent's. ASSUMED
GROUPS = (4, 8, 16, 32, 64)  # chips that run one copy
MEMORY_SHARE = 0.9
_HALVINGS = 40


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it is decoded, on groups of any size."""

    model: Llm
    weights: Precision = "fp4"
    kv_bytes: float = 1.0
    context_tokens: float = CONTEXT_TOKENS
    groups: Sequence[int] = GROUPS


def tokens_per_s(served: Served, chip: Chip, interactivity: float) -> float | None:
    """Of one chip at best, over all group sizes, attention cut or copied; None: nobody can be served so fast.

    Args:
        interactivity: tokens/s that each user gets at least.
    """
    rates = [
        rate
        for size in served.groups
        if size <= (chip.domain_size.value if chip.domain_size is not None else size)
        for copies in {1, size}
        if (rate := _rate(_engine(served, chip, size, copies), served.context_tokens, interactivity)) is not None
    ]
    return max(rates, default=None)


def _engine(served: Served, chip: Chip, size: int, copies: int) -> Engine:
    group = Group(tensor=size, experts=size if served.model.moe is not None else 1, attention=copies)
    return Engine(model=served.model, chip=chip, group=group, weights=served.weights, kv_bytes=served.kv_bytes)


def _rate(engine: Engine, context_tokens: float, interactivity: float) -> float | None:
    """Of one chip, with as many users as memory holds and the speed allows."""
    most = room_tokens(engine, context_tokens, MEMORY_SHARE) / context_tokens
    least = float(engine.group.attention)  # each copy has a user

    def is_fast(users: float) -> bool:
        return (
            iteration(engine, Work(decodes=users, context_tokens=users * context_tokens)).seconds <= 1 / interactivity
        )

    if most < least or not is_fast(least):
        return None
    if not is_fast(most):
        low, high = least, most
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if is_fast(middle) else (low, middle)
        most = low
    users = Work(decodes=most, context_tokens=most * context_tokens)
    return most / iteration(engine, users).seconds / engine.group.chips


def gains(served: Served, new: Chip, old: Chip) -> dict[str, float]:
    """Tokens/s of one chip over another's, at each of `INTERACTIVITY`.

    Raises:
        UnknownFigure: one of them serves nobody so fast.
    """
    found = {}
    for name, speed in INTERACTIVITY.items():
        ratio = gain(served, new, old, speed)
        if ratio is None:
            raise UnknownFigure(f"gain of one chip over another at {speed:.0f} tokens/s of each user")
        found[name] = ratio
    return found


def gain(served: Served, new: Chip, old: Chip, interactivity: float) -> float | None:
    """Tokens/s of a chip over another's; None where one of them serves nobody so fast."""
    over, under = (tokens_per_s(served, chip, interactivity) for chip in (new, old))
    return None if over is None or under is None else over / under
