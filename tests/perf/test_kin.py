"""Workers that are alike learn together; who is different goes by its own."""

from __future__ import annotations

import random

import pytest
from tests.perf.test_measured import REAL, steps

from jevons.perf.kin import Kin, WorkerSeconds
from jevons.perf.measured import GUESS_PRICES, Load, Prices

USUAL = Load(steps=1, tokens=128, token_context=128 * 500, decodes=4)


def work(workers: list[WorkerSeconds], speeds: list[float], rounds: int, seed: int = 0, noise: float = 0.15) -> None:
    """Each makes a step in turn, `speed` times as long as REAL says."""
    draw = random.Random(seed)
    for load in steps(rounds, seed):
        for worker, speed in zip(workers, speeds, strict=True):
            worker.measured(load, speed * REAL.seconds(load) * draw.uniform(1 - noise, 1 + noise))


def seconds(worker: WorkerSeconds) -> float:
    return worker.prices.seconds(USUAL) / REAL.seconds(USUAL)


def test_equals_stay_equal_whatever_their_noise() -> None:
    kin = Kin()
    workers = [WorkerSeconds(kin) for _ in range(8)]

    for seed in range(20):
        work(workers, [1.0] * 8, 30, seed, noise=0.3)
        assert {worker.prices for worker in workers} == {kin.prices}

    assert seconds(workers[0]) == pytest.approx(1.0, rel=0.1)


def test_a_new_one_knows_what_the_others_know() -> None:
    kin = Kin()
    work([WorkerSeconds(kin)], [1.0], 60)

    assert seconds(WorkerSeconds(kin)) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("times", [1.6, 5.0, 0.2])
def test_one_that_is_different_goes_by_its_own_and_leaves_the_others_alone(times: float) -> None:
    kin = Kin()
    workers = [WorkerSeconds(kin) for _ in range(5)]

    work(workers, [times, 1.0, 1.0, 1.0, 1.0], 100)

    assert [worker.is_alike for worker in workers] == [False, True, True, True, True]
    assert seconds(workers[0]) == pytest.approx(times, rel=0.15)
    assert seconds(workers[1]) == pytest.approx(1.0, rel=0.15)


def test_two_unlike_ones_under_one_name_are_told_apart() -> None:
    kin = Kin()
    workers = [WorkerSeconds(kin), WorkerSeconds(kin)]

    work(workers, [1.0, 3.0], 60)

    assert [seconds(worker) for worker in workers] == [pytest.approx(1.0, rel=0.2), pytest.approx(3.0, rel=0.2)]


def test_who_is_as_fast_as_the_others_again_goes_with_them() -> None:
    kin = Kin()
    workers = [WorkerSeconds(kin) for _ in range(4)]
    work(workers, [2.0, 1.0, 1.0, 1.0], 60)
    assert not workers[0].is_alike

    work(workers, [1.0] * 4, 200, seed=1)

    assert workers[0].is_alike


def test_all_of_them_getting_slower_is_followed_together() -> None:
    kin = Kin()
    workers = [WorkerSeconds(kin) for _ in range(4)]
    work(workers, [1.0] * 4, 60)

    work(workers, [2.0] * 4, 200, seed=1)

    assert all(seconds(worker) == pytest.approx(2.0, rel=0.15) for worker in workers)


def test_who_leaves_counts_no_more() -> None:
    kin = Kin()
    workers = [WorkerSeconds(kin) for _ in range(3)]
    work(workers, [4.0, 1.0, 1.0], 60)

    workers[0].leave()

    assert kin.members == set(workers[1:])
    work(workers[1:], [1.0, 1.0], 60, seed=1)
    assert all(worker.is_alike for worker in workers[1:])
    assert seconds(workers[1]) == pytest.approx(1.0, rel=0.15)


def test_prices_are_new_only_where_they_predict_something_else() -> None:
    kin = Kin()
    worker = WorkerSeconds(kin)
    told = [worker.measured(load, REAL.seconds(load)) for load in steps(300)]

    assert any(told[:10])
    assert not any(told[100:])


def test_a_part_no_step_of_its_kin_had_is_learned_from_a_guess() -> None:
    kin = Kin()
    workers = [WorkerSeconds(kin), WorkerSeconds(kin)]
    for n in range(100):
        decodes = Load(steps=1, decodes=n % 4 + 1)
        workers[0].measured(decodes, 0.01 * decodes.decodes)
        workers[1].measured(decodes, 0.05 * decodes.decodes)
    assert not workers[1].is_alike

    for load in steps(60):
        workers[1].measured(load, REAL.seconds(load))

    assert seconds(workers[1]) == pytest.approx(1.0, rel=0.3)


def test_a_step_of_nothing_or_no_time_is_passed_over() -> None:
    worker = WorkerSeconds(Kin())

    assert not worker.measured(Load(), 0.5)
    assert not worker.measured(USUAL, 0.0)
    assert worker.prices == GUESS_PRICES
    assert isinstance(worker.prices, Prices)


def test_a_step_believed_to_take_nothing_is_learned_from_all_the_same() -> None:
    w = WorkerSeconds(Kin())
    for i in range(200):  # those with streams are the shorter ones, by what else was in them
        size, streams = i % 7, i % 2
        load = Load(steps=1, tokens=1_024 + size * 256, decodes=8 * streams)
        w.measured(load, 0.014 + size * 0.005 - streams * 0.012)
    decode = Load(steps=1, decodes=8)
    assert w.prices.seconds(decode) == 0.0

    for _ in range(50):
        w.measured(decode, 0.01)

    assert w.prices.seconds(decode) == pytest.approx(0.01, rel=0.05)
