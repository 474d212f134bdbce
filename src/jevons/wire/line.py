"""Connections between peers over TCP, open only to who knows the secret: both ends.

    reader → source   the secret, 32 bytes
    source → reader   one byte: welcome, or why not

The secret and what follows travel in the clear, as KV does between machines of one fleet: it keeps strangers out who
can reach the port, not those who can listen on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hmac
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from jevons.base.errors import StoreError

SECRET_BYTES = 32
SECRET_S = 5.0  # who has not shown the secret by then is shut out
PEERS = 64  # connections served at a time; as many again may be on their way in
PAUSE_S = 0.1  # between tries to accept, when there are no descriptors left
SLICE_BYTES = 1 << 19  # at most in one system call: 0.1 ms of the event loop, or less
# A connection whose other host vanished ends after 25 s, though nothing is sent on it.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Answer(enum.IntEnum):
    WELCOME = 0
    DENIED = 1
    FULL = 2


class Line:
    """A connected socket, read into memory and written from memory without a copy between.

    Cancelling what waits here leaves nothing behind: bytes move only in system calls of the event loop's thread.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        with contextlib.suppress(OSError):  # some systems say so here if the other end has left already
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):  # Linux
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    async def receive_into(self, memory: memoryview) -> None:
        """Fill `memory`.

        Raises:
            EOFError: the other end closed before that.
        """
        loop = asyncio.get_running_loop()
        while memory:
            count = await loop.sock_recv_into(self._socket, memory[:SLICE_BYTES])
            if not count:
                raise EOFError("connection closed")
            memory = memory[count:]

    async def receive(self, size_bytes: int) -> bytes:
        """Exactly so many bytes; raises like `receive_into`."""
        buffer = bytearray(size_bytes)
        await self.receive_into(memoryview(buffer))
        return bytes(buffer)

    async def send(self, data: bytes | memoryview) -> None:
        loop, view = asyncio.get_running_loop(), memoryview(data)
        for start in range(0, len(view), SLICE_BYTES):
            await loop.sock_sendall(self._socket, view[start : start + SLICE_BYTES])

    def hang_up(self) -> None:
        """Whoever waits on this line, on either end, finds it closed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class Listener:
    """Listens, and serves each peer that shows the secret.

    Args:
        serve: what to do on a peer's line; it ends the line by returning, or by OSError or EOFError.
    """

    def __init__(self, serve: Callable[[Line], Awaitable[None]]) -> None:
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.port = 0
        self.counts: Counter[str] = Counter()
        self._serve = serve
        self._lines: dict[asyncio.Task[None], Line] = {}
        self._admitted = 0
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen.

        Args:
            host: name or address, IPv4 or IPv6; `::` listens on both everywhere.
            port: 0 for any; `port` tells which.

        Raises:
            OSError: it cannot.
        """
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, where = found[0][0], found[0][4]
        listener = socket.create_server(where, family=family, dualstack_ipv6=host == "::", backlog=PEERS)
        listener.setblocking(False)
        self.port, self._listener = listener.getsockname()[1], listener
        self._accepting = asyncio.create_task(self._accept(listener))

    def hang_up(self) -> None:
        """End all lines there are; peers may come back."""
        for line in self._lines.values():
            line.hang_up()

    async def close(self) -> None:
        """End all lines and listen no more."""
        tasks = [*self._lines, *([self._accepting] if self._accepting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connected, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError:
                self.counts["unaccepted"] += 1
                await asyncio.sleep(PAUSE_S)
                continue
            if len(self._lines) < 2 * PEERS:
                self._let_in(Line(connected))
            else:
                self.counts["full"] += 1
                connected.close()

    def _let_in(self, line: Line) -> None:
        task = asyncio.create_task(self._meet(line))
        self._lines[task] = line
        task.add_done_callback(lambda task: self._lines.pop(task).close())  # a task cancelled at once never runs

    async def _meet(self, line: Line) -> None:
        try:
            if not await self._may_enter(line):
                return
            self._admitted += 1
            try:
                await self._serve(line)
            finally:
                self._admitted -= 1
        except TimeoutError:
            self.counts["timeout"] += 1
        except (OSError, EOFError):
            self.counts["left"] += 1

    async def _may_enter(self, line: Line) -> bool:
        async with asyncio.timeout(SECRET_S):
            is_known = hmac.compare_digest(await line.receive(SECRET_BYTES), self.secret)
            answer = Answer.DENIED if not is_known else Answer.FULL if self._admitted >= PEERS else Answer.WELCOME
            await line.send(bytes([answer]))
        if answer is not Answer.WELCOME:
            self.counts[answer.name.lower()] += 1
        return answer is Answer.WELCOME


async def connect(host: str, port: int, secret: bytes) -> Line:
    """Connect to a listener.

    Raises:
        StoreError: `denied` or `full`.
        OSError, EOFError: nobody answers there.
    """
    line = Line(await _connected(host, port))
    try:
        await line.send(secret)
        await expect_welcome(line, f"{host}:{port}")
    except BaseException:
        line.close()
        raise
    return line


async def expect_welcome(line: Line, peer: str) -> None:
    """Take one answer.

    Raises:
        StoreError: it is not welcome.
    """
    match await line.receive(1):
        case b"\x00":
            return
        case b"\x02":
            raise StoreError("full", f"link to {peer}: it serves {PEERS} connections already")
        case _:
            raise StoreError("denied", f"link to {peer}: refused")


async def _connected(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    failed: OSError = OSError(f"{host}: no address")
    for family, kind, protocol, _, where in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connecting = socket.socket(family, kind, protocol)
        connecting.setblocking(False)
        try:
            await loop.sock_connect(connecting, where)
        except OSError as error:
            connecting.close()
            failed = error
        except BaseException:
            connecting.close()
            raise
        else:
            return connecting
    raise failed
