"""As few instances of given kinds as keep a promise, found by rehearsals."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from jevons.base.compiled import Reals, Records
from jevons.base.errors import ConfigError
from jevons.config.catalog import Catalog
from jevons.config.scenario import Scenario, Slo
from jevons.config.wants import Promise, Wants
from jevons.econ.purchase import Excess, Limits, Needs, Offer, excesses, needs_of
from jevons.perf.calibration import Calibration
from jevons.twin.offers import candidates, load_of, offers_of
from jevons.twin.planned import Tried, part_of
from jevons.twin.report import Report
from jevons.twin.run import simulate

_GROW = 1.25
_BEYOND = 2.0  # times a limit, within which what keeps the promise may become small enough again
_MOST_STEPS = 12  # of growing: to 15 times as many; more of the same do not help then
_HOUR_S = 3600.0
Counts = dict[int, int]  # of each kind its instances


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rehearsal kept a promise."""

    ttft_s: float  # within which the promised share of requests was
    tpot_s: float
    both_s: tuple[float, float]  # TTFT and TPOT within both of which it was, each as far in its distribution
    met: float  # share of requests within both
    met_ttft: float
    met_tpot: float
    keeps: bool


def rehearsed(scenario: Scenario, promise: Promise, catalog: Catalog, calibration: Calibration) -> tuple[Report, Kept]:
    """What comes of a scenario, and of a promise."""
    pieces: list[Records] = []
    report = simulate(scenario, catalog, calibration, on_results=lambda results: pieces.append(results.copy()))
    found = np.concatenate(pieces)
    ttft_s = found["first_s"] - found["at_s"]
    tpot_s = (found["done_s"] - found["first_s"]) / np.maximum(found["output"] - 1, 1)
    in_ttft, in_tpot = (ttft_s <= promise.ttft_s), (tpot_s <= promise.tpot_s)
    met, met_ttft, met_tpot = (float(each.mean()) for each in (in_ttft & in_tpot, in_ttft, in_tpot))
    kept = Kept(
        ttft_s=float(np.quantile(ttft_s, promise.share)),
        tpot_s=float(np.quantile(tpot_s, promise.share)),
        both_s=both_within(ttft_s, tpot_s, promise.share),
        met=met,
        met_ttft=met_ttft,
        met_tpot=met_tpot,
        keeps=(met if promise.of == "both" else min(met_ttft, met_tpot)) >= promise.share,
    )
    return report, kept


def both_within(ttft_s: Reals, tpot_s: Reals, share: float) -> tuple[float, float]:
    """Times within both of which a share of requests is, each as far in its distribution as the other."""
    ranks = [np.argsort(np.argsort(times, kind="stable")) for times in (ttft_s, tpot_s)]
    at = np.sort(np.maximum(*ranks))[max(0, math.ceil(share * len(ttft_s) - 1e-9) - 1)]
    return float(np.sort(ttft_s)[at]), float(np.sort(tpot_s)[at])


class Learned(NamedTuple):
    """How many times more of a kind a fleet takes than the bound says; at least 1."""

    did: float  # so many did
    failed: float  # one instance fewer did not


