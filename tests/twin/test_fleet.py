"""A scenario's groups as the kernel's arrays: what the kernel says of a step is what the formula says."""

from __future__ import annotations

from typing import Any

import pytest

from jevons.base.errors import ConfigError
from jevons.base.hub import Hub
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.perf import pace as paces
from jevons.perf.calibration import NOTHING
from jevons.perf.roofline import Work, iteration
from jevons.twin.fleet import Made, make_groups, set_pace, split_decode_s

CATALOG = read_catalog()
SPREAD = {"chip": "h200", "tensor": 8, "attention": 8, "experts": 8}


def made(group: dict[str, Any], model: str, **more: Any) -> Made:
    """The first group of a fleet."""
    bare = {name: value for name, value in group.items() if name not in ("ffn_chip", "draft")}
    prompts = [{**bare, "instances": 1, "role": "prefill"}] if group.get("role") == "decode" else []
    table = {"fleet": [{"instances": 1, **group}, *prompts], "traffic": {"kind": "chat"}, "model": model, **more}
    return make_groups(make_scenario(table, "of a test"), CATALOG, NOTHING)[0]


@pytest.mark.parametrize(
    ("group", "model"),
    [
        ({"chip": "h100", "tensor": 4}, "llama-3.1-70b"),
        ({"chip": "h100", "tensor": 4, "pipeline": 4}, "llama-3.1-70b"),
        ({**SPREAD, "pipeline": 2}, "deepseek-v3"),
        ({"chip": "b200", "tensor": 2, "pipeline": 3}, "gpt-oss-120b"),
    ],
)
def test_a_step_of_the_kernel_takes_what_the_formula_says_in_pipelines_too(group: dict[str, Any], model: str) -> None:
    it, arrays = made(group, model), paces.pace_arrays(1)
    set_pace(arrays, 0, it, CATALOG)
    pace = paces.Pace(Hub(arrays, {}), 0)
    assert it.engine is not None

    for decodes, context, prompt in (
        (1, 2_000, 0),
        (3, 2_000, 0),
        (64, 8_000, 0),
        (256, 50_000, 0),
        (64, 2_000, 4_096),
    ):
        work = Work(
            prompt_tokens=prompt,
            prompt_pairs=prompt * 2_048,
            decodes=decodes,
            context_tokens=decodes * context,
        )
        took_s = pace.seconds(prompt, prompt * 2_048, decodes, decodes * context)

        assert took_s == pytest.approx(iteration(it.engine, work).seconds, rel=0.001)


APART = {"chip": "rubin", "role": "decode", "tensor": 8, "ffn_chip": "lpu3", "ffn_chips": 2_048, "block_size": 64}


def test_attention_apart_leaves_what_it_does_not_hold_and_is_held_by_every_chip_of_a_copy() -> None:
    """DeepSeek-V3: 576 numbers a token and layer, and 187 million parameters of attention a layer."""
    each, chip_bytes = 61 * 576, 288e9 - 2e9
    attention_bytes = 61 * 187_105_280
    copies, one = (made({**APART, "attention": n}, "deepseek-v3", kv_bits=8) for n in (8, 1))

    assert copies.blocks == int(0.9 * 8 * (chip_bytes - attention_bytes) / each // 64)
    assert one.blocks == int(0.9 * (chip_bytes - attention_bytes / 8) / each // 64)


def test_what_attention_apart_needs_is_told_without_the_rest() -> None:
    small = {**APART, "chip": "h100", "tensor": 1, "block_size": 10_000_000}
    with pytest.raises(ConfigError, match=r"1 × h100 hold 80 GB, deepseek-v3 needs 11 GB for its weights"):
        made(small, "deepseek-v3")


def test_a_step_with_experts_apart_goes_on_growing_up_to_as_many_sequences_as_a_group_may_run() -> None:
    it, arrays = made({**APART, "attention": 8, "max_running": 32_767}, "deepseek-v3", kv_bits=8), paces.pace_arrays(1)
    set_pace(arrays, 0, it, CATALOG)
    pace, step_s = paces.Pace(Hub(arrays, {}), 0), split_decode_s(it, CATALOG.chips["lpu3"])

    for sequences, context in ((1, 8_000), (100, 8_000), (2_048, 8_000), (32_767, 1_000), (8, 1_048_576)):
        took_s = pace.seconds(0, 0, sequences, sequences * context)

        assert took_s == pytest.approx(step_s(sequences, context), rel=0.01)
    assert pace.seconds(0, 0, 8, 8 * 4_000_000) > 1.5 * pace.seconds(0, 0, 8, 8 * 1_048_576)


def test_the_router_begins_with_what_one_more_sequence_costs_where_experts_are_apart() -> None:
    it = made({**APART, "attention": 8, "step_scale": 2.0}, "deepseek-v3", kv_bits=8)
    step_s = split_decode_s(it, CATALOG.chips["lpu3"])

    assert it.prices.per_decode_s == pytest.approx((step_s(64, 2_048) - step_s(1, 2_048)) / 63)


@pytest.mark.parametrize(
    ("model", "dense"),
    [("gpt-oss-120b", "bf16"), ("kimi-k2.5", "bf16"), ("deepseek-v3", "bf16"), ("llama-3.1-70b", None)],
)
def test_models_whose_experts_alone_come_in_four_bits_are_rehearsed_so(model: str, dense: str | None) -> None:
    """As their measurements are predicted, from which shares were learned; others are in FP4 as a whole."""
    it = made({"chip": "b200", "tensor": 8}, model, weights="fp4")

    assert it.engine is not None
    assert it.engine.dense_weights == dense


def test_a_chip_that_computes_no_more_than_eight_bits_has_none_in_sixteen() -> None:
    it = made({"chip": "lpu3", "tensor": 8, "pipeline": 36}, "gpt-oss-120b")

    assert it.engine is not None
    assert it.engine.dense_weights is None


def test_a_drafters_weights_are_as_released_too() -> None:
    draft = {"model": "gpt-oss-20b", "chip": "b200", "tokens": 4, "accepted": 0.8}
    it = made({"chip": "b200", "tensor": 8, "role": "decode", "draft": draft}, "gpt-oss-120b")

    assert it.drafts is not None
    assert it.drafts.drafter is not None
    assert it.drafts.drafter.dense_weights == "bf16"
