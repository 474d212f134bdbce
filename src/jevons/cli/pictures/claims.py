"""The picture of `jevons claims`: what was stated beside what is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from jevons.charts import Axis, Card, Picture, Span, spans
from jevons.econ.claims import Estimate, Finding


def pictures(found: Sequence[Finding], read: Callable[[Estimate], str]) -> list[Picture]:
    """Args: `read`, of an estimate with its unit."""
    return [_claims(found, read)]


def cards(found: Sequence[Finding], read: Callable[[Estimate], str]) -> list[Card]:
    """Each claim with why it is judged so, what else was computed, and its sources."""
    return [
        Card(
            head=f"{finding.number} {finding.claim}",
            mark=_told(finding, read),
            lines=[
                f"{finding.says[:1].upper()}{finding.says[1:]}.",
                f"Stated: {finding.stated.text}, by {finding.by}, {finding.date}.",
                *(f"{name}: {read(estimate)}" for name, estimate in finding.beside.items()),
                *([f"Missing: {finding.missing}."] if finding.missing else []),
                *(["Sources: " + "; ".join(finding.sources) + "."] if finding.sources else []),
            ],
        )
        for finding in found
    ]


def notes(found: Sequence[Finding]) -> list[str]:
    verdicts = Counter(str(finding.verdict) for finding in found)
    return [
        f"Of {len(found)} claims: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.most_common())}.",
        "How far to trust it: each claim above opens, and tells why, what else was computed, and from which sources.",
    ]


def _told(finding: Finding, read: Callable[[Estimate], str]) -> str:
    """The verdict, and what it is by."""
    return f"{finding.verdict}: " + ("not computed" if finding.computed is None else read(finding.computed))


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
                brief=f"{finding.number} {finding.verdict}",
            )
        )
    axis = Axis(label="computed, over what was stated", unit="×", is_log=True)
    about = (
        "□ as stated, from its least to its most. ● computed, with 9 of 10 draws; beyond the squares it does not fit."
    )
    return spans("Claims, computed", axis, rows, about=about)
