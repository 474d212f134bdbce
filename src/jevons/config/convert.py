"""Tables as what they describe; what is wrong with one is told by its field, its value, the rule, and what to do."""

from __future__ import annotations

import re
import reprlib
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from jevons.base.errors import ConfigError
from jevons.base.names import instead

T = TypeVar("T")
Step = str | int  # into a table, a list, or ANY
ANY = "..."  # an entry of a table, msgspec does not say which
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def convert(values: Any, kind: type[T], where: str, name: str = "") -> T:
    """`values`, as TOML or JSON has them, as a `kind`.

    Args:
        where: what errors begin with, such as the file; may be empty.
        name: of the table there that the values are; empty for the whole file.

    Raises:
        ConfigError: names the field and the rule, quotes the value; of a name that is no field, what fields there are.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        rule, _, at = str(error).partition(" - at `$")
        steps = [_step(*found) for found in _STEP.findall(at.rstrip("`"))]
        place = (name + "".join(map(_named, steps))).lstrip(".")
        told = _told(rule, steps, values, inspect.type_info(kind))
        raise ConfigError(": ".join(filter(None, (where, place, told)))) from error


def _step(name: str, index: str) -> Step:
    return name or (index if index == ANY else int(index))


def _named(step: Step) -> str:
    return f"[{step}]" if step == ANY or isinstance(step, int) else f".{step}"


def _told(rule: str, steps: list[Step], values: Any, kind: inspect.Type) -> str:
    """What msgspec says, in our words."""
    if (unknown := _UNKNOWN.fullmatch(rule)) is not None:
        return f"has no field {unknown[1]!r}{_instead(unknown[1], kind, steps)}"
    if (missing := _MISSING.fullmatch(rule)) is not None:
        return f"lacks the field {missing[1]!r}"
    if rule.startswith("Invalid enum value"):
        rule = f"must be one of {', '.join(map(str, _choices(kind, steps)))}"
    rule, _, got = rule.replace("Expected", "must be").replace("`", "").partition(", got ")
    value = _value(values, steps)
    return f"{rule}, got {got or 'null' if value is None else _SHORT.repr(value)}"


def _value(values: Any, steps: list[Step]) -> Any:
    """What stands there; None where msgspec does not say in which entry of a table."""
    for step in steps:
        try:
            values = values[step]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _instead(name: str, kind: inspect.Type, steps: list[Step]) -> str:
    names = [field.encode_name for one in _kinds(kind, steps) for field in getattr(one, "fields", ())]
    return instead(name, names) or (f"; it has {', '.join(names)}" if names else "")


def _choices(kind: inspect.Type, steps: list[Step]) -> list[Any]:
    found: list[Any] = []
    for one in _kinds(kind, steps):
        if isinstance(one, inspect.LiteralType):
            found += one.values
        elif isinstance(one, inspect.EnumType):
            found += [each.value for each in one.cls]
    return found


def _kinds(kind: inspect.Type, steps: list[Step]) -> list[inspect.Type]:
    """What may stand there."""
    if isinstance(kind, inspect.Metadata):
        return _kinds(kind.type, steps)
    if isinstance(kind, inspect.UnionType):
        return [one for each in kind.types for one in _kinds(each, steps)]
    if not steps:
        return [kind]
    step, *rest = steps
    if isinstance(kind, inspect.StructType):
        return [one for f in kind.fields if f.encode_name == step for one in _kinds(f.type, rest)]
    if isinstance(kind, inspect.DictType):
        return _kinds(kind.value_type, rest)
    if isinstance(kind, (inspect.ListType, inspect.VarTupleType)):
        return _kinds(kind.item_type, rest)
    return []
