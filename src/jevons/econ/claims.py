"""What holds of what is claimed: each number computed from figures of the catalog and compared with what was stated.

A computation is named and pure: formulas over figures by name. What it gives may agree with the claim, in part, with
another quantity than the one that was named, or not at all; where a figure is not known, it says which.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence

import msgspec

from jevons.base.errors import UnknownFigure
from jevons.econ.draws import Amount, Draws, Interval, Result, interval_of
from jevons.facts.claims import Claim, Stated
from jevons.facts.hardware import Confidence, Figure

_STATED = "stated.low"  # what was stated, as figures that formulas may use
_MOST_STATED = "stated.high"
_SAID = "stated."


class Verdict(enum.StrEnum):
    HOLDS = "holds"
    IN_PART = "holds in part"
    ANOTHER = "true of another quantity"
    NOT = "does not hold"
    UNKNOWN = "cannot be computed"


class Computation(msgspec.Struct, frozen=True, kw_only=True):
    """Formulas over figures by name, all in the unit of the statement."""

    uses: tuple[str, ...]
    says: str  # one sentence: why the verdict is what it is
    main: Result | None = None  # the quantity that was named; None: it cannot be computed
    parts: Mapping[str, Result] = {}  # where the claim may hold
    others: Mapping[str, Result] = {}  # what it may be true of instead
    provided: Mapping[str, tuple[str, Result]] = {}  # what must be above 0 for more than a part to hold: unit, formula
    also: Mapping[str, tuple[str, Result]] = {}  # what helps to judge
    tolerance: float = 0.05  # of what was stated, for rounding


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What was computed: with all figures at their base; between which bounds 9 of 10 draws are, and this."""

    value: float
    low: float
    high: float
    unit: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A claim and what holds of it."""

    number: int
    claim: str
    stated: Stated
    computed: Estimate | None
    verdict: Verdict
    says: str
    missing: str
    beside: dict[str, Estimate]  # other quantities
    sources: list[str]
    by: str
    date: str


class Grounds(msgspec.Struct, frozen=True, kw_only=True):
    """What claims are judged by."""

    figures: Mapping[str, Figure]  # by name
    computations: Mapping[str, Computation]
    title: Callable[[str], str]  # of a source's name
    draws: Draws


def assess(claim: Claim, grounds: Grounds) -> Finding:
    """Compute what a claim is about, and judge it."""
    found = grounds.computations[claim.computation]
    try:
        figures = {name: _known(grounds.figures, name) for name in found.uses}
    except UnknownFigure as unknown:
        return _finding(claim, grounds, found, {}, missing=f"{unknown.figure} is not known")
    said = claim.stated
    stated = {_STATED: _as_figure(said.low), _MOST_STATED: _as_figure(said.low if said.high is None else said.high)}
    return _finding(claim, grounds, found, figures | stated, missing=claim.missing)


def judge(stated: Stated, found: Computation, computed: Mapping[str, Estimate]) -> Verdict:
    """By what was computed alone: the named quantity first, then its parts, then others.

    It holds if the base value lies within what was stated; in part if the ranges meet.
    """
    main = computed.get("")
    if main is not None and _agrees(stated, (main.value, main.value), found.tolerance):
        return Verdict.HOLDS if all(computed[name].value > 0.0 for name in found.provided) else Verdict.IN_PART
    if main is not None and _agrees(stated, (main.low, main.high), found.tolerance):
        return Verdict.IN_PART
    for names, verdict in ((found.parts, Verdict.IN_PART), (found.others, Verdict.ANOTHER)):
        if any(_agrees(stated, (computed[name].low, computed[name].high), found.tolerance) for name in names):
            return verdict
    return Verdict.UNKNOWN if main is None else Verdict.NOT


def _agrees(stated: Stated, found: tuple[float, float], tolerance: float) -> bool:
    low = stated.low * (1.0 - tolerance)
    high = float("inf") if stated.high is None else stated.high * (1.0 + tolerance)
    return found[0] <= high and found[1] >= low


def _finding(
    claim: Claim, grounds: Grounds, found: Computation, figures: Mapping[str, Figure], *, missing: str
) -> Finding:
    computed = _computed(claim.stated.unit, found, figures, grounds.draws) if figures else {}
    return Finding(
        number=claim.number,
        claim=claim.claim,
        stated=claim.stated,
        computed=computed.get(""),
        verdict=judge(claim.stated, found, computed) if computed else Verdict.UNKNOWN,
        says=found.says,
        missing=missing,
        beside={name: estimate for name, estimate in computed.items() if name},
        sources=_sources([figure for name, figure in figures.items() if not name.startswith(_SAID)], grounds),
        by=claim.by,
        date=claim.date,
    )


def _computed(unit: str, found: Computation, figures: Mapping[str, Figure], draws: Draws) -> dict[str, Estimate]:
    """All formulas; the named quantity under an empty name."""
    main = {} if found.main is None else {"": (unit, found.main)}
    beside = {name: (unit, formula) for name, formula in {**found.parts, **found.others}.items()}
    return {
        name: _estimate(in_unit, interval_of(formula, figures, draws))
        for name, (in_unit, formula) in {**main, **beside, **found.provided, **found.also}.items()
    }


def _estimate(unit: str, found: Interval) -> Estimate:
    low, high = min(found.low, found.base), max(found.high, found.base)
    return Estimate(value=found.base, low=low, high=high, unit=unit)


def _known(figures: Mapping[str, Figure], name: str) -> Figure:
    if name not in figures:
        raise UnknownFigure(name)
    return figures[name]


def _as_figure(stated: float) -> Figure:
    return Figure(value=stated, source="stated", confidence=Confidence.ASSUMED)


def _sources(figures: Sequence[Figure], grounds: Grounds) -> list[str]:
    """Each once, with how surely its figures are known."""
    return list(dict.fromkeys(f"{grounds.title(figure.source)} ({figure.confidence})" for figure in figures))


def stated_of(of: Mapping[str, Amount]) -> Amount:
    """What was stated, in a formula; the least of a range."""
    return of[_STATED]


def most_stated_of(of: Mapping[str, Amount]) -> Amount:
    """The most of what was stated."""
    return of[_MOST_STATED]
