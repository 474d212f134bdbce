"""The tiers below the arena as the keeper drives them: batches to write, single blocks to read, never an exception."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from jevons.facts.block import BlockKey, BlockMeta, Tier
from jevons.wire.channel import KeeperConfig

Page = tuple[BlockKey, BlockMeta, memoryview]


class Lower(Protocol):
    """One tier below the arena."""

    parallel_reads: int
    counts: Counter[str]

    @property
    def used_bytes(self) -> int: ...

    async def held(self) -> Sequence[tuple[BlockKey, BlockMeta]]:
        """What it holds when it is opened."""

    async def write(
        self, pages: Sequence[Page], is_used: Callable[[BlockKey], bool]
    ) -> tuple[list[str], list[BlockKey]]:
        """Keep these. A reason for each, empty if it is kept; and what had to go for them."""

    async def read(self, key: BlockKey, meta: BlockMeta, into: memoryview) -> str:
        """Read a block, checked. The reason why not, or nothing."""

    async def close(self) -> None: ...


def open_lower(config: KeeperConfig) -> dict[Tier, Lower]:
    """The tiers that are configured.

    Raises:
        ConfigError: one cannot be had.
    """
    return {}
