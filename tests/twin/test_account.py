"""Where a rehearsal's seconds and memory went, for whoever prices it."""

from __future__ import annotations

from typing import Any

from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.facts.usage import Usage
from jevons.twin.run import simulate

TRAFFIC = {"kind": "chat", "rate": 20.0, "requests": 300}
MODEL = {"model": "llama-3.1-8b", "traffic": TRAFFIC}


def used(*fleet: dict[str, Any]) -> Usage:
    scenario = make_scenario({**MODEL, "fleet": list(fleet)}, "of this test")
    return simulate(scenario, read_catalog(), read_calibration()).usage


def test_seconds_are_split_between_prompts_and_answers_and_memory_is_full_of_what_may_come_again() -> None:
    of = used({"chip": "h100", "instances": 2})
    (group,) = of.groups

    assert group.chips == {"h100": 2}
    assert 0 < group.prompt_s < group.busy_s < 2 * of.seconds
    assert 0.5 < group.cache_share < 0.9  # an 8B model takes 16 of 80 GB, a tenth is not used at all
    assert 0 < of.cached_tokens < of.input_tokens
    assert group.rate_p90_error is not None


def test_prefill_instances_compute_prompts_alone_and_decode_instances_keep_nothing_for_others() -> None:
    decode, prefill = ({"chip": "h100", "instances": 1, "role": role} for role in ("decode", "prefill"))
    answers, prompts = used(decode, prefill).groups

    assert prompts.prompt_s == prompts.busy_s > 0
    assert answers.prompt_s < 0.05 * answers.busy_s
    assert (answers.cache_share, prompts.cache_share > 0) == (0.0, True)


def test_drafters_are_chips_too_and_nothing_of_their_kind_was_measured() -> None:
    draft: dict[str, Any] = {"model": "llama-3.1-8b", "chip": "l40s", "tokens": 3, "accepted": 0.7}
    fleet: tuple[dict[str, Any], ...] = (
        {"chip": "h100", "instances": 2, "role": "decode", "draft": draft},
        {"chip": "h100", "instances": 1},
    )
    drafted, _ = used(*fleet).groups

    assert drafted.chips == {"h100": 2, "l40s": 2}
    assert drafted.rate_p90_error is None
    assert drafted.energy_j is None


def test_a_fleet_whose_step_times_are_given_has_instances_for_chips() -> None:
    prices = {"per_step_s": 0.01, "per_token_s": 1e-4}
    (group,) = used({"instances": 3, "prices": prices, "blocks": 4000}).groups

    assert (group.chips, group.trust, group.cache_share) == ({"prices": 3}, "given", 0.0)
