"""The cheapest fleet that keeps a promise: a bound proposes, rehearsals decide.

Kinds of instances are proposed in sets, the one that is cheapest by the bound first. Each set is sized by rehearsals:
grown until the promise is kept, then made cheaper step by step as long as it is. How many more it took than the bound
said is learned for each kind and each role, and the next sets are proposed by the bound so corrected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from functools import partial
from itertools import product

import numpy as np
from msgspec.structs import replace

from jevons.base.compiled import Records
from jevons.base.errors import ConfigError
from jevons.config.catalog import Catalog
from jevons.config.scenario import Scenario, Slo, as_toml
from jevons.config.wants import Wants
from jevons.econ.draws import Draws, Result
from jevons.econ.purchase import Excess, Limits, Market, Needs, Offer, cheapest, excesses, needs_of
from jevons.econ.rivals import Sureness, figures_of, sureness, usd_per_hour
from jevons.perf.calibration import Calibration
from jevons.twin.offers import candidates, hour_of, load_of, offers_of, with_tier
from jevons.twin.planned import Plan, Tried, errors_of, front, make_of, part_of, rival_of
from jevons.twin.run import simulate

_GROW = 1.25
_SLACK = 1.3  # what grows beyond that times the best so far is left: it may be made cheaper again, but not so much
_BEYOND = 2.0  # times a limit, within which what keeps the promise may become small enough again
_HALVINGS = 10  # of the share of a load that limits allow
_MOST_STEPS = 12  # of growing: to 15 times as many; more of the same do not help then
_HOUR_S = 3600.0
Counts = dict[int, int]  # of each kind its instances


def plan(
    wants: Wants, catalog: Catalog, calibration: Calibration, on_tried: Callable[[Tried], None] = lambda tried: None
) -> Plan:
    """The cheapest fleet for what is wanted.

    Raises:
        ConfigError: something named is not in the catalog, no chip may be used, or the traffic tells no rate.
    """
    return Search(wants, catalog, calibration, on_tried).plan()


class Search:
    """A plan under way; see `plan`."""

    def __init__(
        self, wants: Wants, catalog: Catalog, calibration: Calibration, on_tried: Callable[[Tried], None]
    ) -> None:
        self.wants, self.catalog, self.calibration, self._on_tried = wants, catalog, calibration, on_tried
        self.load = load_of(wants.traffic, wants.seed, wants.slo.share)
        self.offers, self.why_not = offers_of(wants, catalog)
        self.candidates = candidates(wants, self.load, self.offers, catalog, calibration)
        if not self.candidates:
            raise ConfigError(_nothing(wants, self.offers, self.why_not))
        self._rest = {each.group.ffn_chip for each in self.candidates}  # chips of all but attention
        self.limits = Limits(**{name: getattr(wants.limits, name) for name in Limits.__struct_fields__})
        self.kinds = [each.kind for each in self.candidates]
        self.tried: dict[tuple[tuple[int, int], ...], Tried] = {}
        self._learned: dict[int, float] = {}  # of a kind, how many times more of it than the bound says

    @property
    def market(self) -> Market:
        return Market(
            kinds=self.kinds,
            offers=self.offers,
            limits=self.limits,
            requests_per_s=self.load.demand.requests_per_s,
            most_kinds=self.wants.most_kinds,
        )

    def plan(self) -> Plan:
        found, bound = self._finalists()
        found += self._alike(found)
        found += self._tiered(found)
        found.sort(key=lambda each: (each.usd_per_hour, each.name))
        best = found[0] if found else None
        return Plan(
            title=self.wants.title,
            model=self.wants.model,
            basis=self.wants.basis,
            at=self.wants.at,
            since=self._since(best),
            slo=self.wants.slo,
            limits=self.limits,
            load=self.load,
            best=best,
            runner_up=next((each for each in found[1:] if best and make_of(each) != make_of(best)), None),
            finalists=found,
            front=front([each for each in self.tried.values() if self._fits(each)]),
            bound_usd_per_hour=bound,
            short_of=[] if found else self._short_of(),
            nearest=None if found else self._nearest(),
            rehearsals=len(self.tried),
            why_not=self.why_not,
            paid=rival_of(best, self.offers) if best else None,
            sureness=self._sureness(found) if found else None,
            scenario=as_toml(self._scenario_of(best)) if best else "",
            given=self.wants.given,
        )

    def _finalists(self) -> tuple[list[Tried], float | None]:
        """The cheapest of each set of kinds, and the first bound."""
        found: list[Tried] = []
        used: list[frozenset[int]] = []
        bound: float | None = None
        passed_over: set[str] = set()
        for number in range(self.wants.finalists):
            # Every other one is of chips that no such one had: it tells what a fleet without them costs.
            elsewhere = passed_over if number % 2 else set()
            ways = (self._proposal(used, without) for without in (elsewhere, elsewhere & self._rest, set[str]()))
            start = next((way for way in ways if way is not None), None)
            if start is None:
                break
            used.append(frozenset(start))
            chips = {chip for kind in start for chip in self.kinds[kind].chips}
            passed_over |= chips if number % 2 or not passed_over else set()
            bound = self.needs(start).usd_per_hour if bound is None else bound
            best = min((each.usd_per_hour for each in found), default=math.inf)
            most = _SLACK * best if len(found) > 1 else math.inf  # without a runner-up nobody knows what would flip it
            sized = self.size(start, lambda needs: needs.usd_per_hour, most)
            if sized is not None:
                found.append(self.rehearse(sized))
        return found, bound

    def _alike(self, found: Sequence[Tried]) -> list[Tried]:
        """What less money than the cheapest fleet takes buys of kinds with the same chips and role, while any keeps it.

        The bound knows no difference between kinds that it needs one instance of: rehearsals do.
        """
        better: list[Tried] = []
        while found or better:
            best = self._counts_of(min([*found, *better], key=lambda each: (each.usd_per_hour, each.name)))
            cheaper = next((each for each in self._instead(best) if self.rehearse(each).keeps), None)
            if cheaper is None:
                break
            better.append(self.rehearse(self._shrink(cheaper, lambda needs: needs.usd_per_hour)))
        return better[-1:]

    def _instead(self, counts: Counts) -> list[Counts]:
        """Fleets with another kind in the place of one, as many as cost less, that serve by the bound."""
        usd, found = self.needs(counts).usd_per_hour, list[Counts]()
        for old, new in product(counts, range(len(self.kinds))):
            kinds = self.kinds[old], self.kinds[new]
            if new in counts or kinds[0].role != kinds[1].role or kinds[0].chips.keys() != kinds[1].chips.keys():
                continue
            rest = {kind: count for kind, count in counts.items() if kind != old}
            left = usd * (1 - 1e-9) - self.needs(rest).usd_per_hour
            fleet = rest | {new: int(left / self.needs({new: 1}).usd_per_hour)}
            needs = self.needs(fleet)
            is_less = fleet[new] > 0 and needs.usd_per_hour < usd and self._serves(fleet)
            found += [fleet] if is_less and not excesses(needs, self.limits, self.offers) else []
        return sorted(found, key=lambda each: self.needs(each).usd_per_hour)

    def _tiered(self, found: Sequence[Tried]) -> list[Tried]:
        """The cheapest fleet with each tier that is offered, under those who compute prompts."""
        if not found:
            return []
        best = self._counts_of(min(found, key=lambda each: (each.usd_per_hour, each.name)))
        tiered = []
        for tier in self.wants.tiers:
            counts = Counts()
            for kind, count in best.items():
                if self.kinds[kind].role != "decode":
                    self.candidates.append(with_tier(self.candidates[kind], tier))
                    self.kinds.append(self.candidates[-1].kind)
                    kind = len(self.kinds) - 1
                counts[kind] = count
            sized = self.size(counts, lambda needs: needs.usd_per_hour)
            tiered += [] if sized is None else [self.rehearse(sized)]
        return tiered

    def _proposal(self, used: Sequence[frozenset[int]], passed_over: Set[str]) -> Counts | None:
        """The cheapest set of kinds that was not proposed before, without some chips."""
        for market in (self._corrected(), self.market):
            offers = {
                chip: replace(offer, most=0) if chip in passed_over else offer for chip, offer in market.offers.items()
            }
            counts = cheapest(replace(market, offers=offers), without=used)
            if counts is not None:
                return {kind: count for kind, count in enumerate(counts) if count}
        return None

    def _corrected(self) -> Market:
        """The market with what each kind does as rehearsals found it, or others of its role."""
        found = [kind.requests_per_s / self._more(at) for at, kind in enumerate(self.kinds)]
        kinds = [replace(kind, requests_per_s=rate) for kind, rate in zip(self.kinds, found, strict=True)]
        return replace(self.market, kinds=kinds)

    def _more(self, at: int) -> float:
        """How many times more instances of a kind it takes than the bound says; as few as of any other of its role.

        One other tells nothing: the bound may be wrong of its chip alone.
        """
        alike = [more for kind, more in self._learned.items() if self.kinds[kind].role == self.kinds[at].role]
        return self._learned.get(at, min(alike) if len(alike) > 1 else 1.0)

    def _learn(self, counts: Counts) -> None:
        """Of a fleet that just keeps its promise."""
        for kind in counts:
            role = self.kinds[kind].role
            alike = (count * self.kinds[other].requests_per_s for other, count in counts.items())
            roles = (self.kinds[other].role for other in counts)
            rate = sum(each for each, other in zip(alike, roles, strict=True) if other == role)
            self._learned[kind] = max(1.0, rate / self.load.demand.requests_per_s)

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
        counts = self._shrink(counts, cost)
        for name in Limits.__struct_fields__:  # the cheapest may still exceed what one that is dearer does not
            if any(each.limit == name for each in self._excesses(counts)):
                counts = self._shrink(counts, lambda needs, of=name: getattr(needs, of) or math.inf)  # type: ignore[misc]
        self._learn(counts)
        return None if self._excesses(counts) else counts

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

    def _shrink(self, counts: Counts, cost: Callable[[Needs], float]) -> Counts:
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
            if min(new.values()) < 1 or cost(self.needs(new)) >= now or not self._serves(new):
                continue
            if self._beyond(new) <= beyond:
                found.append(new)
        return sorted(found, key=lambda each: cost(self.needs(each)))

    def _excesses(self, counts: Counts) -> list[Excess]:
        return excesses(self.needs(counts), self.limits, self.offers)

    def _beyond(self, counts: Counts) -> float:
        """How many times the limit it exceeds most; 1 within all."""
        return max((each.needs / each.has if each.has else math.inf for each in self._excesses(counts)), default=1.0)

    def _serves(self, counts: Counts) -> bool:
        """By the bound."""
        rates = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
        for kind, count in counts.items():
            rates[self.kinds[kind].role] += count * self.kinds[kind].requests_per_s
        return rates["both"] + min(rates["prefill"], rates["decode"]) >= self.load.demand.requests_per_s

    def needs(self, counts: Counts) -> Needs:
        kinds = [self.kinds[kind] for kind in counts]
        return needs_of(kinds, list(counts.values()), self.offers)

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

    def _scenario_of(self, tried: Tried) -> Scenario:
        return self.scenario(self._counts_of(tried))

    def _counts_of(self, tried: Tried) -> Counts:
        return next(dict(counts) for counts, each in self.tried.items() if each is tried)

    def rehearse(self, counts: Counts) -> Tried:
        """What comes of it; each fleet once."""
        key = tuple(sorted(counts.items()))
        if key not in self.tried:
            self.tried[key] = tried = self._rehearsed(dict(key))
            self._on_tried(tried)
        return self.tried[key]

    def _rehearsed(self, counts: Counts) -> Tried:
        pieces: list[Records] = []
        report = simulate(
            self.scenario(counts),
            self.catalog,
            self.calibration,
            on_results=lambda results: pieces.append(results.copy()),
        )
        found = np.concatenate(pieces)
        slo, taken = self.wants.slo, self.needs(counts)
        ttft_s = found["first_s"] - found["at_s"]
        tpot_s = (found["done_s"] - found["first_s"]) / np.maximum(found["output"] - 1, 1)
        met_ttft, met_tpot = (ttft_s <= slo.ttft_s), (tpot_s <= slo.tpot_s)
        met = float((met_ttft & met_tpot).mean())
        apart = min(float(met_ttft.mean()), float(met_tpot.mean()))
        usd_per_s, load = taken.usd_per_hour / _HOUR_S, self.load
        return Tried(
            parts=[part_of(self.candidates[kind], count) for kind, count in counts.items()],
            usd_per_hour=taken.usd_per_hour,
            power_w=taken.power_w,
            capex_usd=taken.capex_usd,
            chips=taken.chips,
            usd_per_million_output_tokens=usd_per_s * load.span_s / load.output_tokens * 1e6,
            usd_per_million_tokens=usd_per_s * load.span_s / (load.input_tokens + load.output_tokens) * 1e6,
            ttft_s=float(np.quantile(ttft_s, slo.share)),
            tpot_s=float(np.quantile(tpot_s, slo.share)),
            met=met,
            met_ttft=float(met_ttft.mean()),
            met_tpot=float(met_tpot.mean()),
            reuse=sum(report.reuse_fraction.values()),
            keeps=(met if slo.of == "both" else apart) >= slo.share,
        )

    def _sureness(self, found: Sequence[Tried]) -> Sureness:
        """Of the cheapest against the others that keep the promise."""
        rivals = [rival_of(each, self.offers) for each in found]
        paid = sorted({chip for rival in rivals for chip in rival.chips})
        basis, given = self.wants.basis, self.wants.given
        hours = {chip: hour for chip in paid if (hour := hour_of(basis, chip, self.catalog, given))}
        costs: dict[str, Result] = {rival.name: partial(usd_per_hour, rival, hours) for rival in rivals}
        return sureness(costs, figures_of(hours, errors_of(found)), Draws(seed=self.wants.seed))

    def _since(self, best: Tried | None) -> str:
        """When all of its chips can be had."""
        later = {each.chip: each.since for each in self.wants.available}
        return max((later.get(chip, "") for chip in best.chips), default="") if best else ""

    def _fits(self, tried: Tried) -> bool:
        taken = Needs(
            usd_per_hour=tried.usd_per_hour, power_w=tried.power_w, capex_usd=tried.capex_usd, chips=tried.chips
        )
        return not excesses(taken, self.limits, self.offers)

    def _nearest(self) -> Tried | None:
        """What keeps most of the promise within the limits, a fleet for as much as they allow among them."""
        serving, less, more = None, 0.0, 1.0
        for _ in range(_HALVINGS):
            part = (less + more) / 2
            market = replace(self._corrected(), requests_per_s=part * self.load.demand.requests_per_s)
            counts = cheapest(market)
            less, more = (less, part) if counts is None else (part, more)
            serving = serving if counts is None else counts
        if serving is not None:
            self.rehearse({kind: count for kind, count in enumerate(serving) if count})
        within = [each for each in self.tried.values() if self._fits(each)]
        return max(within, key=lambda each: each.met, default=None)

    def _short_of(self) -> list[Excess]:
        """Limits that each alone, if raised so far, let a fleet keep the promise; or what all must be raised to."""
        limits, offers, found = self.limits, self.offers, list[Excess]()
        for name in Limits.__struct_fields__:
            if getattr(limits, name) is not None:
                self.limits = replace(limits, **{name: None})
                needed = self._least(name, lambda needs, of=name: getattr(needs, of) or math.inf)  # type: ignore[misc]
                found += [] if needed is None else [Excess(name, getattr(limits, name), getattr(needed, name))]
                self.limits = limits
        for chip, offer in offers.items():
            if offer.most is not None:
                self.offers = offers | {chip: replace(offer, most=None)}
                needed = self._least("usd_per_hour", lambda needs, of=chip: needs.chips.get(of, 0))  # type: ignore[misc]
                count = 0 if needed is None else needed.chips.get(chip, 0)
                found += [Excess(f"chips of {chip}", offer.most, count)] if count > offer.most else []
                self.offers = offers
        return found or self._all_short()

    def _all_short(self) -> list[Excess]:
        limits, offers = self.limits, self.offers
        self.limits = Limits()
        self.offers = {chip: replace(offer, most=None) for chip, offer in offers.items()}
        needed = self._least("usd_per_hour", lambda needs: needs.usd_per_hour)
        self.limits, self.offers = limits, offers
        return [] if needed is None else excesses(needed, limits, offers)

    def _least(self, name: str, cost: Callable[[Needs], float]) -> Needs | None:
        """What the fleet needs that keeps the promise with the least of one thing."""
        counts = cheapest(self._corrected(), least=name)
        if counts is None:
            return None
        self.size({kind: count for kind, count in enumerate(counts) if count}, cost)
        fleets = (dict(key) for key, each in self.tried.items() if each.keeps)
        within = (
            needs for fleet in fleets if not self._excesses(fleet) and math.isfinite(cost(needs := self.needs(fleet)))
        )
        return min(within, key=cost, default=None)


def _nothing(wants: Wants, offers: dict[str, Offer], why_not: dict[str, str]) -> str:
    if not offers:
        reasons = ", ".join(f"{chip}: {why}" for chip, why in why_not.items())
        return f"plan: no chip may be bought or is owned ({reasons})"
    return (
        f"plan: no instance of {', '.join(offers)} with {wants.tensor} chips holds {wants.model} and answers alone "
        f"within {wants.slo.ttft_s:g} s and {wants.slo.tpot_s:g} s a token; allow more chips an instance (tensor), "
        f"fewer bits (weights), or promise less"
    )
