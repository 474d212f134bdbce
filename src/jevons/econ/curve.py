"""What one chip gives over another at three speeds of service: a curve, not a constant.

Two chips differ little where many users wait patiently, and much where few are served fast: there one still batches
while the other, at the end of its bandwidth, serves a lone user or nobody. "So many times better" needs a speed.
`jevons curve` tells the whole curve, in dollars; `perf.frontier` is where it comes from.
"""

from __future__ import annotations

import msgspec

from jevons.base.errors import UnknownFigure
from jevons.facts.hardware import Chip
from jevons.facts.llm import Llm, Precision
from jevons.perf.calibration import dense_weights
from jevons.perf.frontier import Asked, Point, at_least, frontier
from jevons.perf.roofline import Engine, Shares

GUESS_INTERACTIVITY = {"low": 20.0, "mid": 80.0, "high": 120.0}  # tokens/s of each user: batch work, chat, fast
GUESS_ASKED = Asked(input_tokens=8192, output_tokens=1024)  # as `jevons curve` has it


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it is served on any chip."""

    model: Llm
    shares: dict[Precision, Shares]  # in the weights it may have: in which a chip gives more at a speed, it has it
    kv_bytes: float = 1.0
    asked: Asked = GUESS_ASKED


def tokens_per_s(served: Served, chip: Chip, interactivity: float) -> float | None:
    """Output tokens of one chip at best, all users together; None: nobody can be served so fast.

    Args:
        interactivity: tokens/s that each user gets at least.
    """
    best = at_least(points(served, chip), interactivity)
    return None if best is None else best.rate


def gains(served: Served, new: Chip, old: Chip) -> dict[str, float]:
    """Tokens/s of one chip over another's, at each of `GUESS_INTERACTIVITY`.

    Raises:
        UnknownFigure: one of them serves nobody so fast.
    """
    found, both = {}, [points(served, chip) for chip in (new, old)]
    for name, speed in GUESS_INTERACTIVITY.items():
        over, under = (at_least(each, speed) for each in both)
        if over is None or under is None:
            raise UnknownFigure(f"gain of one chip over another at {speed:.0f} tokens/s of each user")
        found[name] = over.rate / under.rate
    return found


def points(served: Served, chip: Chip) -> list[Point]:
    """What a chip gives at best, in whichever weights; see `perf.frontier`."""
    engines = [
        Engine(
            model=served.model,
            chip=chip,
            shares=shares,
            weights=weights,
            kv_bytes=served.kv_bytes,
            dense_weights=dense_weights(served.model, weights, chip),
        )
        for weights, shares in served.shares.items()
    ]
    return frontier(engines, served.asked)
