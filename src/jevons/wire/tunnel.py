"""One port of a node that leads to the sockets behind it, for who knows the secret.

    front   a loopback port ══╗                                ╔══ worker's channel, its events, the keeper's socket
                              ╚═ Knock(secret, to) ─▶ door ════╝
                                 Knock(secret, "") ─▶ door ── Directory, whenever it changes

So workers, event sources and keepers listen on loopback wherever they are, and whoever speaks with them need not know
where that is. The secret and all that follows travel in the clear, as on the links that move blocks: it keeps strangers
out who can reach the port, not those who can listen on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections import Counter
from collections.abc import AsyncGenerator, Mapping

import msgspec

from jevons.base.errors import EngineGone
from jevons.wire.channel import framed

KNOCK_S = 5.0  # who has not knocked by then is shut out; who is not answered by then gives up
BEAT_S = 1.0  # the directory is told again after so long: a line that carries nothing looks like a lost one
SILENT_S = 5.0  # a directory not heard of for so long is lost
READ_BYTES = 1 << 16
_LENGTH_BYTES = 4
_KNOCK_BYTES = 4096  # at most

Address = tuple[str, int] | str  # host and port, or the path of a Unix socket


class Knock(msgspec.Struct, frozen=True):
    secret: bytes
    to: str  # a name in the directory; empty for the directory


class Directory(msgspec.Struct, frozen=True, tag="directory"):
    """What is behind the door now."""

    workers: list[str]
    has_keeper: bool


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """From here on the other end is what was asked for."""


class Shut(msgspec.Struct, frozen=True, tag="shut"):
    reason: str


_Answer = Directory | Opened | Shut
_KNOCKS: msgspec.msgpack.Decoder[Knock] = msgspec.msgpack.Decoder(Knock)
_ANSWERS: msgspec.msgpack.Decoder[_Answer] = msgspec.msgpack.Decoder(_Answer)


class Door:
    """A node's door.

    Args:
        secret: what all nodes and fronts share.
    """

    def __init__(self, secret: bytes) -> None:
        self.counts: Counter[str] = Counter()
        self._secret = secret
        self._places: dict[str, Address] = {}
        self._directory = Directory([], has_keeper=False)
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Open it. Returns the port.

        Raises:
            OSError: it cannot.
        """
        self._server = await asyncio.start_server(self._serve, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def show(self, directory: Directory, places: Mapping[str, Address]) -> None:
        """This is behind the door from now on."""
        async with self._changed:
            self._directory, self._places = directory, dict(places)
            self._changed.notify_all()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                knock = _KNOCKS.decode(await asyncio.wait_for(_message(reader, _KNOCK_BYTES), KNOCK_S))
            except (TimeoutError, msgspec.MsgspecError):
                self.counts["unreadable"] += 1
                return
            if not hmac.compare_digest(knock.secret, self._secret):
                self.counts["denied"] += 1
                writer.write(framed(Shut("denied")))
            elif not knock.to:
                await self._tell(writer)
            elif knock.to not in self._places:
                writer.write(framed(Shut("nothing of that name")))
            else:
                there, back = await _connect(self._places[knock.to])
                writer.write(framed(Opened()))
                await _join(reader, writer, there, back)

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(framed(self._directory))
            await writer.drain()
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), BEAT_S)


class Way:
    """The way to a node's door, from a front.

    Args:
        host, port: of the door.
        secret: what all nodes and fronts share.
    """

    def __init__(self, host: str, port: int, secret: bytes) -> None:
        self._host, self._port, self._secret = host, port, secret

    async def directories(self) -> AsyncGenerator[Directory, None]:
        """What is behind the door, now and whenever it is told.

        Raises:
            EngineGone: the door does not open, or is lost.
        """
        reader, writer, first = await self._knock("")
        answer: _Answer = first
        with contextlib.closing(writer):
            while isinstance(answer, Directory):
                yield answer
                try:
                    answer = await asyncio.wait_for(_answer(reader), SILENT_S)
                except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as error:
                    raise EngineGone(f"node {self._host}:{self._port}: lost: {error!r}") from error

    async def lead(self, to: str) -> asyncio.Server:
        """A loopback port that leads to `to`: connections that cannot be opened there are closed."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(OSError, EngineGone):
                there, back, _ = await self._knock(to)
                await _join(reader, writer, there, back)

        return await asyncio.start_server(serve, "127.0.0.1", 0)

    async def _knock(self, to: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Directory | Opened]:
        name = f"node {self._host}:{self._port}"
        try:
            async with asyncio.timeout(KNOCK_S):
                reader, writer = await _connect((self._host, self._port))
                try:
                    writer.write(framed(Knock(self._secret, to)))
                    answer = await _answer(reader)
                except BaseException:
                    writer.close()
                    raise
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as error:
            raise EngineGone(f"{name}: does not answer: {error!r}") from error
        if isinstance(answer, Shut):
            writer.close()
            raise EngineGone(f"{name}: {answer.reason}")
        return reader, writer, answer


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, str):
        return await asyncio.open_unix_connection(address)
    return await asyncio.open_connection(*address)


async def _message(reader: asyncio.StreamReader, limit: int) -> bytes:
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if size > limit:
        raise msgspec.DecodeError(f"message of {size} bytes, at most {limit} are allowed")
    return await reader.readexactly(size)


async def _answer(reader: asyncio.StreamReader) -> _Answer:
    return _ANSWERS.decode(await _message(reader, READ_BYTES))


async def _join(
    a: asyncio.StreamReader, to_a: asyncio.StreamWriter, b: asyncio.StreamReader, to_b: asyncio.StreamWriter
) -> None:
    """Pass bytes both ways until one end is over; then both are."""
    with contextlib.closing(to_a), contextlib.closing(to_b):
        ways = [asyncio.create_task(_pass(a, to_b)), asyncio.create_task(_pass(b, to_a))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
