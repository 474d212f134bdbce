"""The HTTP door: whatever bytes come, a well-formed answer or a closed connection, and the next client is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Coroutine
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.serve.heads import Heads
from jevons.serve.http import ClientGone, Connection, Door, Limits, Reply, Request
from jevons.serve.openai import refusal

LIMITS = Limits(head_bytes=2_000, body_bytes=1_000, head_s=0.3, body_s=0.3, idle_s=0.5, write_s=0.3, pipelined=4)


class Answer:
    """A response as an independent parser reads it; `complete` if it came whole."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.headers: dict[str, str] = {}
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = self.status != 100


async def echo(request: Request, reply: Reply) -> None:
    """Answers what it was asked; paths choose how."""
    match request.path:
        case "/stream":
            reply.start(200, b"text/plain")
            for part in (b"one ", b"", b"two ", b"three"):
                reply.write(part)
                await reply.drain()
            reply.end()
        case "/slow":
            await asyncio.sleep(0.1)
            reply.send(200, b"slow")
        case "/bug":
            raise ZeroDivisionError
        case "/flood":
            reply.start(200, b"text/plain")
            while True:
                reply.write(b"x" * 65_536)
                await reply.drain()
        case _:
            said = {"method": request.method, "path": request.path, "query": request.query, "size": len(request.body)}
            reply.send(200, json.dumps(said).encode())


async def answers(reader: asyncio.StreamReader, timeout_s: float = 3.0) -> list[Answer]:
    """All that comes until the connection closes; raises unless every byte is part of a valid response."""
    found = [Answer()]
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(timeout_s):
            while data := await reader.read(65_536):
                for start in _split(data):
                    if found[-1].complete:
                        found.append(Answer())
                    found[-1].parser.feed_data(start)
    return [a for a in found if a.status]


def _split(data: bytes) -> list[bytes]:
    """Cut before each status line, for the parser takes one response at a time."""
    parts = data.split(b"HTTP/1.1 ")
    return [p for p in [parts[0], *(b"HTTP/1.1 " + p for p in parts[1:])] if p]


