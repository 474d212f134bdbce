"""What `jevons demand --rehearse` measures in the twin: reuse of KV by placement, and by memory below the chips."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import median

import msgspec

from jevons.base.errors import ConfigError, UnknownFigure
from jevons.cli.scenarios import scenario_of, tell_of_compiling
from jevons.config.calibration import read_calibration
from jevons.config.catalog import Catalog
from jevons.config.prices import make_bill
from jevons.config.scenario import Group, Scenario, StoreTier
from jevons.econ.cost import Basis
from jevons.econ.draws import bases, high_of, low_of
from jevons.econ.tiers import PRICES
from jevons.facts.hardware import Confidence, Figure
from jevons.facts.usage import Usage
from jevons.twin.report import Report
from jevons.twin.run import simulate

_WITHIN_SLO = 0.9  # of requests
_DOUBLINGS = 12
_HALVINGS = 6  # of a factor of two: to 1 %

# Where a scenario has no tier of its own, what is tried on each node, for each of its chips. GUESS: a host with 2 TB of
# memory and a drive of 1 TB for each of eight chips; PCIe 5.0 x16 gives 64 GB/s at most, a drive on four lanes 7. Four
# times the drive held not one session more in the `reuse` scenarios, which last ten minutes.
GUESS_NODE_CHIPS = 8
GUESS_TIERS = (
    StoreTier(name="dram", size_bytes=256e9, bytes_per_s=50e9, latency_s=2e-4),
    StoreTier(name="disk", size_bytes=1e12, bytes_per_s=6e9, latency_s=1e-3),
)


class Tiering(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of memory below the chips of a fleet."""

    tier: str
    rate: float  # sessions a second, or of a trace how much faster it comes, that are held with it
    chip_factor: float  # chips that hold the same with it, over those without
    memory_cost: Figure | None  # its price over that of the chips beside it; None: these have none
    reuse: float  # share of prompt tokens, with it

    @property
    def cost_factor(self) -> float | None:
        return None if self.memory_cost is None else self.chip_factor * (1.0 + self.memory_cost.value)


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """What one scenario's fleet holds, by what of KV it finds again."""

    scenario: str
    round_robin_rate: float
    kv_rate: float  # by placement alone
    kv_reuse: float  # share of prompt tokens
    tiers: list[Tiering]

    @property
    def placement(self) -> float:
        """Cost of a task with KV-aware placement, over round robin."""
        return self.round_robin_rate / self.kv_rate

    @property
    def best(self) -> Tiering:
        """The tier that is cheapest with its memory paid; by chips alone where no price is known."""
        return min(self.tiers, key=lambda tier: tier.cost_factor or tier.chip_factor)


def rehearse_reuse(name: str, catalog: Catalog) -> Rehearsed:
    """What the same fleet holds by round robin, by kv, and with tiers on top.

    Raises:
        ConfigError: no rate is held.
    """
    scenario = scenario_of(name, {})
    plain = msgspec.structs.replace(scenario, fleet=[msgspec.structs.replace(g, tier=None) for g in scenario.fleet])
    tell_of_compiling()
    rates = {}
    for router in ("round_robin", "kv"):
        rates[router], report = _most(msgspec.structs.replace(plain, router=router), name, catalog)
    plain = msgspec.structs.replace(plain, router="kv")
    own = any(group.tier is not None for group in scenario.fleet)
    tiered = [msgspec.structs.replace(scenario, router="kv")] if own else [with_tier(plain, t) for t in GUESS_TIERS]
    return Rehearsed(
        scenario=name,
        round_robin_rate=rates["round_robin"],
        kv_rate=rates["kv"],
        kv_reuse=sum(report.reuse_fraction.values()),
        tiers=[_tiering(each, rates["kv"], name, catalog) for each in tiered],
    )


