"""Calibrated shares: factors of all groups a case belongs to, and trust that ends where measurements end."""

from __future__ import annotations

import msgspec
import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.calibration import (
    NOTHING,
    Calibration,
    Effect,
    Error,
    Key,
    Trust,
    family_of,
    look_up,
)
from jevons.perf.roofline import GUESS_SHARES

KEY = Key(engine="vllm", family="llama", chip="h100", weights="fp8")
CALIBRATION = Calibration(
    title="made up",
    date="2026-11-25",
    command="none",
    rule="none",
    effects={
        "all": Effect(rows=9, bandwidth=0.9, layer_s=2.0),
        "chip=h100": Effect(rows=5, bandwidth=1.1),
        "chip=h200": Effect(rows=4, compute=0.5),
        "engine=vllm": Effect(rows=6, layer_s=0.5),
        "engine=vllm family=llama": Effect(rows=3, kv=0.8),
        "engine=vllm split": Effect(rows=1, tokens_per_step=0.5),
    },
    measured=["vllm llama h100"],
    errors={
        "measured tpot": Error(rows=9, median=0.05, p90=0.1),
        "transferred tpot": Error(rows=9, median=0.06, p90=0.2),
        "projected tpot": Error(rows=9, median=0.2, p90=0.5),
    },
)


def of(**changes: object) -> Key:
    return msgspec.structs.replace(KEY, **changes)


def test_shares_are_the_guess_times_the_factors_of_all_its_groups() -> None:
    shares = look_up(CALIBRATION, KEY).shares

    assert shares.bandwidth == pytest.approx(GUESS_SHARES.bandwidth * 0.9 * 1.1)
    assert shares.layer_s == pytest.approx(GUESS_SHARES.layer_s * 2.0 * 0.5)
    assert shares.kv == pytest.approx(GUESS_SHARES.kv * 0.8)
    assert shares.compute == GUESS_SHARES.compute


def test_groups_that_nobody_measured_fall_back_on_the_wider_ones() -> None:
    assert look_up(CALIBRATION, of(family="qwen", chip="tpu-v7", engine="other")).shares == msgspec.structs.replace(
        GUESS_SHARES, bandwidth=GUESS_SHARES.bandwidth * 0.9, layer_s=GUESS_SHARES.layer_s * 2
    )
    assert look_up(NOTHING, KEY).shares == GUESS_SHARES


def test_trust_widens_from_measured_to_transferred_to_projected() -> None:
    keys = {
        Trust.MEASURED: KEY,
        Trust.TRANSFERRED: of(chip="h200"),
        Trust.PROJECTED: of(chip="rubin"),
    }
    found = {trust: look_up(CALIBRATION, key) for trust, key in keys.items()}

    assert {trust: each.trust for trust, each in found.items()} == {trust: trust for trust in keys}
    widths = [each.interval(1.0)[1] - each.interval(1.0)[0] for each in found.values()]
    assert widths == sorted(widths)
    assert found[Trust.MEASURED].interval(1.1) == pytest.approx((1.0, 1.21))


def test_an_engine_that_nobody_measured_is_projected_whatever_the_chip() -> None:
    assert look_up(CALIBRATION, of(engine="")).trust is Trust.PROJECTED
    assert look_up(CALIBRATION, of(engine="mine")).trust is Trust.PROJECTED


def test_what_was_not_held_out_promises_nothing() -> None:
    assert look_up(CALIBRATION, KEY).interval(1.0, "ttft") == (0.0, float("inf"))


def test_shares_stay_within_what_is_possible() -> None:
    much = msgspec.structs.replace(CALIBRATION, effects={"all": Effect(rows=1, bandwidth=9.0, tokens_per_step=0.1)})
    shares = look_up(much, KEY).shares

    assert (shares.bandwidth, shares.tokens_per_step) == (1.0, 1.0)


def test_mixtures_of_experts_are_families_of_their_own() -> None:
    models = read_catalog().models

    assert family_of(models["qwen3-32b"]) == "qwen"
    assert family_of(models["qwen3-235b-a22b"]) == "qwen-moe"
