"""Engines behind one name: attached and let go as its addresses change, by a server in process."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.serve.envoy import MODEL, Engine

from jevons.base.errors import ConfigError
from jevons.base.ids import WorkerId
from jevons.config import make
from jevons.engine.openai import OpenAIEngine
from jevons.engine.specs import parse_spec
from jevons.serve import picker, pool
from jevons.serve.app import Server, serving
from jevons.serve.extproc import SERVICE, ProcessingRequest, ProcessingResponse
from jevons.serve.gateway import Gateway, parse_listen
from jevons.serve.http import Limits
from jevons.serve.pool import at_address, look_up

WAIT_S = 30.0


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 — a few polls
            await asyncio.sleep(0.02)


class Names:
    """What the name resolves to."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] | None = list(addresses)

    async def look_up(self, host: str, port: int) -> list[pool.IP]:
        if host != "pods.test":
            return [ipaddress.ip_address(host)]
        if self.addresses is None:
            raise OSError(2, "no such name")
        return [ipaddress.ip_address(address) for address in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names("127.0.0.1")
    for module in (pool, picker):
        monkeypatch.setattr(module, "look_up", names.look_up)
    monkeypatch.setattr(pool, "RESOLVE_S", 0.05)
    return names


async def complete(server: Server) -> str:
    """The name of the engine that answered."""
    engine = OpenAIEngine(parse_spec(server.url))
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 1}).encode()
    answer = await engine.whole("/v1/completions", body)
    engine.close()
    assert answer.status == 200, answer.body
    return str(json.loads(answer.body)["choices"][0]["text"])


def test_pods_come_and_go_with_the_addresses_of_their_name(names: Names) -> None:
    one = Engine("one")
    two = Engine("two", one.port, "127.0.0.2")

    async def go() -> None:
        settings = make({"engines": [f"http://pods.test:{one.port},addresses=each"], "port": 0}, "test")
        async with serving(settings, None) as server:
            up: Any = server.router.roster.up
            await until(lambda: up() == [one.endpoint])
            assert await complete(server) == "one"

            names.addresses = ["127.0.0.1", "127.0.0.2"]
            await until(lambda: sorted(up()) == sorted([one.endpoint, two.endpoint]))

            names.addresses = None  # whoever knows the names is away: nothing changes
            await asyncio.sleep(0.2)
            assert len(up()) == 2

            names.addresses = ["127.0.0.2"]  # it still answers what it was asked, and is asked nothing more
            await until(lambda: server.router.is_saturated(WorkerId(one.endpoint)))
            assert len(up()) == 2
            assert {await complete(server) for _ in range(6)} == {"two"}
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            await until(lambda: not server.router.is_saturated(WorkerId(one.endpoint)))
            names.addresses = ["127.0.0.2"]
            await until(lambda: server.router.is_saturated(WorkerId(one.endpoint)))
            await asyncio.to_thread(one.kill)
            await until(lambda: server.router.workers() == [two.endpoint])
            assert list(server.fleet.attached) == [two.endpoint]
            assert await complete(server) == "two"

            names.addresses = ["127.0.0.1", "127.0.0.2"]
            await asyncio.to_thread(one.begin)
            await until(lambda: len(up()) == 2)

    try:
        asyncio.run(go())
    finally:
        one.kill()
        two.kill()


def test_nobody_waits_for_a_pod_that_joins_those_that_serve(names: Names) -> None:
    one = Engine("one")
    silent = socket.socket()  # takes connections and says nothing
    silent.bind(("127.0.0.2", one.port))
    silent.listen()

    async def go() -> None:
        settings = make({"engines": [f"http://pods.test:{one.port},addresses=each"], "port": 0}, "test")
        async with serving(settings, None) as server:
            await server.ready(WAIT_S)
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            await until(lambda: len(server.fleet.attached) == 2)
            assert server.fleet.is_ready
            assert server.fleet.is_met
            assert await complete(server) == "one"

            await asyncio.to_thread(one.kill)
            await until(lambda: not server.router.roster.has_up)
            joined = server.fleet.add_attached(parse_spec(f"http://127.0.0.3:{one.port}"))
            assert not server.fleet.is_met  # where nobody serves it is waited for
            server.fleet.remove_attached(joined.id)
            assert server.fleet.is_met  # nor for who is gone before it was met

    try:
        asyncio.run(go())
    finally:
        silent.close()
        one.kill()


