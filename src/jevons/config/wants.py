"""What a plan is asked for: what is served, what is promised, and what there is to buy it with. One TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jevons.base.errors import ConfigError
from jevons.base.names import instead
from jevons.config.convert import convert
from jevons.config.scenario import Count, Positive, Scaling, Share, StoreTier, Traffic, check_traffic
from jevons.config.tables import read_table, replace_in
from jevons.facts.hardware import Confidence, Figure
from jevons.facts.llm import Precision

Month = Annotated[str, Meta(pattern=r"^(\d{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?$")]


class Promise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is promised, and to how many."""

    ttft_s: Positive = 2.0
    tpot_s: Positive = 0.05
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.9  # of requests that must be within
    of: Literal["both", "each"] = "both"  # within both at once, or so many within each


class Available(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Chips that can be had, from some day on."""

    chip: str
    chips: Annotated[int, Meta(ge=0)] | None = None  # None: any number
    since: Month = ""  # empty: now


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What must not be exceeded; None: no limit."""

    power_w: Positive | None = None  # of IT: chips with their share of hosts and network; cooling comes on top
    usd_per_hour: Positive | None = None
    capex_usd: Positive | None = None


class OfferedTier(StoreTier, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Memory below the chips' that can be added to a node, and what it costs there."""

    usd_per_hour: Annotated[float, Meta(ge=0)] | None = None  # None: as the catalog has the price of such memory


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An hour of a chip, as somebody names it: of one that nobody published, or other than published."""

    usd_per_hour: Positive
    low: Positive | None = None
    high: Positive | None = None
    source: str = "given"

    @property
    def figure(self) -> Figure:
        return Figure(
            value=self.usd_per_hour, low=self.low, high=self.high, source=self.source, confidence=Confidence.ASSUMED
        )


class Wants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: str  # of the catalog
    traffic: Traffic
    title: str = ""
    weights: Precision | None = None  # None: as released
    or_weights: tuple[Precision, ...] = ()  # that would do as well: what is cheapest is taken
    kv_bits: Literal[8, 16] = 16
    router: Literal["kv", "round_robin", "least_loaded", "random"] = "kv"
    slo: Promise = Promise()
    limits: Budget = Budget()
    basis: Literal["own", "rent", "build"] = "own"  # whose hours
    prices: dict[str, Price] = {}  # by chip, instead of published ones
    chips: list[str] = []  # that may be bought; empty: all whose price is known
    vendors: list[str] = []  # that are allowed; empty: all
    without: list[str] = []  # chips that are not
    available: list[Available] = []  # other chips are there in any number
    owned: dict[str, Annotated[int, Meta(ge=0)]] = {}  # chips that cost their electricity alone
    at: Month = ""  # when it is bought: what is available later does not count; empty: whenever
    tensor: tuple[Count, ...] = (1, 2, 4, 8)  # chips of an instance that are tried
    roles: tuple[Literal["both", "split"], ...] = ("both", "split")
    tiers: list[OfferedTier] = []
    memory_share: Share = 0.9
    scaling: Scaling = Scaling(hold_s=900.0)  # how instances start and stop where load rises and falls
    up_after_s: Annotated[float, Meta(ge=0)] = 300.0  # starting one takes so long; ASSUMED
    most_kinds: Count = 2  # of instances in one fleet
    finalists: Count = 12  # that are rehearsed, at least
    seed: Annotated[int, Meta(ge=0)] = 0

    @property
    def given(self) -> dict[str, Figure]:
        """Dollars an hour by chip, where the wants name them."""
        return {chip: price.figure for chip, price in self.prices.items()}


def read_wants(path: Path, changes: dict[str, Any] | None = None) -> Wants:
    """A file, with some of it replaced.

    Args:
        changes: values by dotted name, such as `limits.power_w`.

    Raises:
        ConfigError: names the file, the field, the value and the rule.
    """
    table = read_table(path, "plan")
    wants = make_wants(table, str(path), changes)
    trace = wants.traffic.trace
    if trace and not (changes or {}).get("traffic.trace") and not Path(trace).is_absolute():
        beside = msgspec.structs.replace(wants.traffic, trace=str(path.parent / trace))
        return msgspec.structs.replace(wants, traffic=beside)
    return wants


def make_wants(table: dict[str, Any], where: str, changes: dict[str, Any] | None = None) -> Wants:
    """From its fields. Raises ConfigError, see `read_wants`."""
    replace_in(table, changes, f"plan {where}")
    wants = convert(table, Wants, f"plan {where}")
    try:
        _check(wants)
    except ConfigError as error:
        raise ConfigError(f"plan {where}: {error}") from error
    return wants


def _check(wants: Wants) -> None:
    check_traffic(wants.traffic)
    if wants.router != "kv" and "split" in wants.roles:
        raise ConfigError(f"roles: must be ['both'] with router {wants.router!r}: handing requests over needs 'kv'")
    named = [each.chip for each in wants.available]
    if len(named) > len(set(named)):
        raise ConfigError("available: each chip must be named once")
    for chip, price in wants.prices.items():
        low, high = price.low or price.usd_per_hour, price.high or price.usd_per_hour
        if not low <= price.usd_per_hour <= high:
            raise ConfigError(f"prices.{chip}: usd_per_hour must be from low to high, got {price.usd_per_hour:g}")


def shipped_wants(name: str) -> Path:
    """The file of a plan that ships with jevons.

    Raises:
        ConfigError: there is none of that name; names those there are.
    """
    folder = Path(__file__).parent / "plans"
    path = folder / f"{name}.toml"
    if not path.exists():
        names = sorted(file.stem for file in folder.glob("*.toml"))
        raise ConfigError(f"plan {name!r}: neither a file nor one of {', '.join(names)}{instead(name, names)}")
    return path
