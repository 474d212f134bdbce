"""Scenarios: those that ship are right, and what is wrong in one is an error that says where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jevons.base.errors import ConfigError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import Scenario, Slo, as_toml, make_scenario, read_scenario, shipped
from jevons.twin.fleet import make_groups

H200S = {"instances": 4, "chip": "h200", "tensor": 4}
INF = float("inf")
STEPS = {"prompt_ms": [1.0, 0.01, 0.0], "decode_ms": [5.0, 50.0, 0.0]}
TOML = """
title = "a test"
model = "llama-3.1-70b"

[traffic]
trace = "own.jsonl"

[[fleet]]
instances = 4
chip = "h200"
tensor = 4
"""


def made(changes: dict[str, Any] | None = None, **fields: Any) -> Scenario:
    table = {"model": "llama-3.1-70b", "traffic": {"kind": "chat"}, "fleet": [H200S], **fields}
    return make_scenario(table, "of a test", changes)


def test_what_is_not_said_is_as_documented() -> None:
    scenario = made()

    assert (scenario.router, scenario.kv_bits, scenario.weights, scenario.seed) == ("kv", 16, None, 0)
    assert scenario.slo == Slo(ttft_s=2.0, tpot_s=0.1)
    assert (scenario.fleet[0].role, scenario.fleet[0].block_size, scenario.instances) == ("both", 64, 4)


@pytest.mark.parametrize("file", sorted(shipped("mocker").parent.glob("*.toml")), ids=lambda file: file.stem)
def test_what_ships_can_be_made_of_the_catalog(file: Path) -> None:
    scenario = read_scenario(file)

    made = make_groups(scenario, read_catalog(), read_calibration())

    assert shipped(file.stem) == file
    assert scenario.title
    assert all(group.blocks > 100 for group in made)


@pytest.mark.parametrize("file", sorted(shipped("mocker").parent.glob("*.toml")), ids=lambda file: file.stem)
def test_what_ships_reads_the_same_when_it_is_written_again(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.toml"
    again.write_text(as_toml(read_scenario(file)))

    assert read_scenario(again) == read_scenario(file)


def test_all_that_can_be_said_of_a_fleet_is_written(tmp_path: Path) -> None:
    tier = {"size_bytes": 1e12, "bytes_per_s": 5e10}
    decoders = {**H200S, "role": "decode", "tier": tier, "pipeline": 2, "uplink_bytes_per_s": 1e11, "power_w": 500.0}
    decoders |= {"draft": {"model": "llama-3.1-8b", "chip": "h100", "tokens": 4, "accepted": 0.8}}
    events = [{"at_s": 1.0, "what": "cap", "first": 0, "power_w": 400.0}]
    scenario = made(fleet=[decoders, {**H200S, "role": "prefill"}], events=events, event_lag_s=0.1, event_loss=0.01)
    again = tmp_path / "again.toml"
    again.write_text(as_toml(scenario))

    assert read_scenario(again) == scenario


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slo.ttft_s": INF}, r"slo.ttft_s: must be float <= 1000000000000.0, got inf"),
        ({"slo.tpot_s": INF}, r"slo.tpot_s: must be float"),
        ({"traffic.seconds": INF}, r"traffic.seconds: must be float"),
        ({"fleet": [{**H200S, "step_scale": INF}]}, r"step_scale: must be float"),
        ({"fleet": [{**H200S, "tier": {"size_bytes": INF, "bytes_per_s": INF}}]}, r"size_bytes: must be float"),
        ({"fleet": [{"instances": 1, "blocks": 9, "prices": {"per_step_s": INF, "per_token_s": 1}}]}, r"per_step_s"),
    ],
)
def test_what_must_end_is_finite(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(changes)
    made({"fleet": [{**H200S, "tier": {"size_bytes": 1e12, "bytes_per_s": INF}}], "scaling": {"hold_s": INF}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_ms": [-5.0, 0.01, 0.0]}, r"prompt_ms: must not be below 0 for 1 to 8192 tokens, is -4.99 for some"),
        ({"prompt_ms": [9.0, -0.01, 0.0]}, r"is -72.92 for some"),
        ({"prompt_ms": [0.5, -0.01, 2e-5]}, r"is -0.75 for some"),
        ({"decode_ms": [5.0, float("nan"), 0.0]}, r"decode_ms: must be finite, got \[5.0, nan, 0.0\]"),
        ({"floor_ms": -1.0}, r"polynomial.floor_ms: must be float >= 0.0, got -1.0"),
    ],
)
def test_no_iteration_takes_less_than_nothing(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(fleet=[{"instances": 1, "polynomial": {**STEPS, **change}}])
    made(fleet=[{"instances": 1, "polynomial": {**STEPS, "prompt_ms": [3.0, -0.01, 2e-5]}}])


def test_any_letters_may_be_in_what_is_written(tmp_path: Path) -> None:
    scenario = made(title='😀 \x7f \\ " ü\t\n', fleet=[{**H200S, "instances": 1, "names": ["𝔴"]}])
    again = tmp_path / "again.toml"
    again.write_text(as_toml(scenario))

    assert read_scenario(again) == scenario


def test_a_trace_is_beside_its_scenario_and_where_a_change_says(tmp_path: Path) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(TOML)

    assert read_scenario(file).traffic.trace == str(tmp_path / "own.jsonl")
    assert read_scenario(file, {"traffic.trace": "other.jsonl"}).traffic.trace == "other.jsonl"
    assert read_scenario(file, {"traffic.trace": "", "traffic.kind": "chat"}).traffic.kind == "chat"


def test_changes_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(TOML)
    changes = {"traffic.requests": 7, "seed": 3, "fleet": [{**H200S, "instances": 2}], "slo.ttft_s": 9.0}

    scenario = read_scenario(file, changes)

    assert (scenario.traffic.requests, scenario.seed, scenario.instances, scenario.slo.ttft_s) == (7, 3, 2, 9.0)
    assert scenario.title == "a test"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fleet": []}, "fleet: must be array of length >= 1, got []"),
        ({"fleet": [{**H200S, "instances": 0}]}, "fleet[0].instances: must be int >= 1, got 0"),
        ({"fleet": [{**H200S, "role": "boss"}]}, "fleet[0].role: must be one of both, decode, prefill, got 'boss'"),
        ({"fleet": [{**H200S, "chips": 4}]}, "fleet[0]: has no field 'chips'; did you mean 'chip'?"),
        ({"fleet": [{**H200S, "role": "prefill"}]}, "fleet: prefill instances need others to go on"),
        ({"fleet": [{"instances": 2}]}, "fleet[0]: must have a chip and the scenario a model"),
        ({"fleet": [H200S, {"instances": 2}]}, "fleet[1]: must have a chip and the scenario a model"),
        ({"model": ""}, "fleet[0]: must have a chip and the scenario a model"),
        ({"fleet": [{**H200S, "attention": 8}]}, "fleet[0].attention: must divide the 4 chips that share each layer"),
        ({"fleet": [{**H200S, "attention": 3}]}, "fleet[0].attention: must divide the 4 chips that share each layer"),
        ({"fleet": [{**H200S, "experts": 64}]}, "fleet[0].experts: must divide the 4 chips that share each layer"),
        ({"fleet": [{**H200S, "role": "decode", "ffn_chip": "lpu3"}]}, "compute no prompts; add prefill ones"),
        ({"traffic": {}}, "traffic: must name either a trace or a kind, exactly one of them"),
        ({"traffic": {"kind": "chat", "trace": "x.jsonl"}}, "exactly one of them"),
        ({"traffic": {"kind": "chat", "copies": 4}}, "traffic.copies: is of a trace, which this is not; it has rate"),
        ({"traffic": {"kind": "chat", "speed": 2}}, "traffic.speed: is of a trace"),
        ({"traffic": {"trace": "x.jsonl", "rate": 9}}, "traffic.rate: is of made-up sessions, which this is not; it"),
        ({"traffic": {"trace": "x.jsonl", "shape": "bursts"}}, "traffic.shape: is of made-up sessions"),
        ({"traffic": {"kind": "chat", "rate": 0}}, "traffic.rate: must be float > 0.0, got 0"),
        ({"traffic": {"kind": "chat", "rate": float("inf")}}, "traffic.rate: must be float <= 1000000000.0, got inf"),
        ({"traffic": {"kind": "chat", "shape": "wavy"}}, "traffic.shape: must be one of bursts, diurnal, steady"),
        ({"kv_bits": 4}, "kv_bits: must be one of 8, 16, got 4"),
        ({"weights": "fp3"}, "weights: must be one of bf16, fp4, fp8, got 'fp3'"),
        ({"seed": -1}, "seed: must be int >= 0, got -1"),
        ({"slo": {"ttft_s": 0}}, "slo.ttft_s: must be float > 0.0, got 0"),
        ({"slo": {"ttft_s": math.inf}}, "slo.ttft_s: must be float <= 1000000000000.0, got inf"),
        ({"events": [{"at_s": 1, "what": "explode", "first": 0}]}, "events[0].what: must be one of cap, drain"),
        ({"events": [{"at_s": -1, "what": "fail", "first": 0}]}, "events[0].at_s: must be float >= 0.0, got -1"),
        ({"events": [{"at_s": 1, "what": "fail", "first": 4}]}, "events: instances 4 to 4 are meant, there are 4"),
        ({"events": [{"at_s": 1, "what": "fail", "first": 2, "count": 3}]}, "instances 2 to 4 are meant"),
        ({"surprise": 1}, "has no field 'surprise'; it has fleet, traffic, model, "),
        ({"fleet": [{**H200S, "instances": 10**12}]}, "fleet[0].instances: must be int <= 65536, got 1000000000000"),
        ({"fleet": [{**H200S, "blocks": 10**12}]}, "fleet[0].blocks: must be int <= 134217728, got 1000000000000"),
        ({"fleet": [{**H200S, "step_tokens": 2**70}]}, "fleet[0].step_tokens: must be int <= 1099511627776, got"),
        ({"scaling": {"every_s": 1e-300}}, "scaling.every_s: must be float >= 0.001, got 1e-300"),
    ],
)
def test_what_is_wrong_is_one_error_that_says_where(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**fields)

    assert str(error.value).startswith("scenario of a test: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_one_of_several_groups_is_changed_by_its_number() -> None:
    changes = {"fleet.1.instances": 7, "fleet.0.tier.size_bytes": 5e12, "fleet.0.tier.bytes_per_s": 1e9}

    scenario = make_scenario({"model": "m", "traffic": {"kind": "chat"}, "fleet": [{**H200S}, {**H200S}]}, "t", changes)

    assert scenario.fleet[1].instances == 7
    assert scenario.fleet[0].tier is not None
    assert scenario.fleet[0].tier.size_bytes == 5e12
    for name in ("fleet.2.instances", "fleet.instances", "fleet.-1.instances", "fleet.2"):
        with pytest.raises(ConfigError, match=rf"scenario t: {name}: fleet holds fleet.0 to fleet.1, got fleet\."):
            make_scenario({"traffic": {"kind": "chat"}, "fleet": [{**H200S}, {**H200S}]}, "t", {name: 7})


def test_a_file_with_a_byte_order_mark_and_other_line_ends_is_read(tmp_path: Path) -> None:
    file = tmp_path / "scenario.toml"
    file.write_bytes(TOML.replace("\n", "\r\n").encode("utf-8-sig"))

    assert read_scenario(file).title == "a test"


def test_a_change_of_what_is_no_table_is_an_error() -> None:
    with pytest.raises(ConfigError, match="traffic: must be a table, got 5"):
        made({"traffic.requests": 5}, traffic=5)


@pytest.mark.parametrize(
    ("text", "says"), [(b"title = ", "not TOML"), (b"\xff\xfe\x00", "not TOML"), (b"", "lacks the field 'fleet'")]
)
def test_a_file_that_is_no_scenario_is_named(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "scenario.toml"
    file.write_bytes(text)

    with pytest.raises(ConfigError, match=rf"scenario .*scenario.toml: .*{says}"):
        read_scenario(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: cannot be read: No such file"):
        read_scenario(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"'nowhere': neither a file nor one of day, .*, vr-nvl72"):
        shipped("nowhere")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fleet": [{**H200S, "chip": "h900"}]}, "fleet[0].chip: 'h900' is not in the catalog; `jevons fleet list`"),
        ({"model": "gpt-9"}, "model: 'gpt-9' is not in the catalog"),
        (
            {
                "model": "deepseek-v3",
                "fleet": [{**H200S, "chip": "rubin", "tensor": 72, "attention": 72, "block_size": 1}],
            },
            "fleet[0].block_size: must leave at most 134,217,728 blocks an instance",
        ),
        (
            {"model": "deepseek-v3", "fleet": [{**H200S, "tensor": 1}]},
            "fleet[0]: 1 × h200 hold 141 GB, deepseek-v3 needs 671 GB for its weights",
        ),
        (
            {"fleet": [{**H200S, "role": "prefill"}, {**H200S, "ffn_chip": "lpu3"}]},
            "fleet[1].role: must be 'decode' where ffn_chip is given, got 'both'",
        ),
        (
            {"fleet": [{**H200S, "role": "prefill"}, {**H200S, "role": "decode", "ffn_chip": "lpu9"}]},
            "fleet[1].ffn_chip: 'lpu9' is not in the catalog",
        ),
        (
            {
                "model": "deepseek-v3",
                "fleet": [
                    {**H200S, "role": "prefill", "tensor": 8},
                    {**H200S, "role": "decode", "ffn_chip": "lpu3", "ffn_chips": 3},
                ],
            },
            "fleet[1].ffn_chips: 3 × lpu3 cannot hold the experts in",
        ),
        (
            {
                "weights": "bf16",
                "fleet": [
                    {**H200S, "role": "prefill"},
                    {**H200S, "role": "decode", "ffn_chip": "lpu3", "ffn_chips": 1_000},
                ],
            },
            "fleet[1].ffn_chip: lpu3 does not compute bf16; set other weights",
        ),
        (
            {"fleet": [{**H200S, "tensor": 65}]},
            "fleet[0].tensor: the 64 attention heads of llama-3.1-70b cannot be shared by 65 chips; take",
        ),
        (
            {"model": "mixtral-8x7b", "fleet": [{**H200S, "tensor": 16, "attention": 16, "experts": 16}]},
            "fleet[0].experts: must be at most the 8 that mixtral-8x7b has, got 16",
        ),
        ({"fleet": [{**H200S, "pipeline": 81}]}, "fleet[0].pipeline: must be at most the 80 layers of llama-3.1-70b"),
        (
            {"fleet": [{**H200S, "chip": "l40s", "tensor": 8}]},
            "fleet[0]: links of l40s are not known, so not what 8 of them do together; add scale_up_bytes_per_s",
        ),
        (
            {"fleet": [{**H200S, "chip": "mi325x", "tensor": 16}]},
            "fleet[0]: 16 × mi325x are more than the 8 its fabric joins, its network is not known; add scale_out_bytes",
        ),
        (
            {
                "fleet": [
                    {**H200S, "role": "prefill"},
                    {
                        **H200S,
                        "role": "decode",
                        "draft": {"model": "llama-3.1-8b", "chip": "l40s", "tensor": 2, "tokens": 4, "accepted": 0.8},
                    },
                ],
            },
            "fleet[1].draft: links of l40s are not known",
        ),
    ],
)
def test_a_fleet_that_cannot_be_is_one_error_that_says_why(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_groups(made(**fields), read_catalog(), read_calibration())

    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_published_step_times_need_neither_chip_nor_model() -> None:
    scenario = made(fleet=[{"instances": 2, "polynomial": STEPS}], model="")

    (group,) = make_groups(scenario, read_catalog(), read_calibration())

    assert (group.blocks, group.engine) == (16_384, None)
    assert group.prices.per_step_s == pytest.approx(0.001)
