"""Fetch or recompute: which blocks of a prompt to bring from a tier, and which to compute, by seconds.

    fast tier   device │ bring bring bring bring │ compute ──▶        everything waits for the blocks: it is a moment
    slow tier   device │ compute ──▶  ◀── bring bring │ compute ──▶   both at once, meeting where both are done

Waiting costs at most a tenth of what computing the blocks would: what has not come by then is computed. While blocks
come from the back and are computed from the front, nothing waits at all. So using a tier never takes more than a tenth
longer than not using it, however slow it turns out to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from jevons.base.compiled import Records, compiled
from jevons.facts.block import Tier
from jevons.perf.measured import Load, MovePrices, Prices

# Of the seconds that computing the blocks would take: so long may everything wait for them.
WAIT_SHARE = 0.1
# Before an engine has measured a step nobody knows what a tenth is: bringing blocks takes milliseconds on most hosts.
FIRST_WAIT_S = 0.5


class Supply(msgspec.Struct, frozen=True):
    """What tiers can deliver to one worker, as far as it is known."""

    prices: Mapping[Tier, MovePrices]
    queued_bytes: Mapping[Tier, int]  # already asked for by others

    def seconds(self, size_bytes: Mapping[Tier, int]) -> float:
        """Predicted seconds until all these bytes are here. Tiers deliver one after another: a worker copies alone."""
        return sum(
            self.prices[tier].seconds(size + self.queued_bytes.get(tier, 0)) for tier, size in size_bytes.items()
        )


class Compute(msgspec.Struct, frozen=True):
    """What computing costs this worker."""

    prices: Prices
    step_tokens: int
    block_size: int
    block_bytes: int
    is_measured: bool = True  # `prices` are not a guess

    def seconds(self, start: int, end: int) -> float:
        """Predicted seconds to compute the blocks [start, end) of a prompt, with nothing else in the steps."""
        tokens = (end - start) * self.block_size
        middle = (start + end) / 2 * self.block_size
        return self.prices.seconds(Load(-(-tokens // self.step_tokens), tokens, tokens * middle))


@compiled
def bring(c: Records, held: int, count: int, of: tuple[int, float, float]) -> tuple[int, float]:
    """`plan` where one tier holds the `count` blocks after those `held`, as a kernel.

    Args:
        c: the prices of a worker's steps, with the fields of `policy.route.CANDIDATE`.
        of: tokens of a block, seconds until the first byte comes, seconds for each block.

    Returns:
        blocks to bring, and seconds that everything waits for them; 0 of these: the prompt is computed meanwhile.
    """
    block_size, first_s, block_s = of
    seconds = first_s + count * block_s
    if count > 0 and seconds <= WAIT_SHARE * _compute_s(c, held, held + count, block_size):
        return count, seconds
    chosen = min(1, count)
    while chosen < count:
        meets = held + count - chosen - 1
        if first_s + (chosen + 1) * block_s > _compute_s(c, held, meets, block_size):
            break
        chosen += 1
    return chosen, 0.0


@compiled
def _compute_s(c: Records, start: int, end: int, block_size: int) -> float:
    """See `Compute.seconds`."""
    tokens, middle = float((end - start) * block_size), (start + end) / 2.0 * block_size
    steps = np.ceil(tokens / c.step_tokens)
    return float(steps * c.per_step_s + tokens * c.per_token_s + tokens * middle * c.per_token_context_s)


class Plan(msgspec.Struct, frozen=True):
    """The decision: `blocks` to bring, in this order; empty to compute everything."""

    blocks: Sequence[int] = ()  # indices in the prompt
    wait_s: float = 0.0  # so long nothing is computed; 0: compute from the front at once, meeting what comes
    seconds: float = 0.0  # predicted until they are here
    saved_s: float = 0.0  # predicted seconds of computing them


NOTHING = Plan()


def plan(tiers: Sequence[Tier | None], start: int, supply: Supply, compute: Compute) -> Plan:
    """Decide for one prompt.

    Args:
        tiers: the nearest tier of each block from `start` on, None where none holds it.
        start: blocks before it are on the device.
        supply, compute: what both ways cost here.
    """
    held = [start + i for i, tier in enumerate(tiers) if tier is not None]
    if not held:
        return NOTHING
    saved_s = _computing(held, compute)
    seconds = supply.seconds(_bytes(held, tiers, start, compute.block_bytes))
    wait_s = WAIT_SHARE * saved_s if compute.is_measured else max(WAIT_SHARE * saved_s, FIRST_WAIT_S)
    if seconds <= wait_s:
        return Plan(held, wait_s, seconds, saved_s)
    return _meet(held, tiers, start, supply, compute)


def _meet(held: Sequence[int], tiers: Sequence[Tier | None], start: int, supply: Supply, compute: Compute) -> Plan:
    """From the back, as many blocks as can be here before computing from the front reaches them; one in any case.

    That one costs nothing and measures the tier again: a slow moment must not be believed for ever.
    """
    size_bytes: dict[Tier, int] = {}
    chosen: list[int] = []
    seconds = 0.0
    for block in reversed(held):
        tier = tiers[block - start]
        assert tier is not None, "held blocks have a tier"
        size_bytes[tier] = size_bytes.get(tier, 0) + compute.block_bytes
        until_s = supply.seconds(size_bytes)
        if chosen and until_s > compute.seconds(start, block):
            break
        chosen.append(block)
        seconds = until_s
    return Plan(chosen, 0.0, seconds, _computing(chosen, compute))


def _computing(blocks: Sequence[int], compute: Compute) -> float:
    """Seconds to compute these blocks, as if they were one run ending where the last one does."""
    end = max(blocks) + 1
    return compute.seconds(end - len(blocks), end)


def _bytes(blocks: Sequence[int], tiers: Sequence[Tier | None], start: int, block_bytes: int) -> dict[Tier, int]:
    size_bytes: dict[Tier, int] = {}
    for block in blocks:
        tier = tiers[block - start]
        if tier is not None:
            size_bytes[tier] = size_bytes.get(tier, 0) + block_bytes
    return size_bytes
