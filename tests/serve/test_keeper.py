"""The keeper's bookkeeping, without its socket."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest

from jevons.base.errors import ConfigError
from jevons.base.ids import BlockHash
from jevons.control.copies import Change
from jevons.facts.block import BlockKey, BlockMeta, Tier
from jevons.kv.layout import checksum
from jevons.kv.tiers import Holdings
from jevons.serve.keeper import KNOCK_S, MOST_WAITING_BYTES, TOLD_BLOCKS, Keeper, opened, run
from jevons.serve.lower import Load, Read
from jevons.store.arena import Arena
from jevons.store.disk import DiskStore
from jevons.wire import keeper as wire
from jevons.wire.channel import Failed, KeeperConfig, Ready
from jevons.wire.tcp_link import TcpSource

PAGE_BYTES = 4096
FINGERPRINT = b"f" * 16
NAMES = wire.pack([bytes([i]) * 16 for i in range(4)])
KEYS = {BlockKey(FINGERPRINT, name) for name in wire.unpack(NAMES)}


class _Client:
    """What the keeper sends to one engine."""

    def __init__(self) -> None:
        self.sent: list[msgspec.Struct] = []
        self.backlog_bytes = 0
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def send(self, message: msgspec.Struct) -> None:
        self.sent.append(message)


def test_what_nobody_fills_is_not_remembered() -> None:
    async def reserve_twice() -> int:
        config = KeeperConfig(socket="", dram_bytes=16 * PAGE_BYTES)
        keeper, client = Keeper(config, Arena.create(config.dram_bytes), None, None), _Client()
        keeper._enter(client)  # type: ignore[arg-type]

        def say(message: wire.ToKeeper) -> None:
            keeper._on_message(client, message)  # type: ignore[arg-type]

        say(wire.Attach("engine", FINGERPRINT, PAGE_BYTES))
        say(wire.Reserve(1, FINGERPRINT, NAMES, PAGE_BYTES, [0] * 4, b"", 1.0))
        say(wire.Filled(1, [(i, 7) for i in range(4)]))
        say(wire.Reserve(2, FINGERPRINT, NAMES, PAGE_BYTES, [0] * 4, b"", 1.0))  # all are held: no place is given
        assert client.sent[-1] == wire.Places(2, [-1] * 4)
        return keeper._state().leases

    assert asyncio.run(reserve_twice()) == 0


def test_a_watcher_that_takes_nothing_is_let_go_and_the_others_go_on_hearing() -> None:
    async def watched() -> tuple[_Client, _Client, dict[str, int]]:
        config = KeeperConfig(socket="", dram_bytes=16 * PAGE_BYTES)
        keeper, hears, hangs = Keeper(config, Arena.create(config.dram_bytes), None, None), _Client(), _Client()
        for client in (hears, hangs):
            keeper._enter(client)  # type: ignore[arg-type]
            keeper._on_message(client, wire.Watch())  # type: ignore[arg-type]
        hangs.backlog_bytes = MOST_WAITING_BYTES + 1
        keeper._tell([])
        keeper._tell([])
        return hears, hangs, keeper._state().counts

    hears, hangs, counts = asyncio.run(watched())
    assert (hears.is_closed, len(hears.sent)) == (False, 3)
    assert (hangs.is_closed, len(hangs.sent)) == (True, 1)
    assert counts["watchers_dropped"] == 1


def _heard(told: Sequence[msgspec.Struct]) -> Holdings:
    """What a watcher believes, removals taken first."""
    holdings = Holdings()
    for holding in told:
        assert isinstance(holding, wire.Holding)
        for change, parts in ((holdings.removed, holding.removed), (holdings.stored, holding.stored)):
            for fingerprint, code, names in parts:
                tier = wire.TIER_CODES[code]
                assert tier is not None
                change(fingerprint, tier, wire.unpack(names))
    return holdings


def test_a_store_of_many_blocks_is_told_in_parts_and_what_changes_meanwhile_is_told_too() -> None:
    count = 3 * TOLD_BLOCKS + 1
    keys = [BlockKey(FINGERPRINT, wire.unpack(i.to_bytes(16, "big"))[0]) for i in range(count + 100)]

    async def watched() -> tuple[list[msgspec.Struct], set[BlockKey]]:
        config, bucket, client = KeeperConfig(socket="", dram_bytes=16 * PAGE_BYTES), _Bucket(), _Client()
        keeper = Keeper(config, Arena.create(config.dram_bytes), None, bucket)  # type: ignore[arg-type]
        keeper._enter(client)  # type: ignore[arg-type]
        keeper._on_message(client, wire.Attach("engine", FINGERPRINT, PAGE_BYTES))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        listing = asyncio.create_task(bucket.tell(keys[:count]))
        await asyncio.sleep(0)
        assert keeper._state().blocks == {"remote": TOLD_BLOCKS}  # whoever asks something now is answered
        await listing
        await asyncio.sleep(0)
        begin = len(client.sent)
        keeper._on_message(client, wire.Watch())  # type: ignore[arg-type]
        await bucket.tell(set(keys[5 : count - 5]))  # of the first part and the last
        await bucket.tell(left := set(keys[7:]))
        while keeper._tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return client.sent[begin:], left

    told, left = asyncio.run(asyncio.wait_for(watched(), 60))

    assert set(_heard(told).names(FINGERPRINT)) == {key.name for key in left}
    most = max(len(names) for each in told if isinstance(each, wire.Holding) for _, _, names in each.stored)
    assert most == 16 * TOLD_BLOCKS
    assert [each.fresh for each in told if isinstance(each, wire.Holding)] == [True] + [False] * (len(told) - 1)


def test_of_a_block_that_comes_and_goes_at_once_the_last_is_told() -> None:
    came, gone = Change(min(KEYS), Tier.DRAM, True), Change(min(KEYS), Tier.DRAM, False)

    async def told(changes: Sequence[Change]) -> list[msgspec.Struct]:
        config, client = KeeperConfig(socket="", dram_bytes=16 * PAGE_BYTES), _Client()
        keeper = Keeper(config, Arena.create(config.dram_bytes), None, None)
        keeper._enter(client)  # type: ignore[arg-type]
        keeper._on_message(client, wire.Watch())  # type: ignore[arg-type]
        keeper._tell(changes)
        return client.sent

    assert len(_heard(asyncio.run(told([came, gone])))) == 0
    assert len(_heard(asyncio.run(told([came, gone, came])))) == 1


def test_a_peer_that_says_nothing_is_shut_out_and_one_that_knows_the_secret_stays() -> None:
    async def knocked() -> tuple[_Client, _Client, dict[str, int]]:
        config = KeeperConfig(socket="", dram_bytes=16 * PAGE_BYTES, peer_secret="secret")
        arena = Arena.create(config.dram_bytes)
        keeper, knows, is_silent = Keeper(config, arena, None, None), _Client(), _Client()
        keeper._source = await TcpSource.open(arena, "127.0.0.1")
        for client in (knows, is_silent):
            keeper._on_knock(client)  # type: ignore[arg-type]
        keeper._on_peer(knows, wire.Admit(b"secret"))  # type: ignore[arg-type]
        keeper._shut_out(time.monotonic())
        assert not is_silent.is_closed
        keeper._shut_out(time.monotonic() + KNOCK_S + 1)
        await keeper._source.close()
        return knows, is_silent, keeper._state().counts

    knows, is_silent, counts = asyncio.run(knocked())
    assert (knows.is_closed, is_silent.is_closed, counts["peers_denied"]) == (False, True, 1)


def test_an_address_for_peers_that_cannot_be_had_is_told_to_who_started_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = KeeperConfig(socket=str(tmp_path / "keeper"), dram_bytes=16 * PAGE_BYTES, listen=address)
        read, write = os.pipe()
        asyncio.run(run(config, write))
        told = msgspec.json.decode(os.read(read, 1_000), type=Ready | Failed)
    os.close(read)
    os.close(write)

    assert isinstance(told, Failed)
    assert told.error.startswith(f"peer_listen: cannot listen on {address}: ")
    assert list(tmp_path.iterdir()) == []


def test_more_memory_for_tiers_than_there_is_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"dram_bytes: must be no more than the memory .* bytes, got 35184372088832;"):
        opened(KeeperConfig(socket="", dram_bytes=1 << 45))


def test_what_a_disk_held_at_the_start_is_looked_through_by_no_garbage_collection(tmp_path: Path) -> None:
    page = bytes(PAGE_BYTES)
    keys = [BlockKey(FINGERPRINT, wire.unpack(i.to_bytes(16, "big"))[0]) for i in range(1000)]
    store = DiskStore(tmp_path, 64 << 20)
    store.put([(key, BlockMeta(PAGE_BYTES, checksum(key, page)), memoryview(page)) for key in keys], lambda _: False)
    store.close()
    config = KeeperConfig(socket="", dram_bytes=16 * PAGE_BYTES, disk_path=str(tmp_path), disk_bytes=64 << 20)
    gc.collect()
    try:
        keeper = opened(config)
        assert keeper._state().blocks == {"disk": 1000}
        assert gc.get_freeze_count() >= 2 * 1000  # what is known of each, and its tiers
        assert gc.isenabled()
    finally:
        gc.unfreeze()
    asyncio.run(keeper._lower[Tier.DISK].close())


class _Bucket:
    """A bucket of which it is told what it holds, and that has nothing of it."""

    parallel_reads = batch = 1
    used_bytes = 0

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.on_known: Callable[[set[BlockHash]], Awaitable[None]] | None = None

    async def follow(self, fingerprint: bytes, on_known: Callable[[set[BlockHash]], Awaitable[None]]) -> None:
        self.on_known = on_known

    async def tell(self, keys: Iterable[BlockKey]) -> None:
        assert self.on_known is not None
        await self.on_known({key.name for key in keys})

    async def read(self, loads: Sequence[Load]) -> list[Read]:
        return [Read("missing")] * len(loads)


def test_what_was_missing_in_the_bucket_and_is_listed_again_is_held_again() -> None:
    async def found() -> list[msgspec.Struct]:
        config, bucket, client = KeeperConfig(socket="", dram_bytes=16 * PAGE_BYTES), _Bucket(), _Client()
        keeper = Keeper(config, Arena.create(config.dram_bytes), None, bucket)  # type: ignore[arg-type]
        keeper._enter(client)  # type: ignore[arg-type]

        def say(message: wire.ToKeeper) -> None:
            keeper._on_message(client, message)  # type: ignore[arg-type]

        say(wire.Attach("engine", FINGERPRINT, PAGE_BYTES))
        await asyncio.sleep(0)
        await bucket.tell(set(KEYS))
        say(wire.Fetch(1, FINGERPRINT, NAMES))
        while sum(isinstance(message, wire.Lost) for message in client.sent) < len(KEYS):  # noqa: ASYNC110
            await asyncio.sleep(0)
        say(wire.Find(2, FINGERPRINT, NAMES))
        await bucket.tell(set(KEYS))  # another node has put them there
        say(wire.Find(3, FINGERPRINT, NAMES))
        return client.sent[-2:]

    remote = wire.CODE_OF[Tier.REMOTE]
    tiers = [found.tiers for found in asyncio.run(asyncio.wait_for(found(), 20)) if isinstance(found, wire.Found)]
    assert tiers == [bytes(len(KEYS)), bytes([remote] * len(KEYS))]
