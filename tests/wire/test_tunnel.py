"""A door to a node's sockets: what goes in comes out, for who knows the secret, and everything else ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from jevons.base.errors import EngineGone
from jevons.wire.tunnel import Directory, Door, Way

SECRET = b"a secret of the whole fleet"
HERE = "127.0.0.1"
WAIT_S = 10.0

Act = Callable[[Door, Way], Awaitable[None]]


def run(act: Act, secret: bytes = SECRET) -> None:
    """`act` with an open door and the way to it."""

    async def all_of_it() -> None:
        door = Door(SECRET)
        port = await door.listen(HERE, 0)
        try:
            async with asyncio.timeout(WAIT_S):
                await act(door, Way(HERE, port, secret))
        finally:
            door.close()

    asyncio.run(all_of_it())


@contextlib.asynccontextmanager
async def echo(path: str | None = None) -> AsyncIterator[tuple[str, int] | str]:
    """A server that sends back what it gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    if path is not None:
        async with await asyncio.start_unix_server(serve, path):
            yield path
    else:
        async with await asyncio.start_server(serve, HERE, 0) as server:
            yield HERE, server.sockets[0].getsockname()[1]


async def through(way: Way, to: str, data: bytes) -> bytes:
    """What comes back of `data`, until it is all there or the way ends."""
    async with await way.lead(to) as led:
        reader, writer = await asyncio.open_connection(*led.sockets[0].getsockname())
        with contextlib.closing(writer):
            writer.write(data)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                return await reader.readexactly(len(data))
            return b""


@pytest.mark.parametrize("is_unix", [False, True])
def test_what_goes_in_comes_out_behind_the_door_and_back(is_unix: bool, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)

    async def act(door: Door, way: Way) -> None:
        async with echo(str(tmp_path / "s") if is_unix else None) as place:
            await door.show(Directory(["w0"], has_keeper=False), {"w0/channel": place})
            back = await asyncio.gather(*(through(way, "w0/channel", data) for _ in range(3)))
            assert back == [data] * 3

    run(act)


def test_what_is_not_shown_any_more_and_what_is_dead_ends_at_once() -> None:
    async def act(door: Door, way: Way) -> None:
        async with echo() as place:
            await door.show(Directory(["w0"], has_keeper=False), {"w0/channel": place})
            assert await through(way, "w0/channel", b"x") == b"x"
        assert await through(way, "w0/channel", b"x") == b""
        await door.show(Directory([], has_keeper=False), {})
        assert await through(way, "w0/channel", b"x") == b""

    run(act)


def test_nobody_gets_in_without_the_secret() -> None:
    async def act(door: Door, way: Way) -> None:
        async with echo() as place:
            await door.show(Directory(["w0"], has_keeper=False), {"w0/channel": place})
            assert await through(way, "w0/channel", b"x") == b""
            with pytest.raises(EngineGone, match="denied"):
                await anext(way.directories())
        assert door.counts == {"denied": 2}

    run(act, secret=b"a guess")


def test_the_directory_is_told_whenever_it_changes_and_ends_with_the_door() -> None:
    async def act(door: Door, way: Way) -> None:
        told = way.directories()
        assert await anext(told) == Directory([], has_keeper=False)
        await door.show(Directory(["w0"], has_keeper=True), {})
        while (seen := await anext(told)) == Directory([], has_keeper=False):
            pass
        assert seen == Directory(["w0"], has_keeper=True)
        await told.aclose()

    run(act)


def test_a_door_that_is_not_there_is_named() -> None:
    async def act(door: Door, way: Way) -> None:
        with pytest.raises(EngineGone, match="does not answer"):
            await anext(Way(HERE, 1, SECRET).directories())

    run(act)
