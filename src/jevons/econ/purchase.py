"""Which fleet to buy, by a bound: the cheapest counts of instances that serve the means and exceed no limit.

    minimise    $/h of the chips used
    subject to  requests served by instances that do both, or by pairs of prefill and decode  ≥  requests that arrive
                power, $/h, capital, chips of each kind  ≤  what there is

A mixed-integer program for HiGHS. Chips that are owned cost what they draw; others their price. What the bound calls
cheapest is a candidate, no more: a rehearsal decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from jevons.base.compiled import Reals
from jevons.base.errors import ConfigError
from jevons.econ.capacity import Role

_MOST_INSTANCES = 1e6  # of one kind


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of chip as it can be had."""

    chip: str
    usd_per_hour: float  # of one that is not owned yet
    running_usd_per_hour: float = 0.0  # of one that is: electricity
    owned: int = 0
    most: int | None = None  # owned ones included; None: no limit
    power_w: float | None = None  # None: not known
    capex_usd: float | None = None


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """Instances that are alike."""

    role: Role
    chips: dict[str, int]  # of one instance, by kind
    requests_per_s: float  # that one can do for ever
    usd_per_hour: float = 0.0  # on top of its chips: of a memory tier that `sharing` of them have together
    sharing: int = 1

    def more_usd_per_hour(self, count: int) -> float:
        """On top of the chips of so many; a tier that fewer have than may is paid whole."""
        return self.usd_per_hour * math.ceil(count / self.sharing)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What must not be exceeded; None: no limit."""

    power_w: float | None = None
    usd_per_hour: float | None = None
    capex_usd: float | None = None


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet takes. Power and capital are None where a chip's are not known."""

    usd_per_hour: float
    power_w: float | None
    capex_usd: float | None
    chips: dict[str, int]


class Excess(msgspec.Struct, frozen=True):
    """A limit that is too low, and what would do."""

    limit: str  # of `Limits`, or "chips of NAME"
    has: float
    needs: float | None  # None: not known

    @property
    def times(self) -> float:
        """So many times too much."""
        return math.inf if self.needs is None or not self.has else self.needs / self.has


def needs_of(kinds: Sequence[Kind], counts: Sequence[int], offers: dict[str, Offer]) -> Needs:
    """What so many instances of each kind take."""
    chips: dict[str, int] = {}
    more = 0.0
    for kind, count in zip(kinds, counts, strict=True):
        if count:
            more += kind.more_usd_per_hour(count)
            for chip, each in kind.chips.items():
                chips[chip] = chips.get(chip, 0) + each * count
    usd = [
        min(count, offers[chip].owned) * offers[chip].running_usd_per_hour
        + max(0, count - offers[chip].owned) * offers[chip].usd_per_hour
        for chip, count in chips.items()
    ]
    power = [_times(offers[chip].power_w, count) for chip, count in chips.items()]
    capital = [_times(offers[chip].capex_usd, max(0, count - offers[chip].owned)) for chip, count in chips.items()]
    return Needs(usd_per_hour=math.fsum([*usd, more]), power_w=_sum(power), capex_usd=_sum(capital), chips=chips)


def _times(each: float | None, count: int) -> float | None:
    return 0.0 if count == 0 else None if each is None else each * count


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return math.fsum(known) if len(known) == len(parts) else None


def excesses(taken: Needs, limits: Limits, offers: dict[str, Offer]) -> list[Excess]:
    """Which limits a fleet exceeds. What is not known exceeds any limit."""
    found = []
    for name in Limits.__struct_fields__:
        has, needs = getattr(limits, name), getattr(taken, name)
        if has is not None and (needs is None or needs > has * (1 + 1e-9)):
            found.append(Excess(name, has, needs))
    for chip, count in taken.chips.items():
        most = offers[chip].most
        if most is not None and count > most:
            found.append(Excess(f"chips of {chip}", most, count))
    return found


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """What can be bought, and what must be served."""

    kinds: list[Kind]
    offers: dict[str, Offer]  # by chip
    limits: Limits
    requests_per_s: float
    most_kinds: int = 2  # in one fleet


def cheapest(
    market: Market, *, without: Sequence[frozenset[int]] = (), least: str = "usd_per_hour"
) -> list[int] | None:
    """Instances of each kind that serve at the least cost by the bound; None where the limits allow none.

    Args:
        without: sets of kinds that are not wanted again.
        least: what is to be least: "usd_per_hour", or another of `Limits`.

    Raises:
        ConfigError: highspy is not installed.
    """
    program = _Program(market, least)
    for used in without:
        program.forbid(used)
    found = program.solve()
    return None if found is None else [round(value) for value in found[: len(market.kinds)]]


