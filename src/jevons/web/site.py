"""The page and its data, as mounts for a door. It does not know who serves it: see `facts.page`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Protocol
from urllib.parse import parse_qs

import msgspec

from jevons.base.errors import RequestError
from jevons.config.catalog import Catalog
from jevons.facts.page import Asked, Mount, Page
from jevons.facts.view import View
from jevons.web.money import Cost, Money

JSON = "application/json"
_MOST_DIGITS = 18  # of a version that a page has seen; ours have 16
_STATIC = resources.files("jevons.web").joinpath("static")
_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing written into the page, nobody may frame it.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GUARDS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Source(Protocol):
    """What a page shows: a server, or a rehearsal under way."""

    def view(self, seen: int | None = None) -> View | Awaitable[View]: ...


class Told(msgspec.Struct, frozen=True):
    """The body of /ui/data."""

    view: View
    cost: Cost
    can: Sequence[str]  # what else there is: chat, what-if


def site(source: Source, catalog: Catalog, can: Mapping[str, Mount]) -> dict[str, Mount]:
    """Mounts by path.

    Args:
        can: what else the page offers, by name; "chat" is the door's own, others are mounted below /ui.
    """
    mounts: dict[str, Mount] = {"/ui": partial(_file, "index.html"), "/ui/data": _data(source, catalog, list(can))}
    for file in _STATIC.iterdir():
        if file.name != "index.html":
            mounts[f"/ui/{file.name}"] = partial(_file, file.name)
    return mounts | {f"/ui/{name}": mount for name, mount in can.items() if name != "chat"}


def chat(asked: Asked) -> Page:
    """Stands for the door's own."""
    raise RequestError("path: is /v1/chat/completions", status=404)


def json_page(value: object, status: int = 200) -> Page:
    return Page(status, JSON, msgspec.json.encode(value), GUARDS)


def only(asked: Asked, *methods: str) -> None:
    """Raises RequestError for another method."""
    if asked.method not in methods:
        raise RequestError(f"method: must be {' or '.join(methods)}, got {asked.method}", status=405)


def _file(name: str, asked: Asked) -> Page:
    only(asked, "GET", "HEAD")
    body = _STATIC.joinpath(name).read_bytes()
    return Page(200, _KINDS[name.rpartition(".")[2]], body, GUARDS)


def _data(source: Source, catalog: Catalog, can: Sequence[str]) -> Mount:
    money = Money(catalog)

    def told(view: View) -> Page:
        return json_page(Told(view, money.cost_of(view), can))

    async def told_later(view: Awaitable[View]) -> Page:
        return told(await view)

    def answer(asked: Asked) -> Page | Awaitable[Page]:
        only(asked, "GET", "HEAD")
        view = source.view(_seen(asked.query))
        return told(view) if isinstance(view, View) else told_later(view)

    return answer


def _seen(query: str) -> int | None:
    told = parse_qs(query).get("seen")
    if told is None:
        return None
    if not told[0].isdecimal() or len(told[0]) > _MOST_DIGITS:
        raise RequestError(
            f"seen: must be a whole number of at most {_MOST_DIGITS} digits, got {told[0][:40]!r}", "seen"
        )
    return int(told[0])
