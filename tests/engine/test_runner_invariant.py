"""In batch-invariant mode a sequence's tokens, log-probabilities and KV are the same bits however they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jevons.base.errors import EngineError
from jevons.engine.reference import runner as runner_module
from jevons.engine.reference import weights
from jevons.engine.reference.rotary import rotate
from jevons.engine.reference.runner import Cache, Runner, Sampled, Slice
from jevons.engine.reference.tiles import TILES, UNIT, agreeing, cover
from jevons.engine.reference.tiny import TINY, write_random_model
from jevons.facts.request import Sampling

BLOCKS, BLOCK_SIZE = 256, 16
WANTED = Sampling(temperature=1.0, seed=5, logprobs=3)
SHAPES = {
    "grouped": replace(TINY, heads=6, kv_heads=2, head_dim=32),
    "ungrouped": replace(TINY, heads=4, kv_heads=4, qk_norm=True, intermediate=1500),
}


def tokens(count: int, seed: int = 0) -> list[int]:
    drawn: list[int] = torch.randint(0, TINY.vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


class Sequenced:
    """One sequence: a prompt in chunks, then decodes that feed back what was drawn."""

    def __init__(self, prompt: Sequence[int], cuts: Sequence[int], table: Sequence[int], outputs: int) -> None:
        self.text, self.table, self.prompt_tokens, self.outputs = list(prompt), table, len(prompt), outputs
        self.ends = [*sorted({cut for cut in cuts if 0 < cut < len(prompt)}), len(prompt)]
        self.computed = 0
        self.drawn: list[Sampled] = []

    def next_slice(self) -> Slice | None:
        if len(self.drawn) == self.outputs:
            return None
        start = self.computed
        end = self.ends.pop(0) if self.ends else start + 1
        self.computed = end
        wanted = WANTED if end >= self.prompt_tokens else None
        return Slice(self.text[start:end], start, self.table, wanted, len(self.drawn))

    def take(self, sampled: Sampled | None) -> None:
        if sampled is not None:
            self.drawn.append(sampled)
            self.text.append(sampled.token)

    def kv(self, runner: Runner) -> torch.Tensor:
        """All of the sequence's keys and values, [layers, 2, kv_heads, tokens, head_dim]."""
        blocks = runner.pages[torch.tensor(list(self.table))]
        return blocks.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[..., : self.computed, :].clone()


def run(runner: Runner, sequences: Sequence[Sequenced], delays: Sequence[int] = ()) -> None:
    """Step all sequences together until they are done; sequence i joins at step delays[i]."""
    step = 0
    while any(len(s.drawn) < s.outputs for s in sequences):
        waits = [*delays, *[0] * len(sequences)]
        going = [
            (s, piece) for s, wait in zip(sequences, waits, strict=False) if step >= wait and (piece := s.next_slice())
        ]
        if going:
            for (s, _), sampled in zip(going, runner.step([piece for _, piece in going]), strict=True):
                s.take(sampled)
        step += 1


@pytest.fixture(params=SHAPES, scope="module")
def tiny_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_random_model(path, SHAPES[request.param])
    return path


@pytest.fixture(params=["bf16 where it is fast", "float32"], scope="module")
def runner(request: pytest.FixtureRequest, tiny_dir: Path) -> Runner:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "float32":
            patch.setattr(weights, "has_fast_bf16", lambda: False)
        return Runner(tiny_dir, Cache(BLOCKS, BLOCK_SIZE), invariant=True)


def alone(runner: Runner, prompt: Sequence[int], outputs: int) -> tuple[list[Sampled], torch.Tensor]:
    """What a sequence is, computed alone and in one piece."""
    runner.pages.fill_(0)
    sequence = Sequenced(prompt, [], range(BLOCKS), outputs)
    run(runner, [sequence])
    return sequence.drawn, sequence.kv(runner)


