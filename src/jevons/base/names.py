"""What a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def instead(name: str, names: Iterable[str]) -> str:
    """What to add to an error about a name that is none of `names`: which of them it may be meant to be, or nothing."""
    import difflib  # not for who makes no mistake

    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
