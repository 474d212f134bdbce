"""What several routers over the same workers tell each other."""

from __future__ import annotations

import msgspec

from jevons.base.ids import WorkerId
from jevons.facts.state import Measured


class PlacedThere(msgspec.Struct, frozen=True, array_like=True, tag="p", gc=False):
    """A request was placed. `number` is its name in what follows, one of the router that placed it."""

    number: int
    worker: WorkerId
    decode: WorkerId | None  # who goes on after its first token; None: the same
    prompt_tokens: int
    cached_tokens: int
    promised: float  # usual streams that it counts for besides while it runs
    patience_s: float  # so long its worker may show no sign of work
    names: bytes  # of the blocks that its worker will compute, 8 bytes each
    wants: int = 0  # the last block of it that any worker had, see `control.choice.want`; 0: none, or told before


class BegunThere(msgspec.Struct, frozen=True, array_like=True, tag="b", gc=False):
    """Its prompt is computed. `names` are of all its blocks, 8 bytes each, where the worker sends no events itself."""

    number: int
    names: bytes = b""


class DoneThere(msgspec.Struct, frozen=True, array_like=True, tag="d", gc=False):
    """It is over. What is not known is -1."""

    number: int
    claimed_tokens: int = -1  # of its prompt, that its worker was believed to hold
    found_tokens: int = -1  # … and did
    output_tokens: int = -1


class MeasuredThere(msgspec.Struct, frozen=True, array_like=True, tag="m", gc=False):
    """What was measured on a worker."""

    worker: WorkerId
    measured: Measured


News = PlacedThere | BegunThere | DoneThere | MeasuredThere