class Sizing:
    """Kinds of instances that can be had, and what came of the fleets of them that were rehearsed."""

    def __init__(
        self, wants: Wants, catalog: Catalog, calibration: Calibration, on_tried: Callable[[Tried], None]
    ) -> None:
        self.wants, self.catalog, self.calibration, self._on_tried = wants, catalog, calibration, on_tried
        self.load = load_of(wants.traffic, wants.seed, wants.slo.share)
        self.offers, self.why_not = offers_of(wants, catalog)
        self.candidates = candidates(wants, self.load, self.offers, catalog, calibration)
        roles = {each.kind.role for each in self.candidates}
        if "both" not in roles and not roles >= {"prefill", "decode"}:
            raise ConfigError(_nothing(wants, self.offers, self.why_not))
        self.limits = Limits(**{name: getattr(wants.limits, name) for name in Limits.__struct_fields__})
        self.kinds = [each.kind for each in self.candidates]
        self.tried: dict[tuple[tuple[int, int], ...], Tried] = {}
        self.learned: dict[int, Learned] = {}  # by kind

    def needs(self, counts: Counts) -> Needs:
        kinds = [self.kinds[kind] for kind in counts]
        return needs_of(kinds, list(counts.values()), self.offers)

    def size(self, start: Counts, cost: Callable[[Needs], float], most: float = math.inf) -> Counts | None:
        """As few instances of these kinds as keep the promise.

        Args:
            cost: what is to be least.
            most: give up where it takes more of that.

        Returns:
            None where the limits, or `most`, allow none.
        """
        counts = self._grow(start, cost, most)
        if counts is None:
            return None
        counts = self.shrink(counts, cost)
        for name in Limits.__struct_fields__:  # the cheapest may still exceed what one that is dearer does not
            if any(each.limit == name for each in self.excesses(counts)):
                counts = self.shrink(counts, lambda needs, of=name: getattr(needs, of) or math.inf)  # type: ignore[misc]
        self._learn(counts)
        return None if self.excesses(counts) else counts

    def _grow(self, counts: Counts, cost: Callable[[Needs], float], most: float) -> Counts | None:
        for _ in range(_MOST_STEPS):
            if cost(self.needs(counts)) > most or self._beyond(counts) > _BEYOND:
                return None
            tried = self.rehearse(counts)
            if tried.keeps:
                return counts
            short = self._short(counts, tried)
            counts = {
                kind: max(count + 1, math.ceil(count * _GROW)) if kind in short else count
                for kind, count in counts.items()
            }
        return None

    def _short(self, counts: Counts, tried: Tried) -> list[int]:
        """Kinds of which there are too few: who computes prompts if first tokens are late, else who decodes."""
        share, slow = self.wants.slo.share, []
        roles = {kind: self.kinds[kind].role for kind in counts}
        if tried.met_ttft < share:
            slow += [kind for kind, role in roles.items() if role != "decode"]
        if tried.met_tpot < share:
            slow += [kind for kind, role in roles.items() if role != "prefill"]
        return slow or [min(counts, key=lambda kind: self.needs({kind: 1}).usd_per_hour)]

    def shrink(self, counts: Counts, cost: Callable[[Needs], float]) -> Counts:
        """Change it by ever smaller steps, to the cheapest neighbour that keeps the promise, until none does."""
        step = max(1, max(counts.values()) // 8)
        while True:
            cheaper = next((each for each in self._neighbours(counts, step, cost) if self.rehearse(each).keeps), None)
            if cheaper is not None:
                counts = cheaper
            elif step == 1:
                return counts
            else:
                step //= 2

    def _neighbours(self, counts: Counts, step: int, cost: Callable[[Needs], float]) -> list[Counts]:
        """Fewer of one kind, or more of it for fewer of another, where that is cheaper and no less by the bound."""
        now, beyond, found = cost(self.needs(counts)), self._beyond(counts), []
        for changes in product((-2 * step, -step, 0, step), repeat=len(counts)):
            new = {kind: count + change for (kind, count), change in zip(counts.items(), changes, strict=True)}
            if min(new.values()) < 1 or cost(self.needs(new)) >= now or not self.serves(new):
                continue
            if self._beyond(new) <= beyond:
                found.append(new)
        return sorted(found, key=lambda each: cost(self.needs(each)))

    def excesses(self, counts: Counts) -> list[Excess]:
        return excesses(self.needs(counts), self.limits, self.offers)

    def _beyond(self, counts: Counts) -> float:
        """How many times the limit it exceeds most; 1 within all."""
        return max((each.times for each in self.excesses(counts)), default=1.0)

    def serves(self, counts: Counts) -> bool:
        """By the bound."""
        rates = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
        for kind, count in counts.items():
            rates[self.kinds[kind].role] += count * self.kinds[kind].requests_per_s
        return rates["both"] + min(rates["prefill"], rates["decode"]) >= self.load.demand.requests_per_s

    def _learn(self, counts: Counts) -> None:
        """Of a fleet that just keeps its promise."""
        for kind in counts:
            role = self.kinds[kind].role
            alike = (count * self.kinds[other].requests_per_s for other, count in counts.items())
            roles = (self.kinds[other].role for other in counts)
            rate = sum(each for each, other in zip(alike, roles, strict=True) if other == role)
            rates = rate, rate - self.kinds[kind].requests_per_s
            did, failed = (max(1.0, each / self.load.demand.requests_per_s) for each in rates)
            self.learned[kind] = Learned(did, failed)

    def scenario(self, counts: Counts) -> Scenario:
        wants = self.wants
        return Scenario(
            title=wants.title,
            model=wants.model,
            weights=wants.weights,
            kv_bits=wants.kv_bits,
            router=wants.router,
            traffic=wants.traffic,
            slo=Slo(wants.slo.ttft_s, wants.slo.tpot_s),
            fleet=[replace(self.candidates[kind].group, instances=count) for kind, count in sorted(counts.items())],
            seed=wants.seed,
        )

    def rehearse(self, counts: Counts) -> Tried:
        """What comes of it; each fleet once."""
        key = tuple(sorted(counts.items()))
        if key not in self.tried:
            self.tried[key] = tried = self._rehearsed(dict(key))
            self._on_tried(tried)
        return self.tried[key]

    def _rehearsed(self, counts: Counts) -> Tried:
        report, kept = rehearsed(self.scenario(counts), self.wants.slo, self.catalog, self.calibration)
        taken, load = self.needs(counts), self.load
        usd_per_s = taken.usd_per_hour / _HOUR_S
        return Tried(
            parts=[part_of(self.candidates[kind], count) for kind, count in counts.items()],
            usd_per_hour=taken.usd_per_hour,
            power_w=taken.power_w,
            capex_usd=taken.capex_usd,
            chips=taken.chips,
            usd_per_million_output_tokens=usd_per_s * load.span_s / load.output_tokens * 1e6,
            usd_per_million_tokens=usd_per_s * load.span_s / (load.input_tokens + load.output_tokens) * 1e6,
            ttft_s=kept.ttft_s,
            tpot_s=kept.tpot_s,
            both_s=kept.both_s,
            met=kept.met,
            met_ttft=kept.met_ttft,
            met_tpot=kept.met_tpot,
            reuse=sum(report.reuse_fraction.values()),
            keeps=kept.keeps,
        )

    def fits(self, tried: Tried) -> bool:
        taken = Needs(
            usd_per_hour=tried.usd_per_hour, power_w=tried.power_w, capex_usd=tried.capex_usd, chips=tried.chips
        )
        return not excesses(taken, self.limits, self.offers)


def _nothing(wants: Wants, offers: dict[str, Offer], why_not: dict[str, str]) -> str:
    if not offers:
        reasons = ", ".join(f"{chip}: {why}" for chip, why in why_not.items())
        return f"plan: no chip may be bought or is owned ({reasons})"
    return (
        f"plan: no instance of {', '.join(offers)} with {wants.tensor} chips holds {wants.model} and answers alone "
        f"within {wants.slo.ttft_s:g} s and {wants.slo.tpot_s:g} s a token; allow more chips an instance (tensor), "
        f"fewer bits (weights), or promise less"
    )