@settings(max_examples=30)  # most of the time goes into oneDNN making kernels for new numbers of rows
@given(
    lengths=st.lists(st.integers(1, 150), min_size=2, max_size=5),
    cuts=st.lists(st.integers(1, 149), max_size=6),
    delays=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    outputs=st.integers(1, 4),
    order=st.permutations(range(BLOCKS)),
)
def test_a_sequence_is_the_same_bits_in_any_batch_chunks_and_blocks(
    runner: Runner, lengths: list[int], cuts: list[int], delays: list[int], outputs: int, order: list[int]
) -> None:
    prompts = [tokens(count, seed) for seed, count in enumerate(lengths)]
    expected = [alone(runner, prompt, outputs) for prompt in prompts]
    tables = [order[i * 12 : i * 12 + 12] for i in range(len(prompts))]
    together = [Sequenced(p, cuts, table, outputs) for p, table in zip(prompts, tables, strict=True)]
    runner.pages.normal_()  # what others left behind must not matter
    run(runner, together, delays)
    for sequence, (drawn, kv) in zip(together, expected, strict=True):
        assert sequence.drawn == drawn
        assert torch.equal(sequence.kv(runner), kv)


def test_a_long_sequence_is_the_same_bits_in_chunks_beside_others(runner: Runner) -> None:
    prompt = tokens(1500)
    drawn, kv = alone(runner, prompt, 3)
    table = [*range(200, 100, -1), *range(100)]
    long = Sequenced(prompt, [1, 100, 777, 778, 1024, 1400], table, 3)
    others = [Sequenced(tokens(40 + i, i), [9], range(210 + 4 * i, 214 + 4 * i), 6) for i in range(10)]
    run(runner, [*others[:4], long, *others[4:]])
    assert long.drawn == drawn
    assert torch.equal(long.kv(runner), kv)


def test_a_prefix_computed_by_another_runner_gives_the_same_bits(runner: Runner, tiny_dir: Path) -> None:
    prompt = tokens(100)
    drawn, _ = alone(runner, prompt, 3)
    saved = runner.pages[:4].clone()
    runner.pages.fill_(0)
    runner.pages[[77, 33, 11, 5]] = saved
    rest = Sequenced(prompt, [], [77, 33, 11, 5, 0, 1, 2], 3)
    rest.computed = 64
    run(runner, [rest])
    assert rest.drawn == drawn


def test_the_mode_changes_no_more_than_rounding(tiny_dir: Path) -> None:
    fast = Runner(tiny_dir, Cache(BLOCKS, BLOCK_SIZE))
    slow = Runner(tiny_dir, Cache(BLOCKS, BLOCK_SIZE), invariant=True)
    piece = Slice(tokens(200), 0, range(13), Sampling(temperature=0, logprobs=0))
    [one], [other] = fast.step([piece]), slow.step([piece])
    assert one is not None
    assert other is not None
    assert one.logprob is not None
    assert other.logprob is not None
    assert one.logprob.logprob == pytest.approx(other.logprob.logprob, abs=0.1)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 15, 16, 17, 100, 300, 511, 512, 513, 2000])
@pytest.mark.parametrize("tiles", [TILES, (UNIT,), (2, UNIT, 64)])
def test_tiles_cover_the_rows_with_fewer_than_a_unit_to_spare(rows: int, tiles: tuple[int, ...]) -> None:
    sizes = cover(rows, sorted(tiles, reverse=True))
    assert set(sizes) <= set(tiles)
    assert 0 <= sum(sizes) - rows < UNIT


def test_tiles_whose_rows_differ_are_left_out() -> None:
    def other_for_one_row(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if len(x) > 1 else x * 2 + 1e-3

    assert agreeing(other_for_one_row, torch.randn(64, 8), (1, 2, 16, 32)) == (2, 16, 32)


def test_a_model_whose_bits_depend_on_the_batch_does_not_start(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_batch(x: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return rotate(x, factors) * (1 + len(x) / 64)

    monkeypatch.setattr(runner_module, "rotate", by_batch)
    with pytest.raises(EngineError, match="this model gives other bits in another batch"):
        Runner(tiny_dir, Cache(BLOCKS, BLOCK_SIZE), invariant=True)


def test_a_machine_that_cannot_do_it_is_an_error() -> None:
    def by_place(x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(len(x))[:, None] * 1e-3

    with pytest.raises(EngineError, match="other bits in another place"):
        agreeing(by_place, torch.randn(64, 8), (16,))