def talk(
    *pieces: bytes, handler: Callable[[Request, Reply], Coroutine[Any, Any, None] | None] = echo, eof: bool = False
) -> list[Answer]:
    """Send pieces to a fresh door, one write each, and read until it closes."""

    async def run() -> list[Answer]:
        door = Door(handler, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        try:
            found = await _exchange(door.port, pieces, eof)
            assert (await _exchange(door.port, [get("/ok", close=True)], False))[0].status == 200
            return found
        finally:
            await door.close(0.2)

    return asyncio.run(run())


async def _exchange(port: int, pieces: Any, eof: bool) -> list[Answer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if eof:
                writer.write_eof()
        return await answers(reader)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def get(path: str, close: bool = False, method: str = "GET") -> bytes:
    last = "connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{last}\r\n".encode()


def post(path: str, body: bytes, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def test_a_request_split_at_every_byte_is_read_whole() -> None:
    [answer] = talk(*(bytes([b]) for b in post("/a?b=c", b"hello", "connection: close\r\n")))

    assert json.loads(answer.body) == {"method": "POST", "path": "/a", "query": "b=c", "size": 5}


def test_requests_sent_ahead_are_answered_in_order() -> None:
    found = talk(get("/slow") + get("/b") + get("/stream") + get("/c", close=True))

    assert [a.body[:4] for a in found] == [b"slow", b'{"me', b"one ", b'{"me']
    assert all(a.complete for a in found)


def test_too_many_requests_sent_ahead_are_refused() -> None:
    assert len(talk(get("/slow") + get("/b") * 20)) == 0  # cut: there is no place for an error in mid-answer


def test_a_stream_is_chunked_for_1_1_and_ends_with_the_connection_for_1_0() -> None:
    [chunked] = talk(get("/stream", close=True))
    [plain] = talk(b"GET /stream HTTP/1.0\r\n\r\n")

    assert (chunked.body, chunked.complete) == (b"one two three", True)
    assert plain.body == b"one two three"
    assert "transfer-encoding" not in plain.headers


def test_a_client_of_1_0_is_told_that_its_connection_is_kept() -> None:
    kept = b"GET /ok HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
    found = talk(kept, kept, b"GET /ok HTTP/1.0\r\n\r\n")

    assert [a.headers.get("connection") for a in found] == ["keep-alive", "keep-alive", "close"]


def test_a_chunked_body_is_read() -> None:
    [answer] = talk(
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    )
    assert json.loads(answer.body)["size"] == 5


def test_trailers_are_passed_over() -> None:
    seen: list[str | None] = []

    async def note(request: Request, reply: Reply) -> None:
        seen.append(request.headers.get("x-priority"))
        reply.send(200, b"%d" % len(request.body))

    head = b"POST / HTTP/1.1\r\nx-priority: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    trailers = b"x-priority: 2\r\nx-checksum: %b\r\n" % (b"0" * 1_200)
    found = talk(head + b"384\r\n" + b"x" * 900 + b"\r\n0\r\n" + trailers + b"\r\n", handler=note)

    assert [(a.status, a.body) for a in found] == [(200, b"900")]
    assert seen[0] == "1"


def test_head_gets_the_head_alone() -> None:
    async def run() -> bytes:
        door = Door(echo, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get("/", close=True, method="HEAD"))
        raw = await reader.read()
        writer.close()
        await door.close(0.1)
        return raw

    raw = asyncio.run(run())
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert raw.endswith(b"\r\n\r\n")


def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    async def run() -> tuple[bytes, list[Answer]]:
        door = Door(echo, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        head, body = post("/", b"hello", "expect: 100-continue\r\nconnection: close\r\n").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        interim = await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        found = await answers(reader)
        writer.close()
        await door.close(0.1)
        return interim, found

    interim, [answer] = asyncio.run(run())
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert json.loads(answer.body)["size"] == 5


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (b"GARBAGE\r\n\r\n", 400, "not valid HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "not valid HTTP"),  # somebody speaks TLS
        (b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 3_000 + b"\r\n\r\n", 431, "at most 2000 bytes"),
        (b"GET /" + b"x" * 3_000 + b" HTTP/1.1\r\n\r\n", 431, "at most 2000 bytes"),
        (post("/", b"x" * 1_001), 413, "at most 1000 bytes, 1001 bytes declared"),
        (
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5dc\r\n" + b"x" * 1_500,
            413,
            "more than 1000 bytes sent",
        ),
        (b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n", 400, "not valid HTTP"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", 408, "head: must arrive within 0.3 s"),
        (b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc", 408, "body: must arrive within 0.3 s"),
    ],
)
def test_every_limit_has_a_clear_answer(raw: bytes, status: int, says: str) -> None:
    [answer] = talk(raw)

    assert answer.status == status
    assert says in json.loads(answer.body)["error"]["message"]
    assert answer.headers["connection"] == "close"


def test_a_wish_to_upgrade_is_passed_over() -> None:
    [answer] = talk(b"GET /a HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nframes")

    assert json.loads(answer.body)["path"] == "/a"


def test_a_bug_in_the_handler_costs_one_request(caplog: pytest.LogCaptureFixture) -> None:
    found = talk(get("/bug") + get("/ok", close=True))

    assert [a.status for a in found] == [500, 200]
    assert "ZeroDivisionError" in caplog.text


def test_an_idle_connection_is_closed_without_a_word() -> None:
    assert talk(b"") == []


def test_a_client_that_takes_nothing_is_given_up() -> None:
    gone: list[str] = []

    async def flood(request: Request, reply: Reply) -> None:
        if request.path != "/flood":
            await echo(request, reply)
            return
        try:
            await echo(request, reply)
        except ClientGone:
            gone.append("gone")
            raise

    async def run() -> None:
        door = Door(flood, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get("/flood"))
        async with asyncio.timeout(10):
            while not gone:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.close()
        await door.close(0.1)

    asyncio.run(run())


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("path", ["/whole", "/stream"])
def test_a_client_that_takes_nothing_of_a_finished_answer_is_given_up(path: str, close: bool) -> None:
    async def large(request: Request, reply: Reply) -> None:
        if path == "/whole":
            reply.send(200, b"x" * (32 << 20))
        else:
            reply.start(200, b"text/plain", first=b"x" * (32 << 20))
            reply.end()
        answered.set()

    async def run() -> None:
        door = Door(large, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1_000)
        writer.write(get(path, close))
        await answered.wait()
        async with asyncio.timeout(10):
            while door.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.close()
        await door.close(0.1)

    answered = asyncio.Event()
    asyncio.run(run())


class Wire(asyncio.Transport):
    """A connection whose client takes what it was sent bit by bit, then nothing more."""

    def __init__(self, unsent: list[int]) -> None:
        super().__init__()
        self.unsent = unsent
        self.written: list[bytes] = []
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.unsent.pop(0)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted.set()


def test_a_client_that_takes_its_answer_slowly_is_not_given_up_before_it_stops() -> None:
    async def run() -> list[int]:
        connection = Connection(Door(echo, refusal, Limits(write_s=0.001)))
        connection.connection_made(wire := Wire([5, 4, 3, 3, 9]))
        connection.pause_writing()
        await asyncio.wait_for(wire.aborted.wait(), 10)
        connection.connection_lost(None)
        return wire.unsent

    assert asyncio.run(run()) == [9]


def test_what_was_sent_ahead_waits_while_the_client_takes_nothing() -> None:
    async def run() -> None:
        connection = Connection(Door(lambda _, reply: reply.send(200, b"here"), refusal))
        connection.connection_made(wire := Wire([9]))
        connection.pause_writing()
        connection.data_received(get("/a") + get("/b"))
        assert wire.written == []
        connection.resume_writing()
        assert len(wire.written) == 2
        connection.connection_lost(None)

    asyncio.run(run())


def test_a_client_that_leaves_cancels_its_handler_at_once() -> None:
    cancelled: list[float] = []

    async def wait(request: Request, reply: Reply) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.append(asyncio.get_running_loop().time())

    async def run() -> float:
        door = Door(wait, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get("/"))
        await asyncio.sleep(0.05)
        left = asyncio.get_running_loop().time()
        writer.close()
        async with asyncio.timeout(2):
            while not cancelled:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await door.close(0.1)
        return cancelled[0] - left

    assert asyncio.run(run()) < 0.1


def test_closing_the_door_lets_running_answers_end() -> None:
    async def run() -> list[Answer]:
        door = Door(echo, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get("/slow"))
        await asyncio.sleep(0.02)
        _, found = await asyncio.gather(door.close(2.0), answers(reader))
        writer.close()
        return found

    [answer] = asyncio.run(run())
    assert (answer.status, answer.body) == (200, b"slow")


SEEDS = [
    get("/"),
    get("/stream"),
    post("/x", b'{"a": 1}'),
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
]
NASTY = [
    b"\r\n",
    b"\x00",
    b"\xff\xfe",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: x\r\n",
    b": \r\n",
]


@st.composite
def mangled(draw: st.DrawFn) -> list[bytes]:
    """A valid exchange with bytes changed, dropped, doubled or put in, cut into pieces anywhere."""
    raw = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3))))
    chance = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(raw) + 1)
        match chance.randrange(4):
            case 0:
                raw[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del raw[at : at + chance.randrange(1, 20)]
            case 2:
                raw[at:at] = chance.choice(NASTY)
            case 3:
                raw[at:at] = raw[max(0, at - 30) : at]
        raw = raw or bytearray(b"\n")
    cuts = sorted(chance.randrange(len(raw) + 1) for _ in range(chance.randrange(4)))
    return [bytes(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@settings(max_examples=150)
@given(mangled() | st.lists(st.binary(max_size=300), max_size=3))
def test_no_bytes_end_the_door_or_get_a_malformed_answer(pieces: list[bytes]) -> None:
    for answer in talk(*pieces, eof=True):
        assert 200 <= answer.status < 600
        if answer.status >= 400:
            assert json.loads(answer.body)["error"]["message"]


def test_a_head_that_was_read_before_means_the_same_again() -> None:
    def shape(answer: Answer) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(answer.body)
        return said

    async def run() -> list[Answer]:
        door = Door(echo, refusal, LIMITS)
        await door.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        found = []
        for body in (b"first", b"other", b"\r\n\r\nx", b"longer one", get("/x")[:5]):
            writer.write(post("/a?b", body))
            await asyncio.sleep(0.02)
        writer.write(post("/a?b", b"third") + post("/c", b""))  # more than one request at once
        await asyncio.sleep(0.02)
        writer.write(post("/a?b", b"in two pieces")[:-3])
        await asyncio.sleep(0.02)
        writer.write(b"ces" + get("/end", close=True))
        found = await answers(reader)
        writer.close()
        await door.close(0.1)
        return found

    found = asyncio.run(run())
    assert [shape(a)["size"] for a in found] == [5, 5, 5, 10, 5, 5, 0, 13, 0]
    assert [shape(a)["path"] for a in found] == ["/a"] * 6 + ["/c", "/a", "/end"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\nPOST /a HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",  # empty lines before it are passed over
        b"POST /a HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\ncontent-length: 5\r\nx: " + b"y" * 5_000 + b"\r\n\r\nhello",
        b"POST /a HTTP/1.0\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /a HTTP/1.1\ncontent-length: 9\n\nab\r\n\r\nxyz",  # it does not end where it seems to
    ],
)
def test_only_plain_heads_are_remembered(raw: bytes) -> None:
    request = Request()
    request.headers = {"content-length": "5"}
    if b"HTTP/1.0" in raw:
        request.version = "1.0"
    for name in (b"expect", b"connection", b"transfer-encoding"):
        if name in raw:
            request.headers = {name.decode(): "chunked" if name[:1] == b"t" else "close"}
    heads = Heads()
    heads.keep(raw, request)

    assert heads.request(raw) is None


def test_an_answer_from_callbacks_comes_whole_and_the_next_request_after_it() -> None:
    class Later:
        def __init__(self, reply: Reply) -> None:
            reply.answerer = self
            asyncio.get_running_loop().call_later(0.02, reply.start, 200, b"text/plain", b"", b"one ")
            asyncio.get_running_loop().call_later(0.04, reply.end, b"two")

        def on_client_gone(self) -> None: ...
        def on_stop(self) -> None: ...
        def on_full(self) -> None: ...
        def on_room(self) -> None: ...

    def handler(request: Request, reply: Reply) -> Coroutine[Any, Any, None] | None:
        if request.path == "/later":
            Later(reply)
        elif request.path == "/now":
            reply.send(200, b"now")
        else:
            return echo(request, reply)
        return None

    found = talk(get("/later") + get("/now") + get("/bug") + get("/now", close=True), handler=handler)

    assert [a.body[:7] for a in found] == [b"one two", b"now", b'{"error', b"now"]
    assert all(a.complete for a in found)


def test_a_handler_that_forgets_to_answer_costs_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: Request, reply: Reply) -> Coroutine[Any, Any, None] | None:
        return echo(request, reply) if request.path == "/ok" else None

    assert talk(get("/"), handler=handler) == []
    assert "unfinished" in caplog.text
