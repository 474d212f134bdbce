"""Routing weighs what a worker holds against what it is busy with, in seconds on its own hardware."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import ConfigError
from jevons.perf.measured import Prices
from jevons.policy.route import (
    CANDIDATE,
    Weights,
    check_policy,
    choose,
    first_token_s,
    prompt_load,
    stream_weight,
    token_s,
    usual_streams,
    weigh,
)

FLAT = Prices(per_step_s=0.0, per_token_s=0.001, per_token_context_s=0.0, per_decode_s=0.0)


def weights(
    stream: float = stream_weight(),
    arrivals_per_s: float = 0.0,
    tpot_s: float = inf,
    output: float = 0.0,
    tokens: float = 0.0,
    reused: float = 0.0,
) -> Weights:
    return stream, arrivals_per_s, tpot_s, output, tokens, reused


WEIGHTS = weights()


def worker(cached: int = 0, queued: int = 0, decoding: int = 0, prices: Prices = FLAT, held: int = 0) -> dict[str, Any]:
    own = {name: getattr(prices, name) for name in prices.__struct_fields__}
    requests = decoding + (queued > 0)
    load = {"queued_tokens": queued, "decoding": decoding, "requests": requests}
    return own | load | {"cached": cached, "held": held, "step_tokens": 100}


def candidates(*workers: dict[str, Any]) -> Any:
    made = np.zeros(len(workers), CANDIDATE)
    for i, fields in enumerate(workers):
        made[i]["worker"] = i
        for name, value in fields.items():
            made[i][name] = value
    return made


def chosen(prompt_tokens: int, *workers: dict[str, Any]) -> int:
    return choose(candidates(*workers), prompt_tokens, WEIGHTS)


def test_a_warm_worker_beats_an_idle_one() -> None:
    made = candidates(worker(), worker(cached=800, queued=100))

    assert choose(made, 1_000, WEIGHTS) == 1
    assert made[1]["seconds"] == pytest.approx(0.3)  # (100 queued + 200 uncached) / 1000 per second


def test_a_long_queue_outweighs_a_warm_cache() -> None:
    assert chosen(1_000, worker(), worker(cached=800, queued=900)) == 0


def test_a_fast_cold_worker_beats_a_slow_warm_one() -> None:
    slow = Prices(per_step_s=0.0, per_token_s=0.01, per_token_context_s=0.0, per_decode_s=0.0)

    assert chosen(1_000, worker(cached=800, prices=slow), worker()) == 1


def test_running_decodes_slow_every_step_of_a_prefill() -> None:
    busy = Prices(per_step_s=0.01, per_token_s=0.001, per_token_context_s=0.0, per_decode_s=0.005)
    (c,) = candidates(worker(decoding=4, prices=busy))

    # 10 steps of 100 tokens: 10 · 0.01 + 1000 · 0.001 + 10 steps · 4 decodes · 0.005
    assert first_token_s(c, 1_000) == pytest.approx(0.1 + 1.0 + 0.2)


def test_attention_makes_the_same_tokens_dearer_deep_in_a_prompt() -> None:
    assert prompt_load(1_000, 0).token_context == pytest.approx(999 * 1_000 / 2)
    assert prompt_load(1_000, 900).token_context == pytest.approx(sum(range(900, 1_000)))


def test_a_fully_cached_prompt_still_computes_its_last_token() -> None:
    assert prompt_load(1_000, 1_000).tokens == 1


def test_near_ties_go_to_the_emptier_cache_then_the_lowest_number() -> None:
    assert chosen(100, worker(held=10), worker(held=2)) == 1
    assert chosen(100, worker(), worker()) == 0


def test_no_candidates_is_nobody_not_a_guess() -> None:
    assert choose(candidates(), 1_000, WEIGHTS) == -1


def test_an_unknown_policy_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="must be one of kv, round_robin, least_loaded, random, got 'fastest'"):
        check_policy("fastest")


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 5_000), st.integers(0, 16)), min_size=1, max_size=8))
def test_kv_never_makes_all_wait_much_longer_than_the_best(states: list[tuple[int, int, int]]) -> None:
    made = candidates(*(worker(cached=c, queued=q, decoding=d) for c, q, d in states))

    assert made[choose(made, 500, WEIGHTS)]["waiting_s"] <= made["waiting_s"].min() * 1.05 + 0.002


def test_streams_that_run_are_held_up_by_a_prompt_as_far_as_their_promise_counts() -> None:
    warm, idle = worker(cached=600, queued=400, decoding=20), worker()  # 0.8 and 1.0 s to the first token

    assert choose(candidates(warm, idle), 1_000, weights(0.0)) == 0
    assert choose(candidates(warm, idle), 1_000, weights(0.05)) == 1  # 0.8 + 0.4 · 20 · 0.05


def test_where_many_arrive_tokens_that_need_not_be_computed_count_for_more_than_a_queue() -> None:
    warm, idle = worker(cached=900, queued=1_000), worker()  # 1.1 s, of which 0.1 our own, and 1.0 s, all our own

    assert choose(candidates(warm, idle), 1_000, weights(0.0)) == 1
    assert choose(candidates(warm, idle), 1_000, weights(0.0, 0.5)) == 0  # 1.1 · 1.05 against 1.0 · 1.5


def test_a_promise_of_slow_streams_and_quick_first_tokens_weighs_streams_less() -> None:
    assert stream_weight(1.0, 0.1) == stream_weight(2.0, 0.1) / 2 == stream_weight(1.0, 0.05) / 2


DECODES = Prices(per_step_s=0.01, per_token_s=0.001, per_token_context_s=0.0, per_decode_s=0.001)


def test_a_token_takes_a_step_with_all_that_are_there_and_ours() -> None:
    (c,) = candidates(worker(decoding=9, prices=DECODES))

    assert token_s(c) == pytest.approx(0.02)


def test_prompts_hold_up_the_tokens_of_answers_by_their_share_of_the_time_at_most_a_full_step() -> None:
    made = candidates(*[worker(decoding=9, prices=DECODES)] * 3)
    made["busy"] = [0.5, 0.99, 1.0]

    assert [token_s(c) for c in made] == pytest.approx([0.04, 0.12, 0.12])  # a full step computes 100 tokens


def test_a_worker_whose_tokens_would_break_the_promise_costs_what_they_are_late() -> None:
    warm, idle = worker(cached=900, decoding=20, prices=DECODES), worker(prices=DECODES)
    made = candidates(warm, idle)

    assert choose(made, 1_000, weights(0.0)) == 0
    assert choose(made, 1_000, weights(0.0, 0.0, 0.03, 2_000)) == 1
    assert made["answer_s"].tolist() == pytest.approx([2_000 * 0.001, 0.0])
    assert choose(made, 1_000, weights(0.0, 0.0, 0.03, 200)) == 0  # a short answer is late by little


def test_who_attends_to_much_is_met_where_it_costs_more_than_what_is_reused_saves() -> None:
    warm = worker(cached=400, decoding=1) | {"context": 20_000, "per_context_s": 1e-6}
    made = candidates(warm, worker())  # 0.6 and 1.0 s to the first token

    assert choose(made, 1_000, weights(0.0)) == 0
    assert choose(made, 1_000, weights(0.0, tokens=60.0)) == 1
    assert made["answer_s"].tolist() == pytest.approx([60 * 0.5 * 1e-6 * 21_000, 0.0])  # each is slower by the other


def test_what_is_computed_again_takes_the_place_of_what_would_be_reused() -> None:
    warm, idle = worker(cached=400, queued=450), worker()  # 1.05 s, of which 0.6 our own, and 1.0 s, all our own

    assert choose(candidates(warm, idle), 1_000, weights(0.0)) == 1
    assert choose(candidates(warm, idle), 1_000, weights(0.0, reused=0.5)) == 0  # 1.35 against 1.5


def test_one_more_answer_slows_the_streams_that_are_promised_something() -> None:
    made = candidates(worker(decoding=10, prices=DECODES), worker(decoding=10, prices=DECODES))
    made["promised"] = [10.0, 0.0]
    weigh(made[0], 100, weights(0.1, 0.0, inf, 200))
    weigh(made[1], 100, weights(0.1, 0.0, inf, 200))

    assert made["answer_s"].tolist() == pytest.approx([10 * 0.1 * 200 * 0.001, 0.0])


def test_a_stream_counts_by_what_it_is_promised() -> None:
    assert usual_streams(0.1, 256) == 1.0
    assert usual_streams(0.025, 256) == 4.0
    assert usual_streams(0.1, 64) == 4.0  # a second is more of a short promise


STREAMS = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 5_000), st.floats(0, 1)), min_size=2, max_size=2)


@given(STREAMS, st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_a_tighter_tpot_never_picks_the_worker_with_slower_tokens(
    states: list[tuple[int, int, float]], one_s: float, other_s: float
) -> None:
    made = candidates(*(worker(decoding=d, queued=q, prices=DECODES) for d, q, _ in states))
    made["busy"] = [busy for *_, busy in states]
    loose_s, tight_s = max(one_s, other_s), min(one_s, other_s)
    loose = choose(made, 500, weights(stream_weight(), 0.0, loose_s, 256.0))
    tight = choose(made, 500, weights(stream_weight(), 0.0, tight_s, 256.0))

    assert made[tight]["tpot_s"] <= made[loose]["tpot_s"]
