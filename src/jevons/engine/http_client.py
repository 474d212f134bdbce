"""An HTTP/1.1 client for engines: one raw protocol per connection, kept alive, body chunks as they come.

    send ──▶ Exchange ──▶ taker.on_head, on_body …, on_end, or on_lost       from the read itself: no task, no future
    request ──▶ Response                                                    the same, for who waits

Leaving a response before its end closes the connection: that is how an engine learns that nobody reads any more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from jevons.base.errors import ConfigError, EngineGone
from jevons.engine.http_exchange import Connection, Exchange, Head, Taker, said

CONNECT_S = 5.0
_BUFFER_BYTES = 1 << 20  # unread body at which reading pauses
_JSON_HEADERS = b"content-type: application/json\r\n"


class Address(NamedTuple):
    """Where an HTTP server is, and the path its API starts from."""

    host: str
    port: int
    base: str  # "" or "/prefix"
    tls: bool

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def url_of(host: str, port: int) -> str:
    """Of a server without TLS."""
    return "http://" + Address(host, port, "", tls=False).authority


def parse_url(name: str, url: str) -> Address:
    """Raises ConfigError unless `url` is http(s)://HOST[:PORT][/PATH], as it can be sent and looked up."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        host.encode("idna")  # who looks a name up does so
    except ValueError:
        raise ConfigError(f"{name}: must look like http://HOST:PORT, got {url!r}") from None
    if parts.username is not None:
        raise ConfigError(f"{name}: must name no user and no password, none is sent, got one for {host!r}")
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment or not is_plain:
        raise ConfigError(f"{name}: must look like http://HOST:PORT, got {url!r}")
    tls = parts.scheme == "https"
    return Address(host, port or (443 if tls else 80), parts.path.rstrip("/"), tls)


class HttpClient:
    """Requests to one server. For one event loop; no limit on connections, idle ones are kept."""

    def __init__(self, address: Address, on_kept_lost: Callable[[], None] | None = None, headers: bytes = b"") -> None:
        """`on_kept_lost` is told when the server closes a connection that was kept for later, or that was just used
        again: it may have ended. Who is amid a response hears of that by itself. `headers` go with every request."""
        self.address = address
        self._headers = headers
        self._on_kept_lost = on_kept_lost
        self.heads: dict[bytes, tuple[Head, int]] = {}  # that were read before, with the length of their body
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if address.tls else None
        self._post: dict[str, bytes] = {}  # by path

    def send(self, message: bytes, taker: Taker) -> Exchange:
        """Send a whole request, as `post` makes it. The taker hears of its response, at the earliest before `send`
        returns."""
        exchange = Exchange(message, taker)
        self.begin(exchange)
        return exchange

    def begin(self, exchange: Exchange) -> None:
        """On a kept connection, or on a fresh one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                connection.begin(exchange, kept=True)
                return
        self.begin_fresh(exchange)

    def begin_fresh(self, exchange: Exchange) -> None:
        """On a connection that nothing was asked on: where that ends, it is for this request."""
        exchange.dial(asyncio.get_running_loop().create_task(self._dial(exchange)))

    def post(self, path: str, body: bytes, headers: bytes = b"") -> bytes:
        """The message that posts JSON. `headers` are further lines, each ended by CRLF."""
        head = self._post.get(path)
        if head is None:
            head = self._post[path] = self._head("POST", path) + _JSON_HEADERS
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, headers, len(body), body)

    @asynccontextmanager
    async def request(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> AsyncIterator[Response]:
        """Send a request; the response's head is there on entry.

        Raises:
            EngineGone: the server cannot be reached, or ends the connection before the head is complete.
        """
        response = Response()
        kind = _JSON_HEADERS if body else b""
        message = b"%b%b%bcontent-length: %d\r\n\r\n%b" % (self._head(method, path), kind, headers, len(body), body)
        response.exchange = exchange = self.send(message, response)
        try:
            await response.until_head()
            yield response
        finally:
            exchange.leave()

    def keep(self, connection: Connection) -> None:
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed that nobody used."""
        if connection in self._idle:
            self._idle.remove(connection)
            self.lost_kept()

    def lost_kept(self) -> None:
        """A connection is closed that was kept, whoever has it by now."""
        if self._on_kept_lost is not None:
            self._on_kept_lost()

    def close(self) -> None:
        self._on_kept_lost = None
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _dial(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        host, port, _, tls = self.address
        try:
            made = loop.create_connection(
                lambda: Connection(self), host, port, ssl=self._tls, server_hostname=host if tls else None
            )
            _, connection = await asyncio.wait_for(made, CONNECT_S)
        except (OSError, TimeoutError) as error:
            exchange.over(EngineGone(f"engine {self.address.authority}: {said(error)}"))
            return
        if exchange.aborted:
            connection.abort()
        else:
            connection.begin(exchange, kept=False)

    def _head(self, method: str, path: str) -> bytes:
        return b"%b %b HTTP/1.1\r\nhost: %b\r\naccept: */*\r\n%b" % (
            method.encode(),
            (self.address.base + path).encode(),
            self.address.authority.encode(),
            self._headers,
        )


class Response:
    """One answer for who waits: its head, then its body piece by piece."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._complete = False
        self._error: EngineGone | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._buffered -= len(chunk)
                if self.exchange is not None and self._buffered < _BUFFER_BYTES // 2:
                    self.exchange.resume()
                yield chunk
            if self._complete:
                return
            await self._wait()

    async def body(self) -> bytes:
        """All of it. Raises EngineGone if the connection ends first."""
        return b"".join([chunk async for chunk in self])

    async def until_head(self) -> None:
        while not self.status:
            await self._wait()

    # What the exchange tells

    def on_head(self, head: Head) -> None:
        self.status, self.headers = head.status, head.headers
        self._wake()

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > _BUFFER_BYTES and self.exchange is not None:
            self.exchange.pause()
        self._wake()

    def on_end(self) -> None:
        self._complete = True
        self._wake()

    def on_lost(self, error: EngineGone) -> None:
        self._error = error
        self._wake()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
