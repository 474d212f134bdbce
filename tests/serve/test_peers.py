"""Keepers of other nodes that hang, or that tell of what nobody asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, BlockMeta, Tier
from jevons.facts.snapshot import TierSnapshot
from jevons.serve import peers
from jevons.serve.lower import Load
from jevons.serve.peers import Peers
from jevons.store.arena import Arena
from jevons.wire import keeper as wire
from jevons.wire.channel import Channel
from jevons.wire.link import LinkAddress

PAGE = 4096
WAIT_S = 20.0
KEY = BlockKey(b"f" * 16, BlockHash(b"n" * 16))
STATE = TierSnapshot(
    pid=1,
    dram_bytes=0,
    dram_used_bytes=0,
    blocks={},
    lower_bytes={},
    leases=0,
    clients=0,
    waiting_bytes={},
    counts={},
)
HOLDING = wire.Holding([(KEY.fingerprint, wire.CODE_OF[Tier.DRAM], KEY.name)], [], STATE, fresh=True)

Answers = Callable[[wire.ToKeeper], msgspec.Struct | None]


@asynccontextmanager
async def beside(answers: Answers) -> AsyncIterator[tuple[Peers, list[bool]]]:
    """Our end beside a keeper that says these things; and whether its block is held, each time that is told."""
    told: list[bool] = []

    def on_message(channel: Channel[wire.ToKeeper], message: wire.ToKeeper) -> None:
        answer = answers(message)
        if answer is not None:
            channel.send(answer)

    loop, arena = asyncio.get_running_loop(), Arena.create(4 * PAGE)
    server = await loop.create_server(lambda: Channel(wire.TO_KEEPER, on_message, lambda *_: None), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    ours = Peers([address], b"secret", arena, lambda keys, held: told.extend(held for _ in keys))
    keeping = asyncio.create_task(ours.keep())
    try:
        yield ours, told
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        server.close()
        arena.close()


def as_a_keeper_does(message: wire.ToKeeper) -> msgspec.Struct | None:
    match message:
        case wire.Admit():
            return wire.Admitted(LinkAddress("tcp", 1, b"s" * 32))
        case wire.Watch():
            return HOLDING
        case _:
            return None


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 — nobody is told
            await asyncio.sleep(0.005)


def live(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 2 * WAIT_S))


def test_what_a_peer_holds_that_hangs_is_forgotten_and_one_that_goes_on_is_believed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "SILENT_S", 0.05)
    monkeypatch.setattr(peers, "RETRY_S", 0.01)

    async def test() -> None:
        async with beside(as_a_keeper_does) as (_, told):  # it tells once, and nothing any more
            await until(lambda: told[:3] == [True, False, True])

    live(test)


@pytest.mark.parametrize("index", [-1, 1, 99])
@pytest.mark.parametrize("kind", [wire.Here, wire.Lost])
def test_blocks_that_nobody_asked_for_are_a_lost_peer_and_no_error(
    kind: type[wire.Here | wire.Lost], index: int
) -> None:
    def answers(message: wire.ToKeeper) -> msgspec.Struct | None:
        if isinstance(message, wire.Fetch):
            of_one = (index, 0, 0, 1) if kind is wire.Here else (index, "missing")
            return kind(message.id, [of_one])  # type: ignore[list-item]
        return as_a_keeper_does(message)

    async def test() -> None:
        async with beside(answers) as (ours, told):
            await until(lambda: told == [True])
            page = memoryview(bytearray(PAGE))
            reads = await ours.read([Load(KEY, BlockMeta(PAGE, 0), page, 0)])
            assert [read.reason for read in reads] == ["gone"]

    live(test)
