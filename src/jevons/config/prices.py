"""What a fleet's chips cost an hour and draw, from the catalog and from what is given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import inf

from jevons.base.errors import ConfigError, UnknownFigure
from jevons.base.names import instead
from jevons.config.catalog import Catalog
from jevons.econ.bill import Bill
from jevons.econ.cost import Basis, ChipHour, chip_hour, given_hour
from jevons.facts.hardware import Confidence, Figure, Rack
from jevons.facts.usage import Usage

_NAMELESS = ("prices", "polynomial")  # chips of groups whose step times are a scenario's own


def make_bill(
    usage: Usage, catalog: Catalog, basis: Basis, given: Mapping[str, Figure], lacks: Collection[str] = ()
) -> Bill:
    """What a fleet did, with the prices of its chips.

    Args:
        given: dollars an hour by kind of chip, which count instead of published ones.
        lacks: kinds of chips that need have no price.

    Raises:
        UnknownFigure: another's is not known.
    """
    kinds = sorted(usage.chips)
    hours = {name: price_of(catalog, basis, name, given) for name in kinds if name not in lacks}
    power = {name: watts for name in kinds if (watts := power_of(catalog, name)) is not None}
    return Bill(usage=usage, hours=hours, economics=catalog.economics, power_w=power)


def unpriced(usage: Usage, catalog: Catalog, basis: Basis, given: Mapping[str, Figure]) -> dict[str, str]:
    """Figures that are missing to price a fleet, by kind of chip."""
    missing = {}
    for name in sorted(usage.chips):
        try:
            price_of(catalog, basis, name, given)
        except UnknownFigure as error:
            missing[name] = error.figure
    return missing


def price_of(catalog: Catalog, basis: Basis, name: str, given: Mapping[str, Figure]) -> ChipHour:
    """How an hour of such a chip is priced. Raises UnknownFigure."""
    if name in given:
        return given_hour(name, given[name])
    if name not in catalog.chips:
        raise UnknownFigure(f"chips.{name}")
    return chip_hour(basis, name, catalog.chips[name], rack_of(catalog, name), catalog.economics)


def rack_of(catalog: Catalog, chip: str) -> Rack | None:
    """What such chips are bought in: the first of the catalog."""
    return next((rack for rack in catalog.racks.values() if rack.chip == chip), None)


def power_of(catalog: Catalog, chip: str) -> Figure | None:
    """Watts of a chip with its share of all around it; of its rack's where nothing else is known."""
    known = catalog.chips.get(chip)
    if known is not None and known.all_in_w is not None:
        return known.all_in_w
    rack = rack_of(catalog, chip)
    if rack is None or rack.power_w is None:
        return None
    return Figure(
        value=rack.power_w.value / rack.chips,
        low=None if rack.power_w.low is None else rack.power_w.low / rack.chips,
        high=None if rack.power_w.high is None else rack.power_w.high / rack.chips,
        source=rack.power_w.source,
        confidence=Confidence.DERIVED,
    )


def read_prices(texts: Iterable[str], catalog: Catalog) -> dict[str, Figure]:
    """What `--usd-per-hour` says, by kind of chip. Raises ConfigError: also of a kind that nobody knows."""
    given = dict(read_price(text) for text in texts)
    for name in given:
        if name not in catalog.chips and name not in _NAMELESS:
            near = instead(name, (*catalog.chips, *_NAMELESS))
            raise ConfigError(
                f"--usd-per-hour: {name!r} is not in the catalog{near}; `jevons fleet list` shows what is"
            )
    return given


def read_price(text: str) -> tuple[str, Figure]:
    """CHIP=LOW:BASE:HIGH or CHIP=BASE, dollars an hour. Raises ConfigError."""
    chip, equals, values = text.partition("=")
    if not (chip and equals):
        raise ConfigError(f"--usd-per-hour: must be CHIP=LOW:BASE:HIGH or CHIP=BASE, such as lpu3=0.4, got {text!r}")
    return chip, read_range(f"--usd-per-hour {chip}", values)


def read_range(where: str, text: str, most: float = inf) -> Figure:
    """LOW:BASE:HIGH, or BASE alone. Raises ConfigError."""
    try:
        numbers = [float(value) for value in text.split(":")]
    except ValueError:
        numbers = []
    is_rising = len(numbers) in (1, 3) and numbers == sorted(numbers)
    if not (is_rising and 0 < numbers[0] <= numbers[-1] <= most and numbers[-1] < inf):
        rule = "above 0" if most == inf else f"above 0 and at most {most:g}"
        raise ConfigError(f"{where}: must be LOW:BASE:HIGH or BASE, rising, {rule}, got {text!r}")
    low, base, high = numbers if len(numbers) == 3 else numbers * 3
    return Figure(value=base, low=low, high=high, source="given", confidence=Confidence.ASSUMED)
