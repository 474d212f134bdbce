"""Blocks of the paged cache to and from a shared arena, converted where the two differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from jevons.kv.layout import Layout
from jevons.store.arena import Arena
from jevons.store.node import ALL, Page


class Exchange:
    """Copies blocks between a rank's cache and an arena's canonical pages, for one thread beside the engine's own.

    A page holds all heads of a whole number of blocks, in the page's dtype; each rank copies its own heads.

    On a GPU the copying thread uses the device's default stream like the engine's, so a copy reads what was queued for
    computing before it was asked for. It also waits for what is queued after: right, but hidden behind computing it
    would be only with a stream of its own and an event after each layer (no GPU here to try it on).

    Args:
        cache: [blocks, layers, 2, own kv_heads, block_size, head_dim].
        layout: of the arena's pages.
        heads: which of the page's kv heads are the cache's.
    """

    def __init__(self, cache: torch.Tensor, layout: Layout, heads: range) -> None:
        self._cache = cache
        self._layout = layout
        self._heads = slice(heads.start, heads.stop)
        self._blocks = layout.block_size // cache.shape[4]
        assert self._blocks * cache.shape[4] == layout.block_size, "a page holds whole blocks"
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._is_plain = cache.shape[1:] == layout.shape and cache.dtype == getattr(torch, layout.dtype)
        # Bytes of both where nothing is to be converted: views of tensors cost as much as copying a small block.
        self._own_bytes = _bytes(cache) if self._is_plain and cache.device.type == "cpu" else None
        self._arena_bytes = np.empty(0, np.uint8)
        self._layer_bytes = layout.page_bytes // layout.layers

    def attach(self, arena: Arena) -> None:
        """Offsets mean this arena from now on."""
        self._arena = torch.frombuffer(arena.memory, dtype=torch.uint8)
        self._arena_bytes = self._arena.numpy()

    def copy_out(self, pages: Sequence[Page], layers: slice = ALL) -> None:
        """Copy layers of places of the cache to the arena. A step may run meanwhile if it writes none of them."""
        own = self._own_bytes
        first, end, _ = layers.indices(self._layout.layers)
        begin, size = first * self._layer_bytes, (end - first) * self._layer_bytes
        for places, offset in pages:
            if own is not None:
                self._arena_bytes[offset + begin : offset + begin + size] = own[places[0], begin : begin + size]
                continue
            for part, place in zip(self._parts(offset), places, strict=True):
                part[layers].copy_(self._cache[place, layers])

    def copy_in(self, pages: Sequence[Page]) -> None:
        """Copy pages of the arena to places of the cache, which no step in progress may use."""
        own, size = self._own_bytes, self._layout.page_bytes
        for places, offset in pages:
            if own is not None:
                own[places[0]] = self._arena_bytes[offset : offset + size]
                continue
            for part, place in zip(self._parts(offset), places, strict=True):
                self._cache[place].copy_(part)

    def _parts(self, offset: int) -> Sequence[torch.Tensor]:
        """The page at `offset`, own heads, as views of one block of the cache each."""
        layout = self._layout
        raw = self._arena[offset : offset + layout.page_bytes]
        page = raw.view(getattr(torch, layout.dtype)).view(layout.shape)
        return page[:, :, self._heads].chunk(self._blocks, dim=3)


def _bytes(cache: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A CPU tensor's memory, [blocks, bytes]."""
    raw: npt.NDArray[np.uint8] = cache.view(len(cache), -1).view(torch.uint8).numpy()
    return raw
