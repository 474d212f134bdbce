"""Speculative decoding: what guesses gain, and what they cost."""

from __future__ import annotations

import random

import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.roofline import Engine, Group, Work, iteration
from jevons.perf.speculate import Drafts, accepted, token_s

CATALOG = read_catalog()
LARGE = Engine(model=CATALOG.models["llama-3.1-70b"], chip=CATALOG.chips["h100"], group=Group(tensor=2))
SMALL = Engine(model=CATALOG.models["llama-3.1-8b"], chip=CATALOG.chips["h100"])


def test_tokens_a_step_are_what_drawing_guess_by_guess_gives() -> None:
    draw = random.Random(1)

    def one() -> int:
        gained = 1
        while gained <= 4 and draw.random() < 0.7:
            gained += 1
        return gained

    assert accepted(4, 0.7) == pytest.approx(sum(one() for _ in range(40_000)) / 40_000, rel=0.01)


@pytest.mark.parametrize(("acceptance", "pays"), [(0.8, True), (0.05, False)])
def test_guesses_pay_where_they_are_taken(acceptance: float, pays: bool) -> None:
    plain_s = iteration(LARGE, Work(decodes=1, context_tokens=2_000)).seconds
    drafts = Drafts(tokens=2, acceptance=acceptance, drafter=SMALL)

    assert (token_s(LARGE, drafts, 1, 2_000) < plain_s) == pays


def test_a_way_to_the_drafter_is_paid_once_a_step() -> None:
    near, far = (Drafts(tokens=3, acceptance=0.6, drafter=SMALL, way_s=way_s) for way_s in (0.0, 1e-3))

    assert token_s(LARGE, far, 4, 4_000) - token_s(LARGE, near, 4, 4_000) == pytest.approx(1e-3 / accepted(3, 0.6))
