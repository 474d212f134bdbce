"""A worker's prices are learned from its steps."""

import random

import pytest

from jevons.facts.block import Tier
from jevons.perf.measured import GUESS_MOVES, GUESS_PRICES, Load, MoveSeconds, Prices, StepSeconds, fit_prices

REAL = Prices(per_step_s=0.02, per_token_s=0.0012, per_token_context_s=4e-7, per_decode_s=0.004)


def steps(count: int, seed: int = 0) -> list[Load]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        tokens, context = draw.choice([0, 0, 64, 128]), draw.randrange(2_000)
        made.append(Load(steps=1, tokens=tokens, token_context=tokens * context, decodes=draw.randrange(8)))
    return [load for load in made if load.tokens or load.decodes]


def test_before_any_measurement_the_prior_speaks() -> None:
    assert StepSeconds().prices == GUESS_PRICES


def test_prices_are_recovered_from_noisy_steps() -> None:
    learned, draw = StepSeconds(), random.Random(1)
    for load in steps(300):
        learned.measured(load, REAL.seconds(load) * draw.uniform(0.9, 1.1))

    for load in steps(50, seed=2):
        assert learned.prices.seconds(load) == pytest.approx(REAL.seconds(load), rel=0.1)


def test_a_change_of_speed_is_followed() -> None:
    learned = StepSeconds()
    for load in steps(300):
        learned.measured(load, REAL.seconds(load))
    for load in steps(300, seed=3):
        learned.measured(load, 2 * REAL.seconds(load))

    load = Load(steps=1, tokens=128, token_context=64_000)
    assert learned.prices.seconds(load) == pytest.approx(2 * REAL.seconds(load), rel=0.1)


def test_a_part_never_seen_keeps_its_prior_and_none_goes_below_zero() -> None:
    learned = StepSeconds()
    for _ in range(200):
        learned.measured(Load(steps=1, decodes=4), 0.03)

    assert learned.prices.per_token_s == pytest.approx(GUESS_PRICES.per_token_s, rel=0.01)
    assert min(learned.prices.per_step_s, learned.prices.per_decode_s) >= 0
    assert learned.prices.seconds(Load(steps=1, decodes=4)) == pytest.approx(0.03, rel=0.02)


def test_long_runs_of_one_kind_of_step_do_not_spoil_the_rest() -> None:
    learned = StepSeconds()
    for load in steps(200):
        learned.measured(load, REAL.seconds(load))
    for _ in range(2_000):
        learned.measured(Load(steps=1, decodes=4), REAL.seconds(Load(steps=1, decodes=4)))

    # What has not been seen for 2,000 steps has faded towards the prior; it must still be a sane, positive price.
    assert 0 < learned.prices.per_token_s < 0.01
    assert learned.prices.seconds(Load(steps=1, decodes=4)) == pytest.approx(0.036, rel=0.02)


def test_two_moves_of_nearly_one_size_that_differ_do_not_spoil_what_comes_next() -> None:
    learned, page = MoveSeconds(GUESS_MOVES[Tier.DRAM]), 368_640
    learned.measured(13 * page, 0.003)
    learned.measured(12 * page, 0.004)  # a line through both falls

    for pages in (12, 13):
        assert 0.0028 < learned.prices.seconds(pages * page) < 0.0042


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_of_times_that_are_mispredicted_is_learned_by_its_mean(seed: int) -> None:
    learned, draw, found = MoveSeconds(GUESS_MOVES[Tier.DRAM]), random.Random(seed), list[float]()
    for _ in range(600):
        size_bytes, besides_s = draw.uniform(20e6, 200e6), draw.uniform(0.02, 0.2)
        real_s = 0.001 + size_bytes / 20e9
        found.append(learned.prices.seconds(size_bytes) / real_s)
        hang_s = 5.0 if draw.random() < 0.01 else 0.0
        learned.left(size_bytes, real_s + draw.gauss(0.0, 0.005) + hang_s, besides_s)

    assert 0.9 < sorted(found[100:])[250] < 1.5
    assert min(found[100:]) > 0.2


def test_nothing_is_learned_of_nothing() -> None:
    learned = MoveSeconds(GUESS_MOVES[Tier.DRAM])
    learned.left(1e6, 1e-9, 0.0)
    for seconds in (0.0, -1.0, 1e-12, 1e12):
        learned.left(1e6, seconds, 0.1)
    assert 0.0 <= learned.prices.seconds(1e6) < 1.0


@pytest.mark.parametrize("seed", range(50))
def test_noisy_moves_of_few_sizes_are_predicted_within_their_noise(seed: int) -> None:
    learned, draw, page = MoveSeconds(GUESS_MOVES[Tier.DISK]), random.Random(seed), 368_640
    for number in range(60):
        pages = draw.choice([12, 13, 13, 13, 14, 19, 23, 36])
        real = 0.0015 + 0.0008 * pages
        if number > 3:
            assert real / 4 < learned.prices.seconds(pages * page) < real * 4
        learned.measured(pages * page, real * draw.lognormvariate(0.0, 0.3))


def test_a_whole_record_of_steps_gives_the_prices_they_had() -> None:
    draw, loads = random.Random(5), steps(500)

    found = fit_prices(loads, [REAL.seconds(load) * draw.uniform(0.8, 1.2) for load in loads])

    for load in steps(50, seed=6):
        assert found.seconds(load) == pytest.approx(REAL.seconds(load), rel=0.05)


def test_a_few_steps_that_hung_hardly_count() -> None:
    loads = steps(500)
    seconds = [REAL.seconds(load) * (30.0 if i % 100 == 0 else 1.0) for i, load in enumerate(loads)]

    found = fit_prices(loads, seconds)

    for load in steps(50, seed=6):
        assert found.seconds(load) == pytest.approx(REAL.seconds(load), rel=0.1)


def test_a_part_that_no_step_had_costs_nothing_and_none_costs_less() -> None:
    loads = [Load(steps=1, decodes=n % 4 + 1) for n in range(50)]

    found = fit_prices(loads, [0.02 + 0.004 * load.decodes for load in loads])

    assert found.per_decode_s == pytest.approx(0.004, rel=0.01)
    assert (found.per_token_s, found.per_token_context_s) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        fit_prices([], [])
