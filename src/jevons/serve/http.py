"""The HTTP door: an asyncio protocol on httptools.

One connection serves one request at a time; what a client sends ahead waits in a bounded queue. A client that leaves
ends what was done for it. Every limit has a clear answer, and nothing a client sends ends the process.

    bytes ──heads or httptools──▶ Request ──▶ handler(request, reply) ──▶ reply.send(…)               whole answer
                                                                      ──▶ reply.start(…), write(…), end()   stream

A handler is a coroutine, or returns None and answers from callbacks: no task, no future, no timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast

import httptools

from jevons.serve.heads import Heads, Limits, Request, origin_form, without_upgrade
from jevons.serve.reply import EVENT_STREAM, JSON, NO_CACHE, ClientGone, Handler, OnRefused, Refusal, Reply

__all__ = ["EVENT_STREAM", "JSON", "NO_CACHE", "ClientGone", "Door", "Handler", "Limits", "Reply", "Request"]

FLUSH_S = 1.0  # for clients to take what they were told when the server stops

log = logging.getLogger("jevons.http")


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, door: Door) -> None:
        self._handler, self._refuse, self._limits = door.handler, door.refuse, door.limits
        self._on_refused = door.on_refused
        self._open = door.connections
        self._heads = door.heads
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._reply: Reply | None = None  # being answered
        self._task: asyncio.Task[None] | None = None  # that answers it; None: its answerer does
        self._queue: deque[Request] = deque()
        self._timer: asyncio.TimerHandle | None = None  # of what must come or end
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since_s = 0.0
        self.is_full = False  # the client takes no more for now
        self._unsent = 0  # bytes, when it was last looked whether the client takes them
        self._write_timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None  # for who waits
        self._reading: Request | None = None
        self._first: Request | None = None  # whose head was complete in what is being read
        self._in_body = False
        self._upgrades = False  # the head that is complete asks for another protocol
        self._waits_for = ""  # what the timer is for
        self._due_bytes = 0.0  # of the body, when it is over
        self._headers: dict[str, str] = {}
        self._url = b""
        self._body: bytes | bytearray = b""  # so far; pieces that are kept one by one take twenty times their bytes
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
        self._idle_since_s = self._loop.time()
        self._idle_timer = self._loop.call_later(self._limits.idle_s, self._on_idle)
        if len(self._open) > self._limits.connections:
            self._fail(503, f"connections: at most {self._limits.connections} may be open at once; come again")

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._transport = None
        self._disarm()
        for timer in (self._idle_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._queue.clear()
        reply, self._reply = self._reply, None
        if self._writable is not None and not self._writable.done():
            self._writable.set_exception(ClientGone())
        elif self._task is not None:
            self._task.cancel()
        if reply is not None and reply.answerer is not None:
            reply.answerer.on_client_gone()

    def eof_received(self) -> bool:
        return False  # a client that stops sending has left: connection_lost follows

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._closing:
            return
        begins = self._reading is None
        if begins:
            known = self._heads.request(data)
            if known is not None:
                self._take(known)
                return
        self._read(data, begins)
        if self._reading is not None and self._reply is None and not self._deaf:
            self._await_rest(begins)

    def _read(self, data: bytes, begins: bool) -> None:
        self._first = None
        try:
            self._parser.feed_data(data)
            if begins and self._first is not None:
                self._heads.keep(data, self._first)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._deaf:  # our own callbacks have answered already
                self._fail(400, f"request: not valid HTTP: {error}")

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Take a request as if it asked for no upgrade, as HTTP allows: Java's client asks for HTTP/2 with a request
        that has a body. The parser takes what follows the head for another protocol: another parser reads it."""
        request, self._upgrades = self._reading, False
        assert request is not None, "its head is complete"
        has_body = not request.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
        if request.method == "CONNECT" or (rest and not has_body):
            self._closing, request.keep_alive = True, False
            self.on_message_complete()
        else:
            self._parser = httptools.HttpRequestParser(self)
            self._read(without_upgrade(request) + rest, begins=False)

    def pause_writing(self) -> None:
        self.is_full = True
        self._watch_writing()
        if self._reply is not None and self._reply.answerer is not None:
            self._reply.answerer.on_full()

    def resume_writing(self) -> None:
        self.is_full = False
        if self._write_timer is not None and self._transport is not None and not self._transport.is_closing():
            self._write_timer.cancel()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._reply is not None and self._reply.answerer is not None:
            self._reply.answerer.on_room()
        elif self._reply is None and self._queue and not self._deaf:
            self._begin(self._queue.popleft())

    # The parser's calls

    def on_message_begin(self) -> None:
        self._reading = Request()
        self._reading.headers = self._headers = {}
        self._url, self._body, self._size, self._in_body = b"", b"", 0, False

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer: none says anything to us, and what a head says is not to be changed after it
            return
        self._grow_head(len(name) + len(value))
        key = name.decode("latin-1").lower()
        known = self._headers.get(key)
        text = value.decode("latin-1")
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        request = self._reading
        assert request is not None
        request.method = self._parser.get_method().decode("latin-1")
        request.version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        path, _, query = origin_form(self._url).partition(b"?")
        request.path, request.query = path.decode("latin-1"), query.decode("latin-1")
        self._size, self._in_body = 0, True
        self._upgrades = self._parser.should_upgrade()
        if self._upgrades:  # it is read once more
            return
        self._first = self._first or request
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            self._too_large(f"{declared} bytes declared")
        elif request.headers.get("expect", "").lower() == "100-continue" and self._is_free:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._limits.body_bytes:
            self._too_large(f"more than {self._limits.body_bytes} bytes sent")
            return
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if self._upgrades:
            return
        request, self._reading = self._reading, None
        if request is None or self._deaf:
            return
        request.body, self._body = bytes(self._body), b""
        self._take(request)

    def _take(self, request: Request) -> None:
        """A request is complete."""
        if self._reply is None and not self.is_full:
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
        if self._transport is not None and self._transport.is_closing():
            await asyncio.sleep(0)  # that it is lost can only be told when others have their turn
        if self._transport is None:
            raise ClientGone
        if self.is_full:
            self._writable = self._loop.create_future()
            try:
                await self._writable
            finally:
                self._writable = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Finish what is being answered, take nothing new."""
        self._closing = True
        if self._is_free:
            self._close()
        elif self._queue:
            self._queue[-1].keep_alive = False
        elif self._reply is not None:
            self._reply.request.keep_alive = False  # which its head says, unless that is sent already

    def stop(self) -> None:
        """The time for running answers is over: whoever gives one ends it, then the connection closes."""
        self._queue.clear()
        reply = self._reply
        if self._task is not None:
            self._task.cancel()
        elif reply is not None and reply.answerer is not None:
            reply.answerer.on_stop()
        else:
            self._close()

    @property
    def is_gone(self) -> bool:
        """Whether the client has left."""
        return self._transport is None

    @property
    def _is_free(self) -> bool:
        """Whether nobody waits for an answer here."""
        return self._reply is None and not self._queue

    def _begin(self, request: Request) -> None:
        self._disarm()
        reply = self._reply = Reply(self, request)
        try:
            work = self._handler(request, reply)
        except Exception:  # the edge: a bug must cost one request, not the process
            self._failed(reply)
            return
        if work is not None:
            self.run(work)
        elif not reply.ended and reply.answerer is None:
            log.error("%s %s: the handler left its answer unfinished", request.method, request.path)
            self.abort()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """See `Reply.run`."""
        reply = self._reply
        assert reply is not None, "somebody answers"
        self._task = self._loop.create_task(self._answer(work, reply))
        self._task.add_done_callback(lambda _: work.close())  # it may have ended before it began

    async def _answer(self, work: Coroutine[Any, Any, None], reply: Reply) -> None:
        try:
            await work
            if not reply.ended and reply.answerer is None:
                raise RuntimeError("the handler left its answer unfinished")
        except (asyncio.CancelledError, ClientGone) as gone:
            self._task = None
            if reply.ended:
                self._close()
            else:
                self.abort()
            if isinstance(gone, asyncio.CancelledError):
                raise
            return
        except Exception:  # the edge, as above
            self._task = None
            self._failed(reply)
            return
        self._task = None
        if reply.ended:
            self.on_ended()

    def _failed(self, reply: Reply) -> None:
        log.exception("%s %s failed", reply.request.method, reply.request.path)
        if not reply.started:
            reply.send(500, self._refuse(500, "internal error: it is logged on the server"))
        elif not reply.ended:
            self.abort()
        elif self._reply is reply:
            self.on_ended()

    def on_ended(self) -> None:
        """The answer is complete; the next one begins when whoever gave it is done, too."""
        reply = self._reply
        if reply is None or self._task is not None:
            return
        self._reply = None
        if self._transport is None or self._deaf:
            return
        self._disarm()
        if not reply.request.keep_alive or (self._closing and not self._queue):
            self._deaf = True
            self._close()
        elif self._queue:
            if not self.is_full:  # else when there is room: what nobody takes is not piled up
                self._begin(self._queue.popleft())
        elif self._reading is not None:
            self._await_rest(begins=True)
        else:
            self._idle_since_s = self._loop.time()

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
        if not self._is_free:
            self.abort()
            return
        if self._on_refused is not None:
            self._on_refused("" if self._reading is None else self._reading.path, status)
        request = Request()
        request.keep_alive = False
        Reply(self, request).send(status, self._refuse(status, message))
        # Closing at once would reset the connection while the client still sends, and our answer would be lost: drop
        # what comes for a moment first.
        self._arm(1.0, self._close)

    def _close(self) -> None:
        """Send what was written, then close."""
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._watch_writing()

    def _watch_writing(self) -> None:
        """A client that takes nothing of what was written has left."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        assert self._transport is not None, "it was written to"
        self._unsent = self._transport.get_write_buffer_size()
        self._write_timer = self._loop.call_later(self._limits.write_s, self._look_at_written)

    def _look_at_written(self) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() < self._unsent:
            self._watch_writing()
        else:
            self.abort()

    def _await_rest(self, begins: bool) -> None:
        """A request has come in part."""
        if begins:
            self._waits_for = ""
        part, seconds = ("body", self._limits.body_s) if self._in_body else ("head", self._limits.head_s)
        if self._waits_for != part:
            self._waits_for, self._due_bytes = part, seconds * self._limits.body_bytes_per_s
            self._arm(seconds, self._late)

    def _late(self) -> None:
        seconds = self._limits.body_s if self._waits_for == "body" else self._limits.head_s
        if self._waits_for == "body" and self._size >= self._due_bytes:  # its client's link is slow, and it comes
            self._due_bytes = self._size + seconds * self._limits.body_bytes_per_s
            self._arm(seconds, self._late)
        else:
            self._fail(408, f"{self._waits_for}: must arrive within {seconds:g} s")

    def _arm(self, seconds: float, act: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._loop.call_later(seconds, act)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_idle(self) -> None:
        """Set once for a whole idle time: setting it anew for each request would cost more than reading its head."""
        left_s = self._idle_since_s + self._limits.idle_s - self._loop.time()
        if not self._is_free or self._reading is not None:
            left_s = self._limits.idle_s
        if left_s > 0:
            self._idle_timer = self._loop.call_later(left_s, self._on_idle)
        else:
            self._close()


class Door:
    """A listening server."""

    def __init__(
        self,
        handler: Handler,
        refuse: Refusal,
        limits: Limits | None = None,
        on_refused: OnRefused | None = None,
    ) -> None:
        """`refuse` writes the body of answers the door gives itself."""
        self.handler = handler
        self.refuse = refuse
        self.limits = limits or Limits()
        self.on_refused = on_refused
        self.connections: set[Connection] = set()
        self.heads = Heads()
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
            lambda: Connection(self), host, port, backlog=1024, reuse_port=is_shared, start_serving=False
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self, grace_s: float) -> None:
        """Take no new connections, let running answers end for up to `grace_s`, then have them ended."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        await self._closed(grace_s)
        for connection in list(self.connections):
            connection.stop()
        await self._closed(FLUSH_S)
        for connection in list(self.connections):
            connection.abort()

    async def _closed(self, within_s: float) -> None:
        """Wait until all connections are, but not for longer."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # a few polls at the end, not an event kept by every connection
