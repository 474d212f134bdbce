"""Factors on the shares of data sheets: those that ship with jevons, or a file's; and how such a file is written."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError
from jevons.config.convert import convert
from jevons.config.tables import quoted
from jevons.perf.calibration import Calibration


def read_calibration(path: Path | None = None) -> Calibration:
    """What ships with jevons, or a file's instead.

    Raises:
        ConfigError: it cannot be read, or is none; names the field and the rule.
    """
    where = "calibration.toml" if path is None else str(path)
    try:
        text = (
            resources.files("jevons.facts.catalog").joinpath(where).read_text("utf-8")
            if path is None
            else path.read_text("utf-8-sig")
        )
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"calibration {where}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"calibration {where}: is not TOML: {error}") from error
    return convert(table, Calibration, f"calibration {where}")


def as_toml(calibration: Calibration) -> str:
    """The file that reads as this."""
    told = msgspec.to_builtins(calibration)
    lines = [f"{key} = {quoted(told[key])}" for key in ("title", "date", "command", "rule")]
    lines += ["measured = [", *(f"  {quoted(each)}," for each in told["measured"]), "]"]
    for table in ("errors", "effects"):
        lines += ["", f"[{table}]"]
        for name, values in told[table].items():
            fields = ", ".join(f"{key} = {quoted(value)}" for key, value in values.items())
            lines.append(f"{quoted(name)} = {{ {fields} }}")
    return "\n".join(lines) + "\n"
