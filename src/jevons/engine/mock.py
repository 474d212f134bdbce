"""An engine without a model: its tokens are drawn from what its cache holds, so a wrong block shows in the answer.

For whatever tests everything but computing: queues, routing, tiers, failures, churn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from jevons.engine.contents import mix, token_of
from jevons.engine.reference.exchange import Exchange
from jevons.engine.reference.plan import Slice
from jevons.engine.reference.runner import Cache, OnLayer, ignore, never
from jevons.engine.reference.sampling import Sampled
from jevons.facts.model import ModelShape
from jevons.facts.request import TokenLogprob
from jevons.kv.layout import Layout


def next_token(tokens: Sequence[int], block_size: int) -> int:
    """What the engine answers after `tokens`, if every block of its cache is right."""
    digest = seen = 0
    for position, token in enumerate(tokens, 1):
        digest = mix(digest, token)
        if position % block_size == 0 or position == len(tokens):
            seen ^= digest
    return token_of(seen)


class MockRunner:
    """Steps like `reference.Runner`, at `tokens_per_s`."""

    numerics = "mock"

    def __init__(self, shape: ModelShape, cache: Cache, tokens_per_s: float) -> None:
        block_size = cache.block_size
        size = (cache.blocks, shape.layers, 2, shape.kv_heads, block_size, shape.head_dim)
        self.pages = torch.zeros(size, dtype=torch.bfloat16)  # digests where keys would be, tokens where values would
        slots = self.pages.view(torch.int64).numpy().view(np.uint64)
        self._digests, self._tokens = slots[:, 0, 0, 0, :, 0], slots[:, 0, 1, 0, :, 0]  # [blocks, block_size]
        page = cache.page or Layout(shape.layers, shape.kv_heads, shape.head_dim, block_size, cache.dtype)
        self.exchange = Exchange(self.pages, page, range(shape.kv_heads))
        self._block_size = block_size
        self._tokens_per_s = tokens_per_s

    def step(
        self, slices: Sequence[Slice], is_abandoned: Callable[[], bool] = never, on_layer: OnLayer = ignore
    ) -> list[Sampled | None]:
        """Write the digests of `slices` and draw the tokens wanted, all layers at once."""
        time.sleep(sum(len(s.tokens) for s in slices) / self._tokens_per_s)
        return [self._advance(s) for s in slices]

    def _advance(self, s: Slice) -> Sampled | None:
        size = self._block_size
        digest = int(self._digests[s.table[(s.start - 1) // size], (s.start - 1) % size]) if s.start else 0
        for position, token in enumerate(s.tokens, s.start):
            digest = mix(digest, token)
            block = s.table[position // size]
            self._digests[block, position % size], self._tokens[block, position % size] = digest, token
        if s.sampling is None:
            return None
        full = list(s.table[: s.end // size])
        seen = int(np.bitwise_xor.reduce(self._digests[full, -1])) if full else 0
        token = token_of(seen ^ digest if s.end % size else seen)
        return Sampled(token, None if s.sampling.logprobs is None else TokenLogprob(0.0))
