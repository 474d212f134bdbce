"""What a rehearsal came to, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.facts.usage import GroupUsage, Usage
from jevons.twin.account import kind_of
from jevons.twin.fleet import Made
from jevons.twin.instances import Change
from jevons.twin.jumps import ITL_BINS, itl_s
from jevons.twin.spread import QUANTILES, Spread


class GroupTrust(msgspec.Struct, frozen=True):
    """How far to trust the step times of one group of instances."""

    chip: str
    trust: str  # measured, transferred, projected; or given
    tpot_p90_error: float | None  # of predictions of that trust on measurements held out; None: none was
    note: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a rehearsal came to."""

    title: str
    requests: int
    met: int  # of those, within the SLO
    instances: int
    chips: int
    simulated_s: float
    cpu_s: float
    wall_s: float
    rss_bytes: int
    ttft_s: Spread
    tpot_s: Spread
    itl_s: Spread
    queue_s: Spread
    input_tokens: int
    cached_tokens: int  # of those
    output_tokens: int
    output_tokens_per_s: float
    goodput_per_s: float
    met_slo: float  # share of requests
    reuse_fraction: dict[str, float]  # of prompt tokens, by tier
    predicted_reuse: float
    utilisation: float  # share of time that is paid, that instances computed
    preemptions: int
    iterations: int
    joules_per_output_token: float | None
    groups: list[GroupUsage]
    trust: list[GroupTrust]
    instance_hours: float = 0.0  # paid: of each instance from its start until it is stopped
    up: list[tuple[float, int]] = []  # from when on how many were up, where instances start and stop
    changes: list[Change] = []  # … and what started and stopped them
    lost: int = 0  # times that a sequence ran on an instance that failed, and was computed anew elsewhere

    @property
    def usage(self) -> Usage:
        """What there is to pay for."""
        return Usage(
            seconds=self.simulated_s,
            requests=self.requests,
            met=self.met,
            input_tokens=self.input_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            groups=self.groups,
        )


def joules(groups: Sequence[GroupUsage], output_tokens: int) -> float | None:
    """For each token of the answers; None where what one group drew is not known."""
    known = [group.energy_j for group in groups if group.energy_j is not None]
    return sum(known) / max(1, output_tokens) if len(known) == len(groups) else None


def trust(m: Made) -> GroupTrust:
    if m.calibrated is None:
        return GroupTrust(kind_of(m), "given", None, "step times are the scenario's own")
    error = m.calibrated.errors.get("tpot")
    note = (
        f"nine of ten held-out TPOTs within {error.p90:.0%}"
        if error is not None
        else "nothing of this kind was held out"
    )
    if m.group.ffn_chip:
        note = "attention and experts apart: nothing of this kind was ever measured"
    if m.drafts is not None:
        note = "speculation, from the share of guesses that the scenario names: nothing of this kind was ever measured"
    return GroupTrust(m.group.chip, str(m.calibrated.trust), None if error is None else error.p90, note + _bits(m))


def _bits(m: Made) -> str:
    """Of mixtures in FP4, whose released weights have more bits here and there; "" of others."""
    engine = m.engine
    if engine is None or engine.model.moe is None or engine.weights != "fp4":
        return ""
    if engine.dense_weights is None:
        return "; all weights in fp4"
    if m.group.ffn_chip:
        return f"; attention in {engine.dense_weights}, all else in fp4"
    return f"; experts in fp4, the rest in {engine.dense_weights}"


def gaps(counts: Reals) -> Spread:
    total = counts.sum()
    if total == 0:
        return Spread(0.0, 0.0, 0.0, 0.0)
    sizes = np.array([itl_s(at) for at in range(ITL_BINS)])
    share = np.cumsum(counts) / total
    quantiles = (float(sizes[min(int(np.searchsorted(share, q)), ITL_BINS - 1)]) for q in QUANTILES.values())
    return Spread(float((sizes * counts).sum() / total), *quantiles)
