"""The picture of `jevons claims`: what was stated beside what is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jevons.charts import Axis, Picture, Span, spans
from jevons.econ.claims import Estimate, Finding


def pictures(found: Sequence[Finding], read: Callable[[Estimate], str]) -> list[Picture]:
    """Args: `read`, of an estimate with its unit."""
    return [_claims(found, read)]


def notes(found: Sequence[Finding]) -> list[str]:
    sources = sorted({source for finding in found for source in finding.sources})
    return [
        "How far to trust it: why each verdict is what it is, and what else was computed, jevons claims NUMBER tells.",
        "Sources of the claims' figures: " + "; ".join(sources) + ".",
    ]


def _claims(found: Sequence[Finding], read: Callable[[Estimate], str]) -> Picture:
    rows = []
    for finding in found:
        computed, stated = finding.computed, finding.stated
        told = f"missing: {finding.missing}" if computed is None else read(computed)
        rows.append(
            Span(
                name=f"{finding.number} {finding.claim}: {told}, {finding.verdict}",
                low=None if computed is None else computed.low / stated.low,
                base=None if computed is None else computed.value / stated.low,
                high=None if computed is None else computed.high / stated.low,
                stated=1.0,
                stated_high=None if stated.high is None else stated.high / stated.low,
                is_told=False,
            )
        )
    axis = Axis(label="computed, over what was stated", unit="×", is_log=True)
    about = (
        "□ as stated, from its least to its most. ● computed, with 9 of 10 draws; beyond the squares it does not fit."
    )
    return spans("Claims, computed", axis, rows, about=about)
