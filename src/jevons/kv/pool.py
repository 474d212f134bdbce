"""The pool: the blocks one worker holds in its device, who uses them, and which may be reused.

A block is free (nobody uses it) or used (by one or more sequences). A block that is full has a name; a free block
keeps its name and content until its place is needed, so a later prompt with the same prefix takes it back:

    allocate ──▶ used ──seal(name)──▶ used, named ──release──▶ free, named ──match + take──▶ used, named
                   └──release──▶ free                              └──allocate──▶ used (event: removed)

Free blocks are given out oldest first. `release` frees a sequence's last block first, so that a chain loses its tail
before its head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from jevons.base.errors import ConfigError, NoFreeBlocks
from jevons.base.ids import BlockHash, BlockId
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvEvent


class FullBlocks(msgspec.Struct, frozen=True):
    """Consecutive full blocks of one sequence: their names, their tokens, and what came before."""

    hashes: Sequence[BlockHash]
    tokens: Sequence[int]  # len(hashes) * block_size
    parent: BlockHash | None  # None where the first starts a prompt
    salt: str = ""
    adapter: str = ""


class BlockPool:
    """Places 0 to `blocks` - 1, no content. Every change of what can be reused is an event."""

    def __init__(self, blocks: int, block_size: int) -> None:
        if blocks < 1:
            raise ConfigError(f"blocks: a pool must hold at least 1 block, got {blocks}")
        self.blocks = blocks
        self.block_size = block_size
        self._users = [0] * blocks
        self._name: list[BlockHash | None] = [None] * blocks
        self._place: dict[BlockHash, BlockId] = {}
        self._free: OrderedDict[BlockId, None] = OrderedDict((BlockId(i), None) for i in range(blocks))
        self._events: list[KvEvent] = []

    @property
    def free(self) -> int:
        """Blocks that nobody uses, named ones included."""
        return len(self._free)

    @property
    def named(self) -> int:
        """Blocks that a later prompt can reuse."""
        return len(self._place)

    def names(self) -> list[BlockHash]:
        """Of the blocks that a later prompt can reuse."""
        return list(self._place)

    def match(self, hashes: Sequence[BlockHash]) -> list[BlockId]:
        """Places of the leading blocks of `hashes` that are here. Changes nothing."""
        found = []
        for name in hashes:
            place = self._place.get(name)
            if place is None:
                break
            found.append(place)
        return found

    def can_allocate(self, count: int, taking: Sequence[BlockId] = ()) -> bool:
        """Whether `count` blocks are free besides those of `taking` that nobody uses yet."""
        return count + sum(self._users[place] == 0 for place in taking) <= len(self._free)

    def take(self, places: Sequence[BlockId]) -> None:
        """Use blocks that `match` found."""
        for place in places:
            if not self._users[place]:
                del self._free[place]
            self._users[place] += 1

    def allocate(self, count: int) -> list[BlockId]:
        """Use `count` more blocks; the names they had are gone.

        Raises:
            NoFreeBlocks: fewer are free. Nothing has changed then.
        """
        if count > len(self._free):
            raise NoFreeBlocks(f"{count} blocks wanted, {len(self._free)} of {self.blocks} are free")
        places = [self._free.popitem(last=False)[0] for _ in range(count)]
        evicted = [self._unname(place) for place in places if self._name[place] is not None]
        if evicted:
            self._events.append(BlocksRemoved(hashes=list(evicted), medium="GPU"))
        for place in places:
            self._users[place] = 1
        return places

    def seal(self, places: Sequence[BlockId], full: FullBlocks) -> None:
        """Name blocks that have become full.

        A second copy of a block that is here already stays unnamed, makes no event, and goes when its user does.
        """
        size, run = self.block_size, 0
        for i, (place, name) in enumerate(zip(places, full.hashes, strict=True)):
            if name in self._place:
                self._publish(full, run, i)
                run = i + 1
            else:
                self._place[name] = place
                self._name[place] = name
        assert len(full.tokens) == len(full.hashes) * size, "seal takes whole blocks"
        self._publish(full, run, len(full.hashes))

    def release(self, places: Sequence[BlockId]) -> None:
        """A sequence is done with these blocks, given first to last."""
        for place in reversed(places):
            self._users[place] -= 1
            assert self._users[place] >= 0, f"block {place} released more often than used"
            if not self._users[place]:
                self._free[place] = None
                if self._name[place] is None:
                    self._free.move_to_end(place, last=False)  # nothing to reuse: give it out first

    def clear(self) -> None:
        """Forget every name. Blocks in use stay in use."""
        for place in list(self._place.values()):
            self._unname(place)
        self._events.append(AllCleared())

    def drain_events(self) -> list[KvEvent]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _publish(self, full: FullBlocks, start: int, end: int) -> None:
        if start == end:
            return
        size = self.block_size
        extra: list[list[object] | None] | None = None
        if full.salt and start == 0 and full.parent is None:
            extra = [[full.salt], *[None] * (end - 1)]
        self._events.append(
            BlocksStored(
                hashes=list(full.hashes[start:end]),
                parent=full.hashes[start - 1] if start else full.parent,
                tokens=list(full.tokens[start * size : end * size]),
                block_size=size,
                adapter=full.adapter or None,
                medium="GPU",
                extra=extra,
            )
        )

    def _unname(self, place: BlockId) -> BlockHash:
        name = self._name[place]
        assert name is not None
        self._name[place] = None
        del self._place[name]
        return name
