"""vLLM's KV tensors as canonical pages.

Whatever the order in memory, a layer is two views, keys and values, each [blocks, kv_heads, tokens, head_dim]; copying
a block is then the same for all. Which order a backend uses is not taken from its documentation: marked keys and values
are written through the backend's own operation at start, and the order that reads all of them back is the one. There
is none for packings we do not know (AMX, say), and then the connector does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jevons.base.errors import ConfigError
from jevons.base.ids import BlockId
from jevons.kv.layout import DTYPE_BYTES, Layout
from jevons.store.arena import Arena
from jevons.store.node import ALL, Page

Bits = npt.NDArray[Any]  # uint16 or uint32: bits are copied, never numbers
View = tuple[Bits, Bits]  # keys and values
Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]

_BITS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}
# Bit patterns from the smallest normal number up to infinity: nothing that an operation might flush or make quiet.
_MARKS = {"float16": (0x0400, 0x7C00), "bfloat16": (0x0080, 0x7F80), "float32": (0x0080_0000, 0x7F80_0000)}
_PROBED = (2, 1)  # blocks; block 0 is nobody's in vLLM


def bits(tensor: torch.Tensor) -> Bits:
    """The tensor's memory as unsigned numbers, whatever its strides; nothing is copied."""
    signed, unsigned = _BITS[tensor.element_size()]
    seen: Bits = tensor.view(signed).numpy().view(unsigned)
    return seen


