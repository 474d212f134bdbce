"""vLLM's KV tensors, whatever their order, to canonical pages and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from jevons.base.errors import ConfigError
from jevons.engine.vllm.layout import ORDERS, Pool, bits, find_order
from jevons.kv.layout import Layout
from jevons.store.arena import Arena

LAYERS, BLOCKS, HEADS, TOKENS, DIM = 2, 5, 3, 8, 4

# Where each order has the key and the value of (block, head, token, dim), written out independently of the views.
Place = tuple[int, ...]
PLACES: dict[str, tuple[tuple[int, ...], Callable[[int, int, int, int, int], Place]]] = {
    "side by side": ((BLOCKS, HEADS, TOKENS, 2 * DIM), lambda v, b, h, t, d: (b, h, t, v * DIM + d)),
    "flash": ((2, BLOCKS, TOKENS, HEADS, DIM), lambda v, b, h, t, d: (v, b, t, h, d)),
    "infer": ((BLOCKS, 2, TOKENS, HEADS, DIM), lambda v, b, h, t, d: (b, v, t, h, d)),
    "infer by head": ((BLOCKS, 2, HEADS, TOKENS, DIM), lambda v, b, h, t, d: (b, v, h, t, d)),
}


def in_cpu_order(value: int, block: int, head: int, token: int, dim: int) -> Place:
    """A head is 2 · TOKENS · DIM numbers: keys as [dim, token], then values as [token, dim]."""
    at = TOKENS * DIM + token * DIM + dim if value else dim * TOKENS + token
    return (block, head, at // (2 * DIM), at % (2 * DIM))


PLACES["cpu"] = ((BLOCKS, HEADS, TOKENS, 2 * DIM), in_cpu_order)


def cache(order: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(PLACES[order][0], dtype=dtype)


def write_as(order: str) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]:
    """An engine's operation that puts keys and values [tokens, heads, dim] into slots, number by number."""
    place = PLACES[order][1]

    def write(cache: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        for value, numbers in enumerate((keys, values)):
            for i, slot in enumerate(slots.tolist()):
                for head in range(HEADS):
                    for dim in range(DIM):
                        cache[place(value, slot // TOKENS, head, slot % TOKENS, dim)] = numbers[i, head, dim]

    return write


def layout(dtype: str = "float32") -> Layout:
    return Layout(LAYERS, HEADS, DIM, TOKENS, dtype)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(1 << 16)
    yield made
    made.close()


def pool_of(caches: list[torch.Tensor], order: str, arena: Arena, slots: int = 4) -> Pool:
    pool = Pool([ORDERS[order](bits(each)) for each in caches], layout(), slots)
    pool.attach(arena)
    return pool


def marked(order: str) -> list[torch.Tensor]:
    """Caches in which every number is one of its own."""
    caches = [cache(order) for _ in range(LAYERS)]
    for layer, each in enumerate(caches):
        each.copy_(torch.arange(each.numel()).view(each.shape) + 1 + 10_000 * layer)
    return caches


def test_every_order_is_tried_here() -> None:
    assert PLACES.keys() == ORDERS.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_found_by_what_the_engine_writes_and_leaves_no_mark(order: str, dtype: str) -> None:
    caches = {f"layer {i}": cache(order, getattr(torch, dtype)) for i in range(LAYERS)}

    assert find_order(caches, layout(dtype), write_as(order)) == order
    assert not any(each.any() for each in caches.values())


def test_an_order_nobody_knows_is_refused() -> None:
    def write(cache: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        write_as("side by side")(cache, keys.flip(2), values, slots)  # packed in a way of its own

    with pytest.raises(ConfigError, match=r"\(5, 3, 8, 8\).*order that jevons does not know"):
        find_order({"layer": cache("side by side")}, layout(), write)


def test_layers_in_unlike_orders_are_refused() -> None:
    def write(cache: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        write_as("cpu" if cache is caches["b"] else "side by side")(cache, keys, values, slots)

    caches = {"a": cache("cpu"), "b": cache("cpu")}
    with pytest.raises(ConfigError, match="order"):
        find_order(caches, layout(), write)


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_lies_in_its_page_by_layer_head_token_and_dim(order: str, arena: Arena) -> None:
    caches = marked(order)
    pool = pool_of(caches, order, arena)
    page_bytes = layout().page_bytes

    pool.copy_out([(pool.set_aside([3]), page_bytes)])

    page = np.frombuffer(arena.page(page_bytes, page_bytes), np.float32).reshape(layout().shape)
    for (layer, value, head, token, dim), number in np.ndenumerate(page):
        assert number == caches[layer][PLACES[order][1](value, 3, head, token, dim)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_that_goes_out_and_comes_in_elsewhere_is_the_same_there_and_nothing_else_changes(
    order: str, arena: Arena
) -> None:
    caches = marked(order)
    pool = pool_of(caches, order, arena)
    before = [[part.copy() for part in ORDERS[order](bits(each))] for each in caches]

    pool.copy_out([(pool.set_aside([3]), 0)])
    pool.copy_in([([1], 0)])

    for each, parts in zip(caches, before, strict=True):
        for now, then in zip(ORDERS[order](bits(each)), parts, strict=True):
            then[1] = then[3]
            assert (now == then).all()


def test_layers_go_out_by_themselves(arena: Arena) -> None:
    pool, size = pool_of(marked("flash"), "flash", arena), layout().page_bytes
    slots = pool.set_aside([3])
    pool.copy_out([(slots, 0)])
    at_once = bytes(arena.page(0, size))
    pool.copy_out([(slots, size)], slice(1, None))
    assert bytes(arena.page(size, size)) == bytes(size // LAYERS) + at_once[size // LAYERS :]


def test_a_page_is_the_same_whatever_the_order_it_came_from(arena: Arena) -> None:
    pages = set()
    keys, values = torch.rand(2, TOKENS, HEADS, DIM)
    for order in ORDERS:
        caches = [cache(order) for _ in range(LAYERS)]
        for each in caches:
            write_as(order)(each, keys, values, torch.arange(TOKENS) + 2 * TOKENS)
        pool = pool_of(caches, order, arena)
        pool.copy_out([(pool.set_aside([2]), 0)])
        pages.add(bytes(arena.page(0, layout().page_bytes)))

    assert len(pages) == 1


def test_what_is_set_aside_stays_as_it_was_when_the_engine_goes_on(arena: Arena) -> None:
    caches = marked("flash")
    pool = pool_of(caches, "flash", arena)
    slots = pool.set_aside([3])
    pool.copy_out([(slots, 0)])
    then = bytes(arena.page(0, layout().page_bytes))

    for each in caches:
        each.zero_()
    pool.copy_out([(slots, 0)])

    assert bytes(arena.page(0, layout().page_bytes)) == then


def test_no_more_is_set_aside_than_there_are_slots_and_those_given_back_serve_again(arena: Arena) -> None:
    pool = pool_of(marked("flash"), "flash", arena, slots=2)

    slots = pool.set_aside([1, 2, 3])
    assert len(set(slots)) == 2
    assert pool.set_aside([4]) == []
    pool.give_back(slots)
    assert len(pool.set_aside([4])) == 1
