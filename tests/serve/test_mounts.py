"""Pages of another room behind a real door."""

from __future__ import annotations

import asyncio

import msgspec

from jevons.base.errors import RequestError
from jevons.facts.page import Asked, Page
from jevons.serve.http import Door
from jevons.serve.mounts import Mounts
from jevons.serve.openai import refusal


def hello(asked: Asked) -> Page:
    return Page(200, "text/plain", f"{asked.method} {asked.query}".encode(), {"x-kept": "yes"})


async def later(asked: Asked) -> Page:
    await asyncio.sleep(0)
    return Page(201, asked.content_type, asked.body)


def refuses(asked: Asked) -> Page:
    raise RequestError("minutes: must be at most 10", "minutes", 422)


async def ask(*requests: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """One after another at one door: status, headers, body."""
    door = Door(Mounts({"/hello": hello, "/later": later, "/refuses": refuses}), refusal)
    await door.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    answers = []
    for request in requests:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        answers.append((int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))))
    writer.close()
    await writer.wait_closed()
    await door.close(0.0)
    return answers


def test_a_page_is_given_what_was_asked_and_its_headers_go_out() -> None:
    post = b"POST /later HTTP/1.1\r\ncontent-type: a/b\r\ncontent-length: 2\r\n\r\nhi"
    told, posted = asyncio.run(ask(b"GET /hello?seen=3 HTTP/1.1\r\n\r\n", post))

    assert (told[0], told[2], told[1]["x-kept"]) == (200, b"GET seen=3", "yes")
    assert (posted[0], posted[2], posted[1]["content-type"]) == (201, b"hi", "a/b")


def test_a_page_that_refuses_says_so_as_every_error_of_the_door() -> None:
    ((status, _, body),) = asyncio.run(ask(b"GET /refuses HTTP/1.1\r\n\r\n"))

    error = msgspec.json.decode(body)["error"]
    assert (status, error["param"]) == (422, "minutes")
    assert error["message"] == "minutes: must be at most 10"


def test_what_is_not_mounted_is_not_found_and_what_is_is_named() -> None:
    ((status, _, body),) = asyncio.run(ask(b"GET /ui/../etc/passwd HTTP/1.1\r\n\r\n"))

    assert status == 404
    assert "must be one of /hello, /later, /refuses" in msgspec.json.decode(body)["error"]["message"]
