"""The compute of the embedded engine: one step of a batch of sequences over the paged KV cache."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from jevons.engine.reference.attention import ALONE_KEYS, KEY_MULTIPLE, Attention
from jevons.engine.reference.group import ALONE, RankGroup
from jevons.engine.reference.pages import Buffer, Pages
from jevons.engine.reference.plan import Group, Plan, Slice, plan_step, step_order
from jevons.engine.reference.prove import blocks_needed, prove
from jevons.engine.reference.rotary import Rotary, rotate
from jevons.engine.reference.sampling import Sampled, sample
from jevons.engine.reference.share import share_of
from jevons.engine.reference.tiles import make_invariant
from jevons.engine.reference.weights import Layer, compute_dtype, give_back_memory, load
from jevons.engine.shape import read_shape
from jevons.kv.layout import Layout

__all__ = ["Abandoned", "Moves", "Runner", "Sampled", "Slice"]

Factors = tuple[torch.Tensor, torch.Tensor]
Moves = Sequence[tuple[int, int]]  # (block id, offset of its page in the arena, in bytes)

# Rows that go through the MLP together: its intermediate tensors stay small enough to be allocated cheaply.
TILE_ROWS = 512


class Abandoned(Exception):
    """The step was given up between layers because its work is no longer wanted."""


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """`parts` as one tensor, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def never() -> bool:
    return False