def test_a_gateway_is_sent_to_new_pods_as_soon_as_they_are_up_where_all_were_replaced(names: Names) -> None:
    one = Engine("one")
    two = Engine("two", one.port, "127.0.0.2")

    async def picked(port: int) -> tuple[int, str]:
        """The status of an answer at once, or 0; the endpoint."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.stream_stream(f"/{SERVICE}/Process")(timeout=WAIT_S)
            await call.write(ProcessingRequest(request_headers={"end_of_stream": True}).SerializeToString())
            answer = ProcessingResponse.FromString(await call.read())
            await call.done_writing()
        sent = {o.header.key: o.header.raw_value for o in answer.request_headers.response.headers.set_headers}
        return answer.immediate.status.code, sent.get(b"x-gateway-destination-endpoint", b"").decode()

    async def go() -> None:
        settings = make({"engines": [f"http://pods.test:{one.port},addresses=each"], "port": 0}, "test")
        async with serving(settings, None) as server:
            gateway = Gateway(server.front, Limits(), 10.0)
            await gateway.listen(parse_listen("127.0.0.1:0"))
            await server.ready(WAIT_S)
            assert await picked(gateway.port) == (0, one.endpoint)
            await asyncio.to_thread(one.kill)
            names.addresses = []
            await until(lambda: not server.router.workers())
            assert await picked(gateway.port) == (503, "")
            names.addresses = ["127.0.0.2"]
            await until(lambda: server.router.roster.up() == [two.endpoint])
            assert await picked(gateway.port) == (0, two.endpoint)
            await gateway.close(0)

    try:
        asyncio.run(go())
    finally:
        one.kill()
        two.kill()


def test_a_pod_that_owes_an_answer_is_kept(names: Names) -> None:
    one = Engine("one")

    async def go() -> None:
        settings = make({"engines": [f"http://pods.test:{one.port},addresses=each"], "port": 0}, "test")
        async with serving(settings, None) as server:
            await server.ready(WAIT_S)
            one.hold()
            body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 3, "stream": True}).encode()
            engine = OpenAIEngine(parse_spec(server.url))
            events = engine.stream("/v1/completions", body)
            assert await anext(events)
            names.addresses = []
            server.router.roster.gone(server.router.workers()[0])
            await asyncio.sleep(0.2)
            assert list(server.fleet.attached) == [one.endpoint]
            one.release()
            rest = [event async for event in events]
            assert getattr(rest[-1], "is_done", False)
            engine.close()

    try:
        asyncio.run(go())
    finally:
        one.kill()


def test_a_pod_with_an_address_of_each_kind_is_one_engine(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    one = Engine("one")
    names.addresses = ["127.0.0.1", "::1"]

    async def go() -> None:
        settings = make({"engines": [f"http://pods.test:{one.port},addresses=each"], "port": 0}, "test")
        async with serving(settings, None) as server:
            await server.ready(WAIT_S)
            names.addresses = ["127.0.0.1", "127.0.0.2", "::1"]
            await until(lambda: len(server.fleet.attached) > 1)
            assert list(server.fleet.attached) == [f"127.0.0.{n}:{one.port}" for n in (1, 2)]

    try:
        asyncio.run(go())
    finally:
        one.kill()
    assert len([r for r in caplog.records if "IPv6 addresses beside" in r.message]) == 1  # said once


def test_endpoints_of_events_at_the_name_are_at_each_address() -> None:
    spec = parse_spec("http://pods.test:8000,kv=tcp://pods.test:5557,replay=tcp://other:5558,addresses=each")
    four, six = (at_address(spec, ipaddress.ip_address(text)) for text in ("10.0.0.1", "fd00::1"))

    assert (four.url, four.events, four.replays) == ("http://10.0.0.1:8000", "tcp://10.0.0.1:5557", "tcp://other:5558")
    assert (six.url, six.events) == ("http://[fd00::1]:8000", "tcp://[fd00::1]:5557")
    assert six.address.host == "fd00::1"


def test_what_addresses_may_be_is_told() -> None:
    with pytest.raises(ConfigError, match="addresses= must be each, got 'all'"):
        parse_spec("http://a:1,addresses=all")


def test_a_real_name_is_looked_up() -> None:
    assert [str(ip) for ip in asyncio.run(look_up("localhost", 80)) if ip.version == 4] == ["127.0.0.1"]
