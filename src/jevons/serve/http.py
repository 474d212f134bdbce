"""The HTTP door: an asyncio protocol on httptools.

One connection serves one request at a time; what a client sends ahead waits in a bounded queue. A client that leaves
cancels its handler. Every limit has a clear answer, and nothing a client sends ends the process.

    bytes ──httptools──▶ Request ──▶ handler(request, reply) ──▶ reply.send(…)               whole answer
                                                             ──▶ reply.start(…), write(…), end()   stream
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import cast

import httptools
import msgspec

log = logging.getLogger("jevons.http")

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
NO_CACHE = b"cache-control: no-cache\r\n"


class Limits(msgspec.Struct, frozen=True):
    """What one connection may use. Sizes in bytes, times in seconds."""

    head_bytes: int = 64 << 10
    body_bytes: int = 16 << 20
    head_s: float = 10.0  # from a request's first byte to the end of its head
    body_s: float = 60.0  # from there to the end of its body
    idle_s: float = 75.0  # between requests
    write_s: float = 60.0  # a client that takes nothing for so long has left
    pipelined: int = 16  # complete requests that may wait their turn


class Request:
    """A complete request. Header names are lower case."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "query", "version")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.version = "1.1"
        self.headers: dict[str, str] = {}
        self.body: bytes = b""
        self.keep_alive = True


class ClientGone(Exception):
    """The client left, or takes no bytes any more."""


Handler = Callable[[Request, "Reply"], Awaitable[None]]
Refusal = Callable[[int, str], bytes]
"""Status and message → the JSON body that says so."""


