"""The HTTP client for engines: connections that are kept, and closed by the other side."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import EngineGone
from jevons.engine.http_client import HttpClient, parse_url
from jevons.engine.http_exchange import Connection, Exchange, Head

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_a_kept_connection_that_is_closed_when_it_is_used_again_is_told_and_its_request_sent_once_more() -> None:
    """As by a server that restarts: to who asked nothing shows."""
    told: list[str] = []
    served: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        async for line in reader:
            if line == b"\r\n":
                told.append("asked")
                if len(told) == 2:
                    break  # it ends with the request unanswered
                writer.write(ANSWER)
        writer.close()
        await writer.wait_closed()

    async def ask(client: HttpClient) -> bytes:
        async with client.request("GET", "/") as response:
            return await response.body()

    async def run() -> list[bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(parse_url("test", f"http://127.0.0.1:{port}"), lambda: told.append("lost"))
        async with asyncio.timeout(10), server:
            answers = [await ask(client), await ask(client)]
            client.close()
            await asyncio.gather(*(task for task in served if task is not None), return_exceptions=True)
        return answers

    assert asyncio.run(run()) == [b"ok", b"ok"]
    assert told == ["asked", "asked", "lost", "asked"]


def test_a_request_that_ends_each_connection_is_sent_twice_however_many_are_kept() -> None:
    asked = 0
    served: list[asyncio.Task[None] | None] = []
    all_asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        served.append(asyncio.current_task())
        async for line in reader:
            if line == b"\r\n":
                asked += 1
                if asked > 3:
                    break
                if asked == 3:
                    all_asked.set()
                await all_asked.wait()
                writer.write(ANSWER)
        writer.close()
        await writer.wait_closed()

    async def ask(client: HttpClient) -> bytes:
        async with client.request("GET", "/") as response:
            return await response.body()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = HttpClient(parse_url("test", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        async with asyncio.timeout(10), server:
            await asyncio.gather(*(ask(client) for _ in range(3)))
            with pytest.raises(EngineGone):
                await ask(client)
            client.close()
            await asyncio.gather(*(task for task in served if task is not None), return_exceptions=True)

    asyncio.run(run())
    assert asked == 3 + 2


@pytest.mark.parametrize(
    ("lines", "exc", "is_whole"),
    [
        (b"", None, True),
        (b"", ConnectionResetError(), False),
        (b"transfer-encoding: chunked\r\n", None, False),
        (b"Transfer-Encoding: Chunked\r\n", None, False),
        (b"content-length: 100\r\n", None, False),
    ],
)
def test_a_body_is_whole_at_the_connections_end_if_nothing_else_tells_its_end(
    lines: bytes, exc: Exception | None, is_whole: bool
) -> None:
    connection, taker = begun()
    connection.data_received(b"HTTP/1.1 200 OK\r\n%b\r\n5\r\nhello\r\n" % lines)
    connection.connection_lost(exc)

    assert [error is None for error in taker.over] == [is_whole]


class Taken:
    """Takes a response, and keeps it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.over: list[EngineGone | None] = []

    def on_head(self, head: Head) -> None: ...
    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_end(self) -> None:
        self.over.append(None)

    def on_lost(self, error: EngineGone) -> None:
        self.over.append(error)


class Wire:
    """A transport that takes everything."""

    def get_extra_info(self, name: str) -> None: ...
    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool:
        return False


def begun() -> tuple[Connection, Taken]:
    """A connection on which something was asked, and who takes the answer."""
    connection, taker = Connection(HttpClient(parse_url("test", "http://127.0.0.1:1"))), Taken()
    wire: Any = Wire()
    connection.connection_made(wire)
    connection.begin(Exchange(b"", taker), kept=False)
    return connection, taker


def taken(reads: list[bytes]) -> Taken:
    """What a taker is told by these reads of a chunked response, whose head has come."""
    connection, taker = begun()
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for read in reads:
        connection.data_received(read)
    return taker


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


BODIES = st.lists(
    st.sampled_from([b"data: 1\n\n", b"\r\n", b"5\r\nhello\r\n", b"1", b"x" * 300]), min_size=1, max_size=9
)


@given(BODIES, st.lists(st.integers(0, 700)))
def test_a_body_in_chunks_is_the_same_however_it_is_read(bodies: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(map(chunk, bodies)) + b"0\r\n\r\n"
    ends = sorted({*(cut for cut in cuts if cut < len(whole)), len(whole)})
    reads = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]

    found = taken(reads)

    assert (b"".join(found.pieces), found.over) == (b"".join(bodies), [None])


@given(BODIES)
def test_chunks_that_come_one_by_one_are_told_one_by_one(bodies: list[bytes]) -> None:
    found = taken([*map(chunk, bodies), b"0\r\n\r\n"])

    assert (found.pieces, found.over) == (bodies, [None])
