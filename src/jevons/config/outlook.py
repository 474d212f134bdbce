"""An outlook on demand: which years, what makes tokens cheaper, what limits them. One TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from jevons.base.errors import ConfigError
from jevons.base.names import instead
from jevons.config.convert import convert
from jevons.config.tables import read_table
from jevons.facts.hardware import Confidence, Figure, Positive

_SHARES = ("compression_", "active_fraction", "utilisation", "most_utilisation", "inference_share")
_SHARE_ENDS = ("_share", "_reach")
Lever = Literal["hardware", "reuse", "tiering", "compression", "sparsity", "small_models", "other"]
Limit = Literal["chips", "power"]
Part = Literal["demand", "market", "switching"]


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A parameter's value in place of the catalog's, and how far it may be off."""

    value: Positive
    low: Positive | None = None
    high: Positive | None = None

    def figure(self, source: str) -> Figure:
        return Figure(value=self.value, low=self.low, high=self.high, source=source, confidence=Confidence.ASSUMED)


class OutlookFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    first: Annotated[int, Meta(ge=2026, le=2026)] = 2026  # of which the catalog's figures are
    last: Annotated[int, Meta(ge=2027, le=2040)] = 2030
    levers: tuple[Lever, ...] = get_args(Lever)
    limits: tuple[Limit, ...] = get_args(Limit)
    show: tuple[Part, ...] = get_args(Part)  # in the report to read; JSON has all
    chip: str = "gb200"  # of a fleet that would be left for another vendor's, or for one's own
    chips: Annotated[int, Meta(ge=1)] = 10_000
    hardware: Literal["sheet", "perf", "between", "vendor"] = "between"  # whose word on Vera Rubin is taken
    parameters: dict[str, Range] = {}
    title: str = ""


def read_outlook(name: str) -> OutlookFile:
    """A file, or one that ships with jevons, by name.

    Raises:
        ConfigError: names the file, the field, the value and the rule.
    """
    path = Path(name) if Path(name).exists() else _shipped(name)
    found = convert(read_table(path, "outlook"), OutlookFile, f"outlook {path}")
    for key, of in found.parameters.items():
        low, high = of.low or of.value, of.high or of.value
        if not low <= of.value <= high:
            raise ConfigError(
                f"outlook {path}: parameters.{key}: value must be from low to high, got {of.value:g} and {low:g} to "
                f"{high:g}"
            )
    return found


def read_range(text: str, where: str) -> Range:
    """LOW:BASE:HIGH, or one number.

    Raises:
        ConfigError: it is neither, or out of order.
    """
    try:
        values = [float(part) for part in text.split(":")]
    except ValueError:
        values = []
    if len(values) == 1 and 0 < values[0] < inf:
        return Range(value=values[0])
    if len(values) == 3 and 0 < values[0] <= values[1] <= values[2] < inf:
        return Range(low=values[0], value=values[1], high=values[2])
    raise ConfigError(f"{where}: must be LOW:BASE:HIGH in this order or one number, above 0, got {text!r}")


def check_shares(figures: Mapping[str, Figure]) -> None:
    """What is a share of something is no more than all of it. Raises ConfigError."""
    most = {name: figure.high or figure.value for name, figure in figures.items()}
    for name, value in most.items():
        if (name.startswith(_SHARES) or name.endswith(_SHARE_ENDS) or "_share_" in name) and value > 1.0:
            raise ConfigError(f"outlook: parameters: {name}: is a share and must be at most 1, got {value:g}")
    fast = most["mid_interactivity_share"] + most["high_interactivity_share"]
    if fast > 1.0:
        raise ConfigError(
            f"outlook: parameters: mid_interactivity_share and high_interactivity_share: must be at most 1 together, "
            f"got {fast:g}; lower the high end of one"
        )


def _shipped(name: str) -> Path:
    folder = Path(__file__).parent / "outlooks"
    path = folder / f"{name}.toml"
    if not path.exists():
        names = sorted(file.stem for file in folder.glob("*.toml"))
        raise ConfigError(f"outlook {name!r}: neither a file nor one of {', '.join(names)}{instead(name, names)}")
    return path
