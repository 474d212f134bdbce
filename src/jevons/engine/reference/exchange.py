"""Blocks of the paged cache to and from a shared arena."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jevons.store.arena import Arena


class Exchange:
    """Copies whole blocks between `pages` and an arena, for one thread beside the engine's own.

    Args:
        pages: [blocks, layers, 2, kv_heads, block_size, head_dim], the canonical page in each block.
    """

    def __init__(self, pages: torch.Tensor) -> None:
        self._blocks = pages.view(len(pages), -1).view(torch.uint8)
        self._arena = torch.empty(0, dtype=torch.uint8)

    def attach(self, arena: Arena) -> None:
        """Offsets mean this arena from now on."""
        self._arena = torch.frombuffer(arena.memory, dtype=torch.uint8)

    def copy_out(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy places of the cache to offsets of the arena."""
        for place, offset in pairs:
            self._page(offset).copy_(self._blocks[place])

    def copy_in(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages at offsets of the arena to places of the cache: pairs (place, offset)."""
        for place, offset in pairs:
            self._blocks[place].copy_(self._page(offset))

    def _page(self, offset: int) -> torch.Tensor:
        return self._arena[offset : offset + self._blocks.shape[1]]
