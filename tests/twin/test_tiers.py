"""Memory below the chips: what was computed on a node is brought back where that is faster than computing it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import ConfigError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.facts.block import Tier
from jevons.perf.measured import MovePrices, Prices
from jevons.policy.route import CANDIDATE
from jevons.policy.source import Compute, Supply, bring, plan
from jevons.twin.report import Report
from jevons.twin.run import Run, simulate

CATALOG, CALIBRATION = read_catalog(), read_calibration()
PRICES = {"per_step_s": 0.01, "per_token_s": 0.001, "per_decode_s": 0.001}
# A pool holds 3 conversations of 320 tokens, the tier all of them: a block is there in a millisecond, computed in 16.
GROUP = {"instances": 2, "prices": PRICES, "blocks": 64, "block_size": 16, "step_tokens": 512, "max_running": 8}
TIER = {"size_bytes": 1e9, "block_bytes": 1e6, "bytes_per_s": 1e9, "latency_s": 0.001}

seconds = st.floats(0, 0.1)


@given(
    seconds,
    st.floats(1e-5, 0.01),
    st.floats(0, 1e-6),
    st.integers(1, 4096),
    st.integers(0, 50),
    st.integers(0, 80),
    seconds,
    st.floats(1e-5, 0.5),
    st.sampled_from([16, 64]),
)
def test_of_one_tier_the_kernel_decides_as_the_rule_does(  # noqa: PLR0913 — what the rule goes by
    per_step_s: float,
    per_token_s: float,
    per_token_context_s: float,
    step_tokens: int,
    held: int,
    count: int,
    first_s: float,
    block_s: float,
    size: int,
) -> None:
    c = np.zeros(1, CANDIDATE)
    c["per_step_s"], c["per_token_s"], c["per_token_context_s"] = per_step_s, per_token_s, per_token_context_s
    c["step_tokens"] = step_tokens
    supply = Supply({Tier.DRAM: MovePrices(first_s, block_s)}, {})  # a block is a byte here
    compute = Compute(Prices(per_step_s, per_token_s, per_token_context_s, 0.0), step_tokens, size, 1)

    expected = plan([Tier.DRAM] * count, held, supply, compute)

    blocks, wait_s = bring(c[0], held, count, (size, first_s, block_s))
    assert blocks == len(expected.blocks)
    assert (wait_s > 0) <= (expected.wait_s > 0)
    if wait_s:
        assert wait_s == pytest.approx(expected.seconds)


def trace(tmp_path: Path, talks: int = 12, turns: int = 4, seed: int = 0) -> Path:
    """Conversations in turns, each after all the others: a small pool has lost the last turn by the next."""
    draw, rows = random.Random(seed), []
    for turn in range(turns):
        for talk in range(talks):
            tokens = 320 + 32 * turn
            ids = [1000 * talk + i for i in range(tokens // 16)]
            at = 1e3 * (turn * talks + talk) * 0.5 + draw.random()
            rows.append(
                f'{{"request_id": "{turn}.{talk}", "timestamp": {at}, "input_length": {tokens}, "output_length": 4, '
                f'"hash_ids": {ids}, "block_size": 16}}\n'
            )
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(rows))
    return file


def rehearsed(file: Path, tier: dict[str, Any] | None, **more: Any) -> tuple[Report, Any]:
    """The report, and results in the order of the file."""
    group = {**GROUP, **more.pop("group", {})} | ({} if tier is None else {"tier": tier})
    table = {"fleet": [group], "traffic": {"trace": str(file)}, **more}
    pieces: list[Any] = []
    report = simulate(
        make_scenario(table, "test"), CATALOG, CALIBRATION, on_results=lambda found: pieces.append(found.copy())
    )
    results = np.concatenate(pieces)
    return report, results[np.argsort(results["request"], kind="stable")]


def ttft(results: Any) -> Any:
    return results["first_s"] - results["at_s"]


def test_what_the_pool_lost_comes_from_the_tier(tmp_path: Path) -> None:
    file = trace(tmp_path)

    without, slow = rehearsed(file, None)
    report, fast = rehearsed(file, {**TIER, "instances": 2})

    assert sum(without.reuse_fraction.values()) < 0.15
    assert report.reuse_fraction["dram"] > 0.5
    assert sum(report.reuse_fraction.values()) > 0.65
    back = slice(12, None)  # those who were there before
    assert np.median(ttft(fast[back])) < 0.35 * np.median(ttft(slow[back]))
    assert (fast["brought"][:12] == 0).all()
    assert (fast["predicted_cached"][back] == fast["cached"][back]).mean() > 0.9


@pytest.mark.parametrize("size_bytes", [1e15, 1e30])
def test_what_a_rehearsal_takes_does_not_depend_on_how_much_a_tier_could_hold(
    tmp_path: Path, size_bytes: float
) -> None:
    file = trace(tmp_path)
    table = {"fleet": [{**GROUP, "tier": {**TIER, "size_bytes": size_bytes}}], "traffic": {"trace": str(file)}}

    hub = Run(make_scenario(table, "test"), CATALOG, CALIBRATION).hub
    vast, _ = rehearsed(file, {**TIER, "size_bytes": size_bytes})

    assert len(hub["log_name"]) <= 1 << 21
    assert vast.reuse_fraction == rehearsed(file, TIER)[0].reuse_fraction


def test_a_node_shares_its_tier_and_another_does_not(tmp_path: Path) -> None:
    """By round robin a conversation comes back to another instance, as talks are odd."""
    file = trace(tmp_path, talks=13)

    shared, _ = rehearsed(file, {**TIER, "instances": 2}, router="round_robin")
    apart, _ = rehearsed(file, {**TIER, "instances": 1}, router="round_robin")

    assert shared.reuse_fraction["dram"] > 0.6
    assert 0.2 < apart.reuse_fraction["dram"] < shared.reuse_fraction["dram"]


@pytest.mark.parametrize("bytes_per_s", [1e4, 1e6, 3e7, 1e8])
def test_a_slow_tier_costs_a_tenth_at_most(tmp_path: Path, bytes_per_s: float) -> None:
    file = trace(tmp_path)

    _, without = rehearsed(file, None)
    report, results = rehearsed(file, {**TIER, "bytes_per_s": bytes_per_s, "instances": 2})

    assert np.median(ttft(results)) <= 1.1 * np.median(ttft(without))
    if bytes_per_s == 1e4:
        assert report.reuse_fraction["dram"] < 0.1


def test_a_tier_keeps_what_was_used_last(tmp_path: Path) -> None:
    """It holds a third of the conversations, which come back in turn: nothing is there any more."""
    report, _ = rehearsed(trace(tmp_path), {**TIER, "size_bytes": 80e6, "instances": 2})

    assert report.reuse_fraction["dram"] < 0.1


def test_who_waits_for_blocks_on_an_engine_that_fails_goes_elsewhere(tmp_path: Path) -> None:
    tier = {**TIER, "instances": 1, "latency_s": 0.02}
    at_s = 0.5 * 14 + 0.01  # the third of those who come back has been waiting for 10 ms
    _, results = rehearsed(
        trace(tmp_path),
        tier,
        events=[{"at_s": at_s, "what": "fail", "first": i} for i in range(1)],
    )

    assert len(results) == 48
    assert (results["done_s"] > results["first_s"]).all()


def test_exact_steps_and_jumps_agree_with_tiers(tmp_path: Path) -> None:
    table = {"fleet": [{**GROUP, "tier": {**TIER, "instances": 2}}], "traffic": {"trace": str(trace(tmp_path))}}

    reports = [simulate(make_scenario(table, "t"), CATALOG, CALIBRATION, exact=exact) for exact in (False, True)]

    assert reports[0].ttft_s.mean == pytest.approx(reports[1].ttft_s.mean, rel=1e-3)
    assert reports[0].reuse_fraction == reports[1].reuse_fraction


def test_a_model_says_how_large_its_blocks_are(tmp_path: Path) -> None:
    tier = {"size_bytes": 1e12, "bytes_per_s": 5e10, "instances": 8}
    table = {
        "model": "llama-3.1-8b",
        "fleet": [{"instances": 2, "chip": "h100", "blocks": 600, "tier": tier}],
        "traffic": {"kind": "chat", "rate": 4.0, "requests": 400},
    }

    report = simulate(make_scenario(table, "test"), CATALOG, CALIBRATION)

    assert report.reuse_fraction["dram"] > 0.05


@pytest.mark.parametrize(
    ("tier", "says"),
    [
        ({"size_bytes": 1e9, "bytes_per_s": 1e9}, "tier.block_bytes: must be given with prices"),
        ({**TIER, "size_bytes": 1e5}, "must hold at least one block"),
        ({**TIER, "bytes_per_s": 0}, "bytes_per_s"),
    ],
)
def test_a_tier_that_cannot_be_is_one_clear_error(tmp_path: Path, tier: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rehearsed(trace(tmp_path), tier)
