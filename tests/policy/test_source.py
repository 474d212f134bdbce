"""Fetch or recompute, by seconds: never more than a tenth slower than computing everything."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.facts.block import Tier
from jevons.perf.measured import GUESS_MOVES, MovePrices, MoveSeconds, Prices
from jevons.policy.source import FIRST_WAIT_S, NOTHING, WAIT_SHARE, Compute, Supply, plan

BLOCK = 16
BYTES = 368_640  # SmolLM2-135M
CPU = Prices(per_step_s=0.002, per_token_s=0.0035, per_token_context_s=1e-6, per_decode_s=0.03)
COMPUTE = Compute(CPU, 128, BLOCK, BYTES)


def supply(bytes_per_s: float, tier: Tier = Tier.DISK, queued_bytes: int = 0) -> Supply:
    return Supply({**GUESS_MOVES, tier: MovePrices(0.0005, 1 / bytes_per_s)}, {tier: queued_bytes})


def test_from_a_fast_tier_everything_is_brought_first_to_last() -> None:
    chosen = plan([Tier.DISK] * 20, 4, supply(1e9), COMPUTE)

    assert list(chosen.blocks) == list(range(4, 24))
    assert chosen.wait_s == pytest.approx(WAIT_SHARE * COMPUTE.seconds(4, 24))


def test_before_a_step_was_measured_blocks_are_waited_for_longer() -> None:
    guess = Compute(CPU, 128, BLOCK, BYTES, is_measured=False)

    assert plan([Tier.DISK] * 2, 0, supply(1e9), guess).wait_s == FIRST_WAIT_S


def test_what_no_tier_holds_is_computed() -> None:
    assert plan([None] * 20, 0, supply(1e9), COMPUTE) == NOTHING
    assert plan([], 3, supply(1e9), COMPUTE) == NOTHING


def test_from_a_tier_as_fast_as_computing_the_second_half_is_brought_while_the_first_is_computed() -> None:
    chosen = plan([Tier.DISK] * 40, 0, supply(BLOCK * BYTES / BLOCK / (BLOCK * 0.0035)), COMPUTE)

    assert chosen.wait_s == 0
    assert chosen.blocks[0] == 39
    assert 17 <= len(chosen.blocks) <= 23


def test_a_tier_that_delivers_almost_nothing_is_asked_for_one_block_to_measure_it_again() -> None:
    chosen = plan([Tier.DISK] * 40, 0, supply(1e3), COMPUTE)

    assert (list(chosen.blocks), chosen.wait_s) == ([39], 0)


def test_a_long_queue_at_the_tier_counts() -> None:
    assert plan([Tier.DISK] * 10, 0, supply(1e9), COMPUTE).wait_s > 0
    assert plan([Tier.DISK] * 10, 0, supply(1e9, queued_bytes=10**9), COMPUTE).wait_s == 0


def test_holes_are_left_out() -> None:
    chosen = plan([Tier.DRAM, None, Tier.DRAM, None], 2, supply(1e10, Tier.DRAM), COMPUTE)

    assert list(chosen.blocks) == [2, 4]


@given(
    seed=st.integers(0, 2**32),
    bytes_per_s=st.floats(1e4, 1e11),
    believed=st.floats(0.01, 100.0),
)
def test_whatever_is_believed_of_a_tier_the_prompt_takes_at_most_a_tenth_longer_than_computing_it(
    seed: int, bytes_per_s: float, believed: float
) -> None:
    """Played by the rules of `control.restore`: a wait ends at its limit; meeting ends bringing."""
    draw = random.Random(seed)
    tiers = [Tier.DISK if draw.random() < 0.9 else None for _ in range(draw.randrange(1, 60))]
    chosen = plan(tiers, 0, supply(bytes_per_s * believed), COMPUTE)
    each_s = BYTES / bytes_per_s
    arrives_s = {block: 0.0005 + (i + 1) * each_s for i, block in enumerate(chosen.blocks)}
    now_s = min(chosen.wait_s, max(arrives_s.values(), default=0.0)) if chosen.wait_s else 0.0
    for block in range(len(tiers)):
        if not arrives_s.get(block, float("inf")) <= now_s:
            now_s += COMPUTE.seconds(block, block + 1) - CPU.per_step_s * (7 / 8)  # 8 blocks share a step

    assert now_s <= COMPUTE.seconds(0, len(tiers)) * (1 + WAIT_SHARE) + CPU.per_step_s


def test_the_price_of_a_tier_is_learned_from_what_moves_took() -> None:
    learned, real = MoveSeconds(GUESS_MOVES[Tier.DISK]), MovePrices(0.004, 1 / 50e6)
    draw = random.Random(0)
    for _ in range(60):
        size = draw.randrange(1, 100) * BYTES
        learned.measured(size, real.seconds(size) * draw.uniform(0.9, 1.1))

    for size in (BYTES, 50 * BYTES):
        assert learned.prices.seconds(size) == pytest.approx(real.seconds(size), rel=0.15)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.0])
def test_a_tier_that_has_become_slow_is_believed_and_one_that_recovers_too(seconds: float) -> None:
    learned = MoveSeconds(GUESS_MOVES[Tier.DISK])
    for _ in range(20):
        learned.measured(10 * BYTES, 0.005)
    for _ in range(5):
        learned.measured(10 * BYTES, seconds)
    assert learned.prices.seconds(10 * BYTES) == pytest.approx(seconds, rel=0.5)

    for _ in range(60):
        learned.measured(10 * BYTES, 0.005)
    assert learned.prices.seconds(10 * BYTES) < 0.01