class Reply:
    """The answer to one request."""

    __slots__ = ("_connection", "_request", "chunked", "ended", "started")

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self.started = False
        self.ended = False
        self.chunked = False

    @property
    def connection(self) -> Connection:
        """That it goes out on."""
        return self._connection

    def send(self, status: int, body: bytes, content_type: bytes = JSON, headers: bytes = b"") -> None:
        """The whole answer at once. `headers` are further lines, each ended by CRLF."""
        head = _head(status, content_type, self._request.keep_alive, headers)
        self.started = self.ended = True
        payload = b"" if self._request.method == "HEAD" else body
        self._connection.write(b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), payload))

    def start(self, status: int, content_type: bytes, headers: bytes = b"") -> None:
        """Begin an answer of unknown length."""
        self.started = True
        self.chunked = self._request.version != "1.0"
        if not self.chunked:
            self._request.keep_alive = False  # the end of the connection is the end of the body
        head = _head(status, content_type, self._request.keep_alive, headers)
        self._connection.write(head + (b"transfer-encoding: chunked\r\n\r\n" if self.chunked else b"\r\n"))

    def write(self, data: bytes) -> None:
        """A piece of the body; empty pieces are passed over."""
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was written.

        Raises:
            ClientGone: it takes nothing.
        """
        await self._connection.drain()

    def end(self) -> None:
        """The body is complete."""
        self.ended = True
        if self.chunked:
            self._connection.write(b"0\r\n\r\n")


def _head(status: int, content_type: bytes, keep_alive: bool, headers: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ndate: %b\r\ncontent-type: %b\r\n%b%b" % (
        _STATUS_LINE[status],
        _date(),
        content_type,
        b"" if keep_alive else b"connection: close\r\n",
        headers,
    )


_STATUS_LINE = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_date_cache = (0, b"")


def _date() -> bytes:
    global _date_cache
    now = int(time())
    if now != _date_cache[0]:
        _date_cache = (now, formatdate(now, usegmt=True).encode())
    return _date_cache[1]


class Connection(asyncio.Protocol):
    """One client. `refuse` writes the body of answers the door gives itself."""

    def __init__(self, handler: Handler, refuse: Refusal, limits: Limits, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._refuse = refuse
        self._limits = limits
        self._open = open_connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[Request] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading: Request | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0  # of the head while it comes, then of the body
        self._deaf = False  # answered an error and closing: what still comes is dropped
        self._closing = False  # what is asked already is answered, nothing new is read

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._open.add(self)
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arm(self._limits.idle_s, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._transport = None
        self._disarm()
        self._queue.clear()
        if self._writable is not None and not self._writable.done():
            self._writable.set_exception(ClientGone())
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        return False  # a client that stops sending has left: connection_lost follows

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request itself has been taken: it is answered as if it asked for no upgrade, as HTTP allows.
            self._closing = True
        except httptools.HttpParserError as error:
            if not self._deaf:  # our own callbacks have answered already
                self._fail(400, f"request: not valid HTTP: {error}")

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None

    # The parser's calls

    def on_message_begin(self) -> None:
        self._reading = Request()
        self._url, self._body, self._size = b"", [], 0
        if self._task is None:
            self._arm(self._limits.head_s, "head")

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow_head(len(name) + len(value))
        assert self._reading is not None
        key = name.decode("latin-1").lower()
        known = self._reading.headers.get(key)
        text = value.decode("latin-1")
        self._reading.headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        request = self._reading
        assert request is not None
        request.method = self._parser.get_method().decode("latin-1")
        request.version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        path, _, query = self._url.partition(b"?")
        request.path, request.query = path.decode("latin-1"), query.decode("latin-1")
        self._size = 0
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            self._too_large(f"{declared} bytes declared")
        elif request.headers.get("expect", "").lower() == "100-continue" and self._task is None:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._task is None and not self._deaf:
            self._arm(self._limits.body_s, "body")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._limits.body_bytes:
            self._too_large(f"more than {self._limits.body_bytes} bytes sent")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        request, self._reading = self._reading, None
        if request is None or self._deaf:
            return
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self._task is None:
            self._begin(request)
        elif len(self._queue) < self._limits.pipelined:
            self._queue.append(request)
        else:
            self._fail(429, f"pipelining: at most {self._limits.pipelined} requests may wait on one connection")

    # Answering

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        if self._transport is None:
            raise ClientGone
        if self._writable is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._writable), self._limits.write_s)
            except TimeoutError:
                self.abort()
                raise ClientGone from None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Finish what is being answered, take nothing new."""
        self._closing = True
        if self._task is None and self._transport is not None:
            self._transport.close()

    def _begin(self, request: Request) -> None:
        self._disarm()
        self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        reply = Reply(self, request)
        try:
            await self._handler(request, reply)
            if not reply.ended:
                raise RuntimeError("the handler left its answer unfinished")
        except asyncio.CancelledError:
            self.abort()
            raise
        except ClientGone:  # nobody awaits this task: what it raised would be told as never retrieved
            self.abort()
            return
        except Exception:  # the edge: a bug must cost one request, not the process
            log.exception("%s %s failed", request.method, request.path)
            if reply.started:
                self.abort()
            else:
                reply.send(500, self._refuse(500, "internal error: it is logged on the server"))
        finally:
            self._task = None
        self._next(request.keep_alive and not self._closing)

    def _next(self, keep_alive: bool) -> None:
        if self._transport is None or self._deaf:
            return
        if not keep_alive:
            self._transport.close()
        elif self._queue:
            self._begin(self._queue.popleft())
        else:
            self._arm(self._limits.idle_s, None)

    # Limits

    def _grow_head(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.head_bytes:
            self._fail(431, f"head: must be at most {self._limits.head_bytes} bytes")

    def _too_large(self, what: str) -> None:
        self._fail(413, f"body: must be at most {self._limits.body_bytes} bytes, {what}")

    def _fail(self, status: int, message: str) -> None:
        """Answer an error and close. If an earlier answer is still being written there is no place for one: cut."""
        if self._deaf or self._transport is None:
            return
        self._deaf = True
        if self._task is not None:
            self.abort()
            return
        request = Request()
        request.keep_alive = False
        Reply(self, request).send(status, self._refuse(status, message))
        # Closing at once would reset the connection while the client still sends, and our answer would be lost: drop
        # what comes for a moment first.
        self._disarm()
        self._timer = self._loop.call_later(1.0, self._transport.close)

    def _arm(self, seconds: float, part: str | None) -> None:
        self._disarm()
        self._timer = self._loop.call_later(seconds, self._expired, part, seconds)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self, part: str | None, seconds: float) -> None:
        if part is not None:
            self._fail(408, f"{part}: must arrive within {seconds:g} s")
        elif self._transport is not None:
            self._transport.close()


class Door:
    """A listening server."""

    def __init__(self, handler: Handler, refuse: Refusal, limits: Limits | None = None) -> None:
        self._handler = handler
        self._refuse = refuse
        self._limits = limits or Limits()
        self._open: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def listen(self, host: str, port: int) -> None:
        """As `bind` and `open`."""
        await self.bind(host, port)
        await self.open()

    async def open(self) -> None:
        """Take connections from now on."""
        assert self._server is not None, "it is bound"
        await self._server.start_serving()

    async def bind(self, host: str, port: int, *, is_shared: bool = False) -> None:
        """Raises OSError if the address cannot be had. Port 0 takes a free one; `port` tells which.

        Args:
            is_shared: with other processes of this user, among which the kernel spreads connections (SO_REUSEPORT).
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._handler, self._refuse, self._limits, self._open),
            host,
            port,
            backlog=1024,
            reuse_port=is_shared,
            start_serving=False,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self, grace_s: float) -> None:
        """Take no new connections, let running answers end for up to `grace_s`, then cut."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.close_when_idle()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._open and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # a few polls at the end, not an event kept by every connection
        for connection in list(self._open):
            connection.abort()
