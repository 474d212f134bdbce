"""Simulated engines schedule as vLLM's scheduler does, told by single requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.twin.test_run import Kept, scenario

PRICES = {"per_step_s": 0.01, "per_token_s": 1e-5, "per_decode_s": 1e-5}
ENGINE = {"instances": 1, "prices": PRICES, "block_size": 16, "blocks": 40, "step_tokens": 64}


def rehearsed(tmp_path: Path, *requests: tuple[float, int, int], **engine: Any) -> tuple[Kept, Any]:
    """Requests of (seconds, prompt, output) that share nothing, on one engine."""
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": at_s * 1000, "input_length": prompt, "output_length": output, "hash_ids": [i], "block_size": 4096}
        for i, (at_s, prompt, output) in enumerate(requests)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = Kept(scenario([{**ENGINE, **engine}], {"trace": str(trace)}, router="round_robin"))
    results = kept.go()
    kept.check_empty()
    return kept, results


def test_a_prompt_is_admitted_where_all_of_it_fits(tmp_path: Path) -> None:
    kept, (a, b) = rehearsed(tmp_path, (0.0, 400, 100), (0.5, 320, 1))

    assert b["admitted_s"] >= a["done_s"]  # a step's part of it would have fitted at once
    assert kept.hub["engines"]["preempted"].sum() == 0


def test_a_prompt_that_answers_left_no_room_for_gives_way_and_comes_back_before_all_others(tmp_path: Path) -> None:
    kept, (a, b, c) = rehearsed(tmp_path, (0.0, 150, 300), (0.3, 460, 4), (0.4, 16, 2), step_tokens=33)

    assert b["admitted_s"] < a["done_s"]
    assert kept.hub["engines"]["preempted"].sum() > 0
    assert a["done_s"] < b["first_s"] < c["first_s"]  # what is left would do for the third


def test_the_budget_goes_to_answers_first_then_to_prompts_in_their_order(tmp_path: Path) -> None:
    _, (a, b, c) = rehearsed(tmp_path, (0.0, 60, 40), (0.1, 100, 1), (0.1, 100, 1))

    assert a["done_s"] > c["first_s"]
    # 63 tokens in a step beside one answer: 63 of b; 37 of b and 26 of c; 63 of c; 11 of c. b's first token after two.
    assert b["first_s"] < c["first_s"]
    assert c["admitted_s"] - b["admitted_s"] < 0.02
    assert 0.02 < c["first_s"] - b["first_s"] < 0.03


def test_no_more_run_at_once_than_may(tmp_path: Path) -> None:
    _, (a, b, c) = rehearsed(tmp_path, *[(0.0, 16, 50)] * 3, max_running=2)

    assert a["first_s"] == b["first_s"]
    assert c["admitted_s"] >= min(a["done_s"], b["done_s"])


def test_who_gave_way_finds_what_it_had_computed(tmp_path: Path) -> None:
    kept, (a, b) = rehearsed(tmp_path, (0.0, 256, 200), (0.0, 256, 200), blocks=40, step_tokens=1024)

    assert kept.hub["engines"]["preempted"].sum() == 1
    # Its prompt is still there, what it answered has no names: not all of it is computed again.
    assert 512 < kept.hub["engines"]["sum_prompt_tokens"].sum() < 2 * 512
    assert b["cached"] == a["cached"] == 0


def handed_over(tmp_path: Path, output: int, at_s: tuple[float, ...], decoders: int = 1, **more: Any) -> Any:
    """The same prompt at these times, computed on one chip and decoded on another, over a line of 1 GB/s."""
    row = {"input_length": 4_000, "output_length": output, "hash_ids": [1], "block_size": 8192}
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({**row, "timestamp": at * 1000}) + "\n" for at in at_s))
    line = {"block_size": 16, "uplink_bytes_per_s": 1e9}
    decode = {"chip": "lpu3", "role": "decode", "tensor": 8, "pipeline": 32, "instances": decoders}  # no prompts
    prefill = {"chip": "rubin", "role": "prefill", "tensor": 2, "instances": 1}
    more |= {"model": "qwen3-32b", "weights": "fp8", "kv_bits": 8}
    return Kept(scenario([{**decode, **line}, {**prefill, **line}], {"trace": str(trace)}, **more)).go()


def test_blocks_that_the_other_holds_are_not_handed_over(tmp_path: Path) -> None:
    first, again = handed_over(tmp_path, 20, (0.0, 5.0))

    assert (first["decode_on"], again["decode_on"]) == (0, 0)
    taken = [each["done_s"] - each["first_s"] for each in (first, again)]
    assert taken[0] > 0.4  # 4,000 tokens of 131 kB
    assert taken[1] < 0.1 * taken[0]


def test_what_is_computed_anew_after_a_failure_is_handed_over_anew(tmp_path: Path) -> None:
    fails = [{"at_s": 1.0, "what": "fail", "first": 0}]

    (whole,) = handed_over(tmp_path, 10_000, (0.0,), decoders=2)
    (anew,) = handed_over(tmp_path, 10_000, (0.0,), decoders=2, events=fails)

    assert whole["first_s"] < 1.0 < whole["done_s"]
    assert anew["done_s"] - whole["done_s"] > 0.5  # its prompt and what it had answered, over the same line
