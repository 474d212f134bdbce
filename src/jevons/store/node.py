"""An engine's end of its node's tiers: one thread that copies blocks between the engine's pool and the arena.

    ask (any thread) ──▶ inbox ──▶ ┌ node thread ┐ ◀── socket ──▶ keeper
    on_answer        ◀──────────── └─ copies ────┘

The thread never waits for anything but its inbox and the socket, so what is cancelled is over at once. A page is
checked where it lies in the arena, under a lease, before it is copied; a page that is saved gets its checksum from the
arena too. What is saved ahead of a step is copied layer by layer while the step runs; the keeper hears that a place is
filled, and others can read it, only once the step is booked. Without a keeper every look finds nothing: the engine
computes, and the reason is counted.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import msgspec

from jevons.base.errors import StoreError
from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, Tier
from jevons.facts.move import (
    Answer,
    Arrived,
    Ask,
    Bring,
    Cancel,
    Computed,
    Found,
    Keep,
    Look,
    Missed,
    Over,
    Save,
    Written,
)
from jevons.kv.layout import checksum
from jevons.store.arena import Arena
from jevons.wire import keeper as wire
from jevons.wire.channel import framed, take_messages

CONNECT_S = 2.0
SEND_S = 1.0  # a keeper that reads nothing for so long is gone
RETRY_S = 0.5
# Pages are checked and copied in groups of this size: what was just read for the checksum is still in the cache.
IN_CACHE_BYTES = 512 << 10
_READ_BYTES = 1 << 18


Page = tuple[Sequence[int], int]  # places of the pool, and where in the arena
ALL = slice(None)


class Pool(Protocol):
    """The pages of an engine, block by block."""

    def attach(self, arena: Arena) -> None:
        """Offsets mean this arena from now on."""

    def copy_out(self, pages: Sequence[Page], layers: slice = ALL) -> None:
        """Copy these layers of places of the pool to the arena, as those of canonical pages."""

    def copy_in(self, pages: Sequence[Page]) -> None:
        """Copy canonical pages of the arena to places of the pool."""


def tenant(salt: str) -> bytes:
    """What stands for a cache salt outside its own prompts' names; empty without one."""
    return blake2b(salt.encode(), digest_size=16).digest() if salt else b""


class Introduction(msgspec.Struct, frozen=True):
    """Whose blocks these are."""

    who: str  # the engine's name, for people
    fingerprint: bytes  # of its blocks, see `kv.layout.fingerprint`
    page_bytes: int  # of one as the tiers keep it
    places: int = 1  # of the pool, in a page


class _Filling:
    """How far a Save is. Layers are counted from the first; None stands for all of them."""

    def __init__(self, ask: Save) -> None:
        self.ask = ask
        self.pages: list[tuple[int, int]] | None = None  # wanted: index in `ask`, offset; None: not answered yet
        self.written: int | None = 0 if ask.is_ahead else None
        self.copied: int | None = 0
        self.checksums: list[tuple[int, int]] = []  # of each page, its index first, once all layers are copied
        self.is_booked = not ask.is_ahead


