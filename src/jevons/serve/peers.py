"""Keepers of other nodes, as a tier: what they hold in memory or on disk, brought over a link.

    our keeper  ──Admit, Watch──▶  theirs        Holding: what they have, from then on
                ──Fetch──▶ ◀──Here──             offsets in their arena, lent until
                ◀══ link: pages ══               copied into ours, checked here,
                ──Took, Done──▶

A keeper is one more client to a keeper of another node. Everything that goes wrong is a reason, never an exception.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from jevons.base.errors import ConfigError, StoreError
from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, Tier
from jevons.kv.layout import checksum
from jevons.kv.tiers import Holdings
from jevons.serve.lower import Load, Page, Read, Written
from jevons.store.arena import Arena
from jevons.wire import keeper as wire
from jevons.wire.channel import Channel
from jevons.wire.link import Link, LinkAddress, Range
from jevons.wire.nixl_link import NixlLink
from jevons.wire.tcp_link import TcpLink

log = logging.getLogger("jevons.peers")

READ_S = 5.0  # engines give up long before, by their own reckoning
RETRY_S = 1.0
SILENT_S = 5.0  # keepers tell twice a second what they hold: one not heard of for so long hangs, or its host is gone
OWN = (Tier.DRAM, Tier.DISK)  # what a peer has itself; the rest it would have to bring too

OnChange = Callable[[Iterable[BlockKey], bool], None]


def host_port(text: str, key: str) -> tuple[str, int]:
    """HOST:PORT in two.

    Raises:
        ConfigError: it is not one.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key}: must look like HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)


