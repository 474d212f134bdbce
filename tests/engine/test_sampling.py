from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jevons.engine.reference.sampling import NUCLEUS_TOKENS, filtered, sample, uniform
from jevons.facts.request import Sampling

GREEDY = Sampling(temperature=0)


def draw(logits: torch.Tensor, sampling: Sampling, count: int) -> Counter[int]:
    rows = logits.expand(count, -1)
    return Counter(s.token for s in sample(rows, [sampling] * count, range(count)))


def test_greedy_takes_the_likeliest_token_of_every_row() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert [s.token for s in sample(logits, [GREEDY] * 2, [0, 0])] == [1, 0]


@pytest.mark.parametrize("vocab", [10, 1000, 49152])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_greedy_takes_the_lowest_id_of_equals(vocab: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(3, vocab, dtype=dtype)
    for row, ids in enumerate(([3, 8], [vocab - 3, vocab - 1], [1, vocab // 2, vocab - 1])):
        logits[row, ids] = 2.0
    assert [s.token for s in sample(logits, [GREEDY] * 3, [0] * 3)] == [3, vocab - 3, 1]


def test_a_greedy_row_beside_a_drawn_one_stays_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9]] * 2)
    assert sample(logits, [GREEDY, Sampling(seed=1)], [0, 0])[0].token == 1


def test_draws_follow_the_softmax_of_the_logits_over_the_temperature() -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    drawn = draw(logits, Sampling(temperature=0.7, seed=7), 4000)
    for token, probability in enumerate((logits / 0.7).softmax(-1).tolist()):
        assert drawn[token] / 4000 == pytest.approx(probability, abs=0.03)  # 4 standard errors are 0.032 at most


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-46, 1e-100, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_however_low_a_temperature_is_the_likeliest_token_is_drawn(temperature: float, filters: dict[str, int]) -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    assert set(draw(logits, Sampling(temperature=temperature, seed=7, **filters), 5)) == {2}


def test_top_k_leaves_the_k_likeliest_in_their_proportions() -> None:
    drawn = draw(torch.tensor([1.0, 0.0, 2.0, -1.0]), Sampling(top_k=2, seed=3), 2000)
    assert set(drawn) == {0, 2}
    assert drawn[2] / 2000 == pytest.approx(0.731, abs=0.04)


def test_top_p_leaves_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(logits, Sampling(top_p=0.7, seed=3), 300)) == {0, 1}
    assert set(draw(logits, Sampling(top_p=0.81, seed=3), 300)) == {0, 1, 2}
    assert set(draw(logits, Sampling(top_p=0.001, seed=3), 50)) == {0}


def test_top_p_counts_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(draw(logits, Sampling(top_k=2, top_p=0.5, seed=3), 100)) == {0}


def test_a_nucleus_larger_than_the_first_look_is_found() -> None:
    vocab = 4 * NUCLEUS_TOKENS
    kept = filtered(torch.linspace(0, -1e-3, vocab), 0, 0.75).isfinite().sum()
    assert int(kept) == pytest.approx(0.75 * vocab, rel=0.01)


def test_the_same_seed_and_draw_give_the_same_token_in_any_batch() -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    wanted = [Sampling(seed=s) for s in range(5)]
    together = [s.token for s in sample(logits, wanted, [4] * 5)]
    assert together == [sample(logits[i : i + 1], wanted[i : i + 1], [4])[0].token for i in range(5)]


def test_other_seeds_and_other_draws_are_other_numbers() -> None:
    numbers = {uniform(seed, number) for seed in (0, 1, 2**64 - 1) for number in range(100)}
    assert len(numbers) == 300
    assert sum(numbers) / 300 == pytest.approx(0.5, abs=0.07)


def test_the_generator_never_changes() -> None:
    """A request goes on where it was left, maybe under another release: these are Philox 4x64 under (seed, draw)."""
    assert [uniform(0, 0), uniform(42, 7)] == [0.011546754286331562, 0.649420079613736]


@given(
    st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=40),
    st.integers(0, 5),
    st.floats(0.01, 1.0),
    st.integers(0, 2**64 - 1),
)
def test_a_drawn_token_is_one_that_the_filters_left(values: list[float], top_k: int, top_p: float, seed: int) -> None:
    logits = torch.tensor(values)
    [sampled] = sample(logits[None], [Sampling(top_k=top_k, top_p=top_p, seed=seed)], [0])
    assert filtered(logits, top_k, top_p)[sampled.token] > -torch.inf


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    wanted = Sampling(temperature=0.1, top_k=1, logprobs=2)
    [sampled] = sample(logits, [wanted], [0])
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(-0.693147, abs=1e-5)
    assert [token for token, _ in sampled.logprob.top] == [0, 1]
    assert sampled.logprob.top[1][1] == pytest.approx(-1.386294, abs=1e-5)


def test_of_equally_likely_tokens_the_lowest_ids_are_reported() -> None:
    logits = torch.zeros(1, 50)
    logits[0, 40] = 1.0
    [sampled] = sample(logits, [Sampling(temperature=0, logprobs=3)], [0])
    assert sampled.logprob is not None
    assert [token for token, _ in sampled.logprob.top] == [40, 0, 1]


def test_more_log_probabilities_than_tokens_are_all_tokens() -> None:
    [sampled] = sample(torch.zeros(1, 5), [Sampling(temperature=0, logprobs=20)], [0])
    assert sampled.logprob is not None
    assert len(sampled.logprob.top) == 5


def test_no_log_probabilities_unless_wanted() -> None:
    none, bare = sample(torch.zeros(2, 5), [GREEDY, Sampling(temperature=0, logprobs=0)], [0, 0])
    assert none.logprob is None
    assert bare.logprob is not None
    assert bare.logprob.top == []
