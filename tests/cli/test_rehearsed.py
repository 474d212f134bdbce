"""What reuse is worth, measured in the twin: tiers as nodes have them, ranges over several workloads, memory paid."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from jevons.cli.rehearsed import GUESS_TIERS, Rehearsed, Tiering, figures_of, with_tier
from jevons.config.scenario import Group, Scenario, Traffic
from jevons.facts.hardware import Confidence, Figure

DRAM = GUESS_TIERS[0]


def scenario(*fleet: Group) -> Scenario:
    return Scenario(model="llama-3.1-8b", traffic=Traffic(kind="chat", requests=10), fleet=list(fleet))


def memory(base: float) -> Figure:
    return Figure(value=base, low=base / 2, high=base * 2, source="x", confidence=Confidence.DERIVED)


def tier(name: str, chips: float, paid: float | None) -> Tiering:
    cost = None if paid is None else memory(paid)
    return Tiering(tier=name, rate=1.0, chip_factor=chips, memory_cost=cost, reuse=0.5)


def found(name: str, round_robin: float, *tiers: Tiering) -> Rehearsed:
    return Rehearsed(scenario=name, round_robin_rate=round_robin, kv_rate=1.0, kv_reuse=0.4, tiers=list(tiers))


@pytest.mark.parametrize(
    ("instances", "tensor", "sharing"), [(8, 1, 8), (8, 2, 4), (3, 2, 3), (2, 8, 1), (2, 16, 1), (5, 3, 2)]
)
def test_a_node_of_eight_chips_shares_a_tier_and_none_is_smaller_than_an_instance(
    instances: int, tensor: int, sharing: int
) -> None:
    group = with_tier(scenario(Group(chip="h100", instances=instances, tensor=tensor)), DRAM).fleet[0]

    assert group.tier is not None
    assert group.tier.instances == sharing
    assert group.tier.size_bytes == DRAM.size_bytes * tensor * sharing
    assert group.tier.bytes_per_s == DRAM.bytes_per_s * tensor * sharing


def test_who_computes_no_prompts_has_no_tier() -> None:
    fleet = (Group(chip="h100", instances=2, role="prefill"), Group(chip="h100", instances=2, role="decode"))
    tiers = [group.tier for group in with_tier(scenario(*fleet), DRAM).fleet]

    assert tiers[0] is not None
    assert tiers[1] is None


def test_the_tier_that_counts_is_the_cheapest_with_its_memory_paid() -> None:
    """DRAM saves 30 % of the chips and costs 40 % of the rest; a disk saves 10 % and costs 2 %."""
    one = found("one", 0.5, tier("dram", 0.7, 0.4), tier("disk", 0.9, 0.02))

    assert one.best.tier == "disk"
    assert one.best.cost_factor == pytest.approx(0.918)
    assert replace(one, tiers=[tier("dram", 0.7, None), tier("disk", 0.9, None)]).best.tier == "dram"


def test_several_workloads_give_the_middle_between_the_least_and_the_most() -> None:
    several = [
        found(str(number), share, tier("dram", chips, paid))
        for number, (share, chips, paid) in enumerate([(0.5, 0.9, 0.02), (0.2, 1.0, 0.03), (0.8, 0.6, 0.01)])
    ]
    figures = figures_of(several)
    ends = {name: (figure.low, figure.value, figure.high) for name, figure in figures.items()}

    assert ends["reuse_cost_factor"] == (0.2, 0.5, 0.8)
    assert ends["tiering_chip_factor"] == (0.6, 0.9, 1.0)
    assert ends["tiering_memory_cost"] == (0.005, 0.02, 0.06)
    assert "0, 1, 2" in figures["tiering_chip_factor"].note


def test_memory_beside_chips_without_a_price_has_no_share_of_it() -> None:
    assert "tiering_memory_cost" not in figures_of([found("one", 0.5, tier("dram", 0.7, None))])
    assert figures_of([]) == {}
