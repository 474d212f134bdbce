"""What memory below the chips' costs an hour: DRAM and drives of nodes are bought, an object store is paid by month.

Published hours of chips contain some memory of their hosts, and nobody says how much: all of a tier is paid on top, so
that no tier looks cheaper than it is. Electricity of memory is not counted; it is less than its price may vary by.
"""

from __future__ import annotations

from collections.abc import Mapping

from jevons.econ.cost import HOURS_PER_YEAR, MONTHS_PER_YEAR, capital_recovery
from jevons.econ.draws import Amount
from jevons.facts.economics import Economics
from jevons.facts.hardware import Figure

BYTES_PER_GB = 1e9
_BOUGHT = {"dram": "dram_usd_per_gb", "disk": "flash_usd_per_gb"}  # by tier
_BY_MONTH = {"remote": "object_usd_per_gb_month"}
_MONEY = ("wacc", "life_years")
PRICES = (*_BOUGHT.values(), *_BY_MONTH.values())


def figures_of(tier: str, economics: Economics) -> dict[str, Figure]:
    """What its price hangs on, by name."""
    names = (_BOUGHT[tier], *_MONEY) if tier in _BOUGHT else (_BY_MONTH[tier],)
    return {name: getattr(economics, name) for name in names}


def usd_per_hour(tier: str, size_bytes: float, of: Mapping[str, Amount]) -> Amount:
    """Dollars for so much of a tier, for values of at least its figures."""
    if tier in _BY_MONTH:
        return of[_BY_MONTH[tier]] * MONTHS_PER_YEAR / HOURS_PER_YEAR * size_bytes / BYTES_PER_GB
    price = of[_BOUGHT[tier]] * size_bytes / BYTES_PER_GB
    return capital_recovery(of["wacc"], of["life_years"]) * price / HOURS_PER_YEAR
