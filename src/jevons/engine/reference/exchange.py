"""Blocks of the paged cache to and from a shared arena, converted where the two differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jevons.kv.layout import Layout
from jevons.store.arena import Arena
from jevons.store.node import Page


class Exchange:
    """Copies whole blocks between the cache and an arena's canonical pages, for one thread beside the engine's own.

    Args:
        cache: [blocks, layers, 2, kv_heads, block_size, head_dim].
        layout: of the arena's pages; a page holds a whole number of the cache's blocks.
    """

    def __init__(self, cache: torch.Tensor, layout: Layout) -> None:
        self._cache = cache
        self._layout = layout
        self.blocks = layout.block_size // cache.shape[4]
        assert self.blocks * cache.shape[4] == layout.block_size, "a page holds whole blocks"
        self._arena = torch.empty(0, dtype=torch.uint8)

    def attach(self, arena: Arena) -> None:
        """Offsets mean this arena from now on."""
        self._arena = torch.frombuffer(arena.memory, dtype=torch.uint8)

    def copy_out(self, pages: Sequence[Page]) -> None:
        """Copy places of the cache to the arena."""
        for places, offset in pages:
            for part, place in zip(self._parts(offset), places, strict=True):
                part.copy_(self._cache[place])

    def copy_in(self, pages: Sequence[Page]) -> None:
        """Copy pages of the arena to places of the cache."""
        for places, offset in pages:
            for part, place in zip(self._parts(offset), places, strict=True):
                self._cache[place].copy_(part)

    def _parts(self, offset: int) -> Sequence[torch.Tensor]:
        """The page at `offset`, as views of one block of the cache each."""
        layout = self._layout
        raw = self._arena[offset : offset + layout.page_bytes]
        page = raw.view(getattr(torch, layout.dtype)).view(layout.shape)
        return page.chunk(self.blocks, dim=3)
