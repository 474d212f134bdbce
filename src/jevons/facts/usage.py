"""What a fleet did, as who prices it wants to know."""

from __future__ import annotations

import msgspec


class GroupUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the instances of one group did, all together."""

    chip: str  # whose step times these are; "prices" or "polynomial" where those are the scenario's own
    chips: dict[str, int]  # by kind, with those of experts and drafters
    busy_s: float  # instance-seconds
    prompt_s: float  # of those, computing prompts
    cache_share: float  # of the chips' memory, that keys and values fill which no running sequence reads, by the mean
    energy_j: float | None  # of chips alone; None: not known
    trust: str  # in the step times; see perf.calibration, or "given"
    rate_p90_error: float | None  # of predicted throughput on measurements held out; None: nothing of its kind was
    paid_share: float = 1.0  # of the time, that its instances were started and not stopped, by the mean
    tier_bytes: dict[str, float] = {}  # memory below the chips' of all its nodes, by tier


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet did in some seconds."""

    seconds: float
    requests: int
    met: int  # of those, within their SLO
    input_tokens: int
    cached_tokens: int  # of those, not computed again
    output_tokens: int
    groups: list[GroupUsage]

    @property
    def chips(self) -> dict[str, int]:
        """By kind, in the order of groups."""
        found: dict[str, int] = {}
        for group in self.groups:
            for name, count in group.chips.items():
                found[name] = found.get(name, 0) + count
        return found

    @property
    def tier_bytes(self) -> dict[str, float]:
        """Memory below the chips', by tier, in the order of groups."""
        found: dict[str, float] = {}
        for group in self.groups:
            for name, size_bytes in group.tier_bytes.items():
                found[name] = found.get(name, 0.0) + size_bytes
        return found

    @property
    def paid_share(self) -> float:
        """Of the hours of all chips, by the mean."""
        chips = [sum(group.chips.values()) for group in self.groups]
        paid = sum(group.paid_share * count for group, count in zip(self.groups, chips, strict=True))
        return paid / sum(chips)
