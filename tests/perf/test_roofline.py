"""The roofline: limits it must keep, whatever the chip, and what it says of some that were measured."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path

import msgspec
import pytest

from jevons.config.catalog import read_catalog
from jevons.facts.hardware import Chip
from jevons.facts.llm import Experts, Llm, Precision
from jevons.perf.roofline import (
    Engine,
    Group,
    Shares,
    Work,
    distinct_experts,
    expert_params,
    iteration,
    smooth_max,
    steady,
)
from jevons.perf.room import room_tokens

CATALOG = read_catalog()
H100, B200 = CATALOG.chips["h100"], CATALOG.chips["b200"]
LLAMA, V3 = CATALOG.models["llama-3.1-70b"], CATALOG.models["deepseek-v3"]
PERFECT = Shares(
    bandwidth=1.0, compute=1.0, kv=1.0, attention=1.0, link=1.0, layer_s=0.0, link_s=0.0, host_s=0.0, imbalance=1.0
)
DECODE = Work(decodes=32, context_tokens=32 * 2_000)


def perfect(model: Llm, chip: Chip, tensor: int, attention: int = 1) -> Engine:
    return Engine(model=model, chip=chip, group=Group(tensor=tensor, attention=attention), shares=PERFECT)


def test_one_decode_reads_all_weights_and_its_context_once() -> None:
    parts = iteration(perfect(LLAMA, H100, 4), Work(decodes=1, context_tokens=1_000))

    bandwidth = 4 * 3.35e12
    assert parts.linear_s == pytest.approx(LLAMA.weight_bytes() / bandwidth, rel=0.001)
    assert parts.kv_s == pytest.approx(LLAMA.kv_bytes(1_000) / bandwidth)
    assert parts.seconds > parts.linear_s + parts.kv_s  # sums over the group


def test_a_long_prompt_computes_two_operations_a_parameter_and_token() -> None:
    work = Work(prompt_tokens=8_192, prompt_pairs=8_192 * 4_096)
    parts = iteration(perfect(LLAMA, H100, 8), work)

    assert parts.linear_s == pytest.approx(2 * LLAMA.params * 8_192 / (8 * 989e12), rel=0.01)
    # Scores and values, two operations each: 4 * pairs * heads * head_dim, in all layers.
    assert parts.attention_s == pytest.approx(4 * work.prompt_pairs * 64 * 128 * 80 / (8 * 989e12))
    assert parts.kv_s == 0.0


def test_experts_are_read_as_far_as_tokens_are_sent_to_them() -> None:
    assert distinct_experts(256, 8, 1) == pytest.approx(8)
    assert distinct_experts(256, 8, 10_000) == pytest.approx(256)
    one, many = (iteration(perfect(V3, B200, 8), Work(decodes=n, context_tokens=n)) for n in (1, 512))
    assert one.linear_s < 0.1 * many.linear_s
    assert many.linear_s == pytest.approx(V3.weight_bytes() / (8 * 7.7e12), rel=0.02)


@pytest.mark.parametrize("name", [name for name, model in CATALOG.models.items() if model.moe is not None])
def test_experts_are_most_of_a_model_and_never_more_than_all(name: str) -> None:
    assert 0.85 < expert_params(CATALOG.models[name]) / CATALOG.models[name].params < 1.0


def test_experts_that_each_token_is_sent_to_are_counted_from_their_shapes() -> None:
    moe = Experts(layers=32, experts=8, active=8, intermediate=1_536)
    model = msgspec.structs.replace(CATALOG.models["mixtral-8x7b"], params=1e10, active_params=1e10, moe=moe)

    assert expert_params(model) == 32 * 8 * 3 * 4_096 * 1_536
    assert iteration(perfect(model, B200, 1), Work(decodes=1)).linear_s > 2 * 1e10 / 7.7e12


def test_latent_attention_is_read_by_every_chip_of_a_tensor_group_unless_sequences_are_spread() -> None:
    cut = iteration(perfect(V3, B200, 8), DECODE)
    spread = iteration(perfect(V3, B200, 8, 8), DECODE)

    assert cut.kv_s > 4 * spread.kv_s  # not eight times: all heads on one chip are bound by arithmetic


def test_all_heads_of_latent_attention_on_one_vector_are_bound_by_arithmetic() -> None:
    parts = iteration(perfect(V3, B200, 8, 8), DECODE)

    flops = 2 * DECODE.context_tokens * 61 * 128 * (2 * 512 + 64)
    assert parts.kv_s == pytest.approx(smooth_max(DECODE.context_tokens * 61 * 576 * 2 / 7.7e12, flops / 2.25e15) / 8)


def test_experts_in_four_bits_read_less_than_what_stays_in_sixteen() -> None:
    narrow = perfect(V3, B200, 8)
    mixed = msgspec.structs.replace(narrow, weights="fp4", dense_weights="bf16")
    whole = msgspec.structs.replace(narrow, weights="fp4")

    assert iteration(mixed, DECODE).linear_s > iteration(whole, DECODE).linear_s
    assert iteration(mixed, DECODE).linear_s < iteration(narrow, DECODE).linear_s


def test_prompts_share_their_reading_of_weights_with_decodes_unless_they_are_apart() -> None:
    engine = perfect(LLAMA, H100, 4)

    assert steady(engine, 64, 100, 100).tpot_s < steady(engine, 64, 100, 100, apart=True).tpot_s
    assert steady(engine, 1, 1_000, 1_000).tpot_s == pytest.approx(steady(engine, 1, 1_000, 1_000).step_s, rel=0.01)


@pytest.mark.parametrize("name", ["gpt-oss-120b", "nemotron-3-super", "kimi-k2"])
def test_a_decode_reads_what_its_sequence_left_behind(name: str) -> None:
    engine = Engine(model=CATALOG.models[name], chip=B200, shares=PERFECT)
    for tokens in (50, 10_000, 100_000):
        moved_s = iteration(engine, Work(decodes=1, context_tokens=tokens)).kv_s

        written = engine.model.state_bytes
        assert moved_s == pytest.approx((engine.model.kv_bytes(tokens) + written) / 7.7e12, rel=0.02)


@pytest.mark.parametrize(
    ("chip", "model"), [*itertools.product(("h200", "tpu-v7", "mi455x", "trainium3"), ("llama-3.1-70b", "kimi-k2"))]
)
def test_more_work_never_takes_less_time(chip: str, model: str) -> None:
    device, llm = CATALOG.chips[chip], CATALOG.models[model]

    def of(tensor: int, **work: float) -> float:
        return iteration(Engine(model=llm, chip=device, group=Group(tensor=tensor)), Work(**work)).seconds

    for tensor in (1, 4, 8):
        decodes = [of(tensor, decodes=n, context_tokens=1_000 * n) for n in (1, 8, 64, 512)]
        contexts = [of(tensor, decodes=8, context_tokens=8 * n) for n in (100, 1_000, 10_000)]
        prompts = [of(tensor, prompt_tokens=n, prompt_pairs=n * n / 2) for n in (16, 256, 4_096)]
        assert decodes == sorted(decodes)
        assert contexts == sorted(contexts)
        assert prompts == sorted(prompts)


def test_a_pipeline_takes_a_micro_batchs_time_and_has_all_stages_memory() -> None:
    one = perfect(LLAMA, H100, 4)
    four = msgspec.structs.replace(one, group=Group(tensor=4, pipeline=4))
    alone, batch = Work(decodes=1, context_tokens=2_000), Work(decodes=64, context_tokens=64 * 2_000)
    quarter = Work(decodes=16, context_tokens=16 * 2_000)

    def without_links(engine: Engine, work: Work) -> float:
        parts = iteration(engine, work)
        return parts.seconds - parts.link_s

    assert without_links(four, alone) == without_links(one, alone)
    assert without_links(four, batch) == without_links(one, quarter)
    assert iteration(four, alone).link_s > iteration(one, alone).link_s
    assert room_tokens(four, 2_000, 0.9) > 4 * room_tokens(one, 2_000, 0.9)


@pytest.mark.parametrize(("name", "sums"), [("llama-3.1-70b", 160), ("nemotron-3-super", 88), ("kimi-k3", 186)])
def test_chips_of_a_group_take_a_sum_after_attention_and_after_what_follows_it(name: str, sums: int) -> None:
    """Nemotron's layers have one of both: its 88 are 48 of attention or a state, and 40 of experts."""
    model, work = CATALOG.models[name], Work(prompt_tokens=1_000)
    moved = 2 * 7 / 8 * 1_000 * model.hidden * 2

    assert iteration(perfect(model, B200, 8), work).link_s == pytest.approx(sums * moved / 900e9)


