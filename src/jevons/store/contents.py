"""What this node believes a shared store holds, so that no request has to ask it.

Others write to the store too. So what is believed comes from three sides: listings, what we wrote ourselves, and what
gets have taught. Believing too much costs one get that finds nothing; too little, one block computed again.
"""

from __future__ import annotations

from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey


class _Shelf:
    """The blocks of one fingerprint."""

    def __init__(self) -> None:
        self.names: set[BlockHash] = set()
        self.spoilt: set[BlockHash] = set()  # there, but not fit to be used
        self.seen: set[BlockHash] | None = None  # in the listing under way; None without one


class Contents:
    """Names by fingerprint; no I/O.

    Args:
        limit: names remembered at most, of all fingerprints together; 83 bytes of memory each, twice that while a
            listing goes on.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shelves: dict[bytes, _Shelf] = {}

    def __len__(self) -> int:
        """Names remembered, those of spoilt blocks included."""
        return sum(len(shelf.names) + len(shelf.spoilt) for shelf in self._shelves.values())

    def holds(self, key: BlockKey) -> bool:
        shelf = self._shelves.get(key.fingerprint)
        return shelf is not None and key.name in shelf.names

    def names(self, fingerprint: bytes) -> set[BlockHash]:
        """A copy of what is held under one fingerprint."""
        shelf = self._shelves.get(fingerprint)
        return set() if shelf is None else set(shelf.names)

    def add(self, key: BlockKey) -> None:
        """It is there and good: we have just written it, or read it."""
        shelf = self._shelf(key.fingerprint)
        shelf.spoilt.discard(key.name)
        if len(self) < self._limit:
            shelf.names.add(key.name)
        if shelf.seen is not None:
            shelf.seen.add(key.name)  # the listing under way may have passed its place already

    def discard(self, key: BlockKey) -> None:
        """It is not there."""
        shelf = self._shelf(key.fingerprint)
        shelf.names.discard(key.name)
        shelf.spoilt.discard(key.name)

    def quarantine(self, key: BlockKey) -> None:
        """It is there and bad: not held, whatever listings say, until it is written again."""
        self.discard(key)
        if len(self) < self._limit:
            self._shelf(key.fingerprint).spoilt.add(key.name)

    def begin(self, fingerprint: bytes) -> None:
        """A listing begins; at most one of a fingerprint at a time."""
        shelf = self._shelf(fingerprint)
        assert shelf.seen is None, "one listing of a fingerprint at a time"
        shelf.seen = set()

    def found(self, fingerprint: bytes, names: set[BlockHash]) -> bool:
        """The listing under way tells of `names`. Returns whether there was room for all that were new."""
        shelf = self._shelf(fingerprint)
        assert shelf.seen is not None, "found belongs between begin and end"
        shelf.seen |= names
        fresh = names - shelf.names - shelf.spoilt
        room = self._limit - len(self)
        shelf.names.update(fresh if len(fresh) <= room else sorted(fresh)[:room])
        return len(fresh) <= room

    def end(self, fingerprint: bytes, is_whole: bool) -> None:
        """The listing is over. If it is whole, what it did not tell of is gone; else it has only added."""
        shelf = self._shelf(fingerprint)
        assert shelf.seen is not None, "end comes after begin"
        if is_whole:
            shelf.names &= shelf.seen
            shelf.spoilt &= shelf.seen
        shelf.seen = None

    def _shelf(self, fingerprint: bytes) -> _Shelf:
        return self._shelves.setdefault(fingerprint, _Shelf())
