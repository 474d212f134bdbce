"""Blocks of the cache and canonical pages of the arena: what goes out comes back, in other sizes and dtypes too."""

from __future__ import annotations

import pytest
import torch

from jevons.engine.reference.exchange import Exchange
from jevons.kv.layout import Layout
from jevons.store.arena import Arena

LAYERS, HEADS, DIM = 3, 2, 8


def cache(blocks: int, block_size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    torch.manual_seed(block_size)
    return torch.randn(blocks, LAYERS, 2, HEADS, block_size, DIM).to(dtype)


def layout(block_size: int, dtype: str = "bfloat16") -> Layout:
    return Layout(LAYERS, HEADS, DIM, block_size, dtype)


def attached(tensor: torch.Tensor, pages: Layout, arena: Arena) -> Exchange:
    exchange = Exchange(tensor, pages, range(HEADS))
    exchange.attach(arena)
    return exchange


@pytest.fixture
def arena() -> Arena:
    return Arena.create(1 << 20)


def test_a_block_that_goes_out_is_the_arenas_canonical_page(arena: Arena) -> None:
    own = cache(4, 16)
    attached(own, layout(16), arena).copy_out([([2], 4096)])

    raw = torch.frombuffer(arena.page(4096, layout(16).page_bytes), dtype=torch.bfloat16)
    assert torch.equal(raw.view(layout(16).shape), own[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tokens", [16, 32])
def test_layer_by_layer_a_page_goes_out_as_it_does_at_once(arena: Arena, tokens: int, dtype: str) -> None:
    own, pages = cache(4, 16), layout(tokens, dtype)
    exchange, size = attached(own, pages, arena), pages.page_bytes
    page = [([3, 1][: tokens // 16], 0)]
    exchange.copy_out(page)
    at_once = bytes(arena.page(0, size))
    arena.page(0, size)[:] = bytes(size)

    exchange.copy_out(page, slice(0, 1))
    one = size // LAYERS
    assert bytes(arena.page(0, size)) == at_once[:one] + bytes(size - one)
    exchange.copy_out(page, slice(1, None))
    assert bytes(arena.page(0, size)) == at_once


def test_two_blocks_of_16_make_a_page_of_32_and_back(arena: Arena) -> None:
    small, large = cache(4, 16), torch.zeros_like(cache(2, 32))
    attached(small, layout(32), arena).copy_out([([3, 1], 0)])
    attached(large, layout(32), arena).copy_in([([1], 0)])

    assert torch.equal(large[1], torch.cat([small[3], small[1]], dim=2 + 1))
    other = torch.zeros_like(small)
    attached(other, layout(32), arena).copy_in([([0, 2], 0)])
    assert torch.equal(other[0], small[3])
    assert torch.equal(other[2], small[1])


def test_a_float32_cache_goes_through_bf16_pages_with_their_rounding_only(arena: Arena) -> None:
    own = cache(2, 16, torch.float32)
    back = torch.zeros_like(own)
    exchange = attached(own, layout(16), arena)
    exchange.copy_out([([0], 0)])
    attached(back, layout(16), arena).copy_in([([1], 0)])

    assert torch.equal(back[1], own[0].to(torch.bfloat16).float())


def test_a_bf16_cache_goes_through_float32_pages_unchanged(arena: Arena) -> None:
    own = cache(2, 16)
    back = torch.zeros_like(own)
    attached(own, layout(16, "float32"), arena).copy_out([([0], 0)])
    attached(back, layout(16, "float32"), arena).copy_in([([1], 0)])

    assert torch.equal(back[1], own[0])


def test_each_of_two_ranks_copies_its_own_heads(arena: Arena) -> None:
    whole = cache(2, 16)
    ranks = [whole[:, :, :, :1].clone(), whole[:, :, :, 1:].clone()]
    for own, heads in zip(ranks, (range(1), range(1, 2)), strict=True):
        exchange = Exchange(own, layout(16), heads)
        exchange.attach(arena)
        exchange.copy_out([([1], 0)])
    back = torch.zeros_like(whole)
    attached(back, layout(16), arena).copy_in([([0], 0)])

    assert torch.equal(back[0], whole[1])
