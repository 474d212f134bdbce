"""Clients that ask in ways that HTTP allows and few use."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc

import msgspec
import pytest
from tests.serve.test_counts import raw
from tests.serve.test_http import LIMITS, Answer, Wire, answers, echo, get, post, talk
from tests.serve.test_relay import WHOLE, Engine, completion, run, whole

from jevons.serve.app import Server
from jevons.serve.http import Connection, Door, Reply, Request
from jevons.serve.openai import refusal

H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"  # Java's client
CHUNKED = f"POST /a HTTP/1.1\r\nhost: x\r\n{H2C}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode()
LAST = get("/last", close=True)


@pytest.mark.parametrize(
    "sent",
    [
        [post("/a", b"hello", H2C) + LAST],
        [post("/a", b"hello", H2C)[:-5], b"hel", b"lo" + LAST],
        [bytes([byte]) for byte in post("/a", b"hello", H2C)] + [LAST],
        [CHUNKED + LAST],
        [post("/a", b"hello", "expect: 100-continue\r\n" + H2C) + LAST],
    ],
)
def test_the_body_of_a_request_that_asks_for_http_2_is_read_and_the_connection_kept(sent: list[bytes]) -> None:
    found = [answer for answer in talk(*sent) if answer.status != 100]

    assert [json.loads(answer.body)["size"] for answer in found] == [5, 0]
    assert "connection" not in found[0].headers


def test_a_connection_whose_client_speaks_another_protocol_closes_and_says_so() -> None:
    [answer] = talk(b"GET /a HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nframes")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    [answer] = talk(b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\nbytes")
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_limits_hold_for_who_asks_for_an_upgrade() -> None:
    [answer] = talk(post("/a", b"x" * 1_001, H2C))
    assert answer.status == 413
    [answer] = talk(post("/a", b"hello", H2C)[:-1])
    assert answer.status == 408


def test_a_target_as_for_a_proxy_is_one_of_ours() -> None:
    [answer] = talk(get("http://somewhere:8000/a?b=c", close=True))
    assert json.loads(answer.body)["path"] == "/a"
    assert json.loads(answer.body)["query"] == "b=c"
    [answer] = talk(get("http://somewhere", close=True))
    assert json.loads(answer.body)["path"] == "/"


def test_a_body_in_a_coding_is_refused_by_name() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        zipped = gzip.compress(completion())
        answer = await raw(server, post("/v1/completions", zipped, "content-encoding: gzip\r\nconnection: close\r\n"))
        assert answer.status == 415
        assert "content-encoding: must be identity, got 'gzip'" in json.loads(answer.body)["error"]["message"]
        plain = post("/v1/completions", completion(), "content-encoding: identity\r\nconnection: close\r\n")
        assert (await raw(server, plain)).body == WHOLE

    run([whole], talk)


def test_a_path_says_which_methods_it_takes() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await raw(server, get("/v1/completions", close=True))
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        for path, allow in (("/v1/completions", "POST, OPTIONS"), ("/v1/models", "GET, HEAD, OPTIONS")):
            answer = await raw(server, get(path, close=True, method="OPTIONS"))
            assert (answer.status, answer.headers["allow"], answer.body) == (200, allow, b"")
        assert (await raw(server, get("/v1/files", close=True, method="OPTIONS"))).status == 404

    run([whole], talk)


def test_a_model_is_told_by_its_name() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await raw(server, get("/v1/models/st%75b", close=True))
        assert (answer.status, json.loads(answer.body)["id"]) == (200, "stub")
        answer = await raw(server, get("/v1/models/org/other", close=True))
        error = json.loads(answer.body)["error"]
        assert (answer.status, error["code"]) == (404, "model_not_found")
        assert error["message"] == "model: 'org/other' is not served here; there is stub"

    run([whole], talk)


def test_a_body_in_tiny_chunks_takes_little_more_than_its_bytes() -> None:
    async def main() -> None:
        connection = Connection(Door(takes, refusal))
        connection.connection_made(Wire([]))
        connection.data_received(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        tracemalloc.start()
        for _ in range(50):
            connection.data_received(b"2\r\nab\r\n" * 10_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        connection.data_received(b"0\r\n\r\n")
        connection.connection_lost(None)

        assert sizes == [1_000_000]
        assert peak_bytes < 4 * sizes[0]

    def takes(request: Request, reply: Reply) -> None:
        sizes.append(len(request.body))
        reply.send(200, b"")

    sizes: list[int] = []
    asyncio.run(main())


def test_more_clients_than_there_is_room_for_are_told_to_come_again() -> None:
    async def main() -> None:
        limits = msgspec.structs.replace(LIMITS, connections=2)
        door = Door(echo, refusal, limits, lambda path, status: told.append((path, status)))
        await door.listen("127.0.0.1", 0)
        two = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(2)]
        while len(door.connections) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        [full] = await once(door.port)
        assert (full.status, full.headers["connection"]) == (503, "close")
        for _, writer in two:
            writer.close()
        while door.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        [answer] = await once(door.port)
        assert answer.status == 200
        await door.close(0.1)

    async def once(port: int) -> list[Answer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/a", close=True))
        found = await answers(reader)
        writer.close()
        return found

    told: list[tuple[str, int]] = []
    asyncio.run(main())
    assert told == [("", 503)]


@pytest.mark.parametrize(("rate", "status"), [(50.0, 200), (400.0, 408)])
def test_a_body_that_keeps_coming_may_take_its_time(rate: float, status: int) -> None:
    async def main() -> list[Answer]:
        door = Door(echo, refusal, msgspec.structs.replace(LIMITS, body_bytes_per_s=rate))
        await door.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(post("/a", b"", "connection: close\r\n").replace(b"length: 0", b"length: 600"))
        pieces = 30 if status == 200 else 5
        for _ in range(pieces):  # 600 bytes in three times the seconds that a body has, or too few in one and a half
            writer.write(b"x" * 20)
            await asyncio.sleep(0.03 if status == 200 else 0.09)
        found = await answers(reader)
        writer.close()
        await door.close(0.1)
        return found

    [answer] = asyncio.run(main())
    assert answer.status == status
