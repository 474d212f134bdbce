"""Which parameter matters: what each does to a result alone, the others at their base."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from jevons.econ.draws import Result, bases, high_of, low_of
from jevons.facts.hardware import Figure


class Swing(msgspec.Struct, frozen=True):
    """The result where one parameter is at its low, and at its high."""

    name: str
    low: float  # of the parameter
    high: float
    at_low: float  # the result
    at_high: float

    @property
    def width(self) -> float:
        return abs(self.at_high - self.at_low)


def tornado(result: Result, figures: Mapping[str, Figure]) -> list[Swing]:
    """Swings of all parameters that have a range, the widest first; of equals the first by name."""
    base = bases(figures)
    swings = [
        Swing(
            name,
            low_of(figure),
            high_of(figure),
            float(result({**base, name: low_of(figure)})),
            float(result({**base, name: high_of(figure)})),
        )
        for name, figure in figures.items()
        if low_of(figure) != high_of(figure)
    ]
    return sorted(swings, key=lambda swing: (-swing.width, swing.name))