def with_tier(scenario: Scenario, tier: StoreTier) -> Scenario:
    """The same with as much of a tier on each node, for each of its chips, under those who compute prompts."""

    def on_node(group: Group) -> Group:
        chips = group.tensor * group.pipeline
        sharing = max(1, min(group.instances, GUESS_NODE_CHIPS // chips))
        size, rate = tier.size_bytes * chips * sharing, tier.bytes_per_s * chips * sharing
        node = msgspec.structs.replace(tier, size_bytes=size, bytes_per_s=rate, instances=sharing)
        return msgspec.structs.replace(group, tier=None if group.role == "decode" else node)

    return msgspec.structs.replace(scenario, fleet=[on_node(group) for group in scenario.fleet])


def figures_of(found: Sequence[Rehearsed]) -> dict[str, Figure]:
    """Parameters of the outlook as several rehearsals give them: the middle one, from the least to the most."""
    if not found:
        return {}
    placements = [each.placement for each in found]
    tiers = [each.best for each in found]
    which = ", ".join(each.scenario for each in found)
    figures = {
        "reuse_cost_factor": _over(placements, f"round robin over kv, {_WITHIN_SLO:.0%} in time: {which}"),
        "tiering_chip_factor": _over([tier.chip_factor for tier in tiers], f"kv over kv with tiers: {which}"),
    }
    memory = [tier.memory_cost for tier in tiers if tier.memory_cost is not None]
    if len(memory) == len(tiers):
        ends = [(low_of(each), each.value, high_of(each)) for each in memory]
        lows, values, highs = zip(*ends, strict=True)
        figures["tiering_memory_cost"] = Figure(
            value=median(values),
            low=min(lows),
            high=max(highs),
            source="OURS",
            confidence=Confidence.DERIVED,
            note=f"price of the tier over that of the chips: {which}",
        )
    return figures


def _over(values: Sequence[float], note: str) -> Figure:
    return Figure(
        value=median(values),
        low=min(values),
        high=max(values),
        source="OURS",
        confidence=Confidence.DERIVED,
        note=note,
    )


def _tiering(scenario: Scenario, without: float, name: str, catalog: Catalog) -> Tiering:
    rate, report = _most(scenario, name, catalog)
    return Tiering(
        tier=" and ".join(report.usage.tier_bytes),
        rate=rate,
        chip_factor=without / rate,
        memory_cost=_memory_cost(report.usage, catalog),
        reuse=sum(report.reuse_fraction.values()),
    )


def _memory_cost(usage: Usage, catalog: Catalog) -> Figure | None:
    """A tier's price over that of the chips, at base figures, with memory at its lowest and highest price."""
    try:
        bill = make_bill(usage, catalog, Basis.OWN, {})
    except UnknownFigure:
        return None
    figures = bill.figures()
    base = bases(figures)
    chips = float(bill.usd_per_year(base)) - sum(float(bill.tier_usd_per_year(t, base)) for t in usage.tier_bytes)
    shares = []
    for end in (low_of, lambda figure: figure.value, high_of):
        of = {**base, **{price: end(figures[price]) for price in PRICES if price in figures}}
        shares.append(sum(float(bill.tier_usd_per_year(tier, of)) for tier in usage.tier_bytes) / chips)
    note = "memory at its lowest, base and highest price"
    return Figure(
        value=shares[1], low=shares[0], high=shares[2], source="OURS", confidence=Confidence.DERIVED, note=note
    )


def _most(scenario: Scenario, name: str, catalog: Catalog) -> tuple[float, Report]:
    """The most sessions a second (of a trace: times faster) at which so many requests are in time, to a percent."""
    calibration = read_calibration()
    best: list[Report] = []

    def is_held(at: float) -> bool:
        field = "rate" if scenario.traffic.kind else "speed"
        traffic = msgspec.structs.replace(scenario.traffic, **{field: at})
        report = simulate(msgspec.structs.replace(scenario, traffic=traffic), catalog, calibration)
        if report.met_slo < _WITHIN_SLO:
            return False
        best[:] = [report]
        return True

    rate = scenario.traffic.rate if scenario.traffic.kind else scenario.traffic.speed
    step = 2.0 if is_held(rate) else 0.5
    for _ in range(_DOUBLINGS):
        if is_held(rate * step) != (step > 1.0):
            break
        rate *= step
    else:
        raise ConfigError(
            f"--rehearse: {name!r} under {scenario.router} has no rate at which {_WITHIN_SLO:.0%} are in time"
        )
    low, high = sorted((rate, rate * step))
    for _ in range(_HALVINGS):
        middle = sqrt(low * high)
        low, high = (middle, high) if is_held(middle) else (low, middle)
    return low, best[0]
