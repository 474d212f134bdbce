"""Every link, against sources in processes of their own: the right bytes or a reason, and nothing after the end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import uvloop
from tests.processes import until
from tests.wire.link_source import content

from jevons.base.errors import ConfigError, StoreError
from jevons.store.arena import Arena
from jevons.wire import line as lines
from jevons.wire import nixl_link, nixl_process, tcp_link
from jevons.wire.link import Link, LinkAddress, Range
from jevons.wire.nixl_link import NixlLink
from jevons.wire.tcp_link import TcpLink, TcpSource

SIZE = 40 << 20  # more than all slots of a NixlLink
PAGE = 368_640
WAIT_S = 20.0
SOON_S = 0.3  # of a read that is to fail
MARK = 0xA5

needs_nixl = pytest.mark.skipif(nixl_process.installed() is None, reason="NIXL is not installed: extra nixl")
ONLY_NIXL = [pytest.param("nixl", marks=needs_nixl)]
KINDS = ["tcp", *ONLY_NIXL]
CONTENT = content(SIZE)


class Peer:
    """A source in a process of its own, and what is read from it."""

    def __init__(self, kind: str, host: str = "127.0.0.1", **env: str) -> None:
        self.host = host
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("link_source.py")), kind, host, str(SIZE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,  # so that it can be stopped with what it started
        )
        assert self.process.stdout is not None
        self.address = msgspec.json.decode(self.process.stdout.readline(), type=LinkAddress)

    def link(self, arena: Arena, secret: bytes | None = None) -> NixlLink | TcpLink:
        address = msgspec.structs.replace(self.address, secret=secret or self.address.secret)
        return (NixlLink if address.kind == "nixl" else TcpLink)(address, self.host, arena)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> None:
        with self.process:
            self.signal(signal.SIGKILL)


class Local:
    """Our own arena, full of a mark."""

    def __init__(self) -> None:
        self.arena = Arena.create(SIZE)
        self.bytes = np.frombuffer(self.arena.memory, np.uint8)
        self.bytes[:] = MARK
        self.expected = self.bytes.copy()

    def expect(self, ranges: list[Range]) -> None:
        for remote, local, size in ranges:
            self.expected[local : local + size] = CONTENT[remote : remote + size]

    def is_as_expected(self) -> bool:
        return bool((self.bytes == self.expected).all())


@pytest.fixture(scope="module", params=KINDS)
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """One that nothing happens to."""
    peer = Peer(request.param)
    yield peer
    peer.end()


@pytest.fixture(scope="module", params=KINDS)
def stoppable(request: pytest.FixtureRequest) -> Iterator[Peer]:
    peer = Peer(request.param, UCX_TLS="tcp")
    yield peer
    peer.end()


@pytest.fixture
def victim(stoppable: Peer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """One to stop. NIXL over TCP, for over shared memory a stopped process can still be read."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    yield stoppable
    stoppable.signal(signal.SIGCONT)


