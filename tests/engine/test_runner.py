"""The runner against a transformer written down naively: float32, no cache, no batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from jevons.engine.reference.runner import Abandoned, Cache, Runner, Sampled, Slice
from jevons.engine.reference.tiny import TINY, write_random_model
from jevons.facts.model import ModelShape, RopeScaling
from jevons.facts.request import Sampling

LLAMA = TINY
LLAMA_31 = replace(TINY, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), rope_theta=500_000.0, tied_embeddings=False)
QWEN_2 = replace(TINY, heads=6, kv_heads=2, qkv_bias=True)
QWEN_3 = replace(TINY, layers=3, head_dim=32, qk_norm=True, tied_embeddings=False)
NO_GROUPS = replace(TINY, heads=4, kv_heads=4)
SHAPES = {"llama": LLAMA, "llama 3.1": LLAMA_31, "qwen 2": QWEN_2, "qwen 3": QWEN_3, "no groups": NO_GROUPS}

ALL = Sampling(temperature=0, logprobs=20)
# bf16 keeps 8 bits: of 161 answers checked here, the worst has 21 log-probabilities 0.064 off float32's on average, and
# 0.15 at most. A sine a tenth too small fails 38 of 55 tests, Llama 3.1's first bend a tenth too low 6.
MEAN, LARGEST = 0.09, 0.25


def tokens(count: int, seed: int = 0) -> list[int]:
    drawn: list[int] = torch.randint(0, TINY.vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES), scope="module")
def shape(request: pytest.FixtureRequest) -> ModelShape:
    chosen: ModelShape = request.param
    return chosen


@pytest.fixture(scope="module")
def tiny_dir(shape: ModelShape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_random_model(path, shape)
    return path


@pytest.fixture
def runner(tiny_dir: Path) -> Runner:
    return Runner(tiny_dir, Cache(64, 16))


def naive_logprobs(model_dir: Path, shape: ModelShape, prompt: list[int]) -> torch.Tensor:
    """Log-probabilities [len(prompt), vocab] of the token after each, by the book."""
    w = {name: tensor.float() for name, tensor in load_file(model_dir / "model.safetensors").items()}

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt() * weight

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[name + ".weight"].T + w.get(name + ".bias", torch.tensor(0.0))

    def heads(x: torch.Tensor, norm_name: str) -> torch.Tensor:
        x = x.view(len(prompt), -1, shape.head_dim)
        return norm(x, w[norm_name]) if shape.qk_norm and norm_name in w else x

    x = w["model.embed_tokens.weight"][torch.tensor(prompt)]
    for i in range(shape.layers):
        name = f"model.layers.{i}."
        attn = name + "self_attn."
        normed = norm(x, w[name + "input_layernorm.weight"])
        q = naive_rope(heads(project(attn + "q_proj", normed), attn + "q_norm.weight"), shape)
        k = naive_rope(heads(project(attn + "k_proj", normed), attn + "k_norm.weight"), shape)
        v = heads(project(attn + "v_proj", normed), "none")
        x = x + project(attn + "o_proj", naive_attention(q, k, v))
        normed = norm(x, w[name + "post_attention_layernorm.weight"])
        gate = project(name + "mlp.gate_proj", normed)
        x = x + project(name + "mlp.down_proj", gate * gate.sigmoid() * project(name + "mlp.up_proj", normed))
    x = norm(x, w["model.norm.weight"])
    return (x @ w["model.embed_tokens.weight" if shape.tied_embeddings else "lm_head.weight"].T).log_softmax(-1)


def naive_rope(x: torch.Tensor, shape: ModelShape) -> torch.Tensor:
    out = torch.empty_like(x)
    half = shape.head_dim // 2
    for i in range(half):
        frequency = shape.rope_theta ** (-2 * i / shape.head_dim)
        if (s := shape.rope_scaling) is not None:
            turns = s.original_context_tokens * frequency / 6.283185307179586
            if turns < s.low_freq_factor:
                frequency /= s.factor
            elif turns < s.high_freq_factor:
                smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
                frequency = (1 - smooth) * frequency / s.factor + smooth * frequency
        angle = (torch.arange(len(x)) * frequency)[:, None]
        a, b = x[:, :, i], x[:, :, i + half]
        out[:, :, i] = a * angle.cos() - b * angle.sin()
        out[:, :, i + half] = b * angle.cos() + a * angle.sin()
    return out


def naive_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    count, heads, dim = q.shape
    out = torch.empty_like(q)
    for h in range(heads):
        shared = h * k.shape[1] // heads
        scores = q[:, h] @ k[:, shared].T / dim**0.5
        scores[torch.ones(count, count).triu(1).bool()] = -torch.inf
        out[:, h] = scores.softmax(-1) @ v[:, shared]
    return out.reshape(count, -1)


def check(sampled: Sampled | None, expected: torch.Tensor) -> None:
    """`sampled` is greedy under `expected` [vocab], and reports its log-probabilities, as far as bf16 can tell."""
    assert sampled is not None
    assert sampled.logprob is not None
    assert len(sampled.logprob.top) == 20
    pairs = [(sampled.token, sampled.logprob.logprob), *sampled.logprob.top]
    errors = [abs(logprob - float(expected[token])) for token, logprob in pairs]
    assert max(errors) < LARGEST
    assert sum(errors) / len(errors) < MEAN
    assert float(expected[sampled.token]) > float(expected.max()) - LARGEST


def test_a_prompt_gets_the_log_probabilities_of_the_naive_model(
    runner: Runner, tiny_dir: Path, shape: ModelShape
) -> None:
    prompt = tokens(300)
    [sampled] = runner.step([Slice(prompt, 0, range(19), ALL)])
    check(sampled, naive_logprobs(tiny_dir, shape, prompt)[-1])


def test_each_decoded_token_gets_the_log_probabilities_of_the_naive_model(
    runner: Runner, tiny_dir: Path, shape: ModelShape
) -> None:
    text = tokens(70)
    runner.step([Slice(text[:50], 0, range(5), None)])
    expected = naive_logprobs(tiny_dir, shape, text)
    for at in range(50, 70):
        [sampled] = runner.step([Slice(text[at : at + 1], at, range(5), ALL)])
        check(sampled, expected[at])


def test_chunks_prefixes_and_decodes_of_many_sequences_share_a_step(
    runner: Runner, tiny_dir: Path, shape: ModelShape
) -> None:
    texts = [tokens(n, seed=n) for n in (40, 100, 7, 33, 1)]
    tables = [[3, 1, 2], [10, 12, 11, 20, 21, 5, 6], [30], [40, 41, 42], [50]]
    expected = [naive_logprobs(tiny_dir, shape, text)[-1] for text in texts]
    runner.step([Slice(texts[0][:39], 0, tables[0], None), Slice(texts[1][:37], 0, tables[1], None)])
    drawn = runner.step(
        [
            Slice(texts[1][37:], 37, tables[1], ALL),  # the rest of a prompt, over its prefix
            Slice(texts[0][39:], 39, tables[0], ALL),  # a decode
            Slice(texts[2], 0, tables[2], None),  # nothing wanted
            Slice(texts[3], 0, tables[3], ALL),  # a whole prompt
            Slice(texts[4], 0, tables[4], ALL),  # a prompt of one token
        ]
    )
    assert drawn[2] is None
    for i, sampled in ((1, drawn[0]), (0, drawn[1]), (3, drawn[3]), (4, drawn[4])):
        check(sampled, expected[i])


def test_decodes_of_very_different_lengths_are_padded_apart(tiny_dir: Path, shape: ModelShape) -> None:
    runner = Runner(tiny_dir, Cache(256, 16))
    texts = [tokens(n, seed=n) for n in (1700, 40, 90)]
    tables = [range(110), range(110, 113), range(120, 126)]
    runner.step([Slice(text[:-1], 0, table, None) for text, table in zip(texts, tables, strict=True)])
    drawn = runner.step([Slice(t[-1:], len(t) - 1, table, ALL) for t, table in zip(texts, tables, strict=True)])
    for text, sampled in zip(texts, drawn, strict=True):
        check(sampled, naive_logprobs(tiny_dir, shape, text)[-1])


@pytest.mark.parametrize("block_size", [4, 7, 32])
def test_any_block_size_gives_the_same_answer(tiny_dir: Path, shape: ModelShape, block_size: int) -> None:
    runner = Runner(tiny_dir, Cache(30, block_size))
    text = tokens(60)
    runner.step([Slice(text[:50], 0, range(29, 10, -1), None)])
    [sampled] = runner.step([Slice(text[50:], 50, range(29, 10, -1), ALL)])
    check(sampled, naive_logprobs(tiny_dir, shape, text)[-1])


def test_a_block_moved_to_another_place_serves_as_well(runner: Runner, tiny_dir: Path, shape: ModelShape) -> None:
    text = tokens(33)
    runner.step([Slice(text[:32], 0, [0, 1], None)])
    runner.pages[[60, 61]] = runner.pages[[1, 0]]
    runner.pages[[0, 1]] = 0
    [sampled] = runner.step([Slice(text[32:], 32, [61, 60, 5], ALL)])
    check(sampled, naive_logprobs(tiny_dir, shape, text)[-1])


def test_one_block_is_one_contiguous_object(runner: Runner, shape: ModelShape) -> None:
    assert runner.pages.shape == (64, shape.layers, 2, shape.kv_heads, 16, shape.head_dim)
    assert runner.pages.dtype == torch.bfloat16
    assert runner.pages.is_contiguous()
    assert runner.pages.count_nonzero() == 0


def test_a_step_writes_its_own_tokens_places_and_no_others(runner: Runner) -> None:
    runner.step([Slice(tokens(20), 0, [9, 4], None)])
    written = runner.pages.count_nonzero(dim=(1, 2, 3, 5))  # [blocks, block_size]
    assert written.nonzero().tolist() == [[4, i] for i in range(4)] + [[9, i] for i in range(16)]


def test_after_each_layer_what_it_wrote_is_what_stays(runner: Runner, shape: ModelShape) -> None:
    seen: list[torch.Tensor] = []

    def on_layer(layers: int, of: int) -> None:
        assert (layers, of) == (len(seen) + 1, shape.layers)
        seen.append(runner.pages[:3, :layers].clone())

    runner.step([Slice(tokens(20), 0, [0, 1], None), Slice(tokens(9, 1), 0, [2], ALL)], on_layer=on_layer)
    assert [len(each[0]) for each in seen] == list(range(1, shape.layers + 1))
    assert all(torch.equal(each, runner.pages[:3, : each.shape[1]]) for each in seen)


def test_an_abandoned_step_can_be_computed_again(runner: Runner, tiny_dir: Path, shape: ModelShape) -> None:
    text = tokens(40)
    asked = iter([False, True])
    with pytest.raises(Abandoned):
        runner.step([Slice(text, 0, range(3), ALL)], lambda: next(asked))
    [sampled] = runner.step([Slice(text, 0, range(3), ALL)])
    check(sampled, naive_logprobs(tiny_dir, shape, text)[-1])
