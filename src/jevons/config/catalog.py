"""The catalog: chips, racks, models and what economics hang on, as they ship with jevons, and a user's file."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jevons.base.errors import ConfigError
from jevons.config.convert import convert
from jevons.facts.claims import Claim
from jevons.facts.demand import DemandFigures
from jevons.facts.economics import Economics
from jevons.facts.hardware import Chip, Fabric, Figure, KvStore, Rack, Source
from jevons.facts.llm import Llm

_OWN = "jevons.facts.catalog"
_SHARES = ("wacc", "availability", "utilisation", "memory_price_share", "custom_silicon_share_2028")  # of economics
Record = TypeVar("Record", Chip, Rack, Fabric, KvStore, Llm, Source, Economics, DemandFigures, Claim, Figure)


class Catalog(msgspec.Struct, frozen=True):
    """All that is known, by name."""

    chips: dict[str, Chip]
    racks: dict[str, Rack]
    fabrics: dict[str, Fabric]
    stores: dict[str, KvStore]
    models: dict[str, Llm]
    economics: Economics
    demand: DemandFigures
    claims: dict[str, Claim]
    evidence: dict[str, Figure]  # that claims are held against
    sources: dict[str, Source]


def read_catalog(more: Path | None = None) -> Catalog:
    """What ships with jevons, and what a file adds or replaces.

    Args:
        more: a TOML file with tables `chips`, `racks`, `fabrics`, `stores`, `models`, `claims`, `evidence`, `sources`,
            each by name, with the fields of `facts.hardware`, `facts.llm` and `facts.claims`; in `economics` and
            `demand` the fields of `facts.economics` and `facts.demand`.

    Raises:
        ConfigError: names the file, the entry, the field and the rule.
    """
    theirs: dict[str, Any] = {} if more is None else _tables(more)

    def of(kind: type[Record], table: str) -> dict[str, Record]:
        own = _records(kind, _own(table), f"{table}.toml")
        return own | _records(kind, theirs.get(table, {}), f"{more}: {table}")

    def one(kind: type[Record], table: str) -> Record:
        where = table if more is None else f"{more}: {table}"
        return _record(kind, _own(table) | theirs.get(table, {}), where)

    catalog = Catalog(
        chips=of(Chip, "chips"),
        racks=of(Rack, "racks"),
        fabrics=of(Fabric, "fabrics"),
        stores=of(KvStore, "stores"),
        models=of(Llm, "models"),
        economics=one(Economics, "economics"),
        demand=one(DemandFigures, "demand"),
        claims=of(Claim, "claims"),
        evidence=of(Figure, "evidence"),
        sources=of(Source, "sources"),
    )
    try:
        _check(catalog)
    except ConfigError as error:
        raise ConfigError(f"catalog {more}: {error}" if more else str(error)) from error
    return catalog


def _own(table: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(_OWN).joinpath(f"{table}.toml").read_text("utf-8"))


def _tables(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"catalog {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"catalog {path}: is not TOML: {error}") from error
    unknown = sorted(set(tables) - set(Catalog.__struct_fields__))
    if unknown:
        raise ConfigError(
            f"catalog {path}: {unknown[0]!r} is no table of it; {', '.join(Catalog.__struct_fields__)} are"
        )
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"catalog {path}: {name}: must be a table, got {table!r}")
    return tables


def _records(kind: type[Record], table: Any, where: str) -> dict[str, Record]:
    return {name: _record(kind, values, f"{where}.{name}") for name, values in table.items()}


def _record(kind: type[Record], values: Any, where: str) -> Record:
    return convert(values, kind, "", where)


def _check(catalog: Catalog) -> None:
    """What one entry says of another must be there, and ranges must hold their values."""
    for name, rack in catalog.racks.items():
        if rack.chip not in catalog.chips:
            raise ConfigError(f"racks.{name}.chip: {rack.chip!r} is unknown; add it to chips")
    for name, chip in catalog.chips.items():
        if chip.fabric is not None and chip.fabric not in catalog.fabrics:
            raise ConfigError(f"chips.{name}.fabric: {chip.fabric!r} is unknown; add it to fabrics")
    for table in ("chips", "racks", "fabrics", "stores"):
        for name, record in getattr(catalog, table).items():
            for key, figure in record.figures().items():
                _check_range(figure, f"{table}.{name}.{key}")
    _check_models(catalog.models)
    _check_economics(catalog.economics)
    for table, figures in (("demand", catalog.demand.figures()), ("evidence", catalog.evidence)):
        for key, figure in figures.items():
            _check_range(figure, f"{table}.{key}")


def _check_models(models: dict[str, Llm]) -> None:
    """A part is at most the whole."""
    for name, model in models.items():
        parts = [("active_params", model.active_params or 0.0, "params", model.params)]
        parts += [
            ("vocab times hidden", model.vocab * model.hidden, "params", model.params)
        ]  # meant in billions, maybe
        parts += [("attention's layers", sum(kind.layers for kind in model.attention), "layers", model.layers)]
        if model.moe is not None:
            parts += [("moe.active", model.moe.active, "moe.experts", model.moe.experts)]
            parts += [("moe.layers", model.moe.layers, "layers", model.layers)]
        for part, count, whole, most in parts:
            if count > most:
                raise ConfigError(f"models.{name}.{part}: must be at most {whole}, {most:g}, got {count:g}")


def _check_economics(economics: Economics) -> None:
    for key, figure in economics.figures().items():
        _check_range(figure, f"economics.{key}")
    for key in _SHARES:
        figure = getattr(economics, key)
        most = figure.high or figure.value
        if most > 1.0:
            raise ConfigError(f"economics.{key}: is a share and must be at most 1, got {most:g}")
    least = economics.pue.low or economics.pue.value
    if least < 1.0:
        raise ConfigError(
            f"economics.pue: must be at least 1, all of a site's power over that of its IT, got {least:g}"
        )
    for key, bounds in economics.bounds().items():
        if bounds.low > bounds.high:
            raise ConfigError(f"economics.{key}: low must not be above high, got {bounds.low} and {bounds.high}")


def _check_range(figure: Figure, where: str) -> None:
    low, high = figure.low or figure.value, figure.high or figure.value
    if not low <= figure.value <= high:
        raise ConfigError(f"{where}: must lie between low and high, got {figure.value} and {low} to {high}")