class _Program:
    """Variables: instances of each kind, whether any; chips of each kind that are not owned; requests/s of pairs."""

    def __init__(self, market: Market, least: str) -> None:
        self._market, self._chips = market, sorted({chip for kind in market.kinds for chip in kind.chips})
        self._kinds, self._width = len(market.kinds), 2 * len(market.kinds) + len(self._chips) + 1
        self._rows: list[tuple[Reals, float, float]] = []
        self._upper = np.full(self._width, np.inf)
        self._serve()
        self._count_chips()
        self._use()
        self._cost = self._coefficients(least)
        for name in Limits.__struct_fields__:
            limit = getattr(market.limits, name)
            if limit is not None:
                self._rows.append((self._coefficients(name), -np.inf, limit))

    def forbid(self, used: frozenset[int]) -> None:
        """Not exactly these kinds again."""
        row = np.zeros(self._width)
        row[self._kinds : 2 * self._kinds] = -1.0
        row[[self._kinds + kind for kind in used]] = 1.0
        self._rows.append((row, -np.inf, len(used) - 1.0))

    def _serve(self) -> None:
        """Pairs serve no more than either side of them does."""
        rates = {role: np.zeros(self._width) for role in ("both", "prefill", "decode")}
        for at, kind in enumerate(self._market.kinds):
            rates[kind.role][at] = kind.requests_per_s
        for role in ("prefill", "decode"):
            rates[role][-1] = -1.0
            self._rows.append((rates[role], 0.0, np.inf))
        rates["both"][-1] = 1.0
        self._rows.append((rates["both"], self._market.requests_per_s, np.inf))

    def _count_chips(self) -> None:
        for place, chip in enumerate(self._chips):
            offer, row = self._market.offers[chip], self._used(chip)
            if offer.most is not None:
                self._rows.append((row.copy(), -np.inf, offer.most))
            row[2 * self._kinds + place] = -1.0
            self._rows.append((row, -np.inf, offer.owned))

    def _used(self, chip: str) -> Reals:
        row = np.zeros(self._width)
        for at, kind in enumerate(self._market.kinds):
            row[at] = kind.chips.get(chip, 0)
        return row

    def _use(self) -> None:
        """A kind is used or not, and few are."""
        for at, kind in enumerate(self._market.kinds):
            most = _most(kind, self._market)
            row = np.zeros(self._width)
            row[at], row[self._kinds + at] = 1.0, -float(most)
            self._rows.append((row, -np.inf, 0.0))
            row = np.zeros(self._width)
            row[at], row[self._kinds + at] = 1.0, -1.0  # used means at least one
            self._rows.append((row, 0.0, np.inf))
            self._upper[at], self._upper[self._kinds + at] = most, 1.0
        row = np.zeros(self._width)
        row[self._kinds : 2 * self._kinds] = 1.0
        self._rows.append((row, -np.inf, float(self._market.most_kinds)))

    def _coefficients(self, name: str) -> Reals:
        """Of a resource, what each variable takes. A kind of which it is not known takes more than there can be."""
        row, offers = np.zeros(self._width), self._market.offers
        for at, kind in enumerate(self._market.kinds):
            row[at] = kind.usd_per_hour / kind.sharing if name == "usd_per_hour" else 0.0
            for chip, count in kind.chips.items():
                running = {"usd_per_hour": offers[chip].running_usd_per_hour, "power_w": offers[chip].power_w or 0.0}
                row[at] += count * running.get(name, 0.0)
                if getattr(offers[chip], name) is None:
                    self._upper[at] = 0.0
        for place, chip in enumerate(self._chips):
            offer = offers[chip]
            new = {"usd_per_hour": offer.usd_per_hour - offer.running_usd_per_hour, "capex_usd": offer.capex_usd or 0.0}
            row[2 * self._kinds + place] = new.get(name, 0.0)
        return row

    def solve(self) -> Reals | None:
        highspy = highs()
        lp, rows = highspy.HighsLp(), np.array([row for row, _, _ in self._rows])
        lp.num_col_, lp.num_row_ = self._width, len(rows)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = self._cost, np.zeros(self._width), self._upper
        lp.row_lower_ = np.array([low for _, low, _ in self._rows])
        lp.row_upper_ = np.array([high for _, _, high in self._rows])
        places = [np.flatnonzero(row) for row in rows]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *(len(place) for place in places)])
        lp.a_matrix_.index_ = np.concatenate(places)
        lp.a_matrix_.value_ = np.concatenate([row[place] for row, place in zip(rows, places, strict=True)])
        whole = [highspy.HighsVarType.kInteger] * (2 * self._kinds)
        lp.integrality_ = whole + [highspy.HighsVarType.kContinuous] * (self._width - len(whole))
        solver = highspy.Highs.__base__()  # the solver itself: what wraps it prints a banner when it is made
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0), ("mip_rel_gap", 1e-6)):
            solver.setOptionValue(option, value)
        solver.passModel(lp)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return np.array(solver.getSolution().col_value)


def _most(kind: Kind, market: Market) -> int:
    """More of a kind than that would be idle."""
    return 0 if kind.requests_per_s <= 0 else int(min(_MOST_INSTANCES, market.requests_per_s / kind.requests_per_s + 1))


def highs() -> Any:
    """The solver. Raises ConfigError: it is not installed."""
    try:
        import highspy
    except ImportError as error:
        raise ConfigError("plan: needs HiGHS: pip install 'jevons[plan]'") from error
    return highspy
