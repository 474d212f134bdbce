"""Measured points: rows of a CSV file, each one metric of one configuration, as their publishers name things."""

from __future__ import annotations

import csv
from math import inf
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError

_COLUMNS = ("id", "system", "model", "precision", "parallelism", "input_len", "output_len", "metric", "value", "unit")
_USERS = "batch/concurrency"
_MORE = {"source": "source", "notes": "licence/notes"}  # columns that may be absent


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One row; text as it stands there, without spaces around it but for the id, by which rows are found again."""

    id: str
    system: str
    model: str
    precision: str
    parallelism: str
    input_len: str
    output_len: str
    users: str  # batch or concurrency
    metric: str
    value: float
    unit: str
    source: str = ""
    notes: str = ""


def read_points(path: Path) -> list[Point]:
    """All rows, in order.

    Raises:
        ConfigError: it cannot be read, lacks a column, or a value is no finite number above 0.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in (*_COLUMNS, _USERS) if name not in (reader.fieldnames or ())]
            if missing:
                needed = ", ".join((*_COLUMNS, _USERS))
                raise ConfigError(f"points {path}: lacks the column {missing[0]!r}; it needs {needed}")
            return [_point(row, f"points {path}, line {reader.line_num}") for row in reader]
    except OSError as error:
        raise ConfigError(f"points {path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"points {path}: is not CSV: {error}") from error


def _point(row: dict[str, str], where: str) -> Point:
    try:
        value = float(row["value"])
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: value: must be a number, got {row['value']!r}") from None
    if not 0 < value < inf:
        raise ConfigError(f"{where}: value: must be above 0 and finite, got {row['value']!r}")
    text = {name: (row[name] or "").strip() for name in _COLUMNS if name not in ("id", "value")}
    more = {field: (row.get(name) or "").strip() for field, name in _MORE.items()}
    return Point(id=row["id"] or "", users=(row[_USERS] or "").strip(), value=value, **text, **more)
