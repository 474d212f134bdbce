"""Heads of requests and of answers. A client that asks again sends the same head: it is read once."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from time import time

import msgspec

_KEPT = 1_024  # heads known; they differ by the length of their body and by what their clients put in
_KEPT_BYTES = 4_096  # of one
_OF_UPGRADE = frozenset(("connection", "upgrade", "http2-settings"))
_NOT_KEPT = frozenset(("transfer-encoding", "expect", "upgrade"))


class Limits(msgspec.Struct, frozen=True):
    """What one connection may use. Sizes in bytes, times in seconds."""

    head_bytes: int = 64 << 10
    body_bytes: int = 16 << 20
    head_s: float = 10.0  # from a request's first byte to the end of its head
    body_s: float = 60.0  # from there to the end of its body, or more while so much of it comes:
    body_bytes_per_s: float = 4_096.0
    idle_s: float = 75.0  # between requests
    write_s: float = 60.0  # a client that takes nothing for so long has left
    pipelined: int = 16  # complete requests that may wait their turn
    connections: int = 1 << 20  # of one door, at once


class Request:
    """A complete request. Header names are lower case; requests with the same head share them: they are not changed."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "query", "version")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.version = "1.1"
        self.headers: Mapping[str, str] = {}
        self.body: bytes = b""
        self.keep_alive = True

    def again(self, body: bytes) -> Request:
        """One with the same head."""
        other = Request.__new__(Request)
        other.method, other.path, other.query, other.version = self.method, self.path, self.query, self.version
        other.headers, other.keep_alive, other.body = self.headers, True, body
        return other


class Heads:
    """Heads that were read before, by their bytes: equal bytes mean the same, whatever the parser made of them."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Request, int]] = {}

    def request(self, data: bytes) -> Request | None:
        """The request in `data`, if that is a known head and all of its body; None: the parser must read it."""
        start = data.find(b"\r\n\r\n") + 4
        known = self._known.get(data[:start])
        if known is None or len(data) != start + known[1]:
            return None
        return known[0].again(data[start:])

    def keep(self, data: bytes, request: Request) -> None:
        """Remember the head that `data` begins with, which was read as that of `request`, if all of it is in there."""
        head = data[: data.find(b"\r\n\r\n") + 4]
        length = request.headers.get("content-length", "0")
        if (
            _is_plain(head)
            and request.keep_alive
            and request.version == "1.1"
            and request.headers.get("connection", "keep-alive").lower() == "keep-alive"
            and _NOT_KEPT.isdisjoint(request.headers)
            and length.isascii()
            and length.isdigit()
        ):
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[head] = request.again(b""), int(length)


def _is_plain(head: bytes) -> bool:
    """Whether it ends where its first empty line is, for every parser: it begins at once, and lines end by CRLF."""
    return 4 < len(head) <= _KEPT_BYTES and head[:1].isalpha() and head.count(b"\n") == head.count(b"\r\n")


def origin_form(url: bytes) -> bytes:
    """What is asked of us as of a proxy, http://HOST/PATH, as it is asked of a server: /PATH."""
    scheme, found, rest = url.partition(b"://")
    is_absolute = found and scheme.lower() in (b"http", b"https")
    return b"/" + rest.partition(b"/")[2] if is_absolute else url


def without_upgrade(request: Request) -> bytes:
    """The request's head, asking for no other protocol."""
    target = f"{request.path}?{request.query}" if request.query else request.path
    kept = {name: value for name, value in request.headers.items() if name not in _OF_UPGRADE}
    if not request.keep_alive:
        kept["connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
    return f"{request.method} {target} HTTP/{request.version}\r\n{lines}\r\n".encode("latin-1")


def answer_head(request: Request, status: int, content_type: bytes, headers: bytes) -> bytes:
    """An answer's head, but for the length of its body and the empty line. `headers` are further lines, with CRLF."""
    connection = _KEPT_BY_1_0 if request.version == "1.0" else b""
    return b"HTTP/1.1 %b\r\ndate: %b\r\ncontent-type: %b\r\n%b%b" % (
        _STATUS_LINE.get(status) or b"%d " % status,  # engines and proxies have numbers of their own, as 529
        _date(),
        content_type,
        connection if request.keep_alive else b"connection: close\r\n",
        headers,
    )


_KEPT_BY_1_0 = b"connection: keep-alive\r\n"  # such a client waits for the connection's end unless it is told (ab -k)
_STATUS_LINE = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_date_cache = (0, b"")


def _date() -> bytes:
    global _date_cache
    now = int(time())
    if now != _date_cache[0]:
        _date_cache = (now, formatdate(now, usegmt=True).encode())
    return _date_cache[1]
