"""What one instance can do at most: more promise, more memory or less work never means fewer requests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jevons.config.catalog import read_catalog
from jevons.econ.capacity import Demand, Instance, requests_per_s
from jevons.perf.roofline import Engine, Group, Work, iteration

CATALOG = read_catalog()
ENGINE = Engine(model=CATALOG.models["llama-3.1-8b"], chip=CATALOG.chips["h100"], group=Group(tensor=1))
DEMAND = Demand(
    requests_per_s=10.0,
    prompt_tokens=1_000.0,
    prompt_pairs=500_000.0,
    context_tokens=1_100.0,
    output_tokens=200.0,
    input_tokens=1_500.0,
    long_tokens=4_000.0,
    long_pairs=8e6,
)
BOTH = Instance(engine=ENGINE, role="both", room_tokens=400_000.0, step_tokens=8_192, max_running=256)
PREFILL, DECODE = replace(BOTH, role="prefill"), replace(BOTH, role="decode")


def most(instance: Instance, ttft_s: float = 2.0, tpot_s: float = 0.05) -> float:
    return requests_per_s(instance, DEMAND, ttft_s, tpot_s)


def test_prompts_alone_are_computed_in_full_steps() -> None:
    step = Work(prompt_tokens=8_192, prompt_pairs=500.0 * 8_192)  # 500 tokens before each, by the mean
    assert most(PREFILL) == pytest.approx(8_192 / 1_000 / iteration(ENGINE, step).seconds)


def test_as_many_answers_run_as_memory_holds() -> None:
    # 11,000 tokens hold 10 answers of 1,100: each takes 200 steps of 10.
    step_s = iteration(ENGINE, Work(decodes=10, context_tokens=11_000)).seconds
    small = replace(DECODE, room_tokens=11_000.0)
    assert most(small) == pytest.approx(10 / (200 * step_s), rel=0.02)


def test_answers_whose_experts_are_elsewhere_take_the_seconds_of_both_sides() -> None:
    # By hand: 10 answers of 200 steps of 5 ms each.
    split = replace(DECODE, room_tokens=11_000.0, decode_s=lambda sequences, context: 0.005)
    assert most(split) == pytest.approx(10 / (200 * 0.005), rel=0.01)


def test_who_does_both_does_no_more_than_who_does_one() -> None:
    assert most(BOTH) < min(most(PREFILL), most(DECODE))


def test_a_long_prompt_that_is_late_even_alone_makes_an_instance_useless() -> None:
    assert most(BOTH, ttft_s=0.01) == 0.0
    assert most(PREFILL, ttft_s=0.01) == 0.0
    assert most(DECODE, ttft_s=0.01) > 0.0


def test_a_step_that_is_slower_than_promised_serves_nobody() -> None:
    assert most(DECODE, tpot_s=0.001) == 0.0


@given(st.floats(0.01, 0.2), st.floats(1.0, 4.0), st.sampled_from([BOTH, DECODE]))
@settings(max_examples=25, deadline=None)
def test_a_looser_promise_never_means_less(tpot_s: float, more: float, instance: Instance) -> None:
    assert most(instance, tpot_s=tpot_s * more) >= most(instance, tpot_s=tpot_s) * 0.99


@given(st.floats(5_000.0, 1e6), st.floats(1.0, 4.0), st.sampled_from([BOTH, DECODE]))
@settings(max_examples=25, deadline=None)
def test_more_memory_never_means_less(room: float, more: float, instance: Instance) -> None:
    less, bigger = (replace(instance, room_tokens=tokens) for tokens in (room, room * more))
    assert most(bigger) >= most(less) * 0.99
