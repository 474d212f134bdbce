"""The answer to one request: written whole, as a stream, by a coroutine or from callbacks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from jevons.serve.heads import Request, answer_head

if TYPE_CHECKING:
    from jevons.serve.http import Connection

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
# Of a stream. The latter is nginx's: else it keeps events until it has a page of them.
NO_CACHE = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"


class ClientGone(Exception):
    """The client left, or takes no bytes any more."""


class Stopping(Exception):
    """The server stops, and the time for running answers is over."""

    def __init__(self) -> None:
        super().__init__("server: is stopping, its time for running answers is over; ask again")


class Answerer(Protocol):
    """Who answers from callbacks."""

    def on_client_gone(self) -> None:
        """The client left before its answer was complete."""

    def on_stop(self) -> None:
        """The server stops: end the answer now."""

    def on_full(self) -> None:
        """The client takes no more for now: write nothing large until `on_room`."""

    def on_room(self) -> None: ...


class Reply:
    """The answer to one request.

    Attributes:
        answerer: set by a handler that has returned and will answer later.
        id: of the request, for errors to tell; "" where it has none.
    """

    __slots__ = ("_connection", "answerer", "chunked", "ended", "id", "request", "started")

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self.request = request
        self.id = ""
        self.answerer: Answerer | None = None
        self.started = False
        self.ended = False
        self.chunked = False

    @property
    def connection(self) -> Connection:
        """That it goes out on."""
        return self._connection

    @property
    def is_full(self) -> bool:
        """The client takes no more for now: an answerer that begins meanwhile is told `on_room`, not `on_full`."""
        return self._connection.is_full

    def cancelled(self) -> ClientGone | Stopping:
        """Why who answers was cancelled."""
        return ClientGone() if self._connection.is_gone else Stopping()

    def send(self, status: int, body: bytes, content_type: bytes = JSON, headers: bytes = b"") -> None:
        """The whole answer at once. `headers` are further lines, each ended by CRLF."""
        head = answer_head(self.request, status, content_type, headers)
        self.started = self.ended = True
        payload = b"" if self.request.method == "HEAD" else body
        self._connection.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), payload))
        self._connection.on_ended()

    def start(self, status: int, content_type: bytes, headers: bytes = b"", first: bytes = b"") -> None:
        """Begin an answer of unknown length, with `first` of its body."""
        self.started = True
        self.chunked = self.request.version != "1.0"
        if not self.chunked:
            self.request.keep_alive = False  # the end of the connection is the end of the body
        head = answer_head(self.request, status, content_type, headers)
        coding = b"transfer-encoding: chunked\r\n\r\n" if self.chunked else b"\r\n"
        self._connection.write(head + coding + self._framed(first))

    def write(self, data: bytes) -> None:
        """A piece of the body; empty pieces are passed over."""
        if data:
            self._connection.write(self._framed(data))

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was written.

        Raises:
            ClientGone: it takes nothing.
        """
        await self._connection.drain()

    def end(self, last: bytes = b"") -> None:
        """The body is complete, with `last`."""
        self.ended = True
        if last or self.chunked:
            self._connection.write(self._framed(last) + (b"0\r\n\r\n" if self.chunked else b""))
        self._connection.on_ended()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on in a coroutine: what comes next must be waited for. It begins by ending `answerer`, who is told if the
        client leaves before."""
        self._connection.run(work)

    def abort(self) -> None:
        """Cut the connection: there is no other way to tell the client."""
        self._connection.abort()

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if data and self.chunked else data


Handler = Callable[[Request, Reply], Coroutine[Any, Any, None] | None]
"""Answers a request: by a coroutine that the door runs, or (None) at once, or from callbacks (see `Reply.answerer`)."""
Refusal = Callable[[int, str], bytes]
"""Status and message → the JSON body that says so."""
OnRefused = Callable[[str, int], None]
"""Told of each request that the door answers itself: its path, "" where that had not come, and the status."""