def _cpu(layer: Bits) -> View:
    """[blocks, heads, tokens, 2 dim]; in a head first K as [dim, tokens], then V as [tokens, dim]: x86 `vec`."""
    blocks, heads, tokens, both = layer.shape
    halves = layer.reshape(blocks, heads, 2, tokens * both // 2)
    if not np.shares_memory(halves, layer):
        raise ValueError("a head is not contiguous")
    keys = halves[:, :, 0].reshape(blocks, heads, both // 2, tokens).swapaxes(2, 3)
    return keys, halves[:, :, 1].reshape(blocks, heads, tokens, both // 2)


def _side_by_side(layer: Bits) -> View:
    """[blocks, heads, tokens, 2 dim] with any strides, K beside V: vLLM's standard view since 0.30."""
    keys, values = np.split(layer, 2, axis=3)
    return keys, values


def _flash(layer: Bits) -> View:
    """[2, blocks, tokens, heads, dim]: FlashAttention."""
    return layer[0].swapaxes(1, 2), layer[1].swapaxes(1, 2)


def _infer(layer: Bits) -> View:
    """[blocks, 2, tokens, heads, dim]: FlashInfer, Triton."""
    return layer[:, 0].swapaxes(1, 2), layer[:, 1].swapaxes(1, 2)


def _infer_by_head(layer: Bits) -> View:
    """[blocks, 2, heads, tokens, dim]: FlashInfer's other order."""
    return layer[:, 0], layer[:, 1]


ORDERS: Mapping[str, Callable[[Bits], View]] = {
    "cpu": _cpu,
    "side by side": _side_by_side,
    "flash": _flash,
    "infer": _infer,
    "infer by head": _infer_by_head,
}


def find_order(caches: Mapping[str, torch.Tensor], layout: Layout, write: Write) -> str:
    """The order in which these tensors hold keys and values, proven on each of them; they are as before afterwards.

    Args:
        caches: by layer, not in use yet.
        write: the backend's own operation: cache, keys and values [tokens, heads, dim], slots [tokens].

    Raises:
        ConfigError: no known order reads back what was written.
    """
    found = {_order_of(cache, layout, write) for cache in caches.values()}
    if len(found) == 1 and (order := found.pop()) is not None:
        return order
    shapes = sorted({f"{tuple(c.shape)} {c.dtype} strides {c.stride()}" for c in caches.values()})
    raise ConfigError(
        f"KV cache: {', '.join(shapes)} holds keys and values in an order that jevons does not know; "
        "blocks cannot be shared, so remove the KV connector"
    )


def _order_of(cache: torch.Tensor, layout: Layout, write: Write) -> str | None:
    keys, values = _marks(layout)
    probed = cache.narrow(1 if cache.shape[0] == 2 else 0, 0, max(_PROBED) + 1)  # no more: the rest is not touched yet
    before = probed.clone()
    tokens = torch.arange(layout.block_size)
    slots = torch.cat([block * layout.block_size + tokens for block in _PROBED])
    try:
        write(cache, keys, values, slots)
        return next((order for order in ORDERS if _reads_back(order, cache, layout, keys, values)), None)
    finally:
        probed.copy_(before)


def _marks(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values for the probed blocks, neighbours always different: [tokens, heads, dim] each."""
    first, end = _MARKS[layout.dtype]
    shape = (2, len(_PROBED) * layout.block_size, layout.kv_heads, layout.head_dim)
    numbers = first + torch.arange(int(np.prod(shape)), dtype=torch.int64) % (end - first - 1)
    signed, _ = _BITS[DTYPE_BYTES[layout.dtype]]
    keys, values = numbers.to(signed).view(getattr(torch, layout.dtype)).view(shape)
    return keys, values


def _reads_back(order: str, cache: torch.Tensor, layout: Layout, keys: torch.Tensor, values: torch.Tensor) -> bool:
    try:
        view = ORDERS[order](bits(cache))
    except (ValueError, IndexError):  # too few dimensions, or none that can be split so
        return False
    block_shape = (layout.kv_heads, layout.block_size, layout.head_dim)
    if any(part.ndim != 4 or part.shape[1:] != block_shape or len(part) <= max(_PROBED) for part in view):
        return False
    for part, written in zip(view, (keys, values), strict=True):
        wanted = bits(written).reshape(len(_PROBED), layout.block_size, layout.kv_heads, layout.head_dim)
        if not (part[list(_PROBED)] == wanted.swapaxes(1, 2)).all():
            return False
    return True


class Pool:
    """vLLM's blocks, and pages set aside on their way out; a `store.node.Pool`.

    What is brought is copied into vLLM's blocks by the node's thread; nobody else has them until then. What is saved is
    first copied to `slots` by vLLM's own thread, and from there by the node's.

    Args:
        layers: first to last.
        layout: of a page, which is one of vLLM's blocks.
        slots: pages that can be set aside at once; memory is taken as it is written.
    """

    def __init__(self, layers: Sequence[View], layout: Layout, slots: int) -> None:
        self._layers = layers
        self._layout = layout
        _, self._kind = _BITS[DTYPE_BYTES[layout.dtype]]
        self._aside: Bits = np.empty((slots, *layout.shape), self._kind)
        self._free = list(range(slots))
        self.arena: Arena | None = None

    def set_aside(self, blocks: Sequence[int]) -> list[BlockId]:
        """Copy blocks of vLLM, as many of the first as there are slots for. Returns their slots."""
        taken: list[BlockId] = []
        for block in blocks[: len(self._free)]:
            slot = self._free.pop()
            self._copy_block(block, self._aside[slot], out=True)
            taken.append(BlockId(slot))
        return taken

    def give_back(self, slots: Sequence[int]) -> None:
        self._free.extend(slots)

    def attach(self, arena: Arena) -> None:
        self.arena = arena

    def copy_out(self, pages: Sequence[Page], layers: slice = ALL) -> None:
        for (slot,), offset in pages:
            self._page(offset)[layers] = self._aside[slot][layers]

    def copy_in(self, pages: Sequence[Page]) -> None:
        for (block,), offset in pages:
            self._copy_block(block, self._page(offset), out=False)

    def _page(self, offset: int) -> Bits:
        assert self.arena is not None, "the node attaches before it copies"
        raw = self.arena.page(offset, self._layout.page_bytes)
        return np.frombuffer(raw, self._kind).reshape(self._layout.shape)

    def _copy_block(self, block: int, page: Bits, *, out: bool) -> None:
        for layer, parts in zip(page, self._layers, strict=True):
            for in_page, in_cache in zip(layer, parts, strict=True):
                if out:
                    in_page[:] = in_cache[block]
                else:
                    in_cache[block] = in_page


class NoPool:
    """Of a node that only asks what is where."""

    def attach(self, arena: Arena) -> None:
        pass

    def copy_out(self, pages: Sequence[Page], layers: slice = ALL) -> None:
        raise AssertionError("nothing is saved from here")

    def copy_in(self, pages: Sequence[Page]) -> None:
        raise AssertionError("nothing is brought here")
