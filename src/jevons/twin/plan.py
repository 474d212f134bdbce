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

from msgspec.structs import replace

from jevons.base.errors import ConfigError
from jevons.config.catalog import Catalog
from jevons.config.scenario import Scenario, as_toml
from jevons.config.wants import Wants
from jevons.econ.draws import Draws, Result
from jevons.econ.purchase import Excess, Limits, Market, Needs, cheapest, excesses
from jevons.econ.rivals import Sureness, figures_of, sureness, usd_per_hour
from jevons.perf.calibration import Calibration
from jevons.twin.offers import hour_of, with_tier
from jevons.twin.planned import Plan, Tried, errors_of, front, make_of, rival_of
from jevons.twin.scaled import scaled
from jevons.twin.sizing import Counts, Sizing

_SLACK = 1.3  # what grows beyond that times the best so far is left: it may be made cheaper again, but not so much
_RUNNER_UP = 2.0  # … of the second: without any nobody knows what would flip the first
_MOST_SETS = 24  # of kinds, where no more are asked for
_LESS = (1 - 1e-6, 0.95)  # of what the cheapest fleet takes, that a cheaper one is looked for within
_HALVINGS = 10  # of the share of a load that limits allow


def plan(
    wants: Wants, catalog: Catalog, calibration: Calibration, on_tried: Callable[[Tried], None] = lambda tried: None
) -> Plan:
    """The cheapest fleet for what is wanted, in the weights that make it so: each is searched for itself.

    Raises:
        ConfigError: something named is not in the catalog, no chip may be used, or the traffic tells no rate.
    """
    released = catalog.models[wants.model].weights if wants.model in catalog.models else None
    found: dict[str, Plan] = {}
    refused: list[ConfigError] = []
    ways = dict.fromkeys(way or released for way in (wants.weights, *wants.or_weights))
    for way in ways:
        try:
            found[way or ""] = Search(replace(wants, weights=way), catalog, calibration, on_tried).plan()
        except ConfigError as error:  # no chip holds or computes such: others may do
            refused.append(error)
    if not found:
        raise refused[0]
    usd = {way: each.best.usd_per_hour for way, each in found.items() if each.best is not None}
    best = min(usd or found, key=lambda way: usd.get(way, math.inf))
    rest = {str(way): usd.get(str(way)) for way in ways if way != best}
    return replace(found[best], in_other_weights=rest, rehearsals=sum(each.rehearsals for each in found.values()))


