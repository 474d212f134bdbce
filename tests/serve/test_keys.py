"""Engines that want an API key, or answer what they should not."""

from __future__ import annotations

import asyncio
import logging
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.serve.test_relay import WHOLE, Engine, complete, until, whole

from jevons.base.errors import ConfigError
from jevons.config import Settings
from jevons.engine.specs import parse_spec
from jevons.serve.app import Server, serving
from jevons.serve.http import Door, Reply, Request
from jevons.serve.openai import refusal


class Guarded(Engine):
    """It answers who has the key; its health is told to all, as vLLM does."""

    async def _handle(self, request: Request, reply: Reply) -> None:
        if request.path != "/health" and request.headers.get("authorization") != "Bearer sk-1":
            reply.send(401, b'{"error":"Unauthorized"}')
        else:
            await super()._handle(request, reply)


@asynccontextmanager
async def server_of(engine: Engine, option: str, **more: Any) -> AsyncIterator[Server]:
    await engine.door.listen("127.0.0.1", 0)
    engines = [f"http://127.0.0.1:{engine.door.port}{option}"]
    settings = Settings(port=0, workers=0, engines=engines, drain_s=1.0, **more)
    try:
        async with asyncio.timeout(60), serving(settings, None) as server:
            yield server
    finally:
        await engine.door.close(0.0)


def test_an_engines_key_goes_with_every_request(tmp_path: Path) -> None:
    async def main() -> None:
        engine = Guarded(whole)
        async with server_of(engine, f",key-file={tmp_path / 'key'}") as server:
            await server.ready(30.0)

            async def is_served() -> bool:
                return bool(server.front.prompts.models())

            await until(is_served)
            assert (await complete(server)).body == WHOLE
            assert engine.asked[0].headers["authorization"] == "Bearer sk-1"

    (tmp_path / "key").write_text("sk-1\n")
    asyncio.run(main())


def hears(caplog: pytest.LogCaptureFixture, says: str) -> Callable[[], int]:
    return lambda: sum(says in record.getMessage() for record in caplog.records)


def test_why_an_engine_is_not_attached_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        engine = Guarded(whole)
        async with server_of(engine, "") as server:

            async def is_said() -> bool:
                return told() > 0

            await until(is_said)
            await asyncio.sleep(1.0)  # it is asked again meanwhile
            assert not server.fleet.is_ready

    told = hears(caplog, "/v1/models answered 401; name the file of its API key, ,key-file=FILE; it gets no work")
    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert told() == 1


def test_an_engine_that_nobody_reaches_is_named_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        engine = Engine(whole)
        async with server_of(engine, "") as server:
            await server.ready(30.0)
            port = engine.door.port
            await engine.door.close(0.0)
            await until(is_said("it gets no work until it is there"))
            engine.door = Door(engine._handle, refusal)
            await engine.door.listen("127.0.0.1", port)
            await until(is_said(f"engine http://127.0.0.1:{port}: is there"))

    def is_said(what: str) -> Callable[[], Awaitable[bool]]:
        told = hears(caplog, what)

        async def once() -> bool:
            return told() == 1

        return once

    with caplog.at_level(logging.INFO):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), ("", "must be a key"), ("\nsk", "must be a key"), ("s\x00k", "must be a key")],
)
def test_a_file_that_holds_no_key_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=says):
        parse_spec(f"http://a:1,key-file={file}")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_address_with_colons_makes_a_url() -> None:
    async def main() -> None:
        async with server_of(Engine(whole), "", host="::1") as server:
            await server.ready(30.0)
            with await asyncio.to_thread(urllib.request.urlopen, server.url + "/health", timeout=10) as page:
                assert page.status == 200

    asyncio.run(main())
