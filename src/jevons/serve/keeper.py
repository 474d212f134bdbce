"""The keeper process: the tiers of one node, for all its engines.

    event loop   messages of engines and watchers, `control.blocks`
    threads      the disk

Started by `serve.substrate` or an engine's connector as `python -m jevons.serve.keeper`, with its settings as one line
of JSON on standard input; when its socket is open it prints one line of JSON. It ends when its standard input closes.
Engines copy their blocks themselves: only names, offsets and checksums pass through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

import msgspec
import uvloop

from jevons.base.errors import ConfigError, JevonsError
from jevons.base.ids import BlockHash
from jevons.control.blocks import Blocks
from jevons.control.copies import Change, LeaseId, Move, Offer
from jevons.facts.block import BlockKey, BlockMeta, Tier
from jevons.facts.snapshot import TierSnapshot
from jevons.serve.lower import Disk, Load, Lower, Remote, open_disk, open_remote
from jevons.serve.memory import check_shared
from jevons.serve.peers import Peers, host_port
from jevons.serve.stdio import stdin_closed, tell
from jevons.store.arena import Arena
from jevons.wire import keeper as wire
from jevons.wire.channel import MAX_MESSAGE_BYTES, Channel, Failed, KeeperConfig, Ready, framed
from jevons.wire.nixl_link import NixlSource
from jevons.wire.tcp_link import TcpSource

TICK_S = 0.5
KNOCK_S = 5.0  # a peer that has not shown the secret by then is shut out
WRITE_BYTES = 16 << 20  # of one batch to a tier below
TOLD_BLOCKS = 1 << 14  # at once: some 50 ms of the event loop, where a store may hold millions
MOST_WAITING_BYTES = 2 * MAX_MESSAGE_BYTES  # told to a watcher that it has not taken: one that hangs
PAUSED_BYTES, PAUSE_S = 16 << 20, 0.05  # of these, what there is at the beginning waits

Client = Channel[wire.ToKeeper]


class Keeper:
    """Between the messages of engines and the tiers."""

    def __init__(self, config: KeeperConfig, arena: Arena, disk: Disk | None, remote: Remote | None) -> None:
        lower: dict[Tier, Lower] = {}
        if disk is not None:
            lower[Tier.DISK] = disk
        self._peers: Peers | None = None
        if config.peers:
            lower[Tier.PEER] = self._peers = Peers(config.peers, config.peer_secret.encode(), arena, self._peers_have)
        if remote is not None:
            lower[Tier.REMOTE] = remote
        self._config = config
        self._arena = arena
        self._blocks = Blocks(config.dram_bytes, lower)
        self._lower = lower
        self._remote = remote
        self._followed: dict[bytes, set[BlockHash]] = {}  # what the bucket was known to hold, by fingerprint
        self._page_bytes: dict[bytes, int] = {}  # by fingerprint, of engines that have attached
        self._source: TcpSource | NixlSource | None = None  # where peers read the arena
        self._strangers: dict[Client, float] = {}  # peers that have not shown the secret: since when they are there
        if disk is not None:
            self._blocks.found_below(Tier.DISK, disk.held())
        self._clients: dict[Client, int] = {}
        self._by_id: dict[int, Client] = {}
        self._ids = 0
        self._names: dict[LeaseId, dict[BlockKey, int]] = {}  # of each fetch: where in it a block stands
        self._reserved: dict[LeaseId, list[BlockKey]] = {}
        self._watchers: set[Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: dict[Tier, int] = dict.fromkeys(lower, 0)
        self._is_writing: dict[Tier, bool] = dict.fromkeys(lower, False)
        self._is_due = False
        self._denied = 0  # peers
        self._dropped = 0  # watchers

    async def serve(self, ready: int) -> None:
        """Listen, tell so on file descriptor `ready`, and serve until standard input closes.

        Raises:
            ConfigError: the address for peers cannot be had; nothing was told then.
        """
        port, servers = 0, []
        if self._config.listen is not None:
            servers.append(await self._listen(self._config.listen))
            port = servers[0].sockets[0].getsockname()[1]
        servers.append(
            await asyncio.get_running_loop().create_unix_server(
                lambda: Channel(wire.TO_KEEPER, self._on_message, self._on_lost, self._on_made), self._config.socket
            )
        )
        tell(ready, Ready(port))
        self._task(self._tick())
        if self._peers is not None:
            self._task(self._peers.keep())
        try:
            await stdin_closed()
        finally:
            for task in self._tasks:
                task.cancel()
            for each in servers:
                each.close()
            if self._source is not None:
                await self._source.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._config.socket)
            for lower in self._lower.values():
                await lower.close()

    async def _listen(self, address: str) -> asyncio.Server:
        """Let keepers of other nodes in, who know the secret. Raises ConfigError: it cannot be had."""
        host, port = host_port(address, "peer_listen")
        opened = NixlSource.open if self._config.link == "nixl" else TcpSource.open
        try:
            self._source = await opened(self._arena, host)
            return await asyncio.get_running_loop().create_server(
                lambda: Channel(wire.TO_KEEPER, self._on_peer, self._on_lost, self._on_knock), host, port
            )
        except OSError as error:
            if self._source is not None:
                await self._source.close()
            raise ConfigError(f"peer_listen: cannot listen on {address}: {error.strerror}") from error

    # Clients

    def _on_knock(self, client: Client) -> None:
        self._enter(client)
        self._strangers[client] = time.monotonic()

    def _on_peer(self, client: Client, message: wire.ToKeeper) -> None:
        """Of a peer only what a peer may want; of a stranger only the secret."""
        if isinstance(message, wire.Admit):
            if hmac.compare_digest(message.secret, self._config.peer_secret.encode()):
                assert self._source is not None, "who is let in came through our door"
                self._strangers.pop(client, None)
                client.send(wire.Admitted(self._source.address))
            else:
                self._denied += 1
                client.close()
        elif client in self._strangers or not isinstance(message, wire.Watch | wire.Fetch | wire.Took | wire.Done):
            self._denied += 1
            client.close()
        else:
            self._on_message(client, message)

    def _enter(self, client: Client) -> None:
        self._ids += 1
        self._clients[client] = self._ids
        self._by_id[self._ids] = client

    def _on_made(self, client: Client) -> None:
        self._enter(client)
        with contextlib.suppress(OSError):  # it is gone already
            _give(client, self._arena.fd)

    def _on_lost(self, client: Client, reason: str) -> None:
        id = self._clients.pop(client)
        del self._by_id[id]
        self._watchers.discard(client)
        self._strangers.pop(client, None)
        self._blocks.release_client(id, time.monotonic())
        for table in (self._names, self._reserved):
            for lease in [lease for lease in table if lease.client == id]:
                del table[lease]
        self._soon()

    def _on_message(self, client: Client, message: wire.ToKeeper) -> None:
        now_s, id = time.monotonic(), self._clients[client]
        match message:
            case wire.Attach():
                self._attach(client, message)
            case wire.Watch():
                self._watch(client)
            case wire.Find():
                self._find(client, message)
            case wire.Fetch(request, fingerprint, names):
                lease, keys = LeaseId(id, request), _keys(fingerprint, names)
                self._names[lease] = {key: index for index, key in enumerate(keys)}
                self._blocks.fetch(lease, keys, now_s)
            case wire.Reserve():
                self._reserve(client, LeaseId(id, message.id), message, now_s)
            case wire.Filled(request, blocks):
                self._filled(LeaseId(id, request), blocks, now_s)
            case wire.Took() | wire.Done():
                self._done(LeaseId(id, message.id), message, now_s)
            case wire.Keep(fingerprint, names, seconds):
                self._blocks.keep(_keys(fingerprint, names), now_s + seconds, now_s)
            case wire.Corrupt(fingerprint, names):
                self._blocks.corrupt(_keys(fingerprint, names))
        self._soon()

    def _find(self, client: Client, asked: wire.Find) -> None:
        tiers = [self._blocks.tier(key) for key in _keys(asked.fingerprint, asked.names)]
        queued = [0 if tier is None else self._blocks.queued_bytes[tier] for tier in wire.TIER_CODES]
        client.send(wire.Found(asked.id, bytes(wire.CODE_OF[tier] for tier in tiers), queued))

    def _done(self, lease: LeaseId, done: wire.Took | wire.Done, now_s: float) -> None:
        """With some of a fetch, or with all of a fetch or reservation."""
        if isinstance(done, wire.Took):
            keys = list(self._names.get(lease, ()))
            self._blocks.took(lease, [keys[index] for index in done.blocks if 0 <= index < len(keys)])
        else:
            self._names.pop(lease, None)
            self._reserved.pop(lease, None)
            self._blocks.release(lease, now_s)

    def _attach(self, client: Client, asked: wire.Attach) -> None:
        try:
            self._blocks.welcome(asked.page_bytes)
        except ConfigError as error:
            client.send(wire.Refused(str(error)))
            return
        client.send(wire.Attached())
        if asked.fingerprint not in self._page_bytes:
            self._page_bytes[asked.fingerprint] = asked.page_bytes
            if self._peers is not None:
                self._peers_have(self._peers.keys(asked.fingerprint), True)
        if self._remote is not None and asked.fingerprint not in self._followed:
            self._followed[asked.fingerprint] = set()
            known = partial(self._bucket_holds, asked.fingerprint, asked.page_bytes)
            self._task(self._remote.follow(asked.fingerprint, known))

    def _peers_have(self, keys: Iterable[BlockKey], held: bool) -> None:
        """Peers gained or lost blocks; those of no engine of ours do not concern us."""
        if not held:
            self._blocks.lost_below(Tier.PEER, keys)
        else:
            sizes = self._page_bytes
            known = [(key, BlockMeta(sizes[key.fingerprint], 0)) for key in keys if key.fingerprint in sizes]
            self._found_below(Tier.PEER, known)
        self._soon()

    def _found_below(self, tier: Tier, known: Sequence[tuple[BlockKey, BlockMeta]]) -> None:
        self._blocks.found_below(tier, known)
        if len(known) >= TOLD_BLOCKS:
            gc.freeze()  # as in `opened`: of a million blocks 3 s instead of 10

    async def _bucket_holds(self, fingerprint: bytes, page_bytes: int, names: set[BlockHash]) -> None:
        """What is listed now; a part of what is new, or gone, in each turn of the event loop."""
        before, self._followed[fingerprint] = self._followed[fingerprint], names
        meta = BlockMeta(size_bytes=page_bytes, checksum=0)
        for part in _parts(names - before):
            known = [(BlockKey(fingerprint, name), meta) for name in part if name in names]  # or it was missing since
            self._found_below(Tier.REMOTE, known)
            self._soon()
            await asyncio.sleep(0)
        for part in _parts(before - names):
            self._blocks.lost_below(Tier.REMOTE, [BlockKey(fingerprint, name) for name in part])
            self._soon()
            await asyncio.sleep(0)

    def _reserve(self, client: Client, lease: LeaseId, asked: wire.Reserve, now_s: float) -> None:
        keys = _keys(asked.fingerprint, asked.names)
        blocks = [
            (key, BlockMeta(size_bytes=asked.page_bytes, checksum=0, depth=depth, tenant=asked.tenant))
            for key, depth in zip(keys, asked.depths, strict=True)
        ]
        self._blocks.is_worth(asked.page_bytes, asked.worth_s)
        places = self._blocks.reserve(lease, blocks, now_s)
        if any(offset >= 0 for offset in places):  # otherwise nothing will be filled
            self._reserved[lease] = keys
        client.send(wire.Places(asked.id, places))

    def _filled(self, lease: LeaseId, blocks: list[tuple[int, int]], now_s: float) -> None:
        keys = self._reserved.pop(lease, None)
        if keys is not None:
            for index, checksum in reversed(blocks):  # the chain's tail is to go before its head
                self._blocks.filled(lease, keys[index], checksum, now_s)
            self._blocks.release(lease, now_s)

    # What follows from it

    def _soon(self) -> None:
        """Whatever changed: answer and move once, when the messages at hand are all taken."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._follow_up)

    def _follow_up(self) -> None:
        self._is_due = False
        for tier in self._lower:
            self._start_loads(tier)
            self._start_write(tier)
        self._send_offers(self._blocks.drain_offers())
        changes = self._blocks.drain_changes()
        if changes:
            self._tell(changes)

    def _watch(self, client: Client) -> None:
        """Tell all there is, in parts, and whatever changes from now on."""
        keys = self._blocks.keys()
        self._watchers.add(client)
        client.send(self._holding(self._blocks.held(keys[:TOLD_BLOCKS]), fresh=True))
        if len(keys) > TOLD_BLOCKS:
            self._task(self._tell_rest(client, keys))

    async def _tell_rest(self, client: Client, keys: Sequence[BlockKey]) -> None:
        """Of each part what is so when it is told: what had changed before may be told after it, and is the same."""
        first, is_paused = TOLD_BLOCKS, False
        while first < len(keys):
            await asyncio.sleep(PAUSE_S if is_paused else 0)
            if client not in self._watchers:
                return
            is_paused = client.backlog_bytes > PAUSED_BYTES
            if not is_paused:
                client.send(self._holding(self._blocks.held(keys[first : first + TOLD_BLOCKS])))
                first += TOLD_BLOCKS

    def _tell(self, changes: Sequence[Change]) -> None:
        """Tell who watches. One that takes nothing is let go: it is told all there is when it comes again."""
        if not self._watchers:
            return
        last = list({(change.key, change.tier): change for change in changes}.values())  # of what came and went
        told = [self._holding(last[at : at + TOLD_BLOCKS]) for at in range(0, max(1, len(last)), TOLD_BLOCKS)]
        hanging = {watcher for watcher in self._watchers if watcher.backlog_bytes > MOST_WAITING_BYTES}
        self._watchers -= hanging
        self._dropped += len(hanging)
        for watcher in hanging:
            watcher.close()
        for watcher in self._watchers:
            for holding in told:
                watcher.send(holding)

    def _send_offers(self, offers: Iterable[Offer]) -> None:
        here: dict[LeaseId, list[tuple[int, int, int, int]]] = {}
        lost: dict[LeaseId, list[tuple[int, str]]] = {}
        for offer in offers:
            index = self._names.get(offer.lease, {}).get(offer.key)
            if index is None:
                continue  # the client is done with it
            if offer.meta is None:
                lost.setdefault(offer.lease, []).append((index, offer.reason))
            else:
                found = (index, offer.offset, offer.meta.checksum, wire.CODE_OF[offer.tier])
                here.setdefault(offer.lease, []).append(found)
        for lease, blocks in here.items():
            self._by_id[lease.client].send(wire.Here(lease.request, blocks))
        for lease, reasons in lost.items():
            self._by_id[lease.client].send(wire.Lost(lease.request, reasons))

    def _start_loads(self, tier: Tier) -> None:
        lower = self._lower[tier]
        while self._reading[tier] < lower.parallel_reads:
            moves = self._blocks.take_loads(tier, lower.batch, time.monotonic())
            if not moves:
                return
            self._reading[tier] += 1
            self._task(self._load(lower, tier, moves))

    async def _load(self, lower: Lower, tier: Tier, moves: list[Move]) -> None:
        loads = [Load(m.key, m.meta, self._arena.page(m.offset, m.meta.size_bytes), m.offset) for m in moves]
        results = await lower.read(loads)
        self._reading[tier] -= 1
        for move, read in zip(moves, results, strict=True):
            self._blocks.on_loaded(move, read.reason, time.monotonic(), read.checksum)
            if read.reason and tier is Tier.REMOTE:  # if the next listing has it, another node has put it there
                self._followed[move.key.fingerprint].discard(move.key.name)
        self._soon()

    def _start_write(self, tier: Tier) -> None:
        if self._is_writing[tier]:
            return
        moves = self._blocks.take_writes(tier, WRITE_BYTES)
        if moves:
            self._is_writing[tier] = True
            self._task(self._write(self._lower[tier], tier, moves))

    async def _write(self, lower: Lower, tier: Tier, moves: list[Move]) -> None:
        pages = [(m.key, m.meta, self._arena.page(m.offset, m.meta.size_bytes)) for m in moves]
        written = await lower.write(pages, self._blocks.is_used)
        self._is_writing[tier] = False
        for move, reason in zip(moves, written.reasons, strict=True):
            self._blocks.on_written(move, reason)
        self._blocks.lost_below(tier, written.removed)
        self._soon()

    def _task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._shut_out(time.monotonic())
            self._tell([])
            self._soon()

    def _shut_out(self, now_s: float) -> None:
        """Who connects and says nothing would hold a descriptor for ever."""
        for client in [client for client, since_s in self._strangers.items() if now_s - since_s > KNOCK_S]:
            self._denied += 1
            client.close()

    def _holding(self, changes: Iterable[Change], fresh: bool = False) -> wire.Holding:
        stored: dict[tuple[bytes, int], list[BlockHash]] = {}
        removed: dict[tuple[bytes, int], list[BlockHash]] = {}
        for change in changes:
            table = stored if change.held else removed
            table.setdefault((change.key.fingerprint, wire.CODE_OF[change.tier]), []).append(change.key.name)
        return wire.Holding(
            stored=[(*at, wire.pack(names)) for at, names in stored.items()],
            removed=[(*at, wire.pack(names)) for at, names in removed.items()],
            state=self._state(),
            fresh=fresh,
        )

    def _doors(self) -> Counter[str]:
        """What was refused to peers, and watchers that were let go."""
        refused = Counter(peers_denied=self._denied, watchers_dropped=self._dropped)
        if self._source is not None:
            refused.update({f"link_{reason}": count for reason, count in self._source.counts.items()})
        return +refused

    def _state(self) -> TierSnapshot:
        blocks = self._blocks
        return TierSnapshot(
            pid=os.getpid(),
            dram_bytes=self._config.dram_bytes,
            dram_used_bytes=blocks.used_bytes,
            blocks={str(tier): count for tier, count in blocks.held_blocks.items()},
            lower_bytes={str(tier): lower.used_bytes for tier, lower in self._lower.items()},
            leases=len(self._names) + len(self._reserved),
            clients=len(self._clients),
            waiting_bytes={str(tier): size for tier, size in blocks.waiting_bytes.items()},
            counts=dict(sum((lower.counts for lower in self._lower.values()), blocks.counts + self._doors())),
        )


