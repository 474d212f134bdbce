"""The keeper's bookkeeping, without its socket."""

from __future__ import annotations

import asyncio

import msgspec

from jevons.serve.keeper import Keeper
from jevons.store.arena import Arena
from jevons.wire import keeper as wire
from jevons.wire.channel import KeeperConfig

PAGE_BYTES = 4096
FINGERPRINT = b"f" * 16
NAMES = wire.pack([bytes([i]) * 16 for i in range(4)])


class _Client:
    """What the keeper sends to one engine."""

    def __init__(self) -> None:
        self.sent: list[msgspec.Struct] = []

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
