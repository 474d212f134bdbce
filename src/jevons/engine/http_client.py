"""An HTTP/1.1 client for engines: one raw protocol per connection, kept alive, body chunks as they come.

Leaving a response before its end closes the connection: that is how an engine learns that nobody reads any more.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from jevons.base.errors import ConfigError, EngineGone

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


def parse_url(name: str, url: str) -> Address:
    """Raises ConfigError unless `url` is http(s)://HOST[:PORT][/PATH]."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
        raise ConfigError(f"{name}: must look like http://HOST:PORT, got {url!r}")
    tls = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/"), tls)


class Response:
    """One answer: its head, then its body piece by piece."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status = 0
        self.headers: dict[str, str] = {}

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.chunks()

    async def body(self) -> bytes:
        """All of it. Raises EngineGone if the connection ends first."""
        return b"".join([chunk async for chunk in self])


class Scope:
    """A handle on a request in progress, for whoever decides that it must end: `abort` makes it raise EngineGone."""

    def __init__(self) -> None:
        self._connection: _Connection | None = None
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True
        if self._connection is not None:
            self._connection.abort()

    def bind(self, connection: _Connection) -> None:
        self._connection = connection
        if self.aborted:
            connection.abort()

    def unbind(self) -> None:
        """The connection goes on to serve others."""
        self._connection = None


class HttpClient:
    """Requests to one server. For one event loop; no limit on connections, idle ones are kept."""

    def __init__(self, address: Address, on_idle_lost: Callable[[], None] | None = None) -> None:
        """`on_idle_lost` is told when a connection is closed that was kept for later: the server may have ended."""
        self.address = address
        self._on_idle_lost = on_idle_lost
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if address.tls else None

    @asynccontextmanager
    async def request(
        self, method: str, path: str, body: bytes = b"", headers: bytes = b"", scope: Scope | None = None
    ) -> AsyncIterator[Response]:
        """Send a request; the response's head is there on entry.

        Raises:
            EngineGone: the server cannot be reached, or ends the connection before the head is complete.
        """
        scope = scope or Scope()
        connection = await self._send(self._message(method, path, body, headers), scope)
        try:
            yield connection.response
        finally:
            scope.unbind()
            if connection.reusable:
                connection.on_lost = self._lost
                self._idle.append(connection)
            else:
                connection.abort()

    def close(self) -> None:
        self._on_idle_lost = None
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _lost(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        if self._on_idle_lost is not None:
            self._on_idle_lost()

    async def _send(self, message: bytes, scope: Scope) -> _Connection:
        """A kept connection may have been closed by the server at that very moment: then once more on a fresh one."""
        while self._idle:
            connection = self._idle.pop()
            connection.on_lost = None
            if connection.is_open and await self._exchange(connection, message, scope, kept=True):
                return connection
        connection = await self._connect()
        await self._exchange(connection, message, scope, kept=False)
        return connection

    async def _exchange(self, connection: _Connection, message: bytes, scope: Scope, kept: bool) -> bool:
        """False: a kept connection turned out to be closed before the server read our request."""
        scope.bind(connection)
        try:
            await connection.exchange(message)
        except BaseException as error:
            connection.abort()
            if kept and isinstance(error, EngineGone) and not connection.answered and not scope.aborted:
                return False
            raise
        return True

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        host, port, _, tls = self.address
        try:
            made = loop.create_connection(_Connection, host, port, ssl=self._tls, server_hostname=host if tls else None)
            _, connection = await asyncio.wait_for(made, CONNECT_S)
        except (OSError, TimeoutError) as error:
            raise EngineGone(f"engine {self.address.authority}: {_said(error)}") from error
        return connection

    def _message(self, method: str, path: str, body: bytes, headers: bytes) -> bytes:
        return b"%b %b HTTP/1.1\r\nhost: %b\r\naccept: */*\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
            method.encode(),
            (self.address.base + path).encode(),
            self.address.authority.encode(),
            _JSON_HEADERS if body else b"",
            headers,
            len(body),
            body,
        )


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.on_lost: Callable[[_Connection], None] | None = None  # while it is kept for later
        self._transport: asyncio.Transport | None = None
        self._reset()
        self._error: str | None = None

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.response = Response(self)
        self.answered = False  # something of the response has arrived
        self._head = False
        self._complete = False
        self._keep_alive = False
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        return self.is_open and self._complete and self._keep_alive and not self._chunks

    async def exchange(self, message: bytes) -> None:
        """Send a request and wait for the head of its response."""
        self._reset()
        assert self._transport is not None
        self._transport.write(message)
        while not self._head:
            await self._wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._took(len(chunk))
                yield chunk
            if self._complete:
                return
            await self._wait()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise EngineGone(self._error)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _took(self, size: int) -> None:
        self._buffered -= size
        if self._paused and self._buffered < _BUFFER_BYTES // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._error = f"engine: answered no valid HTTP: {error}"
            self.abort()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._head and not self._complete and self._until_close():
            self._complete = True
        elif self._error is None:
            self._error = f"engine: connection ended: {_said(exc) if exc else 'closed by the engine'}"
        self._wake()
        if self.on_lost is not None:
            self.on_lost(self)

    def _until_close(self) -> bool:
        """Whether the end of the connection is the proper end of this body."""
        headers = self.response.headers
        return "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "")

    # The parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self.response.headers.clear()
            return
        self.response.status = status
        self._keep_alive = self._parser.should_keep_alive()
        self._head = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _BUFFER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._head:
            self._complete = True


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
