"""One request to an engine and its response, told from the read that brings it: no task, no future."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import httptools

from jevons.base.errors import EngineGone

if TYPE_CHECKING:
    from jevons.engine.http_client import HttpClient

_SIZE_BYTES = 10  # of the line that tells a chunk's size, with CRLF
# Heads of responses that are remembered of one server: they differ by date and length, so after a second most are of no
# use. Each takes a kilobyte and more.
_KNOWN_HEADS, _KNOWN_BYTES = 32, 2_048


class Head(NamedTuple):
    """Of a response. Header names are lower case."""

    status: int
    headers: dict[str, str]
    keep_alive: bool


class Taker(Protocol):
    """Takes a response as it comes. Of `on_end` and `on_lost` one is called, and nothing after it."""

    def on_head(self, head: Head) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_lost(self, error: EngineGone) -> None:
        """The engine cannot be reached, or the connection ended first."""


class _Nobody:
    """Takes what nobody waits for."""

    def on_head(self, head: Head) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_lost(self, error: EngineGone) -> None: ...


_NOBODY = _Nobody()


class Exchange:
    """A request on its way and its response, for whoever decides that it must end."""

    __slots__ = ("_connection", "_dialing", "_paused", "aborted", "message", "taker")

    def __init__(self, message: bytes, taker: Taker) -> None:
        self.message = message
        self.taker = taker
        self.aborted = False  # its taker hears nothing more
        self._paused = False
        self._connection: Connection | None = None
        self._dialing: asyncio.Task[None] | None = None

    def abort(self, reason: str = "given up") -> None:
        """It ends here; its taker is told that it is lost, unless it was over."""
        if not self.aborted:
            self.leave()
            self.taker.on_lost(EngineGone(f"engine: {reason}"))

    def leave(self) -> None:
        """It ends here; its taker is told nothing more."""
        self.aborted = True
        if self._connection is not None:
            self._connection.abort()
        if self._dialing is not None:
            self._dialing.cancel()

    def forget(self) -> None:
        """It is over for its taker, who is let go."""
        self.taker = _NOBODY

    def pause(self) -> None:
        """Read no more for now, on whichever connection it comes."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    # The client's calls

    def dial(self, task: asyncio.Task[None]) -> None:
        self._dialing = task

    def begin(self, connection: Connection) -> None:
        self._dialing, self._connection = None, connection
        if self._paused:
            connection.pause()

    def over(self, lost: EngineGone | None) -> None:
        if not self.aborted:
            self.aborted, self._connection, self._dialing = True, None, None
            if lost is None:
                self.taker.on_end()
            else:
                self.taker.on_lost(lost)


class Connection(asyncio.Protocol):
    """One connection of a client; serves one exchange after another."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._kept = False  # it served others before
        self._paused = False
        self._begin_reading()

    def _begin_reading(self) -> None:
        self._answered = False  # something of the response has arrived
        self._raw = b""  # of its head, to be remembered
        self._headers: dict[str, str] = {}
        self._head: Head | None = None
        self._complete = False
        self._ends_chunk = False  # what the parser told last is that a chunk is complete
        self._body: list[bytes] = []

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, exchange: Exchange, kept: bool) -> None:
        """Send a request, and give its taker what comes."""
        exchange.begin(self)
        self._exchange, self._kept = exchange, kept
        if self._answered:
            self._begin_reading()
        if self._transport is None:  # closed as soon as it was made
            self._lose("closed by the engine")
        else:
            self._transport.write(exchange.message)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.aborted:
            self.abort()  # nobody asked
            return
        if not self._answered and self._is_known(data, exchange):
            return
        if self._ends_chunk and (body := _only_chunk(data)) is not None:
            exchange.taker.on_body(body)
            return
        begins, self._answered = not self._answered, True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(f"answered no valid HTTP: {error}")
            return
        if begins and self._complete and self._head is not None:
            self._remember(data, self._head)
        self._ends_chunk = self._ends_chunk and data.endswith(b"\r\n")  # and nothing of the next one has come
        self._tell(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        exchange = self._exchange
        if exchange is None:
            self._client.lost(self)
        if exchange is None or exchange.aborted:
            return
        if exc is None and self._head is not None and self._until_close():
            self._exchange = None
            exchange.over(None)
        elif self._kept and not self._answered:  # closed by the server before it read our request
            self._exchange = None
            self._client.lost_kept()
            self._client.begin_fresh(exchange)
        else:
            self._lose(f"connection ended: {said(exc) if exc else 'closed by the engine'}")

    def _lose(self, reason: str) -> None:
        exchange, self._exchange = self._exchange, None
        self.abort()
        if exchange is not None:
            exchange.over(EngineGone(f"engine: {reason}"))

    def _is_known(self, data: bytes, exchange: Exchange) -> bool:
        """Whether a whole response with a head that was read before is there; its taker has it then."""
        start = data.find(b"\r\n\r\n") + 4
        known = self._client.heads.get(data[:start])
        if known is None or len(data) != start + known[1]:
            return False
        self._answered, self._exchange = True, None
        self._client.keep(self)
        exchange.taker.on_head(known[0])
        if not exchange.aborted:
            exchange.taker.on_body(data[start:])
            exchange.over(None)
        return True

    def _remember(self, data: bytes, head: Head) -> None:
        """A whole response came at once: its head is known from now on."""
        raw = data[: data.find(b"\r\n\r\n") + 4]
        length = head.headers.get("content-length", "")
        if (
            data.startswith(b"HTTP/1.1 200 ")
            and len(raw) < _KNOWN_BYTES
            and raw.count(b"\n") == raw.count(b"\r\n")
            and head.keep_alive
            and length.isdecimal()
            and len(data) == len(raw) + int(length)
            and "transfer-encoding" not in head.headers
        ):
            if len(self._client.heads) >= _KNOWN_HEADS:
                self._client.heads.clear()
            self._client.heads[raw] = head, int(length)

    def _tell(self, exchange: Exchange) -> None:
        """What one read brought, at once: chunks that come together stay together."""
        body, self._body = self._body, []
        if body:
            exchange.taker.on_body(body[0] if len(body) == 1 else b"".join(body))
        if self._complete and not exchange.aborted:
            self._exchange = None
            if self._head is not None and self._head.keep_alive and not self._paused and self.is_open:
                self._client.keep(self)
            else:
                self.abort()
            exchange.over(None)

    def _until_close(self) -> bool:
        """Whether the end of the connection is the proper end of this body."""
        coding = self._headers.get("transfer-encoding", "").lower()
        return "content-length" not in self._headers and "chunked" not in coding

    # The parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()
            return
        self._head = Head(status, self._headers, self._parser.should_keep_alive())
        if self._exchange is not None and not self._exchange.aborted:
            self._exchange.taker.on_head(self._head)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_chunk_header(self) -> None:
        self._ends_chunk = False

    def on_chunk_complete(self) -> None:
        self._ends_chunk = True

    def on_message_complete(self) -> None:
        self._ends_chunk = False
        if self._head is not None:
            self._complete = True


def _only_chunk(data: bytes) -> bytes | None:
    """The body of a chunk, if `data` is one chunk and nothing else: between chunks, the parser need not see it."""
    at = data.find(b"\r\n", 1, _SIZE_BYTES)
    size = len(data) - at - 4
    if at < 0 or size < 1 or data[:at].lower() != b"%x" % size or data[-2:] != b"\r\n":
        return None
    return data[at + 2 : -2]


def said(error: BaseException) -> str:
    return str(error) or type(error).__name__
