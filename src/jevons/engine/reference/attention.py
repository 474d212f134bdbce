"""Attention over gathered keys and values. A row's result never depends on what other rows hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Queries of a prompt attended together: enough for fast products (440 GF/s a core), few enough that little is computed
# only to be masked: 512 tokens take 3.3 ms a layer with 128, 3.7 with 64, 4.9 with 32, 5.9 with 256.
TILE_QUERIES = 128
TILE_SCORES = 1 << 22  # at once, all heads: 8 MB in bf16; with 1 << 20 a prompt of 2048 attends 7 % slower

# What makes a row's bits independent of how many masked keys follow and of the other rows (all measured):
# contexts are read in multiples of so many keys, so that softmax sums whole vectors (AVX-512 holds 32 bf16), and the
# weighted sum over values goes in runs. oneDNN orders a sum of up to 1024 always the same way, whatever the number of
# rows, MKL (float32) only sums of equal length, so there all runs are full.
KEY_MULTIPLE = {torch.bfloat16: 32, torch.float32: 256}
RUN_KEYS = {torch.bfloat16: 1024, torch.float32: 256}

# Float32 products of fewer rows than this order their sums in another way than larger ones (MKL, measured).
FLOAT32_ROWS = 4

# Bf16 products of at most so many multiplications, of all sequences and heads together, have other bits than larger
# ones (torch 2.13, AVX-512; seen with 4 heads of 16 numbers and 32 keys, alone and in a batch of five).
BF16_SMALL = 1 << 12

# One query over at most this many keys is faster in torch's own kernel: a step of one sequence takes 15.1 ms instead of
# 18.2 with 64 keys, 16.2 instead of 18.5 with 256, 20.4 instead of 21.2 with 1024. Its bits are not those of prompts.
ALONE_KEYS = 1024

SMALL_SCORES = 1 << 15  # below, one plain maximum is faster than two over integers


class Attention:
    """softmax(q k^T / sqrt(d)) v, causal, in `dtype`.

    Keeps two buffers for scores: as new tensors of megabytes they would be mapped, zeroed and unmapped by the system
    each time, which made prompts of 1024 tokens 25 % slower.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._multiple = KEY_MULTIPLE[dtype]
        widest = (TILE_QUERIES, TILE_QUERIES + self._multiple)
        self._triangle = torch.full(widest, -torch.inf, dtype=dtype, device=device).triu_(1)
        self._buffers = torch.empty(2, 0, dtype=dtype, device=device)

    def decodes(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        """One query a sequence: q [b, heads, d], k and v [b * kv_heads, keys, d]; returns like q, contiguous.

        `tail` [b, 1, 1, w] is 0 or -inf for the last w keys; the ones before all sequences see. With a sliding window
        it is as wide as the keys.
        """
        batch, heads, dim = q.shape
        rows = heads * batch // len(k)
        return self._attend(q.reshape(len(k), rows, dim), k, v, tail).reshape(batch, heads, dim)

    def alone(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """One query of one sequence over all of k and v [kv_heads, keys, d]: q [1, heads, d]; returns like q."""
        grouped = q.reshape(1, len(k), -1, q.shape[-1])
        return F.scaled_dot_product_attention(grouped, k[None], v[None]).reshape(1, -1, q.shape[-1])

    def prompt(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, window: int | None = None
    ) -> torch.Tensor:
        """Consecutive queries of one sequence, the first at position `start`; returns like q, contiguous.

        q [t, heads, d]; k and v [kv_heads, keys, d] from position 0, as many as `KEY_MULTIPLE` asks for. With a
        `window` each query sees so many keys at most, its own among them.
        """
        count, heads, dim = q.shape
        group = heads // len(k)
        out = q.new_empty(count, heads, dim)
        for first, last in prompt_tiles(count, start, heads):
            keys = -(-(start + last) // self._multiple) * self._multiple
            tile = q[first:last].view(-1, len(k), group, dim).transpose(0, 1).reshape(len(k), -1, dim)
            if window is None:
                tail = self._triangle[: last - first, : keys - start - first]
            else:
                tail = windowed(torch.arange(start + first, start + last, device=q.device), keys, window, q.dtype)
            tail = tail.view(1, last - first, 1, -1)
            attended = self._attend(tile, k[:, :keys], v[:, :keys], tail).reshape(len(k), -1, group, dim)
            out[first:last].view(-1, len(k), group, dim).copy_(attended.transpose(0, 1))
        return out

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        """q [n, r, d], k and v [n, keys, d], `tail` as in `mask`: [n, r, d].

        bf16 products round scores to 8 bits, an error of 0.06 for a score of 25. So scores are computed twice: first to
        find each row's maximum, then with it subtracted inside the product, before the rounding: now the scores that
        count are near 0 and precise (largest error of a weight 0.005 instead of 0.047; 0.003 is bf16 itself).
        """
        if q.dtype != torch.bfloat16:
            return self._attend_float32(q, k, v, tail)
        keys_t, scale, rows = k.transpose(1, 2), q.shape[-1] ** -0.5, q.shape[1]
        least = BF16_SMALL // (len(q) * q.shape[2] * self._multiple) + 1  # a run may be as short as that
        if rows < least:
            q = F.pad(q, (0, 0, 0, least - rows))
        scores, weights = self._scores(len(q), q.shape[1], k.shape[1])
        torch.bmm(q, keys_t, out=scores)
        mask(scores[:, :rows], tail)
        scores.copy_(row_max(scores).mul_(-scale))
        mask(scores[:, :rows], tail)
        scores.baddbmm_(q, keys_t, alpha=scale)
        return weighted_sum(torch.softmax(scores, -1, out=weights), v)[:, :rows]

    def _attend_float32(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        """As `_attend`; float32 scores need no second look."""
        rows = q.shape[1]
        q = F.pad(q, (0, 0, 0, max(0, FLOAT32_ROWS - rows)))
        scores, weights = self._scores(len(q), q.shape[1], k.shape[1])
        torch.bmm(q, k.transpose(1, 2), out=scores).mul_(q.shape[-1] ** -0.5)
        mask(scores[:, :rows], tail)
        return weighted_sum(torch.softmax(scores, -1, out=weights), v)[:, :rows]

    def _scores(self, *size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two tensors [n, r, keys] of anything, good until the next call."""
        count = size[0] * size[1] * size[2]
        if self._buffers.shape[1] < count:
            # Both start at a multiple of 64 bytes: MKL's bits depend on it (seen in float32).
            self._buffers = self._buffers.new_empty(2, -(-count // 64) * 64)
        one, other = self._buffers[:, :count]
        return one.view(size), other.view(size)


def prompt_tiles(count: int, start: int, heads: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the queries attended together: fewer at a time where the context is long."""
    tiles, at = [], 0
    while at < count:
        fitting = TILE_SCORES // (heads * (start + at + TILE_QUERIES)) // 16 * 16
        end = min(count, at + min(TILE_QUERIES, max(16, fitting)))
        tiles.append((at, end))
        at = end
    return tiles


def windowed(positions: torch.Tensor, keys: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask of queries at `positions` [n] that each see their last `window` keys: [n, keys], 0 or -inf.

    Keys out of the window count zero like those that are not there yet, so a row's bits depend on neither.
    """
    age = positions[:, None] - torch.arange(keys, device=positions.device)
    return mask_of((age < 0) | (age >= window), dtype)


def mask_of(unseen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """-inf where `unseen`, else 0."""
    return torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(unseen, -torch.inf)


def mask(scores: torch.Tensor, tail: torch.Tensor) -> None:
    """Add `tail` to the last w columns of `scores` [n, r, keys], in place.

    `tail` is [sequences, 1, 1, w] where n is sequences by heads, or [1, queries, 1, w] where r is queries by heads.
    """
    sequences, queries = tail.shape[:2]
    n, r, keys = scores.shape
    by_what = (n, queries, r // queries, keys) if sequences == 1 else (sequences, n // sequences, r, keys)
    scores.view(by_what)[..., keys - tail.shape[-1] :].add_(tail)


def row_max(scores: torch.Tensor) -> torch.Tensor:
    """Largest of each row of bf16 `scores`: [..., keys] -> [..., 1].

    Bits of bf16 numbers of one sign are ordered as integers, those of negative ones backwards, and torch finds the
    largest integer eight times as fast (1152 x 512: 18 us instead of 146).
    """
    if scores.numel() < SMALL_SCORES or scores.device.type != "cpu":
        return scores.amax(-1, keepdim=True)
    bits = scores.view(torch.int16)
    highest = bits.amax(-1, keepdim=True)
    return torch.where(highest >= 0, highest, bits.amin(-1, keepdim=True)).view(torch.bfloat16)


def weighted_sum(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """weights [n, r, keys] @ v [n, keys, d], in runs of `RUN_KEYS` that are summed in float32 in order of position."""
    run = RUN_KEYS[v.dtype]
    total = torch.bmm(weights[..., :run], v[:, :run])
    if v.shape[1] <= run:
        return total
    summed = total.float()
    for at in range(run, v.shape[1], run):
        summed += torch.bmm(weights[..., at : at + run], v[:, at : at + run])
    return summed.to(v.dtype)
