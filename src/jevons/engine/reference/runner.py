"""The compute of the embedded engine: one step of a batch of sequences over the paged KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from msgspec.structs import replace

from jevons.engine.reference.attention import ALONE_KEYS, KEY_MULTIPLE, Attention
from jevons.engine.reference.exchange import Exchange
from jevons.engine.reference.group import ALONE, RankGroup
from jevons.engine.reference.pages import Cache, Pages
from jevons.engine.reference.plan import Group, Plan, Slice, plan_step, step_order
from jevons.engine.reference.prove import blocks_needed, prove
from jevons.engine.reference.rotary import Factors, Rotary, rotate
from jevons.engine.reference.sampling import Sampled, sample
from jevons.engine.reference.share import share_of
from jevons.engine.reference.tiles import make_invariant
from jevons.engine.reference.weights import Layer, compute_dtype, give_back_memory, load
from jevons.engine.shape import read_shape
from jevons.kv.layout import Layout
from jevons.store.node import Pool

__all__ = ["Abandoned", "Cache", "Runner", "Sampled", "Slice"]

# Rows that go through the MLP together: its intermediate tensors stay small enough to be allocated cheaply.
TILE_ROWS = 512


class Abandoned(Exception):
    """The step was given up between layers because its work is no longer wanted."""


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """`parts` as one tensor, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def never() -> bool:
    return False


def ignore(layers: int, of: int) -> None: ...


OnLayer = Callable[[int, int], None]  # layers whose KV is written, of all


class Runner:
    """A model and its pages; `step` computes. For one thread at a time.

    Another thread may meanwhile copy blocks that no step writes to, between the pages and an arena of canonical pages.

    Args:
        model_dir: a Hugging Face directory: config.json and safetensors.
        cache: its pages.
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
        cache: Cache,
        *,
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
        self._sum, self._ranks = group.sum, group.size
        group.meet(place)
        if invariant:
            self._pages = self._make_pages(replace(cache, blocks=blocks_needed(cache.block_size)))
            self._prove(cache.block_size)
        give_back_memory()
        self._pages = self._make_pages(cache)
        whole = self._share.whole
        page = cache.page or Layout(whole.layers, whole.kv_heads, whole.head_dim, cache.block_size, cache.dtype)
        self.exchange: Pool = Exchange(self._pages.tensor, page, self._share.kv_heads)

    def _prove(self, block_size: int) -> None:
        prove(self.step, self.shape.vocab, block_size)

    def _make_pages(self, cache: Cache) -> Pages:
        return Pages(self._share, cache, key_multiple=KEY_MULTIPLE[self._dtype], device=self._rotary.device)

    @property
    def pages(self) -> torch.Tensor:
        """[blocks, layers, 2 (k, v), kv_heads, block_size, head_dim]: a block is one contiguous object."""
        return self._pages.tensor

    @property
    def numerics(self) -> str:
        """What the bits of the KV depend on besides weights and tokens; empty where they depend on the batch too."""
        if not self._invariant:
            return ""
        cpu = torch.backends.cpu.get_cpu_capability()
        where = f"{self._rotary.device} {cpu} {torch.get_num_threads()} threads torch {torch.__version__}"
        return f"{self._dtype} {self._pages.tensor.dtype} {where} {self._ranks} ranks"

    @torch.inference_mode()
    def step(
        self, slices: Sequence[Slice], is_abandoned: Callable[[], bool] = never, on_layer: OnLayer = ignore
    ) -> list[Sampled | None]:
        """Compute `slices`, write their KV to the pages and draw the tokens wanted, in the order of `slices`.

        Args:
            on_layer: called after each layer: nothing of it is written any more, and `exchange` may copy it. On a GPU
                the writing is queued by then, and the copy comes after it.

        Raises:
            Abandoned: `is_abandoned()` before some layer. Part of the KV is written; computing it again is harmless.
        """
        order = step_order(slices)
        ordered = [slices[i] for i in order]
        window = self.shape.gemma3.window if self.shape.gemma3 is not None else None
        plan = plan_step(ordered, self._pages, self._dtype, window)
        factors = self._rotary.factors(plan.positions, self._dtype)
        x = self._weights.embedding.index_select(0, plan.tokens).to(self._dtype)
        for number, layer in enumerate(self._weights.layers):
            if is_abandoned():
                raise Abandoned
            x = self._layer(number, layer, x, plan, factors[layer.window])
            on_layer(number + 1, len(self._weights.layers))
        drawn = dict(zip(order, self._draw(x, ordered), strict=True))
        return [drawn[i] for i in range(len(slices))]

    def _layer(self, number: int, layer: Layer, x: torch.Tensor, plan: Plan, factors: Factors) -> torch.Tensor:
        """x [rows, hidden] through one layer."""
        q, kv = self._query_and_kv(layer, self._norm(x, layer.norm_in), factors)
        self._pages.write(number, kv, plan.slots)
        attended = join([self._attend(number, layer.window, q[g.first : g.end], g) for g in plan.groups]).flatten(1)
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

    def _attend(self, number: int, window: int | None, q: torch.Tensor, group: Group) -> torch.Tensor:
        """Attention of q [rows, heads, d] over the group's own keys and values.

        A sliding layer keeps all keys like any other and masks those out of its window. So a block holds the same KV
        whatever came after it, and a stored prefix is right for whatever follows it.
        """
        k, v = self._pages.read(number, group.rows, self._dtype)
        if group.tail is None:
            return self._attention.prompt(q, k, v, group.start, window)
        if len(q) == 1 and group.start < ALONE_KEYS and not self._invariant:
            seen = slice(0 if window is None else max(0, group.start + 1 - window), group.start + 1)
            return self._attention.alone(q, k[:, seen], v[:, seen])
        tail = group.tail if window is None else group.windowed
        assert tail is not None, "a plan knows the model's window"
        return self._attention.decodes(q, k, v, tail)

    def _after_attention(self, layer: Layer, attended: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """attended [rows, heads * d] and the residual x [rows, hidden] to the layer's result."""
        x = self._added(x, layer.out(attended), layer.norm_attended)
        normed = self._norm(x, layer.norm_mlp)
        return self._added(x, layer.down(layer.gate(normed).mul_(layer.up(normed))), layer.norm_added)

    def _added(self, x: torch.Tensor, part: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """x and the ranks' sum of `part`, normed where the model does so."""
        whole = self._sum(part)
        return (whole if norm is None else self._norm(whole, norm)).add_(x)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm, computed in the weight's dtype."""
        if weight.dtype == x.dtype:
            return F.rms_norm(x, weight.shape, weight, self.shape.norm_eps)
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, self.shape.norm_eps).to(x.dtype)

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