class Runner:
    """A model and its pages; `step` computes. For one thread at a time.

    Another thread may meanwhile copy blocks that no step writes to, between the pages and an arena of canonical pages.

    Args:
        model_dir: a Hugging Face directory: config.json and safetensors.
        blocks: size of the pages, in blocks.
        block_size: tokens in a block.
        device: any torch device; on "cpu" the weights are packed by oneDNN where it multiplies bf16.
        invariant: a sequence's tokens, log-probabilities and KV are the same bits whatever else is in the batch,
            however its prompt is cut and whoever computed its prefix (same kind of machine, same number of threads).
        group: the ranks that share the model; `shape` and `pages` are then of this rank's part of it.

    Raises:
        ModelError: the model is missing, broken or not of a kind we compute.
        EngineError: `invariant`, on a machine that cannot give it.
        EngineGone: another rank is.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        blocks: int,
        block_size: int,
        device: str = "cpu",
        invariant: bool = False,
        group: RankGroup = ALONE,
    ) -> None:
        self._share = share_of(read_shape(model_dir), group.rank, group.size)
        self.shape = self._share.part
        place = torch.device(device)
        self._dtype = compute_dtype(place)
        weights = load(model_dir, self._share, place, self._dtype)
        self._invariant = invariant
        self._weights = make_invariant(weights, self.shape, self._dtype) if invariant else weights
        self._rotary = Rotary(self.shape, place)
        self._attention = Attention(self._dtype, place)
        self._sum = group.sum
        group.meet(place)
        if invariant:
            self._pages = self._make_pages(blocks_needed(block_size), block_size)
            self._prove(block_size)
        give_back_memory()
        self._pages = self._make_pages(blocks, block_size)
        self._arena = memoryview(b"")

    def _prove(self, block_size: int) -> None:
        prove(self.step, self.shape.vocab, block_size)

    def _make_pages(self, blocks: int, block_size: int) -> Pages:
        multiple = KEY_MULTIPLE[self._dtype]
        return Pages(
            self._share, blocks=blocks, block_size=block_size, key_multiple=multiple, device=self._rotary.device
        )

    @property
    def pages(self) -> torch.Tensor:
        """[blocks, layers, 2 (k, v), kv_heads, block_size, head_dim], bf16: a block is one contiguous object."""
        return self._pages.tensor

    @property
    def layout(self) -> Layout:
        """What a block is outside: a page of all heads, whatever this rank's are."""
        return self._pages.layout

    def attach(self, arena: int, size_bytes: int) -> None:
        """Map the shared memory behind file descriptor `arena` (which may then be closed): where pages come and go."""
        self._arena = memoryview(mmap.mmap(arena, size_bytes))

    def copy_out(self, place: int, page: Buffer) -> None:
        """Copy a block's own heads into a page: `layout.page_bytes` writable bytes. For any thread."""
        self._pages.copy_out(place, page)

    def copy_in(self, place: int, page: Buffer) -> None:
        """Copy own heads of a page into a block. For any thread."""
        self._pages.copy_in(place, page)

    def copy_out_many(self, moves: Moves) -> None:
        """Copy blocks to their pages in the arena; when it returns, all heads of all ranks are there.

        For any thread, but one at a time. A step may run meanwhile if it writes none of these blocks.
        """
        for place, offset in moves:
            self.copy_out(place, self._page(offset))

    def copy_in_many(self, moves: Moves) -> None:
        """Copy pages of the arena to their blocks, as `copy_out_many`; no step in progress may use these blocks."""
        for place, offset in moves:
            self.copy_in(place, self._page(offset))

    def _page(self, offset: int) -> memoryview:
        return self._arena[offset : offset + self.layout.page_bytes]

    @torch.inference_mode()
    def step(self, slices: Sequence[Slice], is_abandoned: Callable[[], bool] = never) -> list[Sampled | None]:
        """Compute `slices`, write their KV to the pages and draw the tokens wanted, in the order of `slices`.

        Raises:
            Abandoned: `is_abandoned()` before some layer. Part of the KV is written; computing it again is harmless.
        """
        order = step_order(slices)
        ordered = [slices[i] for i in order]
        plan = plan_step(ordered, self._pages, self._dtype)
        factors = self._rotary.factors(plan.positions, self._dtype)
        x = self._weights.embedding.index_select(0, plan.tokens).to(self._dtype)
        for number, layer in enumerate(self._weights.layers):
            if is_abandoned():
                raise Abandoned
            x = self._layer(number, layer, x, plan, factors)
        drawn = dict(zip(order, self._draw(x, ordered), strict=True))
        return [drawn[i] for i in range(len(slices))]

    def _layer(self, number: int, layer: Layer, x: torch.Tensor, plan: Plan, factors: Factors) -> torch.Tensor:
        """x [rows, hidden] through one layer."""
        q, kv = self._query_and_kv(layer, self._norm(x, layer.norm_in), factors)
        self._pages.write(number, kv, plan.slots)
        attended = join([self._attend(number, q[g.first : g.end], g) for g in plan.groups]).flatten(1)
        tiles = zip(torch.split(attended, TILE_ROWS), torch.split(x, TILE_ROWS), strict=True)
        return join([self._after_attention(layer, *tile) for tile in tiles])

    def _query_and_kv(self, layer: Layer, normed: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries [rows, heads, d], and rotated keys then values [rows, 2 * kv_heads, d]."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qkv = layer.qkv(normed).view(len(normed), -1, self.shape.head_dim)
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], 1)
        if layer.norm_q is not None and layer.norm_k is not None:
            qk = torch.cat([self._norm(qk[:, :heads], layer.norm_q), self._norm(qk[:, heads:], layer.norm_k)], 1)
        qk = rotate(qk, factors)
        return qk[:, :heads], torch.cat([qk[:, heads:], v], 1)

    def _attend(self, number: int, q: torch.Tensor, group: Group) -> torch.Tensor:
        """Attention of q [rows, heads, d] over the group's own keys and values."""
        k, v = self._pages.read(number, group.rows, self._dtype)
        if group.tail is None:
            return self._attention.prompt(q, k, v, group.start)
        if len(q) == 1 and group.start < ALONE_KEYS and not self._invariant:
            seen = group.start + 1
            return self._attention.alone(q, k[:, :seen], v[:, :seen])
        return self._attention.decodes(q, k, v, group.tail)

    def _after_attention(self, layer: Layer, attended: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """attended [rows, heads * d] and the residual x [rows, hidden] to the layer's result."""
        x = self._sum(layer.out(attended)).add_(x)
        normed = self._norm(x, layer.norm_mlp)
        return self._sum(layer.down(layer.gate.silu(normed).mul_(layer.up(normed)))).add_(x)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.shape.norm_eps)

    def _draw(self, x: torch.Tensor, slices: Sequence[Slice]) -> list[Sampled | None]:
        """A token for each slice that wants one; only their last rows go through the head."""
        last = np.cumsum([len(s.tokens) for s in slices]) - 1
        wanted = [(int(row), s.sampling, s.draw) for row, s in zip(last, slices, strict=True) if s.sampling is not None]
        if not wanted:
            return [None] * len(slices)
        assert self._weights.head is not None, "only the leader's slices want tokens"
        rows, samplings, draws = zip(*wanted, strict=True)
        logits = self._weights.head(self._norm(x[torch.tensor(rows, device=x.device)], self._weights.norm))
        drawn = iter(sample(logits, samplings, draws))
        return [None if s.sampling is None else next(drawn) for s in slices]
