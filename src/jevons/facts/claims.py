"""What is claimed of this market, by whom; what holds of it is computed, see `econ.claims`."""

from __future__ import annotations

import msgspec

from jevons.facts.hardware import Positive


class Stated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A number as somebody said it, in the unit of the statement. Without `high`: so much or more."""

    text: str
    low: Positive
    unit: str
    high: Positive | None = None


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A quantitative claim."""

    number: int  # in the list it was collected in
    claim: str
    stated: Stated
    by: str
    date: str
    computation: str  # name of the one that checks it
    missing: str = ""  # what would be needed to compute it
