"""How a server scales: the tables of a scenario that say so, read from the same file that is rehearsed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from jevons.base.errors import ConfigError
from jevons.config.convert import convert
from jevons.config.scenario import Count, Scaling, Slo
from jevons.config.tables import read_table
from jevons.policy.route import GUESS_TPOT_S

_LEAST_EVERY_S = 1.0


class _Group(msgspec.Struct, frozen=True):
    """Of a scenario's, what counts here."""

    instances: Count
    role: Literal["both", "prefill", "decode"] = "both"
    up_after_s: Annotated[float, Meta(ge=0)] = 0.0


class _Tables(msgspec.Struct, frozen=True):
    """What else a scenario has is left alone."""

    scaling: Scaling
    slo: Slo | None = None
    fleet: list[_Group] = []


class LiveScaling(msgspec.Struct, frozen=True, kw_only=True):
    rule: Scaling = Scaling()
    tpot_s: float = GUESS_TPOT_S  # that a token is promised to take at most
    most: dict[str, int] = {}  # workers there can be, by role; others: any number
    start_s: dict[str, float] = {}  # from the start of one until it takes work, by role


def read_scaling(path: Path) -> LiveScaling:
    """Of a file with `[scaling]`, and `[slo]` and `[[fleet]]` where it has them.

    Raises:
        ConfigError: names the file, the field, the value and the rule.
    """
    tables = convert(read_table(path, "scaling"), _Tables, f"scaling {path}")
    rule = tables.scaling
    if rule.every_s < _LEAST_EVERY_S:
        raise ConfigError(f"scaling {path}: scaling.every_s: must be at least {_LEAST_EVERY_S:g}, got {rule.every_s:g}")
    roles: list[str] = [group.role for group in tables.fleet]
    if len(set(roles)) < len(roles):
        raise ConfigError(f"scaling {path}: fleet: must have one group of each role, got {', '.join(roles)}")
    return LiveScaling(
        rule=rule,
        tpot_s=GUESS_TPOT_S if tables.slo is None else tables.slo.tpot_s,
        most={group.role: group.instances for group in tables.fleet},
        start_s={group.role: group.up_after_s for group in tables.fleet},
    )