@pytest.fixture
def local() -> Iterator[Local]:
    local = Local()
    yield local
    local.arena.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Within bounds, on the loop that serves."""
    uvloop.run(asyncio.wait_for(test(), WAIT_S))


def pages(count: int, first: int = 0) -> list[Range]:
    """Pages of the peer to our own pages of the same number, from another offset."""
    return [Range(n * PAGE + 13, n * PAGE, PAGE) for n in range(first, first + count)]


async def reason_of(read: Awaitable[None]) -> str:
    try:
        await read
    except StoreError as error:
        return error.reason
    return "none"


async def until_read(link: Link, ranges: list[Range]) -> None:
    """Try until it works: a source of NIXL may have to start anew, for the reader before has left in mid-read."""
    for _ in range(100):
        if await reason_of(link.read(ranges, WAIT_S)) == "none":
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never worked again")


async def until_so(is_so: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(until, is_so, WAIT_S, what)


def test_random_ranges_bring_their_bytes_and_touch_nothing_else(peer: Peer, local: Local) -> None:
    rng = random.Random(3)

    async def body() -> None:
        link = peer.link(local.arena)
        for most in (1, 100, 4_000, 60_000):
            places = rng.sample(range(0, SIZE - 60_000, 60_000), 150)
            sizes = [rng.randint(0, most) for _ in places]
            ranges = [
                Range(rng.randrange(SIZE - size), at, size) for at, size in zip(sorted(places), sizes, strict=True)
            ]
            await link.read(ranges, WAIT_S)
            local.expect(ranges)
            assert local.is_as_expected()
        await link.close()

    run(body)


def test_thousands_of_ranges_and_one_as_large_as_the_arena(peer: Peer, local: Local) -> None:
    async def body() -> None:
        link = peer.link(local.arena)
        many = [Range(SIZE - 9 * n - 8, 7 * n, 7) for n in range(2_500)]
        await link.read(many, WAIT_S)
        local.expect(many)
        assert local.is_as_expected()
        await link.read([], WAIT_S)
        await link.read([Range(0, 0, SIZE)], WAIT_S)
        assert (local.bytes == CONTENT).all()
        await link.close()

    run(body)


def test_many_reads_at_once(peer: Peer, local: Local) -> None:
    async def body() -> None:
        link = peer.link(local.arena)
        reads = [pages(2, first) for first in range(0, 80, 2)]
        await asyncio.gather(*(link.read(ranges, WAIT_S) for ranges in reads))
        for ranges in reads:
            local.expect(ranges)
        assert local.is_as_expected()
        await link.close()

    run(body)


def test_a_wrong_secret_is_denied(peer: Peer, local: Local) -> None:
    async def body() -> None:
        link = peer.link(local.arena, secret=b"x" * 32)
        assert await reason_of(link.read(pages(1), WAIT_S)) == "denied"
        await link.close()
        assert local.is_as_expected()

    run(body)


def test_ranges_outside_of_the_peers_arena_are_denied_and_others_go_on(peer: Peer, local: Local) -> None:
    async def body() -> None:
        link = peer.link(local.arena)
        for offset, size in ((SIZE - 1, 2), (SIZE, 1), (2**62, 1), (-1, 2)):
            assert await reason_of(link.read([Range(0, 0, 5), Range(offset, 5, size)], WAIT_S)) == "denied"
        assert local.bytes[5] == MARK
        await link.read(pages(2), WAIT_S)
        assert (local.bytes[: 2 * PAGE] == CONTENT[13 : 13 + 2 * PAGE]).all()
        await link.close()

    run(body)


def test_a_stopped_peer_costs_the_deadline_and_writes_nothing_when_it_goes_on(victim: Peer, local: Local) -> None:
    async def body() -> None:
        link, unconnected = victim.link(local.arena), victim.link(local.arena)
        await until_read(link, pages(1))
        local.expect(pages(1))
        victim.signal(signal.SIGSTOP)
        assert await reason_of(link.read(pages(50, first=1), SOON_S)) == "timeout"
        assert await reason_of(unconnected.read(pages(50, first=1), SOON_S)) == "timeout"
        await unconnected.close()
        local.expected[:] = local.bytes  # whatever came in time
        victim.signal(signal.SIGCONT)
        await until_read(link, pages(1, first=60))
        local.expect(pages(1, first=60))
        assert local.is_as_expected()
        await link.close()

    run(body)


def test_what_is_cancelled_in_mid_read_writes_nothing_afterwards(victim: Peer, local: Local) -> None:
    rng = random.Random(5)

    async def body() -> None:
        link = victim.link(local.arena)
        await until_read(link, pages(1, first=60))
        for _ in range(10):
            local.bytes[:] = MARK
            read = asyncio.create_task(link.read(pages(50), WAIT_S))
            await asyncio.sleep(rng.uniform(0, 0.02))
            read.cancel()
            await asyncio.wait({read})
            local.expected[:] = local.bytes
            await link.read(pages(1, first=60), WAIT_S)
            local.expect(pages(1, first=60))
            assert local.is_as_expected()
        await link.close()

    run(body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_peer_is_gone(kind: str, local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")
    peer = Peer(kind)

    async def body() -> None:
        link = peer.link(local.arena)
        await link.read(pages(1), WAIT_S)
        peer.signal(signal.SIGSTOP)
        read = asyncio.create_task(link.read(pages(50), WAIT_S))
        await asyncio.sleep(0.05)
        peer.process.kill()
        peer.signal(signal.SIGCONT)  # for what it started
        assert await reason_of(read) == "gone"
        assert await reason_of(link.read(pages(1), WAIT_S)) == "gone"
        await link.close()

    with peer.process:
        run(body)


def test_closing_a_link_ends_its_reads(victim: Peer, local: Local) -> None:
    async def body() -> None:
        link, unconnected = victim.link(local.arena), victim.link(local.arena)
        await until_read(link, pages(1))
        victim.signal(signal.SIGSTOP)
        reads = [asyncio.create_task(each.read(pages(50), WAIT_S)) for each in (link, unconnected)]
        await asyncio.sleep(0.05)
        await asyncio.gather(link.close(), unconnected.close())
        assert [await reason_of(read) for read in reads] == ["gone", "gone"]
        assert await reason_of(link.read(pages(1), WAIT_S)) == "gone"

    run(body)


def test_nothing_grows_over_links_opened_and_closed(peer: Peer, local: Local) -> None:
    def held() -> tuple[int, int, int]:
        theirs = len(os.listdir(f"/proc/{peer.process.pid}/fd"))
        return len(os.listdir("/proc/self/fd")), threading.active_count(), theirs

    async def cycle() -> None:
        link = peer.link(local.arena)
        await link.read(pages(1), WAIT_S)
        await link.close()

    async def body() -> None:
        await cycle()
        before = held()
        for _ in range(200 if peer.address.kind == "tcp" else 2):
            await cycle()
        until(lambda: held() <= before, WAIT_S, "nothing grew")

    run(body)


def test_ipv6(local: Local) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")

    async def body() -> None:
        for host in ("::1", "::"):
            source = await TcpSource.open(local.arena, host)
            other = Local()
            link = TcpLink(source.address, "::1", other.arena)
            await link.read([Range(0, 10, 100)], WAIT_S)
            await link.close()
            await source.close()
            other.arena.close()

    run(body)


def test_a_reader_that_does_not_read_is_dropped(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_link, "STALL_S", 0.1)
    monkeypatch.setattr(tcp_link, "SLOWEST_BYTES_PER_S", 1e12)

    async def body() -> None:
        source = await TcpSource.open(local.arena, "127.0.0.1")
        line = await lines.connect("127.0.0.1", source.address.port, source.address.secret)
        await line.send(b"\1\0\0\0" + bytes(8) + SIZE.to_bytes(8, "little"))
        await until_so(lambda: source.counts["timeout"] > 0, "it was dropped")
        with pytest.raises((EOFError, ConnectionError)):
            await line.receive(SIZE + 1)
        line.close()
        await source.close()

    run(body)


def test_who_asks_for_too_much_is_denied(local: Local) -> None:
    async def body() -> None:
        source = await TcpSource.open(local.arena, "127.0.0.1")
        whole = bytes(8) + SIZE.to_bytes(8, "little")
        for request in (b"\0\0\0\0", b"\1\4\0\0", b"\0\1\0\0" + 256 * whole):  # none; 1,025 of them; 10 GB
            line = await lines.connect("127.0.0.1", source.address.port, source.address.secret)
            await line.send(request)
            assert await line.receive(1) == bytes([lines.Answer.DENIED])
            line.close()
        assert source.counts["denied"] == 3
        await source.close()

    run(body)


def test_a_full_source_says_so_and_who_does_not_show_the_secret_is_shut_out(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PEERS", 1)
    monkeypatch.setattr(lines, "SECRET_S", 0.1)

    async def body() -> None:
        source = await TcpSource.open(local.arena, "127.0.0.1")
        links = [TcpLink(source.address, "127.0.0.1", local.arena) for _ in range(2)]
        await links[0].read([Range(0, 0, 5)], WAIT_S)
        assert await reason_of(links[1].read([Range(0, 0, 5)], WAIT_S)) == "full"
        stranger = socket.create_connection(("127.0.0.1", source.address.port))
        await until_so(lambda: source.counts["timeout"] > 0, "it was dropped")
        stranger.close()
        await links[0].close()
        await until_read(links[1], [Range(0, 0, 5)])
        await links[1].close()
        await source.close()

    run(body)


@pytest.mark.parametrize("stoppable", ONLY_NIXL, indirect=True)
def test_what_nixl_brings_too_late_lands_in_memory_of_the_links_own(victim: Peer, local: Local) -> None:
    async def body() -> None:
        link = victim.link(local.arena)
        assert isinstance(link, NixlLink)
        await until_read(link, pages(1))
        local.expect(pages(1))
        victim.signal(signal.SIGSTOP)
        assert await reason_of(link.read(pages(20, first=1), SOON_S)) == "timeout"
        victim.signal(signal.SIGCONT)
        await until_so(lambda: link.counts["late"] == 4, "every byte that was asked for came, 4 slots")
        assert local.is_as_expected()
        await link.close()

    run(body)


@pytest.mark.parametrize("stoppable", ONLY_NIXL, indirect=True)
def test_when_nothing_that_is_waited_for_ever_comes_the_link_starts_anew(
    victim: Peer, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nixl_link, "SLOTS", 2)

    async def body() -> None:
        link = victim.link(local.arena)
        await until_read(link, pages(1))
        victim.signal(signal.SIGSTOP)
        assert await reason_of(link.read(pages(50), SOON_S)) == "timeout"
        victim.signal(signal.SIGCONT)
        await until_read(link, pages(50))
        await link.close()

    run(body)


@needs_nixl
def test_a_source_whose_nixl_process_dies_starts_another(local: Local) -> None:
    async def body() -> None:
        source = await nixl_link.NixlSource.open(local.arena, "127.0.0.1")
        other = Local()
        link = NixlLink(source.address, "127.0.0.1", other.arena)
        await link.read(pages(1), WAIT_S)
        assert source._process is not None
        source._process._process.kill()
        await until_so(lambda: source.counts["restarted"] > 0, "it was started again")
        await until_read(link, pages(1))
        await link.close()
        await source.close()
        other.arena.close()

    run(body)


def test_without_nixl_it_is_said_what_to_install(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl_process, "PACKAGES", ())
    with pytest.raises(ConfigError, match=r"jevons\[nixl\]"):
        NixlLink(LinkAddress("nixl", 1, b""), "127.0.0.1", local.arena)