def test_copies_of_attention_gather_and_scatter_their_tokens_around_weights_that_all_share() -> None:
    """A model without experts too: else its weights would be cut over any number of chips for nothing."""
    spread = iteration(perfect(LLAMA, B200, 8, 8), Work(prompt_tokens=1_000))
    pairs = iteration(perfect(LLAMA, B200, 8, 4), Work(prompt_tokens=1_000))
    around, sums = 2 * 7 / 8 * 1_000 * 8_192 * 2, 2 * 1 / 2 * 250 * 8_192 * 2

    assert spread.link_s == pytest.approx(80 * around / 900e9)
    assert pairs.link_s == pytest.approx(80 * (around + sums) / 900e9)


def test_attention_from_sram_is_bound_by_arithmetic() -> None:
    lpu = perfect(LLAMA, CATALOG.chips["lpu3"], 8)
    lpu = msgspec.structs.replace(lpu, weights="fp8", kv_bytes=1.0)
    parts = iteration(lpu, Work(decodes=1, context_tokens=100_000))
    flops = 4 * LLAMA.layers * LLAMA.heads * 128 * 100_000

    assert parts.kv_s == pytest.approx(flops / (8 * 1.2e15), rel=0.02)


def test_the_smooth_maximum_lies_above_both_and_near_the_larger() -> None:
    assert smooth_max(1.0, 1.0) == pytest.approx(2**0.25)
    assert 3.0 < smooth_max(3.0, 1.0) < 3.02


