"""What a plan is made of: fleets that were rehearsed, and what to buy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from jevons.config.wants import Promise
from jevons.econ.purchase import Excess, Limits, Offer
from jevons.econ.rivals import Rival, Sureness
from jevons.facts.hardware import Figure
from jevons.twin.offers import Candidate, Load


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Instances of a fleet that are alike."""

    chip: str
    role: str
    instances: int
    tensor: int
    attention: int = 1
    experts: int = 1
    ffn_chip: str = ""  # with all but attention, where that is on chips of its own
    ffn_chips: int = 0
    tier: str = ""
    trust: str
    rate_p90_error: float | None = None

    @property
    def name(self) -> str:
        """Such as `3 × 2 h200 prefill`; `8a8 h200` where attention has 8 copies on its 8 chips.

        `8a8 rubin : 768 lpu3` where all but attention is on chips of its own.
        """
        copies = f"a{self.attention}" if self.attention > 1 else ""
        role = "" if self.role == "both" else f" {self.role}"
        rest = f" : {self.ffn_chips} {self.ffn_chip}" if self.ffn_chip else ""
        tier = f" +{self.tier}" if self.tier else ""
        return f"{self.instances} × {self.tensor}{copies} {self.chip}{rest}{role}{tier}"


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet that was rehearsed, and what came of it."""

    parts: list[Part]
    usd_per_hour: float
    power_w: float | None
    capex_usd: float | None
    chips: dict[str, int]
    usd_per_million_output_tokens: float
    usd_per_million_tokens: float  # of prompts and answers
    ttft_s: float  # within which the promised share of requests was
    tpot_s: float
    both_s: tuple[float, float]  # TTFT and TPOT within both of which it was, each as far in its distribution
    met: float  # share of requests within both
    met_ttft: float
    met_tpot: float
    reuse: float  # share of prompt tokens
    keeps: bool  # the promise

    @property
    def name(self) -> str:
        """Such as `3 × 2 h200 prefill + 1 × 4 mi300x decode`."""
        return " + ".join(part.name for part in self.parts)


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet whose instances start and stop by what is asked of them, beside the same that is there all the time."""

    reason: str  # why it pays, or does not
    pays: bool = False
    name: str = ""  # of the fleet; empty: none was rehearsed so
    headroom: float = 0.0
    fixed_usd_per_hour: float = 0.0  # all of it all the time
    usd_per_hour: float = 0.0  # by the mean
    usd_per_million_output_tokens: float = 0.0
    instance_hours: float = 0.0
    all_instance_hours: float = 0.0
    least_up: int = 0
    most_up: int = 0
    met: float = 0.0  # share of requests within both
    scenario: str = ""  # as a file for `jevons simulate`


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to buy, and why."""

    title: str
    model: str
    basis: str  # whose hours: own, rent, build
    at: str  # when it is bought; empty: whenever
    since: str  # when all chips of the best fleet can be had; empty: now
    slo: Promise
    limits: Limits
    load: Load
    best: Tried | None
    runner_up: Tried | None  # the cheapest of other chips or roles that keeps the promise
    finalists: list[Tried]  # the cheapest of each set of kinds that keeps it
    front: list[Tried]  # none of them is worse than another in $, speed and power
    bound_usd_per_hour: float | None  # no fleet of these kinds is cheaper by the bound
    short_of: list[Excess]  # where nothing keeps the promise: limits, and what each alone would have to be
    nearest: Tried | None  # … and what keeps most of it within them
    rehearsals: int
    why_not: dict[str, str]  # chips that were not considered
    paid: Rival | None  # the best fleet as far as its price goes
    sureness: Sureness | None  # of the finalists, in their order
    scenario: str  # the best fleet as a file for `jevons simulate`
    given: dict[str, Figure] = {}  # dollars an hour by chip, where the wants name them
    weights: str = ""  # of the best
    in_other_weights: dict[str, float | None] = {}  # dollars an hour in others that would do; None: nothing keeps it
    scaled: Scaled | None = None  # what starting and stopping would save; None: nothing keeps the promise


def part_of(candidate: Candidate, instances: int) -> Part:
    group = candidate.group
    return Part(
        chip=group.chip,
        role=group.role,
        instances=instances,
        tensor=group.tensor,
        attention=group.attention,
        experts=group.experts,
        ffn_chip=group.ffn_chip,
        ffn_chips=group.ffn_chips if group.ffn_chip else 0,
        tier=group.tier.name if group.tier else "",
        trust=str(candidate.trust),
        rate_p90_error=candidate.rate_p90_error,
    )


def rival_of(tried: Tried, offers: Mapping[str, Offer]) -> Rival:
    """As far as its price goes: chips that are paid, and what the rest costs."""
    bought = {chip: count - min(count, offers[chip].owned) for chip, count in tried.chips.items()}
    paid = {chip: count for chip, count in bought.items() if count}
    usd = sum(offers[chip].usd_per_hour * count for chip, count in paid.items())
    return Rival(name=tried.name, chips=paid, fixed_usd_per_hour=tried.usd_per_hour - usd)


def make_of(tried: Tried) -> list[tuple[str, str, str]]:
    """Chips and roles: what makes two fleets different."""
    return sorted((part.chip, part.ffn_chip, part.role) for part in tried.parts)


def errors_of(tried: Sequence[Tried]) -> dict[str, float | None]:
    """Of the throughput of each kind of chip, at p90. None of chips without attention: nobody measured any."""
    parts = [part for each in tried for part in each.parts]
    return {p.ffn_chip: None for p in parts if p.ffn_chip} | {p.chip: p.rate_p90_error for p in parts}


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Those of which none is at least as good in $, in tokens a second for a user and in power, and better in one."""

    def measures(each: Tried) -> tuple[float, float, float]:
        return each.usd_per_hour, each.tpot_s, math.inf if each.power_w is None else each.power_w

    def is_beaten(each: Tried) -> bool:
        mine = measures(each)
        others = (measures(other) for other in in_time if other is not each)
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)

    in_time = [each for each in tried if each.keeps]
    return sorted((each for each in in_time if not is_beaten(each)), key=lambda each: each.usd_per_hour)
