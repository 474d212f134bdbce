"""Routing weighs what a worker holds against what it is busy with, in seconds on its own hardware."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import ConfigError, NoWorker
from jevons.base.ids import WorkerId
from jevons.perf.measured import Load, Prices
from jevons.policy.route import POLICIES, Candidate, check_policy, prompt_load, route, ttft_s

FLAT = Prices(per_step_s=0.0, per_token_s=0.001, per_token_context_s=0.0, per_decode_s=0.0)


def worker(
    name: str, *, cached: int = 0, queued: int = 0, decoding: int = 0, prices: Prices = FLAT, held: int = 0
) -> Candidate:
    return Candidate(
        worker=WorkerId(name),
        cached_tokens=cached,
        queued=Load(tokens=queued),
        decoding=decoding,
        requests=decoding + (queued > 0),
        prices=prices,
        step_tokens=100,
        held_blocks=held,
    )


def test_a_warm_worker_beats_an_idle_one() -> None:
    placement = route("kv", 1_000, [worker("idle"), worker("warm", cached=800, queued=100)])

    assert placement.worker == "warm"
    assert placement.ttft_s == pytest.approx(0.3)  # (100 queued + 200 uncached) / 1000 per second
    assert "800 of 1000 tokens cached, 100 queued" in placement.reason


def test_a_long_queue_outweighs_a_warm_cache() -> None:
    assert route("kv", 1_000, [worker("idle"), worker("warm", cached=800, queued=900)]).worker == "idle"


def test_a_fast_cold_worker_beats_a_slow_warm_one() -> None:
    slow = Prices(per_step_s=0.0, per_token_s=0.01, per_token_context_s=0.0, per_decode_s=0.0)

    assert route("kv", 1_000, [worker("slow", cached=800, prices=slow), worker("fast")]).worker == "fast"


def test_running_decodes_slow_every_step_of_a_prefill() -> None:
    busy = Prices(per_step_s=0.01, per_token_s=0.001, per_token_context_s=0.0, per_decode_s=0.005)

    # 10 steps of 100 tokens: 10 · 0.01 + 1000 · 0.001 + 10 steps · 4 decodes · 0.005
    assert ttft_s(1_000, worker("w", decoding=4, prices=busy)) == pytest.approx(0.1 + 1.0 + 0.2)


def test_attention_makes_the_same_tokens_dearer_deep_in_a_prompt() -> None:
    assert prompt_load(1_000, 0).token_context == pytest.approx(999 * 1_000 / 2)
    assert prompt_load(1_000, 900).token_context == pytest.approx(sum(range(900, 1_000)))


def test_a_fully_cached_prompt_still_computes_its_last_token() -> None:
    assert prompt_load(1_000, 1_000).tokens == 1


def test_near_ties_go_to_the_emptier_cache_then_the_lowest_id() -> None:
    assert route("kv", 100, [worker("a", held=10), worker("b", held=2)]).worker == "b"
    assert route("kv", 100, [worker("b"), worker("a")]).worker == "a"


def test_round_robin_takes_each_in_turn() -> None:
    candidates = [worker("b"), worker("a", cached=99), worker("c")]

    assert [route("round_robin", 100, candidates, turn).worker for turn in range(4)] == ["a", "b", "c", "a"]


def test_least_loaded_counts_requests_not_cache() -> None:
    assert route("least_loaded", 100, [worker("a", cached=99, decoding=2), worker("b", decoding=1)]).worker == "b"


def test_random_is_the_same_in_a_replay_and_reaches_everyone() -> None:
    candidates = [worker(name) for name in "abcd"]
    draws = [route("random", 100, candidates, turn).worker for turn in range(200)]

    assert draws == [route("random", 100, candidates, turn).worker for turn in range(200)]
    assert all(draws.count(WorkerId(name)) > 30 for name in "abcd")


@pytest.mark.parametrize("policy", POLICIES)
def test_no_candidates_is_an_error_not_a_guess(policy: str) -> None:
    with pytest.raises(NoWorker, match="0 candidates"):
        route(policy, 1_000, [])


def test_an_unknown_policy_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="must be one of kv, round_robin, least_loaded, random, got 'fastest'"):
        check_policy("fastest")


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 5_000), st.integers(0, 16)), min_size=1, max_size=8))
def test_kv_is_never_much_slower_than_the_best_prediction(states: list[tuple[int, int, int]]) -> None:
    candidates = [worker(f"w{i}", cached=c, queued=q, decoding=d) for i, (c, q, d) in enumerate(states)]
    best = min(ttft_s(500, c) for c in candidates)

    assert route("kv", 500, candidates).ttft_s <= best * 1.05 + 0.002