class Search(Sizing):
    """A plan under way; see `plan`."""

    def __init__(
        self, wants: Wants, catalog: Catalog, calibration: Calibration, on_tried: Callable[[Tried], None]
    ) -> None:
        super().__init__(wants, catalog, calibration, on_tried)
        self._rest = {each.group.ffn_chip for each in self.candidates}  # chips of all but attention

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
        found, bound = self._search()
        found += self._tiered(found)
        found.sort(key=lambda each: (each.usd_per_hour, each.name))
        best = found[0] if found else None
        return Plan(
            title=self.wants.title,
            model=self.wants.model,
            weights=self.wants.weights or "",
            basis=self.wants.basis,
            at=self.wants.at,
            since=self._since(best),
            slo=self.wants.slo,
            limits=self.limits,
            load=self.load,
            best=best,
            runner_up=next((each for each in found[1:] if best and make_of(each) != make_of(best)), None),
            finalists=found,
            front=front([each for each in self.tried.values() if self.fits(each)]),
            bound_usd_per_hour=bound,
            short_of=[] if found else self._short_of(),
            nearest=None if found else self._nearest(),
            rehearsals=len(self.tried),
            why_not=self.why_not,
            paid=rival_of(best, self.offers) if best else None,
            sureness=self._sureness(found) if found else None,
            scenario=as_toml(self._scenario_of(best)) if best else "",
            given=self.wants.given,
            scaled=scaled(self, [(each, self._counts_of(each)) for each in found]) if found else None,
        )

    def _search(self) -> tuple[list[Tried], float | None]:
        """What keeps the promise, and the first bound."""
        found, bound = self._finalists()
        found += self._cheaper(found)
        return found + self._alike(found), bound

    @staticmethod
    def _cheapest(found: Sequence[Tried]) -> Tried:
        return min(found, key=lambda each: (each.usd_per_hour, each.name))

    def _finalists(self) -> tuple[list[Tried], float | None]:
        """The cheapest of each set of kinds, and the first bound.

        As many sets as are asked for, and then each that may be cheaper than what was found, by what was learned.
        """
        found: list[Tried] = []
        used: list[frozenset[int]] = []
        bound: float | None = None
        passed_over: set[str] = set()
        for number in range(max(_MOST_SETS, self.wants.finalists)):
            is_asked = number < self.wants.finalists
            # Every other one is of chips that no such one had: it tells what a fleet without them costs.
            elsewhere = passed_over if number % 2 and is_asked else set()
            ways = (self._proposal(used, without) for without in (elsewhere, elsewhere & self._rest, set[str]()))
            start = next((way for way in ways if way is not None), None) if is_asked else self._better(used)
            best = min((each.usd_per_hour for each in found), default=math.inf)
            if start is None or (not is_asked and self.needs(start).usd_per_hour >= best):
                break
            used.append(frozenset(start))
            chips = {chip for kind in start for chip in self.kinds[kind].chips}
            passed_over |= chips if number % 2 or not passed_over else set()
            bound = self.needs(start).usd_per_hour if bound is None else bound
            most = (_SLACK if len(found) > 1 else _RUNNER_UP) * best
            sized = self.size(start, lambda needs: needs.usd_per_hour, most)
            if sized is not None:
                found.append(self.rehearse(sized))
        return found, bound

    def _cheaper(self, found: Sequence[Tried]) -> list[Tried]:
        """What is found where less money than the cheapest fleet takes is allowed, until nothing is.

        A limit that forbids the cheapest of those that were proposed must not be what finds a cheaper one: each time
        it is proposed as for who has that limit, by what the bound alone says.
        """
        limits, learned, better = self.limits, self.learned, list[Tried]()
        shares = list(_LESS)
        while shares and (found or better):
            usd = min(each.usd_per_hour for each in [*found, *better])
            self.limits, self.learned = replace(limits, usd_per_hour=usd * shares[0]), {}
            more, _ = self._finalists()
            better += more
            shares = list(_LESS) if more else shares[1:]
        self.limits, self.learned = limits, learned
        return better

    def _alike(self, found: Sequence[Tried]) -> list[Tried]:
        """What less money than the cheapest fleet takes buys of kinds with the same chips and role, while any keeps it.

        The bound knows no difference between kinds that it needs one instance of: rehearsals do.
        """
        better: list[Tried] = []
        while found or better:
            best = self._counts_of(self._cheapest([*found, *better]))
            cheaper = next((each for each in self._instead(best) if self.rehearse(each).keeps), None)
            if cheaper is None:
                break
            better.append(self.rehearse(self.shrink(cheaper, lambda needs: needs.usd_per_hour)))
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
            is_less = fleet[new] > 0 and needs.usd_per_hour < usd and self.serves(fleet)
            found += [fleet] if is_less and not excesses(needs, self.limits, self.offers) else []
        return sorted(found, key=lambda each: self.needs(each).usd_per_hour)

    def _tiered(self, found: Sequence[Tried]) -> list[Tried]:
        """The cheapest fleet with each tier that is offered, under those who compute prompts."""
        if not found:
            return []
        best = self._counts_of(self._cheapest(found))
        tiered = []
        for tier in self.wants.tiers:
            counts = Counts()
            for kind, count in best.items():
                if self.kinds[kind].role != "decode":
                    self.candidates.append(with_tier(self.candidates[kind], tier, self.catalog.economics))
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
                return _used(counts)
        return None

    def _better(self, used: Sequence[frozenset[int]]) -> Counts | None:
        """The same by what was learned alone, and as much as that leaves to hope for."""
        counts = cheapest(self._corrected(hopes=True), without=used)
        return None if counts is None else _used(counts)

    def _corrected(self, *, hopes: bool = False) -> Market:
        """The market with what each kind does as rehearsals found it, or others of its role."""
        found = [kind.requests_per_s / self._more(at, hopes) for at, kind in enumerate(self.kinds)]
        kinds = [replace(kind, requests_per_s=rate) for kind, rate in zip(self.kinds, found, strict=True)]
        return replace(self.market, kinds=kinds)

    def _more(self, at: int, hopes: bool) -> float:
        """How many times more instances of a kind it takes than the bound says; as few as of any other of its role.

        One other tells nothing: the bound may be wrong of its chip alone. Nor does a pair, to who hopes: with another
        one beside it, each may do.

        Args:
            hopes: the least it can be, not what is known to do.
        """
        least = {
            kind: more.failed if hopes else more.did
            for kind, more in self.learned.items()
            if not hopes or self.kinds[kind].role == "both"
        }
        alike = [more for kind, more in least.items() if self.kinds[kind].role == self.kinds[at].role]
        return least.get(at, min(alike) if len(alike) > 1 else 1.0)

    def _scenario_of(self, tried: Tried) -> Scenario:
        return self.scenario(self._counts_of(tried))

    def _counts_of(self, tried: Tried) -> Counts:
        return next(dict(counts) for counts, each in self.tried.items() if each is tried)

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
            self.rehearse(_used(serving))
        within = [each for each in self.tried.values() if self.fits(each)]
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
        """What the fleet needs that keeps the promise with the least of one thing, the cheapest without it among those:
        the bound knows little of what rehearsals then find to be enough."""
        self._cheaper(self._finalists()[0])
        counts = cheapest(self._corrected(), least=name)
        if counts is None:
            return None
        self.size(_used(counts), cost)
        fleets = (dict(key) for key, each in self.tried.items() if each.keeps)
        within = (
            needs for fleet in fleets if not self.excesses(fleet) and math.isfinite(cost(needs := self.needs(fleet)))
        )
        return min(within, key=cost, default=None)


def _used(counts: Sequence[int]) -> Counts:
    return {kind: count for kind, count in enumerate(counts) if count}
