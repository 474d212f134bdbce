"""TOML files as tables, with some of their values replaced: what all of our files have in common."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from jevons.base.errors import ConfigError


def read_table(path: Path, what: str) -> dict[str, Any]:
    """A TOML file. Raises ConfigError: it cannot be read, or is none; `what` says in it what the file is of."""
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path}: not TOML: {error}") from error


def quoted(value: Any) -> str:
    """A value as TOML has it: as JSON, but with letters beyond 16 bits as they are, not as pairs of halves."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def replace_in(table: dict[str, Any], changes: dict[str, Any] | None, where: str) -> None:
    """Set values by dotted name, such as `traffic.rate` or, of one of a list, `fleet.0.instances`.

    Raises:
        ConfigError: a parent is no table, or a list has no such place.
    """
    for name, value in (changes or {}).items():
        *parents, last = name.split(".")
        inner: Any = table
        for at, parent in enumerate(parents):
            inner = inner.setdefault(parent, {}) if isinstance(inner, dict) else inner[int(parent)]
            following = (*parents, last)[at + 1]
            if isinstance(inner, list) and not (following.isdecimal() and int(following) < len(inner)):
                most = f"{parent}.0 to {parent}.{len(inner) - 1}" if inner else "nothing"
                raise ConfigError(f"{where}: {name}: {parent} holds {most}, got {parent}.{following}")
            if not isinstance(inner, dict | list):
                raise ConfigError(f"{where}: {parent}: must be a table, got {inner!r}")
        inner[int(last) if isinstance(inner, list) else last] = value