def _parts(names: Iterable[BlockHash]) -> Iterator[list[BlockHash]]:
    """As many at a time as may be told at once."""
    left = iter(names)
    while part := list(islice(left, TOLD_BLOCKS)):
        yield part


def _keys(fingerprint: bytes, names: bytes) -> list[BlockKey]:
    return [BlockKey(fingerprint, name) for name in wire.unpack(names)]


def _give(client: Client, fd: int) -> None:
    """Send the first message and with it the arena's descriptor, before anything else is written."""
    with socket.socket(fileno=os.dup(client.fileno())) as line:
        socket.send_fds(line, [framed(wire.Welcome(os.getpid()))], [fd])


def opened(config: KeeperConfig) -> Keeper:
    """A keeper of its tiers, with all that its disk holds.

    What is known of millions of blocks then is looked through by no garbage collection: those took six parts of seven
    of the start, and half a second of the event loop for each 300,000 blocks whenever there was one.

    Raises:
        ConfigError: a tier cannot be had.
    """
    check_shared(config.dram_bytes)
    gc.disable()
    try:
        keeper = Keeper(config, Arena.create(config.dram_bytes), open_disk(config), open_remote(config))
        gc.freeze()
    finally:
        gc.enable()
    return keeper


async def run(config: KeeperConfig, ready: int) -> None:
    """Open the tiers and keep them until standard input closes."""
    try:
        await opened(config).serve(ready)
    except JevonsError as error:
        tell(ready, Failed(str(error)))


def main() -> None:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=KeeperConfig)
    ready = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the line we promise
    uvloop.run(run(config, ready))


if __name__ == "__main__":
    main()
