"""What an hour of a chip costs, and a million tokens.

    own     what a large buyer's hour costs, as published; electricity's difference from our base is added
    rent    what the market asks for an hour, as published
    build   (CRF(wacc, life) · capex · overhead + colocation) / 8760 / availability + power · PUE · price of electricity

with the capital recovery factor CRF(r, n) = r / (1 − (1 + r)^−n): a yearly payment that pays a dollar back in n years.
Each basis is a sum over named figures, which a user's catalog may replace, and takes plain numbers or arrays of draws.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from jevons.base.errors import UnknownFigure
from jevons.econ.draws import Amount, high_of, low_of
from jevons.facts.economics import Economics
from jevons.facts.hardware import Chip, Confidence, Figure, Rack

HOURS_PER_YEAR = 8760.0
MONTHS_PER_YEAR = 12.0
SECONDS_PER_HOUR = 3600.0

# Electricity in published costs of an owned hour, for each kWh of IT. GUESS: our bases of price and PUE; not published.
GUESS_OWN_USD_PER_KWH = 0.08 * 1.2

_GIVEN = "given_usd_per_hour"
_SITE = ("pue", "usd_per_kwh")
_BUILD = ("capex_overhead", "life_years", "wacc", "availability", "colo_usd_per_kw_month", *_SITE)


class Basis(enum.StrEnum):
    """Whose price of an hour."""

    OWN = "own"
    RENT = "rent"
    BUILD = "build"


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What money and power cost where a fleet is built."""

    capex_overhead: Amount  # factor on what racks cost
    life_years: Amount
    wacc: Amount  # a year, as a share
    availability: Amount  # share of hours
    colo_usd_per_kw_month: Amount
    pue: Amount
    usd_per_kwh: Amount


def capital_recovery(wacc: Amount, life_years: Amount) -> Amount:
    """Share of a capital that is paid each year, so that after its life all is paid, with interest. wacc > 0."""
    return wacc / (1.0 - (1.0 + wacc) ** -life_years)


def build_usd_per_hour(*, capex_usd: Amount, power_kw: Amount, terms: Terms) -> Amount:
    """An hour of what costs `capex_usd` and draws `power_kw` with its share of all around it (of IT, without PUE)."""
    capital = capital_recovery(terms.wacc, terms.life_years) * capex_usd * terms.capex_overhead
    room = terms.colo_usd_per_kw_month * MONTHS_PER_YEAR * power_kw
    electricity = power_kw * terms.pue * terms.usd_per_kwh
    return (capital + room) / HOURS_PER_YEAR / terms.availability + electricity


def usd_per_million_tokens(*, usd_per_hour: Amount, tokens_per_s: Amount, utilisation: Amount = 1.0) -> Amount:
    """Dollars, where `tokens_per_s` is what the whole serves when it is asked for all it can.

    Args:
        utilisation: share of that which is asked for over the hours that are paid; 1 where the rate is a mean already.
    """
    return usd_per_hour * 1e6 / (tokens_per_s * SECONDS_PER_HOUR * utilisation)


class ChipHour(msgspec.Struct, frozen=True, kw_only=True):
    """An hour of one kind of chip: which figures its price hangs on, and the price for any values of those."""

    chip: str  # its name; figures that are the chip's own are named FIGURE/CHIP
    basis: Basis
    figures: dict[str, Figure]

    def usd(self, of: Mapping[str, Amount]) -> Amount:
        """Dollars an hour, for values of at least `figures`, by name."""
        if self._own(_GIVEN) in self.figures:
            return of[self._own(_GIVEN)]
        if self.basis is Basis.BUILD:
            terms = Terms(**{name: of[name] for name in Terms.__struct_fields__})
            power_kw = of[self._own("all_in_w")] / 1e3
            return build_usd_per_hour(capex_usd=of[self._own("capex_usd")], power_kw=power_kw, terms=terms)
        price = of[self._own(f"{self.basis}_usd_per_hour")]
        if self._own("all_in_w") not in self.figures:
            return price
        return price + of[self._own("all_in_w")] / 1e3 * (of["pue"] * of["usd_per_kwh"] - GUESS_OWN_USD_PER_KWH)

    def _own(self, name: str) -> str:
        return f"{name}/{self.chip}"


def chip_hour(basis: Basis, name: str, chip: Chip, rack: Rack | None, economics: Economics) -> ChipHour:
    """How an hour of this chip is priced.

    Args:
        rack: that the chip is bought in, where there is one.

    Raises:
        UnknownFigure: nobody published what this basis needs; names it.
    """
    own, shared = _FIGURES_OF[basis](name, chip, rack, economics)
    figures = {f"{key}/{name}": figure for key, figure in own.items()}
    return ChipHour(chip=name, basis=basis, figures=figures | {key: getattr(economics, key) for key in shared})


_Figures = tuple[dict[str, Figure], tuple[str, ...]]  # the chip's own by name, names of those of economics


def _owned(name: str, chip: Chip, _: Rack | None, economics: Economics) -> _Figures:
    price = _known(chip.own_usd_per_hour, f"chips.{name}.own_usd_per_hour")
    figures = {"own_usd_per_hour": _widened(price, economics.own_price_spread)}
    return (figures, ()) if chip.all_in_w is None else (figures | {"all_in_w": chip.all_in_w}, _SITE)


def _rented(name: str, chip: Chip, _: Rack | None, economics: Economics) -> _Figures:
    price = _known(chip.rent_usd_per_hour, f"chips.{name}.rent_usd_per_hour")
    return {"rent_usd_per_hour": _widened(price, economics.rent_price_spread)}, ()


def _built(name: str, chip: Chip, rack: Rack | None, _: Economics) -> _Figures:
    power = _known(chip.all_in_w, f"chips.{name}.all_in_w")
    return {"capex_usd": _capex(name, chip, rack), "all_in_w": power}, _BUILD


_FIGURES_OF = {Basis.OWN: _owned, Basis.RENT: _rented, Basis.BUILD: _built}


def given_hour(name: str, usd_per_hour: Figure) -> ChipHour:
    """An hour at a price that somebody names."""
    return ChipHour(chip=name, basis=Basis.RENT, figures={f"{_GIVEN}/{name}": usd_per_hour})


def _known(figure: Figure | None, where: str) -> Figure:
    if figure is None:
        raise UnknownFigure(where)
    return figure


def _capex(name: str, chip: Chip, rack: Rack | None) -> Figure:
    """Of one chip with its share of the rack; of a chip alone where it is bought so."""
    if rack is None:
        return _known(chip.price_usd, f"chips.{name}.price_usd")
    return _scaled(_known(rack.price_usd, f"price_usd of a rack of {name}"), 1.0 / rack.chips)


def _scaled(figure: Figure, factor: float) -> Figure:
    return Figure(
        value=figure.value * factor,
        low=low_of(figure) * factor,
        high=high_of(figure) * factor,
        source=figure.source,
        confidence=Confidence.DERIVED,
    )


def _widened(price: Figure, spread: Figure) -> Figure:
    """A published price that names no range has the one that such prices are known to have."""
    if price.low is not None or price.high is not None:
        return price
    low, high = price.value * low_of(spread), price.value * high_of(spread)
    return msgspec.structs.replace(price, low=low, high=high)
