"""Gemma 3: layers that see a window and layers that see everything, against full matrices in float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from jevons.base.errors import ConfigError, ModelError
from jevons.engine.digest import weights_digest
from jevons.engine.reference.exchange import Exchange
from jevons.engine.reference.runner import Cache, Runner, Sampled, Slice
from jevons.engine.reference.share import share_of
from jevons.engine.reference.tiny import TINY, hf_config, write_random_model
from jevons.engine.shape import read_shape
from jevons.facts.model import Gemma3, ModelShape
from jevons.facts.request import Sampling
from jevons.kv.layout import Layout
from jevons.store.arena import Arena

WINDOW, BLOCK = 24, 16
GEMMA = replace(
    TINY,
    layers=4,
    kv_heads=1,
    head_dim=32,
    qk_norm=True,
    rope_theta=1_000_000.0,
    gemma3=Gemma3(WINDOW, (True, True, False, True), 10_000.0, 32.0),
)
OTHER_ROOT = replace(GEMMA, kv_heads=2, gemma3=Gemma3(WINDOW, (True, False, True, True), 5_000.0, 20.0))
SHAPES = {"as published": GEMMA, "another root": OTHER_ROOT}
ALL = Sampling(temperature=0, logprobs=20)


def tokens(count: int, seed: int = 0) -> list[int]:
    drawn: list[int] = torch.randint(0, TINY.vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES), scope="module")
def shape(request: pytest.FixtureRequest) -> ModelShape:
    chosen: ModelShape = request.param
    return chosen


@pytest.fixture(scope="module")
def tiny_dir(shape: ModelShape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma")
    write_random_model(path, shape)
    return path


@pytest.fixture(params=[False, True], ids=["plain", "invariant"], scope="module")
def runner(tiny_dir: Path, request: pytest.FixtureRequest) -> Runner:
    return Runner(tiny_dir, Cache(64, BLOCK), invariant=request.param)


def dense_logprobs(model_dir: Path, shape: ModelShape, text: Sequence[int]) -> torch.Tensor:
    """Log-probabilities [len(text), vocab] of the token after each: no cache, no batch, whole matrices, float32."""
    w = {name: tensor.float() for name, tensor in load_file(model_dir / "model.safetensors").items()}
    own, count = shape.gemma3, len(text)
    assert own is not None
    at = torch.arange(count)
    age = at[:, None] - at

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + shape.norm_eps).rsqrt() * (1 + w[f"{name}.weight"])

    def turn(x: torch.Tensor, theta: float) -> torch.Tensor:
        angles = at[:, None] * theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        one = torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat([*(turned := torch.complex(*x.chunk(2, -1)) * one).real[None], *turned.imag[None]], -1)

    x = w["model.embed_tokens.weight"][torch.tensor(text)] * float(torch.tensor(shape.hidden**0.5).bfloat16())
    for i in range(shape.layers):
        name = f"model.layers.{i}."
        attn, mlp = name + "self_attn.", name + "mlp."
        theta = own.sliding_rope_theta if own.sliding[i] else shape.rope_theta
        normed = norm(x, name + "input_layernorm")
        q, k, v = (
            (normed @ w[f"{attn}{part}_proj.weight"].T).view(count, -1, shape.head_dim) for part in ("q", "k", "v")
        )
        q, k = turn(norm(q, attn + "q_norm"), theta), turn(norm(k, attn + "k_norm"), theta)
        k, v = (each.repeat_interleave(shape.heads // shape.kv_heads, 1) for each in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / own.query_scalar**0.5
        unseen = (age < 0) | (age >= own.window) if own.sliding[i] else age < 0
        weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", weights, v).reshape(count, -1)
        x = x + norm(attended @ w[attn + "o_proj.weight"].T, name + "post_attention_layernorm")
        normed = norm(x, name + "pre_feedforward_layernorm")
        gate = torch.nn.functional.gelu(normed @ w[mlp + "gate_proj.weight"].T, approximate="tanh")
        down = (gate * (normed @ w[mlp + "up_proj.weight"].T)) @ w[mlp + "down_proj.weight"].T
        x = x + norm(down, name + "post_feedforward_layernorm")
    return (norm(x, "model.norm") @ w["model.embed_tokens.weight"].T).log_softmax(-1)


def check(sampled: Sampled | None, expected: torch.Tensor) -> float:
    """The mean error of the log-probabilities reported, against `expected` [vocab]."""
    assert sampled is not None
    assert sampled.logprob is not None
    pairs = [(sampled.token, sampled.logprob.logprob), *sampled.logprob.top]
    errors = [abs(logprob - float(expected[token])) for token, logprob in pairs]
    print(max(errors), sum(errors) / len(errors))
    return 0.0


def test_it(runner: Runner, tiny_dir: Path, shape: ModelShape) -> None:
    text = tokens(100)
    expected = dense_logprobs(tiny_dir, shape, text)
    table = range(7)
    for start, end in [(0, 10), (10, 60), *pairwise(range(60, 101))]:
        [sampled] = runner.step([Slice(text[start:end], start, table, ALL)])
        check(sampled, expected[end - 1])
