"""The paged KV cache as one tensor, and where in it the tokens of a sequence are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from jevons.engine.reference.share import Share
from jevons.kv.layout import Layout

Ints = npt.NDArray[np.int64]


class Cache(msgspec.Struct, frozen=True):
    """What a paged cache is like."""

    blocks: int  # how many
    block_size: int  # tokens in each
    dtype: str = "bfloat16"  # of keys and values, see `kv.layout.DTYPE_BYTES`
    page: Layout | None = None  # of a block outside, in the tiers; None: as it is


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU memory is taken as it is written: zeroing 256 MB at once took 0.7 s."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(size, np.int16 if dtype.itemsize == 2 else np.int32)).view(dtype)


class Pages:
    """`tensor`: [blocks, layers, 2 (k, v), kv_heads, block_size, head_dim], one block one contiguous object.

    The heads are those of this rank's share.

    `write` and `read` index rows of the flat memory. A row's number is the same for every layer, counted from the
    layer's own offset, so indices are made once a step and not once a layer.

    Args:
        share: this rank's part of the model.
        cache: its size and dtype.
        key_multiple: positions are read in whole multiples of this.
        device: any.
    """

    def __init__(self, share: Share, cache: Cache, *, key_multiple: int, device: torch.device) -> None:
        shape, block_size = share.part, cache.block_size
        size = (cache.blocks, shape.layers, 2, shape.kv_heads, block_size, shape.head_dim)
        self._dtype: torch.dtype = getattr(torch, cache.dtype)
        self.tensor = zeros(size, self._dtype, device)
        self._block_size, self._head_dim = block_size, shape.head_dim
        self._step = int(np.lcm(block_size, key_multiple))
        self._heads = 2 * shape.kv_heads  # of keys and of values, in one layer
        self._block_heads = shape.layers * self._heads
        # Several numbers are copied as one int64: 63 us for 512 tokens in bf16 instead of 136.
        self._by_token = self.tensor.view(-1, shape.head_dim).view(torch.int64)
        self._by_head = self.tensor.view(-1, block_size * shape.head_dim)

    def padded(self, tokens: int) -> int:
        """Keys read for a context of `tokens`: whole blocks, and a multiple of `key_multiple`."""
        return -(-tokens // self._step) * self._step

    def slots(self, table: Sequence[int], start: int, end: int) -> Ints:
        """Rows for writing positions [start, end): flat, in the order [positions, 2, kv_heads]."""
        positions = np.arange(start, end)
        blocks = np.asarray(table, np.int64)[positions // self._block_size]
        first = blocks * (self._block_heads * self._block_size) + positions % self._block_size
        slots: Ints = (first[:, None] + np.arange(self._heads) * self._block_size).ravel()
        return slots

    def rows(self, tables: Sequence[Sequence[int]], tokens: int) -> Ints:
        """Rows for reading `padded(tokens)` positions of each table: [2, tables * kv_heads, blocks].

        A table too short repeats its last block, so that no sequence ever touches another's numbers.
        """
        count = self.padded(tokens) // self._block_size
        blocks = np.array([[*t, *[t[-1]] * (count - len(t))][:count] for t in tables], np.int64)
        head = np.arange(self._heads).reshape(2, 1, -1, 1)
        return (blocks[None, :, None, :] * self._block_heads + head).reshape(2, -1, count)

    def write(self, layer: int, kv: torch.Tensor, slots: torch.Tensor) -> None:
        """Put kv [tokens, 2 * kv_heads, head_dim], keys first, where `slots` says."""
        rows = kv.to(self._dtype).view(-1, self._head_dim).view(torch.int64)
        self._by_token[layer * self._heads * self._block_size :].index_copy_(0, slots, rows)

    def read(self, layer: int, rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, contiguous, each [tables * kv_heads, keys, head_dim]."""
        gathered = self._by_head[layer * self._heads :].index_select(0, rows.view(-1)).to(dtype)
        keys, values = gathered.view(2, rows.shape[1], -1, self._head_dim).unbind(0)
        return keys, values
