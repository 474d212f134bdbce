"""How many tokens a chip gives at which speed for each user: the batch decides, and the layout that suits it best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.perf.roofline import Engine, Group, steady
from jevons.perf.room import room_tokens

TENSORS = (1, 2, 4, 8, 16, 24, 36, 72)  # chips that run one copy of the model
_STEP = 1.15  # between batches that are looked at
_MOST_USERS = 8192
_MEMORY_SHARE = 0.9


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What each user asks, again and again."""

    input_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0  # of the input, that are not computed again


class Point(msgspec.Struct, frozen=True):
    """One way to run a model, at one batch."""

    interactivity: float  # tokens/s for each user
    rate: float  # tokens/s of one chip, all users
    group: Group
    users: int


def frontier(engines: Sequence[Engine], asked: Asked) -> list[Point]:
    """Points that no other outdoes in both, the fastest for users first; none where the model does not fit.

    Users ask again as soon as they are answered, and share nothing. Layouts: `TENSORS` chips of one
    domain, attention cut like the rest, where that divides its heads, or copied on each chip, experts on ranks of their
    own, where there are as many; of a smaller domain all its chips.

    Args:
        engines: the model on the chip, in each of the weights it may have; their groups are not looked at.
    """
    found: list[Point] = []
    for point in sorted(
        (p for engine in engines for p in _points(engine, asked)), key=lambda p: (-p.interactivity, -p.rate)
    ):
        if not found or point.rate > found[-1].rate:
            found.append(point)
    return found


def at_least(points: Sequence[Point], interactivity: float) -> Point | None:
    """What gives most tokens at no less than this; None where nothing is so fast."""
    return max((p for p in points if p.interactivity >= interactivity), key=lambda p: p.rate, default=None)


def rates_at(points: Sequence[Point], interactivity: Reals) -> Reals:
    """Tokens/s of one chip at no less than each of these; 0 where nothing is so fast."""
    speeds = np.array([p.interactivity for p in reversed(points)])  # rising
    rates = np.array([p.rate for p in reversed(points)] + [0.0])
    return rates[np.searchsorted(speeds, interactivity)]


def _points(engine: Engine, asked: Asked) -> Iterator[Point]:
    length = asked.input_tokens + asked.output_tokens
    domain = engine.chip.domain_size.value if engine.chip.domain_size is not None else 1.0
    for tensor in [chips for chips in TENSORS if chips <= domain] or [int(domain)]:
        for attention in (1, tensor):
            if engine.model.heads % (tensor // attention):
                continue
            experts = tensor if engine.model.moe is not None and tensor <= engine.model.moe.experts else 1
            group = Group(tensor=tensor, attention=attention, experts=experts)
            placed = msgspec.structs.replace(engine, group=group)
            most = min(_MOST_USERS, int(room_tokens(placed, length, _MEMORY_SHARE) / length))
            for users in _batches(most):
                seen = steady(
                    *(placed, users, asked.input_tokens, asked.output_tokens), cached_tokens=asked.cached_tokens
                )
                yield Point(1.0 / seen.tpot_s, users / seen.tpot_s / tensor, group, users)


def _batches(most: int) -> Iterator[int]:
    users = 1
    while users <= most:
        yield users
        users = max(users + 1, int(users * _STEP))
