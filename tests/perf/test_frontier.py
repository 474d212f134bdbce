"""Tokens of a chip at a speed for each user: no point is outdone in both, and speed costs tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.frontier import Asked, at_least, frontier, rates_at
from jevons.perf.roofline import Engine, Group, Work, iteration, steady

CATALOG = read_catalog()
ENGINE = Engine(model=CATALOG.models["deepseek-v3"], chip=CATALOG.chips["gb300"], weights="fp4", kv_bytes=1.0)
POINTS = frontier([ENGINE], Asked(input_tokens=2000, output_tokens=500))


def test_the_faster_for_users_the_fewer_tokens() -> None:
    assert len(POINTS) > 20
    assert all(a.interactivity > b.interactivity and a.rate < b.rate for a, b in pairwise(POINTS))


def test_a_point_is_what_the_roofline_says_of_its_layout_and_batch() -> None:
    point = POINTS[len(POINTS) // 2]
    placed = Engine(model=ENGINE.model, chip=ENGINE.chip, group=point.group, weights="fp4", kv_bytes=1.0)
    tpot_s = steady(placed, point.users, 2000, 500).tpot_s

    assert point.interactivity == pytest.approx(1 / tpot_s)
    assert point.rate == pytest.approx(point.users / tpot_s / point.group.chips)


def test_at_a_speed_the_most_tokens_that_are_no_slower_and_none_where_nothing_is_so_fast() -> None:
    best = at_least(POINTS, 50.0)
    fastest = POINTS[0].interactivity

    assert best is not None
    assert best.interactivity >= 50.0
    assert list(rates_at(POINTS, np.array([50.0, fastest, fastest * 1.01]))) == [best.rate, POINTS[0].rate, 0.0]
    assert at_least(POINTS, fastest * 1.01) is None


def test_what_is_cached_is_not_computed_but_still_read() -> None:
    cached = frontier([ENGINE], Asked(input_tokens=2000, output_tokens=500, cached_tokens=1900))

    assert cached[-1].rate > POINTS[-1].rate
    group = Group(tensor=8, attention=8, experts=8)
    placed = Engine(model=ENGINE.model, chip=ENGINE.chip, group=group, weights="fp4", kv_bytes=1.0)
    alone = steady(placed, 64, 2000, 500, cached_tokens=1900)
    pairs = 100 * 1900 + 100 * 101 / 2  # each of 100 attends to the 1,900, and to those before it

    assert alone.step_s == steady(placed, 64, 2000, 500).step_s
    assert alone.prompt_s == pytest.approx(iteration(placed, Work(prompt_tokens=100, prompt_pairs=pairs)).seconds)


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-4-maverick", "gpt-oss-20b", "llama-3.1-8b"])
def test_no_layout_cuts_heads_that_cannot_be_cut_or_has_more_ranks_than_experts(name: str) -> None:
    model = CATALOG.models[name]
    engine = Engine(model=model, chip=CATALOG.chips["gb300"], weights="fp8", kv_bytes=1.0)
    points = frontier([engine], Asked(input_tokens=2000, output_tokens=500))

    assert points
    for group in (point.group for point in points):
        assert model.heads % (group.tensor // group.attention) == 0
        assert model.moe is None or group.experts <= model.moe.experts


def test_a_chip_that_no_fabric_joins_to_others_runs_what_it_holds_alone() -> None:
    lone = Engine(model=CATALOG.models["llama-3.1-8b"], chip=CATALOG.chips["l40s"], weights="fp8")
    points = frontier([lone], Asked(input_tokens=1000, output_tokens=100))

    assert points
    assert {point.group for point in points} == {Group()}


def test_a_model_that_does_not_fit_has_no_points() -> None:
    lone = Engine(model=CATALOG.models["kimi-k2"], chip=CATALOG.chips["l40s"], weights="fp8")

    assert frontier([lone], Asked(input_tokens=1000, output_tokens=100)) == []


def test_a_chip_that_nothing_joins_to_others_serves_what_fits_on_it() -> None:
    lone = Engine(model=CATALOG.models["llama-3.1-8b"], chip=CATALOG.chips["l40s"], weights="fp8")
    points = frontier([lone], Asked(input_tokens=1000, output_tokens=100))

    assert {point.group.tensor for point in points} == {1}
    assert points[0].rate == pytest.approx(1 / steady(lone, 1, 1000, 100).tpot_s)
