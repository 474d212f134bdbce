"""Attention apart from the rest, and tokens that are guessed: what must hold whatever the devices."""

from __future__ import annotations

import heapq

import msgspec
import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.afd import Rest, Step, Way, afd_step, chips_needed, rest_bytes
from jevons.perf.roofline import GUESS_SHARES, Engine, Group, Work, iteration
from jevons.perf.speculate import Drafts, accepted, token_s

CATALOG = read_catalog()
KIMI, RUBIN, LPU = CATALOG.models["kimi-k2"], CATALOG.chips["rubin"], CATALOG.chips["lpu3"]
ATTENTION = Engine(model=KIMI, chip=RUBIN, group=Group(tensor=8, attention=8), weights="fp8", kv_bytes=1.0)
REST = Rest(chip=LPU, chips=10 * 256, weights="fp8", shares=GUESS_SHARES)
WAY = Way(bytes_per_s=8 * 200e9, latency_s=3e-6)


def step(sequences: float = 64, rest: Rest = REST, way: Way = WAY) -> Step:
    found = afd_step(ATTENTION, rest, way, sequences, sequences * 8_000)
    assert found is not None
    return found


def test_a_model_of_a_trillion_parameters_needs_racks_of_sram() -> None:
    assert rest_bytes(KIMI, "fp8") == pytest.approx(0.99e12, rel=0.01)
    assert 8 < chips_needed(KIMI, "fp8", LPU) / 256 < 9
    assert chips_needed(KIMI, "fp4", LPU) < 0.6 * chips_needed(KIMI, "fp8", LPU)


def test_weights_that_do_not_fit_give_no_step() -> None:
    assert afd_step(ATTENTION, msgspec.structs.replace(REST, chips=256), WAY, 64, 64 * 8_000) is None


def test_one_sequence_passes_each_layer_through_both_sides() -> None:
    one = step(1)

    through_s = one.attention_s + one.rest_s + 2 * one.way_s
    assert one.micro_batches == 1
    assert one.seconds == pytest.approx(61 * through_s)


def test_a_large_batch_is_cut_so_that_both_sides_work_at_once() -> None:
    many = step(2_048)

    assert many.micro_batches > 1
    slowest = max(many.attention_s, many.rest_s, many.way_s)
    serial_s = 61 * many.micro_batches * (many.attention_s + many.rest_s + 2 * many.way_s)
    assert 61 * many.micro_batches * slowest <= many.seconds < 0.8 * serial_s


def played(layers: int, found: Step) -> float:
    """Each micro-batch through attention, there, the rest and back, layer after layer; each place serves one a time."""
    stages = (found.attention_s, found.way_s, found.rest_s, found.way_s)
    free, last_s = [0.0] * len(stages), 0.0
    events = [(0.0, batch, 0) for batch in range(found.micro_batches)]
    while events:
        at_s, batch, passed = heapq.heappop(events)
        stage = passed % len(stages)
        last_s = free[stage] = max(at_s, free[stage]) + stages[stage]
        if passed + 1 < layers * len(stages):
            heapq.heappush(events, (last_s, batch, passed + 1))
    return last_s


@pytest.mark.parametrize("sequences", [1, 8, 64, 500, 4_000])
@pytest.mark.parametrize("layers", [1, 3, 61])
def test_a_step_takes_what_its_micro_batches_take_one_after_another(sequences: int, layers: int) -> None:
    shallow = msgspec.structs.replace(ATTENTION, model=msgspec.structs.replace(KIMI, layers=layers))
    found = afd_step(shallow, REST, WAY, sequences, sequences * 8_000)
    assert found is not None

    assert found.seconds == pytest.approx(played(layers, found))


def test_more_sequences_a_slower_way_or_wider_padding_never_take_less_time() -> None:
    by_batch = [step(n).seconds for n in (1, 16, 64, 256, 1_024)]
    by_way = [
        step(256, way=msgspec.structs.replace(WAY, bytes_per_s=rate)).seconds for rate in (1e13, 1e12, 1e11, 1e10)
    ]
    by_rows = [step(65, msgspec.structs.replace(REST, rows=rows)).seconds for rows in (1, 64, 512)]

    assert by_batch == sorted(by_batch)
    assert by_way == sorted(by_way)
    assert by_rows == sorted(by_rows)
    assert step(256, way=msgspec.structs.replace(WAY, bytes_per_s=1e9)).bound == "way"


def test_copies_of_attention_take_no_sums_and_each_keeps_the_books_of_its_sequences() -> None:
    """One layer of a micro-batch: weights, keys and values, launches, and what each sequence costs the host."""
    shares = msgspec.structs.replace(GUESS_SHARES, bandwidth=1e12, kv=1e12, compute=1e12, attention=1e12)
    books = msgspec.structs.replace(ATTENTION, shares=shares)

    def attention_s(engine: Engine, sequences: float) -> tuple[float, float]:
        found = afd_step(engine, REST, WAY, sequences, sequences * 8_000)
        assert found is not None
        return found.attention_s * KIMI.layers, sequences / found.micro_batches

    for sequences in (1, 2_048):
        took_s, each = attention_s(books, sequences)
        launches_s = KIMI.layers * shares.layer_s + shares.host_s
        assert took_s == pytest.approx(launches_s + shares.sequence_s * each / 8, rel=1e-6)

    together = msgspec.structs.replace(books, group=Group(tensor=8))
    took_s, each = attention_s(together, 1)
    link_s = iteration(together, Work(decodes=1, context_tokens=1)).link_s
    assert took_s == pytest.approx(launches_s + shares.sequence_s + link_s / 2, rel=1e-6)


def test_sram_makes_few_sequences_faster_than_hbm_alone() -> None:
    together = Engine(model=KIMI, chip=RUBIN, group=Group(tensor=8), weights="fp8", kv_bytes=1.0)
    quick = msgspec.structs.replace(REST, shares=msgspec.structs.replace(GUESS_SHARES, layer_s=1e-6))

    assert step(8, quick).seconds < iteration(together, Work(decodes=8, context_tokens=8 * 8_000)).seconds


def test_a_check_yields_one_token_and_those_guessed_right() -> None:
    assert accepted(3, 0.0) == 1.0
    assert accepted(3, 0.5) == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert accepted(3, 1.0) == 4.0


def test_guessing_pays_for_one_sequence_and_less_for_many() -> None:
    engine = Engine(
        model=CATALOG.models["llama-3.1-70b"], chip=CATALOG.chips["h200"], group=Group(tensor=4), weights="fp8"
    )
    drafter = msgspec.structs.replace(engine, model=CATALOG.models["llama-3.1-8b"])
    drafts = Drafts(tokens=3, acceptance=0.7, drafter=drafter)

    def gain(sequences: int, acceptance: float) -> float:
        context = 1_000 * sequences
        plain_s = iteration(engine, Work(decodes=sequences, context_tokens=context)).seconds
        return plain_s / token_s(engine, msgspec.structs.replace(drafts, acceptance=acceptance), sequences, context)

    assert gain(1, 0.7) > 1.2
    assert gain(1, 0.9) > gain(1, 0.7) > gain(256, 0.7)
    assert gain(1, 0.0) < 1.0
    assert token_s(engine, msgspec.structs.replace(drafts, drafter=None), 1, 1_000) < token_s(engine, drafts, 1, 1_000)
