"""Closed loops: what users see of one engine, and of two kinds, in cases that can be told by hand."""

from __future__ import annotations

import msgspec
import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.closed import Loop, Seen, closed_loop
from jevons.perf.roofline import Engine, Group, Work, iteration, steady
from jevons.perf.split import Split, split_loop

CATALOG = read_catalog()
ENGINE = Engine(model=CATALOG.models["llama-3.1-70b"], chip=CATALOG.chips["h200"], group=Group(tensor=4), weights="fp8")
ALONE = Loop(users=1, input_tokens=1_000, output_tokens=101)


def seen(**changes: object) -> Seen:
    return closed_loop(ENGINE, msgspec.structs.replace(ALONE, **changes))


def test_one_user_waits_for_the_prompt_and_then_for_each_token() -> None:
    prompt = iteration(ENGINE, Work(prompt_tokens=1_000, prompt_pairs=500_000)).seconds
    token = iteration(ENGINE, Work(decodes=1, context_tokens=1_050)).seconds

    assert seen().ttft_s == pytest.approx(prompt)
    assert seen().tpot_s == pytest.approx(token, rel=0.001)
    assert seen().output_rate == pytest.approx(101 / (prompt + 100 * token), rel=0.001)


def test_with_many_users_a_token_takes_about_what_the_steady_formula_says() -> None:
    loop = seen(users=64, input_tokens=1_000, output_tokens=1_000, spread=0.2)

    assert loop.tpot_s == pytest.approx(steady(ENGINE, 62, 900, 900).tpot_s, rel=0.1)
    assert 55 < loop.running < 64


def test_more_users_wait_longer_and_get_more_done_together() -> None:
    loops = [seen(users=users, output_tokens=200, spread=0.2) for users in (1, 4, 16, 64)]

    assert [loop.tpot_s for loop in loops] == sorted(loop.tpot_s for loop in loops)
    assert [loop.output_rate for loop in loops] == sorted(loop.output_rate for loop in loops)


def test_who_finds_no_room_waits_for_an_end() -> None:
    wide, narrow = seen(users=16, output_tokens=200), seen(users=16, output_tokens=200, room_tokens=4 * 1_200)

    assert narrow.running < 4.01
    assert narrow.ttft_s > 5 * wide.ttft_s
    assert narrow.tpot_s < wide.tpot_s
    assert seen(users=16, output_tokens=200, seats=4).ttft_s == pytest.approx(narrow.ttft_s)


def test_prompts_that_hold_up_others_cost_tokens_and_not_the_prompts() -> None:
    mixed, apart = seen(users=32, spread=0.2), seen(users=32, spread=0.2, apart=True)

    assert apart.tpot_s > mixed.tpot_s


def test_the_same_loop_gives_the_same_answer() -> None:
    assert seen(users=8, spread=0.2) == seen(users=8, spread=0.2)


def test_speculation_that_gains_two_tokens_a_step_halves_their_time() -> None:
    shares = msgspec.structs.replace(ENGINE.shares, tokens_per_step=2.0)
    twice = closed_loop(msgspec.structs.replace(ENGINE, shares=shares), ALONE)

    assert twice.tpot_s == pytest.approx(seen().tpot_s / 2, rel=0.001)


def test_split_users_wait_for_prompts_elsewhere_and_nothing_holds_up_their_tokens() -> None:
    loop = Loop(users=16, input_tokens=4_000, output_tokens=200, spread=0.2)
    together = closed_loop(ENGINE, loop)
    split = split_loop(Split(prefill=ENGINE, prefill_workers=1, decode=ENGINE, decode_workers=1), loop)
    wider = split_loop(Split(prefill=ENGINE, prefill_workers=4, decode=ENGINE, decode_workers=1), loop)

    assert split.tpot_s < together.tpot_s
    assert wider.ttft_s < split.ttft_s
    assert split.tpot_s == pytest.approx(
        iteration(ENGINE, Work(decodes=split.running, context_tokens=split.running * 3_700)).seconds, rel=0.2
    )


def test_a_move_that_cannot_be_hidden_comes_before_the_first_token() -> None:
    loop = Loop(users=1, input_tokens=1_000, output_tokens=100)
    near = Split(prefill=ENGINE, prefill_workers=1, decode=ENGINE, decode_workers=1)
    far = msgspec.structs.replace(near, move_s_per_token=1e-3)

    assert split_loop(far, loop).ttft_s == pytest.approx(split_loop(near, loop).ttft_s + 1.0)


def test_split_users_without_a_place_to_decode_wait_for_one() -> None:
    loop = Loop(users=16, input_tokens=1_000, output_tokens=200)
    pools = Split(prefill=ENGINE, prefill_workers=4, decode=ENGINE, decode_workers=2)
    few = split_loop(pools, msgspec.structs.replace(loop, seats=2))

    assert few.running < 4.01
    assert few.ttft_s > split_loop(pools, loop).ttft_s


@pytest.mark.parametrize(("users", "output"), [(1, 20_000), (16, 8_000), (8, 100)])
def test_answers_decoded_apart_take_the_iterations_of_their_growing_contexts(users: int, output: int) -> None:
    loop = msgspec.structs.replace(ALONE, users=users, input_tokens=100, output_tokens=output)
    middle = iteration(ENGINE, Work(decodes=users, context_tokens=users * (100 + output / 2))).seconds
    pools = Split(prefill=ENGINE, prefill_workers=users, decode=ENGINE, decode_workers=1)

    assert split_loop(pools, loop).tpot_s == pytest.approx(middle, rel=0.001)


def test_a_prompt_that_ends_meanwhile_cuts_answers_decoded_apart_in_two() -> None:
    loop = Loop(users=2, input_tokens=20_000, output_tokens=20_000, rounds=2)
    middle = iteration(ENGINE, Work(decodes=1, context_tokens=30_000)).seconds
    pools = Split(prefill=ENGINE, prefill_workers=1, decode=ENGINE, decode_workers=2)

    assert split_loop(pools, loop).tpot_s == pytest.approx(middle, rel=0.001)
