"""What a page answers, whoever serves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """What a page is asked: the path is known."""

    method: str
    query: str = ""
    body: bytes = b""
    content_type: str = ""


class Page(msgspec.Struct, frozen=True):
    """An answer whole. `headers` by their names in lower case."""

    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = {}


Mount = Callable[[Asked], Page | Awaitable[Page]]
"""Answers what is asked of one path."""
