"""Batch invariance: matrix products in numbers of rows for which a row's bits are proven to be the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F

from jevons.base.errors import EngineError
from jevons.engine.reference.attention import KEY_MULTIPLE, RUN_KEYS, TILE_QUERIES, Attention, mask_of, windowed
from jevons.engine.reference.linear import Linear
from jevons.engine.reference.weights import Layer, Weights
from jevons.facts.model import ModelShape

Product = Callable[[torch.Tensor], torch.Tensor]  # [rows, in] -> [rows, out]

UNIT = 16  # rows of the tile every other is compared with, and what row counts above are padded to
TILES = (1, 2, 4, 8, UNIT, 32, 64, 128, 256, 512)
TRIED_ROWS = 1024 + UNIT
HEAD_TILES = (1, 2, 4, 8, UNIT, 32, 64)  # a step draws few tokens, and the head is the largest weight
TRIED_HEAD_ROWS = 64 + UNIT  # of a whole vocabulary each: as many sums as in a layer


def make_invariant(weights: Weights, shape: ModelShape, dtype: torch.dtype) -> Weights:
    """`weights` whose products are cut into tiles that agree, found by trying on layer 0: 2 to 5 s.

    Why trying is enough: for one weight shape, the library's kernel, and with it the order of its sums, depends on the
    number of rows and threads alone; another order shows at once in thousands of random sums.

    Raises:
        EngineError: this machine gives a row other bits in another place of the same tile, or in attention.
    """
    layer = weights.layers[0]
    draw = _Draws(weights.embedding.device, dtype)
    h, wide, attended = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    products: list[tuple[Product, int]] = [
        (layer.qkv, h),
        (layer.out, attended),
        (layer.gate, h),
        (layer.up, h),
        (layer.down, wide),
    ]
    tiles: tuple[int, ...] = TILES
    for product, width in products:
        tiles = agreeing(product, draw(TRIED_ROWS, width), tiles)
    head = weights.head
    if head is not None:
        head = Tiled(head, agreeing(head, draw(TRIED_HEAD_ROWS, h), HEAD_TILES))
    for window in {shape.window(layer) for layer in range(shape.layers)}:
        _prove_attention(shape, draw, window)
    return replace(weights, layers=[_tiled(each, tiles) for each in weights.layers], head=head)


def agreeing(product: Product, x: torch.Tensor, tiles: Sequence[int]) -> tuple[int, ...]:
    """Those of `tiles` in which every row gets the bits it gets in tiles of `UNIT` rows; x [rows, in] to try.

    Raises:
        EngineError: tiles of `UNIT` rows do not agree among themselves.
    """
    expected = torch.cat([product(tile) for tile in torch.split(x, UNIT)])

    def agrees(tile: int) -> bool:
        # Every row, since orders differ rarely: one row at a time, 7 % of rows (down projection of SmolLM2, AVX-512
        # bf16) and none of its first few. From several places, so that rows stand elsewhere in the tile.
        starts = (at for place in ((0,) if tile == 1 else (0, 1, UNIT - 1)) for at in range(place, len(x), tile))
        return all(torch.equal(product(x[a : a + tile]), expected[a : a + tile]) for a in starts if a + tile <= len(x))

    kept = tuple(tile for tile in tiles if agrees(tile))
    if UNIT not in kept:
        raise EngineError(
            f"batch-invariant mode: products of {UNIT} rows give a row other bits in another place; "
            "this torch build on this machine cannot do it, run without"
        )
    return kept


class Tiled:
    """A `Linear` whose products run in tiles; missing rows of the last one are zeros."""

    def __init__(self, linear: Linear, tiles: Sequence[int]) -> None:
        self._linear, self._tiles = linear, sorted(tiles, reverse=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        sizes = cover(len(x), self._tiles)
        if sizes == [len(x)]:
            return self._linear(x)
        padded = F.pad(x, (0, 0, 0, sum(sizes) - len(x)))
        return torch.cat([self._linear(tile) for tile in torch.split(padded, sizes)])[: len(x)]


def cover(rows: int, tiles: Sequence[int]) -> list[int]:
    """Tiles, of the sizes given in descending order, that hold `rows`: fewer than `UNIT` rows too many.

    A product costs about as much as 15 rows before its first row (measured), so few rows take one tile that holds them.
    """
    if rows <= UNIT:
        return [min(tile for tile in tiles if tile >= rows)]
    sizes, left = [], -(-rows // UNIT) * UNIT
    for tile in tiles:
        sizes += [tile] * (left // tile)
        left %= tile
    return sizes


def _tiled(layer: Layer, tiles: Sequence[int]) -> Layer:
    return replace(
        layer,
        qkv=Tiled(layer.qkv, tiles),
        out=Tiled(layer.out, tiles),
        gate=Tiled(layer.gate, tiles),
        up=Tiled(layer.up, tiles),
        down=Tiled(layer.down, tiles),
    )


class _Draws:
    """Random tensors, the same ones in every process."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._generator).to(self._device, self._dtype)


def _prove_attention(shape: ModelShape, draw: _Draws, window: int | None) -> None:
    """Attend the same queries as one prompt, in odd cuts, as decodes padded to other lengths, and as each one alone.

    Raises:
        EngineError: they differ.
    """
    count = 2 * TILE_QUERIES
    cuts = [0, 1, 4, 37, TILE_QUERIES, TILE_QUERIES + 19, count]
    long = _agrees(shape, draw, window, cuts, [0, 5, TILE_QUERIES, count - 2, count - 1])
    short = _agrees(shape, draw, window, [0, 1, 4, 32], [0, 1, 5, 30, 31], is_first=True)
    if not (long and short):
        raise EngineError(
            "batch-invariant mode: attention gives a row other bits in another batch; "
            "this torch build on this machine cannot do it, run without"
        )


def _agrees(
    shape: ModelShape, draw: _Draws, window: int | None, cuts: list[int], decoded: list[int], *, is_first: bool = False
) -> bool:
    """Whether queries 0 to cuts[-1] have the same bits in all ways; some of them `decoded`.

    Args:
        is_first: they are the first of their sequence, not after a run of keys.
    """
    count = cuts[-1]
    q = draw(count, shape.heads, shape.head_dim)
    start = 0 if is_first else RUN_KEYS[q.dtype]
    keys = -(-(start + count) // KEY_MULTIPLE[q.dtype]) * KEY_MULTIPLE[q.dtype]
    k, v = draw(shape.kv_heads, keys, shape.head_dim), draw(shape.kv_heads, keys, shape.head_dim)
    attention = Attention(q.dtype, q.device)
    expected = attention.prompt(q, k, v, start, window)
    cut = [attention.prompt(q[a:b], k, v, start + a, window) for a, b in pairwise(cuts)]
    chosen = torch.tensor(decoded, device=q.device)
    if window is None:
        tail = mask_of(torch.arange(start, keys, device=q.device) > start + chosen[:, None], q.dtype)[:, None, None]
    else:
        tail = windowed(start + chosen, keys, window, q.dtype)[:, None, None]
    several = len(chosen)
    together = attention.decodes(q[chosen], k.repeat(several, 1, 1), v.repeat(several, 1, 1), tail)
    alone = [attention.decodes(q[at : at + 1], k, v, tail[i : i + 1]) for i, at in enumerate(decoded)]
    return all(
        torch.equal(one, other)
        for one, other in ((torch.cat(cut), expected), (together, expected[chosen]), (torch.cat(alone), together))
    )
