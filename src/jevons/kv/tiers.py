"""What the tiers of a node hold, as its keeper tells: fingerprint and block → tiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jevons.base.ids import BlockHash
from jevons.facts.block import Tier

_BIT = {Tier.DRAM: 1, Tier.DISK: 2, Tier.REMOTE: 4}
_NEAREST = (None, Tier.DRAM, Tier.DISK, Tier.DRAM, Tier.REMOTE, Tier.DRAM, Tier.DISK, Tier.DRAM)  # by set of bits


class Holdings:
    """A copy of the keeper's table, for predictions. About 0.1 µs a block asked."""

    def __init__(self) -> None:
        self._tiers: dict[bytes, dict[BlockHash, int]] = {}

    def __len__(self) -> int:
        return sum(len(table) for table in self._tiers.values())

    def stored(self, fingerprint: bytes, tier: Tier, names: Iterable[BlockHash]) -> None:
        table, bit = self._tiers.setdefault(fingerprint, {}), _BIT[tier]
        for name in names:
            table[name] = table.get(name, 0) | bit

    def removed(self, fingerprint: bytes, tier: Tier, names: Iterable[BlockHash]) -> None:
        table, others = self._tiers.get(fingerprint, {}), ~_BIT[tier]
        for name in names:
            left = table.get(name, 0) & others
            if left:
                table[name] = left
            else:
                table.pop(name, None)

    def clear(self) -> None:
        self._tiers.clear()

    def nearest(self, fingerprint: bytes, names: Sequence[BlockHash]) -> list[Tier | None]:
        """The nearest tier that holds each block."""
        table = self._tiers.get(fingerprint)
        if not table:
            return [None] * len(names)
        return [_NEAREST[table.get(name, 0)] for name in names]
