"""Who would rather not be served than late is late only where everybody would be."""

from __future__ import annotations

from itertools import product
from math import inf
from random import Random
from typing import Any

import numpy as np
import pytest

from jevons.policy.disagg import choose_apart
from jevons.policy.route import ALL, ANEW, BLOCKS, CANDIDATE, Limits, choose, in_time, is_late, weigh

PROMPT, NONE = 3_000, (inf, inf)
WEIGHTS = (0.08, 0.5, 0.05, 100.0, 20.0, 0.3)


def fleet(draw: Random, count: int) -> Any:
    """Unlike workers, each with something to do."""
    made = np.zeros(count, CANDIDATE)
    for number, c in enumerate(made):
        c["worker"], c["node"], c["block_size"] = number, draw.randrange(2), 16
        c["per_step_s"], c["per_token_s"] = draw.choice([0.005, 0.02]), draw.choice([1e-5, 1e-4, 1e-3])
        c["per_decode_s"], c["per_context_s"] = draw.choice([1e-5, 1e-3]), draw.choice([0.0, 1e-7])
        c["step_tokens"], c["whole"] = draw.choice([512, 8_192]), 1
        c["queued_tokens"], c["busy"] = draw.choice([0, 0, 2_000, 50_000]), draw.choice([0.0, 0.5])
        c["decoding"] = draw.choice([0, 4, 60])
        c["requests"], c["context"] = c["decoding"] + (c["queued_tokens"] > 0), 2_000 * c["decoding"]
        c["cached"] = draw.choice([0, 0, 2_992])
        c["takes"], c["near_token_s"], c["far_token_s"] = draw.choice([ANEW, ALL, BLOCKS]), 1e-6, 1e-5
    return made


def limits_of(draw: Random) -> Limits:
    return draw.choice([0.02, 0.1, 0.5, 2.0, inf]), draw.choice([0.006, 0.02, 0.05, inf])


@pytest.mark.parametrize("seed", range(200))
def test_one_for_all_is_the_best_of_those_that_are_in_time_if_any_is(seed: int) -> None:
    draw = Random(seed)
    those, limits = fleet(draw, draw.randint(1, 8)), limits_of(draw)
    chosen = choose(those, PROMPT, WEIGHTS)
    found = in_time(those, chosen, limits)

    in_it = [c for c in those if not is_late(c["seconds"], c["tpot_s"], limits)]
    if not in_it or chosen in [c["worker"] for c in in_it]:
        assert found == chosen
    else:
        best = min(in_it, key=lambda c: (c["waiting_s"] + c["answer_s"], c["worker"]))
        assert found == best["worker"]
    assert in_time(those, chosen, NONE) == chosen


@pytest.mark.parametrize("seed", range(200))
def test_one_or_two_are_in_time_if_any_are(seed: int) -> None:
    draw = Random(seed)
    whole, apart = fleet(draw, draw.randint(1, 4)), fleet(draw, draw.randint(1, 4))
    limits, weights = limits_of(draw), (WEIGHTS, WEIGHTS)
    p, d = choose_apart(whole, apart, PROMPT, weights, limits)
    for c in (*whole, *apart):
        weigh(c, PROMPT, WEIGHTS)

    def late(first: Any, rest: Any) -> bool:
        return bool(is_late(first["seconds"], rest["tpot_s"], limits))

    options = [late(c, c) for c in whole] + [late(first, rest) for first, rest in product(apart, whole)]
    assert late(whole[d] if p < 0 else apart[p], whole[d]) is all(options)
    if not any(options):
        assert (p, d) == choose_apart(whole, apart, PROMPT, weights, NONE)
