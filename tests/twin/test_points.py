"""Points as cases: what publishers write is read as they mean it, and what is held out stays held out."""

from __future__ import annotations

import msgspec
import pytest

from jevons.config.catalog import read_catalog
from jevons.config.points import Point
from jevons.perf.roofline import Group
from jevons.twin.names import Layout, engine_name
from jevons.twin.points import Case, case_of, is_check

CATALOG = read_catalog()
POINT = Point(
    id="p",
    system="b200_sxm",
    model="deepseek-ai/DeepSeek-V3",
    precision="fp4",
    parallelism="TP8 aDP1.0 moeTP8.0 moeEP1.0",
    input_len="1024",
    output_len="1024",
    users="64",
    metric="TPOT",
    value=10.0,
    unit="ms",
    source="a sample",
    notes="Apache-2.0 package data (InferenceX runs); sglang 0.5.9; spec-decode state not recorded",
)


def case(**changes: object) -> Case:
    return case_of(msgspec.structs.replace(POINT, **changes), CATALOG)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("TP8", Group(tensor=8)),
        ("TP8 aDP1.0 moeTP8.0 moeEP1.0", Group(tensor=8)),
        ("TP4 aDPnan moeTP2.0 moeEP2.0", Group(tensor=4, experts=2)),
        ("TP4 aDPnan moeTP1.0 moeEP1.0", Group(tensor=4)),
        ("TP2 aDPnan moeTP4.0 moeEP1.0", Group(tensor=4, attention=2)),
        ("TP4 aDP4.0 moeTP1.0 moeEP16.0", Group(tensor=4, attention=4, experts=4)),
        ("TP1 aDP4.0 moeTP2.0 moeEP2.0", Group(tensor=2, attention=2, experts=2)),
        ("TP16 aDP1.0 moeTP4.0 moeEP4.0", Group(tensor=4, experts=4)),
        ("TP48 aDP1.0 moeTP48.0 moeEP1.0", Group(tensor=48, attention=48, experts=48)),
        ("DEP4", Group(tensor=4, attention=4, experts=4)),
        ("EP32 DP attention", Group(tensor=32, attention=32, experts=32)),
    ],
)
def test_layouts(text: str, group: Group) -> None:
    assert case(parallelism=text).layout == Layout(group=group)


def test_split_layouts_name_both_kinds_and_how_many() -> None:
    text = "disagg P(tp1.0 dp4.0 ep4.0 x2.0) D(tp8.0 dp1.0 ep8.0 x5.0)"

    assert case(parallelism=text).key.split
    assert case(parallelism=text).layout == Layout(
        group=Group(tensor=8, experts=8),
        prefill=Group(tensor=4, attention=4, experts=4),
        prefill_workers=2,
        decode_workers=5,
    )


def test_split_layouts_that_do_not_say_how_many_have_few_users_on_many_workers_and_many_on_one() -> None:
    text = "disagg P(tp4.0 dp1.0 ep4.0 xnan) D(tp8.0 dp1.0 ep4.0 xnan)"
    few, many = case(parallelism=text, users="24").layout, case(parallelism=text, users="2000").layout

    assert few is not None
    assert many is not None
    assert (few.prefill_workers, few.decode_workers, few.group.attention) == (None, 2, 1)
    assert (many.prefill_workers, many.decode_workers, many.group.attention) == (None, 1, 8)


def test_chips_that_cannot_cut_the_heads_are_a_whole_deployment_in_split_layouts_too() -> None:
    text = "disagg P(tp4.0 dp1.0 ep1.0 xnan) D(tp48.0 dp1.0 ep1.0 xnan)"
    layout = case(parallelism=text, users="512").layout

    assert layout is not None
    assert (layout.group, layout.prefill) == (Group(tensor=48, attention=48, experts=48), Group(tensor=4))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "sglang"),
        ({"notes": "data; vllm 0.19.0; more"}, "vllm"),
        ({"notes": "data; trtllm nan; more"}, "trtllm"),
        ({"source": "NVIDIA/TensorRT-LLM docs", "notes": ""}, "trtllm"),
        ({"system": "B200-SXM-180GBx8_TRT", "notes": "closed"}, "trtllm"),
        ({"source": "splitwise-sim", "notes": "MIT"}, "vllm-2023"),
        ({"notes": "MIT"}, ""),
    ],
)
def test_engines_are_told_by_what_a_row_says_of_itself(changes: dict[str, object], name: str) -> None:
    assert engine_name(msgspec.structs.replace(POINT, **changes)) == name


def test_keys_and_values_are_narrow_where_engine_checkpoint_or_recipe_make_them_so() -> None:
    h200 = {"system": "h200_sxm", "precision": "fp8"}
    trtllm, nvidia = {"notes": "; trtllm 1.0"}, {"model": "nvidia/Llama-3.1-8B-Instruct-FP8", "parallelism": "TP1"}

    assert case().kv_bytes == case(**h200, **trtllm).kv_bytes == case(**h200, **nvidia).kv_bytes == 1.0
    assert case(**h200).kv_bytes == 2.0


def test_a_run_is_held_out_as_a_whole_and_the_rule_does_not_move() -> None:
    points = [msgspec.structs.replace(POINT, users=str(users)) for users in range(200)]
    other = {"metric": "TTFT", "id": "q", "value": 1.0, "system": "gb200"}

    assert [is_check(point) for point in points] == [
        is_check(msgspec.structs.replace(point, **other)) for point in points
    ]
    held = [point.users for point in points if is_check(point)]
    assert 45 < len(held) < 75
    assert held[:4] == ["11", "13", "24", "28"]


def test_a_submission_to_mlperf_is_all_its_chips_within_its_scenarios_limit() -> None:
    about = {
        "model": "llama2-70b-99",
        "precision": "FP4/FP8 per submission",
        "parallelism": "per submission",
        "input_len": "dataset",
        "output_len": "dataset",
        "metric": "throughput (whole system)",
    }
    offline = case(**about, system="B200-SXM-180GBx8_TRT", users="Offline")
    quick = case(**about, system="1-node-4x-BMG-Pro-B60-Dual", users="Interactive")

    assert (offline.times, offline.tpot_limit_s, offline.key.weights) == (8, None, "fp4")
    assert quick.times == 8
    assert quick.tpot_limit_s == pytest.approx(0.03)


def test_a_cost_is_what_owning_the_chips_takes_for_what_they_make() -> None:
    about = {"metric": "cost", "users": "23 tok/s/user (conc~1088)", "parallelism": "best on Pareto"}
    total = case(**{**about, "metric": "total throughput per GPU"})

    assert case(**about).dividend == pytest.approx(1.73 / 3600 * 1e6)
    assert case(**about).times == total.times == 2.0
    assert total.tpot_limit_s == pytest.approx(1 / 23)