class Peer:
    """One keeper of another node."""

    def __init__(self, address: str, secret: bytes, arena: Arena, on_change: OnChange) -> None:
        self.address = address
        self.held = Holdings()  # what it has itself
        self._host, self._port = host_port(address, "peers")
        self._secret = secret
        self._arena = arena
        self._on_change = on_change
        self._channel: Channel[wire.ToClient] | None = None
        self._link: Link | None = None
        self._ids = count(1)
        self._fetches: dict[int, _Fetch] = {}

    async def keep(self) -> None:
        """Stay connected, until cancelled."""
        while True:
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            try:
                await self._live(lost)
            except OSError as error:
                log.info("peer %s: %s", self.address, error)
            await asyncio.sleep(RETRY_S)

    async def read(self, loads: Sequence[Load]) -> list[Read]:
        """As `Lower.read`, of blocks that are `held`."""
        channel, link = self._channel, self._link
        if channel is None or link is None:
            return [Read("gone")] * len(loads)
        id = next(self._ids)
        fetch = self._fetches[id] = _Fetch(loads)
        names = wire.pack(load.key.name for load in loads)
        try:
            async with asyncio.timeout(READ_S):
                channel.send(wire.Fetch(id, loads[0].key.fingerprint, names))
                while True:
                    here = await fetch.here.get()
                    if not here:
                        return fetch.results
                    await self._bring(link, fetch, here)
                    if _OPEN in fetch.results:  # the rest may wait for these places
                        channel.send(wire.Took(id, [block[0] for block in here]))
        except TimeoutError:
            return [Read("timeout") if result == _OPEN else result for result in fetch.results]
        finally:
            del self._fetches[id]
            channel.send(wire.Done(id))

    async def _bring(self, link: Link, fetch: _Fetch, here: list[tuple[int, int, int, int]]) -> None:
        """Copy what is lent to us, and check it."""
        loads = fetch.loads
        ranges = [Range(offset, loads[i].offset, loads[i].meta.size_bytes) for i, offset, _, _ in here]
        try:
            await link.read(ranges, READ_S)
        except StoreError as error:
            fetch.settle({i: Read(error.reason) for i, *_ in here})
            return
        for i, _, expected, _ in here:
            matches = checksum(loads[i].key, loads[i].page) == expected
            fetch.settle({i: Read(checksum=expected) if matches else Read("corrupt")})

    async def _live(self, lost: asyncio.Future[str]) -> None:
        def on_lost(channel: Channel[wire.ToClient], reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        channel = Channel(wire.TO_CLIENT, self._on_message, on_lost)
        await asyncio.get_running_loop().create_connection(lambda: channel, self._host, self._port)
        try:
            channel.send(wire.Admit(self._secret))
            channel.send(wire.Watch())
            log.info("peer %s: %s", self.address, await _until_lost(channel, lost))
        finally:
            self._channel = None
            channel.close()
            self._forget()
            for fetch in self._fetches.values():
                fetch.settle({i: Read("gone") for i, result in enumerate(fetch.results) if result == _OPEN})
            if self._link is not None:
                await self._link.close()
                self._link = None

    def _on_message(self, channel: Channel[wire.ToClient], message: wire.ToClient) -> None:
        match message:
            case wire.Admitted(address):
                self._link = self._reach(address)
                self._channel = channel
            case wire.Holding():
                self._on_holding(message)
            case wire.Here() | wire.Lost():
                self._on_answer(channel, message)
            case _:
                pass

    def _on_answer(self, channel: Channel[wire.ToClient], answer: wire.Here | wire.Lost) -> None:
        fetch = self._fetches.get(answer.id)
        if fetch is None:
            return  # over
        if not all(0 <= block[0] < len(fetch.loads) for block in answer.blocks):
            log.info("peer %s: told of blocks that nobody asked for", self.address)
            channel.close()
        elif isinstance(answer, wire.Here):
            fetch.here.put_nowait(answer.blocks)
        else:
            fetch.settle({i: Read(reason) for i, reason in answer.blocks})

    def _on_holding(self, message: wire.Holding) -> None:
        if message.fresh:
            self._forget()
        for fingerprint, tier, names in _own(message.removed):
            self.held.removed(fingerprint, tier, names)
            self._on_change([BlockKey(fingerprint, n) for n in names if not self.held.holds(fingerprint, n)], False)
        for fingerprint, tier, names in _own(message.stored):
            self.held.stored(fingerprint, tier, names)
            self._on_change([BlockKey(fingerprint, name) for name in names], True)

    def _forget(self) -> None:
        before = [BlockKey(f, name) for f in self.held.fingerprints() for name in self.held.names(f)]
        self.held.clear()
        self._on_change(before, False)

    def _reach(self, address: LinkAddress) -> Link:
        kind = NixlLink if address.kind == "nixl" else TcpLink
        return kind(address, self._host, self._arena)


async def _until_lost(channel: Channel[wire.ToClient], lost: asyncio.Future[str]) -> str:
    """Returns why; silence is a loss too."""
    heard_bytes = -1
    while channel.received_bytes > heard_bytes and not lost.done():
        heard_bytes = channel.received_bytes
        await asyncio.wait((lost,), timeout=SILENT_S)
    return lost.result() if lost.done() else f"nothing heard for {SILENT_S:g} s"


_OPEN = Read("open")


class _Fetch:
    """A fetch under way: what came of each block."""

    def __init__(self, loads: Sequence[Load]) -> None:
        self.loads = loads
        self.results = [_OPEN] * len(loads)
        self.here: asyncio.Queue[list[tuple[int, int, int, int]]] = asyncio.Queue()

    def settle(self, results: dict[int, Read]) -> None:
        for index, result in results.items():
            self.results[index] = result
        if _OPEN not in self.results:
            self.here.put_nowait([])  # nothing more to wait for


class Peers:
    """All of them, as one tier below the arena."""

    parallel_reads = 4
    batch = 16

    def __init__(self, addresses: Sequence[str], secret: bytes, arena: Arena, on_change: OnChange) -> None:
        self._on_change = on_change
        self._counts: Counter[str] = Counter()
        self._peers = [Peer(address, secret, arena, self._changed) for address in addresses]

    @property
    def counts(self) -> Counter[str]:
        return self._counts

    @property
    def used_bytes(self) -> int:
        return 0  # not ours

    async def keep(self) -> None:
        """Stay connected to all, until cancelled."""
        await asyncio.gather(*(peer.keep() for peer in self._peers))

    async def write(self, pages: Sequence[Page], is_used: Callable[[BlockKey], bool]) -> Written:
        raise AssertionError("peers are read only")

    async def read(self, loads: Sequence[Load]) -> list[Read]:
        """From whoever holds them; a block's fingerprint decides with whom it travels."""
        groups: dict[tuple[int, bytes], list[int]] = {}
        found = [Read("missing")] * len(loads)
        for i, load in enumerate(loads):
            holder = next((n for n, peer in enumerate(self._peers) if peer.held.holds(*load.key)), None)
            if holder is not None:
                groups.setdefault((holder, load.key.fingerprint), []).append(i)
        answers = await asyncio.gather(
            *(self._peers[holder].read([loads[i] for i in group]) for (holder, _), group in groups.items())
        )
        for group, answer in zip(groups.values(), answers, strict=True):
            for i, read in zip(group, answer, strict=True):
                found[i] = read
        self._counts.update(f"peer_{read.reason}" for read in found if read.reason)
        return found

    def keys(self, fingerprint: bytes) -> set[BlockKey]:
        """What any of them holds under one fingerprint."""
        return {BlockKey(fingerprint, name) for peer in self._peers for name in peer.held.names(fingerprint)}

    async def close(self) -> None:
        pass

    def _changed(self, keys: Iterable[BlockKey], held: bool) -> None:
        """What one peer gained or lost; lost is what no other holds either."""
        if not held:
            keys = [key for key in keys if not any(peer.held.holds(*key) for peer in self._peers)]
        self._on_change(keys, held)


def _own(told: Sequence[tuple[bytes, int, bytes]]) -> Iterator[tuple[bytes, Tier, list[BlockHash]]]:
    for fingerprint, code, names in told:
        tier = wire.TIER_CODES[code]
        if tier is not None and tier in OWN:
            yield fingerprint, tier, wire.unpack(names)
