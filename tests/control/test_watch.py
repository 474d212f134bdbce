"""What a page is told of requests: the last minute's times, the last requests, what was reused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.ids import RequestId, WorkerId
from jevons.control.watch import SHOWN, Minute, Watch
from jevons.facts.snapshot import Outcome
from jevons.policy.route import Placement

PLACEMENT = Placement(WorkerId("w"), "kv", 0.1, 64, "64 of 100 tokens cached")


def outcome(id: str, cached: int | None = 60, ttft_s: float | None = 0.2) -> Outcome:
    return Outcome(
        id=RequestId(id),
        worker=WorkerId("w"),
        prompt_tokens=100,
        predicted_ttft_s=0.1,
        ttft_s=ttft_s,
        predicted_cached_tokens=64,
        cached_tokens=cached,
        device_s=0.3,
        saved_s=0.5,
        chip="h100",
    )


@given(st.lists(st.floats(1e-4, 1_000), min_size=1, max_size=200))
def test_percentiles_are_within_a_bin_of_the_exact_ones(seconds: list[float]) -> None:
    minute = Minute()
    for each in seconds:
        minute.add(each, now_s=0.0)

    times = minute.times(0.5, target_s=1.0)

    exact = sorted(seconds)[max(0, -(-len(seconds) // 2) - 1)]
    assert times.p50 == pytest.approx(exact, rel=0.051)
    assert times.count == len(seconds)


def test_what_is_older_than_a_minute_counts_no_more() -> None:
    minute = Minute()
    minute.add(10.0, now_s=0.5)
    minute.add(0.1, now_s=59.5)

    assert minute.times(59.9, 1.0).count == 2
    assert minute.times(60.5, 1.0).count == 1
    assert minute.times(60.5, 1.0).within == 1.0
    assert minute.times(500.0, 1.0).p50 is None


def test_a_request_is_shown_from_its_placement_to_its_end() -> None:
    watch, id = Watch(100.0), RequestId("a")
    watch.placed(id, PLACEMENT, 100, 101.0)
    waiting = watch.requests()[0]
    assert (waiting.reason, waiting.ttft_s, watch.under_way) == (PLACEMENT.reason, None, 1)

    watch.first(id, 101.2)
    watch.first(id, 105.0)  # of a stream that went on elsewhere
    assert watch.requests()[0].ttft_s == pytest.approx(0.2)

    watch.done(outcome("a"), 7, 102.0)
    done = watch.requests()[0]
    assert (done.output_tokens, done.cached_tokens, done.done_s) == (7, 60, 2.0)
    assert (watch.under_way, watch.finished) == (0, 1)
    assert watch.scatter() == [(0.1, 0.2)]


def test_no_more_requests_are_kept_than_shown() -> None:
    watch = Watch(0.0)
    for number in range(3 * SHOWN):
        watch.placed(RequestId(str(number)), PLACEMENT, 100, 1.0)

    assert [going.id for going in watch.requests()] == [str(n) for n in range(2 * SHOWN, 3 * SHOWN)]


def test_reuse_tells_apart_what_was_there_brought_computed_and_not_told() -> None:
    watch = Watch(0.0)
    for id, cached in (("a", 60), ("b", None)):
        watch.placed(RequestId(id), PLACEMENT, 100, 1.0)
        watch.done(outcome(id, cached), 1, 2.0)

    reuse = watch.reuse({"dram": 20})

    assert (reuse.device, reuse.tiers, reuse.computed, reuse.untold) == (40, {"dram": 20}, 40, 100)
    assert watch.saved_chip_s() == {"h100": 1.0}


def test_rates_are_of_the_last_minute() -> None:
    watch = Watch(0.0)
    for second in range(0, 120, 2):
        id = str(second)
        watch.placed(RequestId(id), PLACEMENT, 100, float(second))
        watch.done(outcome(id), 10, float(second))

    rates = watch.rates(119.0)

    assert rates.requests == pytest.approx(0.5)
    assert rates.output_tokens == pytest.approx(5.0)
    assert rates.prompt_tokens == pytest.approx(50.0)