class Node:
    """The node's tiers, for one engine.

    Args:
        path: the keeper's socket.
        own: what the engine's blocks are.
        pool: where blocks come from and go to.
        on_answer: called in the node's thread with each answer.
    """

    def __init__(self, path: Path, own: Introduction, pool: Pool, on_answer: Callable[[Answer], None]) -> None:
        self.counts: Counter[str] = Counter()
        self.is_attached = False
        self._path, self._who = path, own.who
        self._fingerprint, self._page_bytes, self._places = own.fingerprint, own.page_bytes, own.places
        self._pool, self._on_answer = pool, on_answer
        self._inbox: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._asked: dict[int, Look | Bring | Save] = {}
        self._left: dict[int, set[int]] = {}  # of each Bring, the indices outstanding
        self._filling: dict[int, _Filling] = {}  # each Save
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)
        self._thread.start()

    def ask(self, ask: Ask) -> None:
        """Queue something to do."""
        self._inbox.put(ask)
        self._wake()

    def close(self) -> None:
        """End the thread; what is outstanding is answered as over."""
        self._inbox.put(None)
        self._wake()
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake anyway
            os.write(self._wake_write, b"\0")

    # The thread

    def _run(self) -> None:
        while self._serve_one_connection() and self._idle(RETRY_S):
            pass

    def _serve_one_connection(self) -> bool:
        """Returns False when it is time to end."""
        try:
            line = _Line(self._path)
        except (OSError, StoreError):
            self.counts["no_keeper"] += 1
            return True
        try:
            return self._serve(line)
        except (OSError, StoreError, msgspec.MsgspecError):
            self.counts["keeper_lost"] += 1
            return True
        finally:
            self.is_attached = False
            for id in list(self._asked):
                self._fail(id, "gone")
            line.close()

    def _serve(self, line: _Line) -> bool:
        self._pool.attach(line.arena)
        line.send(wire.Attach(self._who, self._fingerprint, self._page_bytes))
        while True:
            ready = readable([line.socket.fileno(), self._wake_read])
            if self._wake_read in ready and not self._take_inbox(line):
                return False
            if line.socket.fileno() in ready:
                for message in line.receive():
                    self._on_message(line, message)

    def _idle(self, seconds: float) -> bool:
        """Answer, without a keeper, for a while. Returns False when it is time to end."""
        return not readable([self._wake_read], seconds) or self._take_inbox(None)

    def _take_inbox(self, line: _Line | None) -> bool:
        os.read(self._wake_read, _READ_BYTES)
        while True:
            try:
                ask = self._inbox.get_nowait()
            except queue.Empty:
                break
            if ask is None:
                return False
            self._on_ask(line, ask)
        if line is not None:
            for id in list(self._filling):
                self._fill(line, id)
        return True

    def _on_ask(self, line: _Line | None, ask: Ask) -> None:
        if isinstance(ask, Written | Computed):
            self._on_progress(ask)
            return
        if isinstance(ask, Look | Bring | Save):
            self._asked[ask.id] = ask
            if isinstance(ask, Bring):
                self._left[ask.id] = set(range(len(ask.names)))
            elif isinstance(ask, Save):
                self._filling[ask.id] = _Filling(ask)
        if line is not None and self.is_attached:
            self._send(line, ask)
        elif isinstance(ask, Look | Bring | Save):
            self._fail(ask.id, "gone")

    def _on_progress(self, ask: Written | Computed) -> None:
        """The step that Saves are ahead of goes on, or is booked: `_take_inbox` copies once it has heard all."""
        match ask:
            case Written(layers, of):
                for filling in self._filling.values():
                    if not filling.is_booked:
                        filling.written = layers if layers < of else None
            case Computed(id):
                if id in self._filling:
                    self._filling[id].written, self._filling[id].is_booked = None, True

    def _send(self, line: _Line, ask: Look | Bring | Save | Cancel | Keep) -> None:
        match ask:
            case Look(id, names):
                line.send(wire.Find(id, self._fingerprint, wire.pack(names)))
            case Bring(id, names):
                line.send(wire.Fetch(id, self._fingerprint, wire.pack(names)))
            case Save(id, names, _, depths, salt, worth_s, _):
                packed, size_bytes = wire.pack(names), self._page_bytes
                line.send(wire.Reserve(id, self._fingerprint, packed, size_bytes, depths, tenant(salt), worth_s))
            case Cancel(id):
                if id in self._asked:
                    line.send(wire.Done(id))
                    self._fail(id, "cancelled")
            case Keep(names, seconds):
                line.send(wire.Keep(self._fingerprint, wire.pack(names), seconds))

    def _on_message(self, line: _Line, message: wire.ToClient) -> None:
        match message:
            case wire.Attached():
                self.is_attached = True
            case wire.Refused(error):
                raise StoreError("denied", error)
            case wire.Found(id, tiers, queued):
                if self._asked.pop(id, None) is not None:
                    found = [wire.TIER_CODES[code] for code in tiers]
                    self._on_answer(Found(id, found, _by_tier(queued)))
            case wire.Here(id, blocks):
                self._here(line, id, blocks)
            case wire.Lost(id, lost):
                if id in self._asked:
                    self._missed(line, id, lost)
            case wire.Places(id, offsets):
                self._on_places(line, id, offsets)
            case wire.Welcome() | wire.Admitted() | wire.Holding():
                pass

    def _here(self, line: _Line, id: int, blocks: list[tuple[int, int, int, int]]) -> None:
        ask = self._asked.get(id)
        if not isinstance(ask, Bring):
            return  # cancelled; its leases are over
        good: list[tuple[int, Tier]] = []
        bad: list[int] = []
        several = max(1, IN_CACHE_BYTES // self._page_bytes)
        for first in range(0, len(blocks), several):
            some = blocks[first : first + several]
            right = [block for block in some if self._is_right(line, ask.names[block[0]], block)]
            self._pool.copy_in([(self._places_of(ask, index), offset) for index, offset, _, _ in right])
            good += [(index, wire.TIER_CODES[code] or Tier.DRAM) for index, _, _, code in right]
            bad += [block[0] for block in some if block not in right]
        if good:
            self._left[id].difference_update(index for index, _ in good)
            self._on_answer(Arrived(id, good))
        if bad:
            line.send(wire.Corrupt(self._fingerprint, wire.pack(ask.names[index] for index in bad)))
        self._missed(line, id, [(index, "corrupt") for index in bad])
        if id in self._left:  # the rest may wait for these places
            line.send(wire.Took(id, [block[0] for block in blocks]))

    def _is_right(self, line: _Line, name: BlockHash, block: tuple[int, int, int, int]) -> bool:
        _, offset, expected, _ = block
        return checksum(BlockKey(self._fingerprint, name), line.arena.page(offset, self._page_bytes)) == expected

    def _missed(self, line: _Line, id: int, lost: Sequence[tuple[int, str]]) -> None:
        if lost:
            self.counts.update(reason for _, reason in lost)
            self._left[id].difference_update(index for index, _ in lost)
            self._on_answer(Missed(id, list(lost)))
        if not self._left[id]:
            line.send(wire.Done(id))
            self._over(id)

    def _on_places(self, line: _Line, id: int, offsets: list[int]) -> None:
        filling = self._filling.get(id)
        if filling is None:
            return  # cancelled
        filling.pages = [(index, offset) for index, offset in enumerate(offsets) if offset >= 0]
        if filling.pages:
            self._fill(line, id)
        else:
            self._over(id, refused=len(offsets))

    def _fill(self, line: _Line, id: int) -> None:
        """Copy what is written of a Save and not copied yet. Once that is all and booked, others may read it."""
        filling = self._filling[id]
        ask, pages = filling.ask, filling.pages
        if pages is None:
            return
        if filling.copied != filling.written:
            layers = slice(filling.copied, filling.written)
            self._pool.copy_out([(self._places_of(ask, index), offset) for index, offset in pages], layers)
            filling.copied = filling.written
        if filling.copied is None and not filling.checksums:
            for index, offset in pages:
                key = BlockKey(self._fingerprint, ask.names[index])
                filling.checksums.append((index, checksum(key, line.arena.page(offset, self._page_bytes))))
        if filling.is_booked:
            line.send(wire.Filled(id, filling.checksums))
            self._over(id, refused=len(ask.names) - len(pages))

    def _places_of(self, ask: Bring | Save, index: int) -> Sequence[int]:
        return ask.places[index * self._places : (index + 1) * self._places]

    def _fail(self, id: int, reason: str) -> None:
        """Answer what is outstanding of `id` without the keeper."""
        match self._asked[id]:
            case Look(names=names):
                del self._asked[id]
                self._on_answer(Found(id, [None] * len(names), {}))
            case Bring():
                left = sorted(self._left[id])
                self.counts.update({reason: len(left)})
                self._on_answer(Missed(id, [(index, reason) for index in left]))
                self._over(id)
            case Save(names=names):
                self._over(id, refused=len(names))

    def _over(self, id: int, refused: int = 0) -> None:
        del self._asked[id]
        self._left.pop(id, None)
        self._filling.pop(id, None)
        self._on_answer(Over(id, refused))


def readable(fds: Sequence[int], seconds: float | None = None) -> set[int]:
    """Those with something to read, or closed, as soon as there are any or after so long. Their numbers may be any:
    `select` takes none above 1,023, which engines with many devices have."""
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return {fd for fd, _ in waiting.poll(None if seconds is None else 1000 * seconds)}


def _by_tier(queued: Sequence[int]) -> dict[Tier, int]:
    return {tier: size for tier, size in zip(wire.TIER_CODES, queued, strict=True) if tier is not None}


class _Line:
    """A connection to the keeper, and the arena that came with it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.settimeout(CONNECT_S)
            self.socket.connect(str(path))
            first, fds, _, _ = socket.recv_fds(self.socket, _READ_BYTES, 1)
            if len(fds) != 1:
                raise StoreError("gone", f"keeper at {path}: gave no arena")
            self.arena = Arena.attach(fds[0])
        except BaseException:
            self.socket.close()
            raise
        self._pending = bytearray(first)
        self.socket.settimeout(SEND_S)

    def send(self, message: msgspec.Struct) -> None:
        self.socket.sendall(framed(message))

    def receive(self) -> list[wire.ToClient]:
        """Messages that are there; called when the socket can be read."""
        read = self.socket.recv(_READ_BYTES)
        if not read:
            raise StoreError("gone", "keeper: connection closed")
        self._pending += read
        return take_messages(self._pending, wire.TO_CLIENT)

    def close(self) -> None:
        self.socket.close()
        self.arena.close()