def test_a_guess_of_the_shares_is_right_within_a_factor_of_two_for_most_dense_measurements(shared: Path) -> None:
    ratios = []
    with (shared / "data/ground_truth.csv").open() as file:
        for row in csv.DictReader(file):
            tensor = re.match(r"TP(\d+) ", row["parallelism"])
            if row["metric"] != "TPOT" or row["model"] != "meta-llama/Llama-3.1-70B" or tensor is None:
                continue
            chip = CATALOG.chips[row["system"].removesuffix("_sxm")]
            weights: Precision = "fp4" if row["precision"] == "fp4" else "fp8"
            engine = Engine(model=LLAMA, chip=chip, group=Group(tensor=int(tensor[1])), weights=weights)
            # Lengths are uniform from 0.8 to 1 of what is named.
            made, said = 0.9 * int(row["input_len"]), 0.9 * int(row["output_len"])
            predicted = steady(engine, int(row["batch/concurrency"]), made, said).tpot_s
            ratios.append(predicted / (float(row["value"]) / 1e3))

    assert len(ratios) >= 10
    assert sum(0.5 < ratio < 2.0 for ratio in ratios) > 0.8 * len(ratios)


def test_sparse_attention_looks_at_the_keys_of_all_tokens_and_reads_the_best() -> None:
    """DeepSeek-V3.2: 61 layers; 2,048 tokens of 576 numbers are read, all keys of 132 bytes looked at by 64 heads."""
    sparse = CATALOG.models["deepseek-v3.2"]
    engine = msgspec.structs.replace(perfect(sparse, H100, 8, attention=8), kv_bytes=1.0)
    decodes, context = 64, 100_000
    parts = iteration(engine, Work(decodes=decodes, context_tokens=decodes * context))

    chips = 8 * 3.35e12, 8 * 989e12, 8 * 1979e12
    read_s = decodes * 61 * 576 * 2_048 / chips[0]
    attended_s = decodes * 2 * 61 * 128 * (2 * 512 + 64) * 2_048 / chips[1]
    keys_s, scores_s = decodes * 61 * 132 * context / chips[0], decodes * 2 * 61 * 64 * 128 * context / chips[2]
    assert parts.kv_s == pytest.approx(smooth_max(read_s, attended_s) + smooth_max(keys_s, scores_s))

    prompt = Work(prompt_tokens=16_384, prompt_pairs=16_384 * 80_000)
    attended_s = 2 * 61 * 128 * 320 * 2_048 * 16_384 / chips[1]
    looked_s = 2 * 61 * 64 * 128 * prompt.prompt_pairs / chips[2]
    assert iteration(engine, prompt).attention_s == pytest.approx(attended_s + looked_s, rel=0.001)


def test_every_chip_of_a_copy_looks_at_all_keys() -> None:
    sparse = CATALOG.models["deepseek-v3.2"]
    work = Work(decodes=8, context_tokens=8 * 150_000)
    more = msgspec.structs.replace(work, context_tokens=8 * 160_000)

    slope = {}
    for tensor in (8, 16):
        engine = perfect(sparse, H100, tensor)
        slope[tensor] = iteration(engine, more).kv_s - iteration(engine, work).kv_s
    assert slope[8] == pytest.approx(slope[16])
    assert slope[8] > 0


def test_layers_that_take_what_others_found_do_not_look() -> None:
    """GLM-5.2 looks in 21 of 78 layers, GLM-5 in all."""
    each, shared = CATALOG.models["glm-5"], CATALOG.models["glm-5.2"]

    assert each.kv_bytes(1_000, 1.0) == 1_000 * 78 * (576 + 132)
    assert shared.kv_bytes(1_000, 1.0) == 1_000 * (78 * 576 + 21 * 132)
    longer = Work(prompt_tokens=1_000, prompt_pairs=1_000 * 500_000)
    longest = msgspec.structs.replace(longer, prompt_pairs=1_000 * 600_000)
    more = [iteration(perfect(m, B200, 8), longest).attention_s for m in (each, shared)]
    less = [iteration(perfect(m, B200, 8), longer).attention_s for m in (each, shared)]
    assert more[0] - less[0] == pytest.approx(78 / 21 * (more[1] - less[1]))


def test_a_recurrent_state_is_read_and_written_back() -> None:
    hybrid = CATALOG.models["qwen3.5-397b-a17b"]
    stateless = msgspec.structs.replace(hybrid, attention=[k for k in hybrid.attention if k.elements(1)])
    work = Work(decodes=64, context_tokens=64 * 4_000)
    with_states, without = (iteration(perfect(m, H100, 8), work).kv_s for m in (hybrid, stateless))

    assert hybrid.state_bytes > 0
    assert with_states - without == pytest.approx(64 * 2 * hybrid.state_bytes / (8 * 3.35e12))
