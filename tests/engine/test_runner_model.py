"""The runner on the embedded model."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from jevons.engine.reference.runner import Cache, Runner, Sampled, Slice
from jevons.facts.request import Sampling

pytestmark = pytest.mark.model

THE_CAPITAL_OF_FRANCE_IS = [504, 3575, 282, 4649, 314]
PARIS = 7042
GREEDY = Sampling(temperature=0, logprobs=2)

# A worker's memory: the library, the weights, 512 blocks of 16 tokens in use, and a prompt that has been through; the
# most it ever was, in KB. (`ru_maxrss` starts from the peak of the process that starts it: this one.)
WORKER = """
import sys
from pathlib import Path
import torch
from jevons.engine.reference.runner import Cache, Runner, Slice
from jevons.facts.request import Sampling

torch.set_num_threads(1)
runner = Runner(Path(sys.argv[1]), Cache(512, 16), invariant=True)
runner.pages.fill_(1)
runner.step([Slice([7] * 512, 0, range(32), Sampling(temperature=0))])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.fixture(scope="module")
def runner(model_dir: Path) -> Runner:
    return Runner(model_dir, Cache(512, 16), invariant=True)


def generate(runner: Runner, prompt: list[int], cuts: list[int], table: range, count: int) -> list[Sampled]:
    """`count` greedy tokens after `prompt`, computed in pieces that end at `cuts`."""
    text: list[int] = list(prompt)
    drawn: list[Sampled] = []
    bounds = [0, *cuts, *range(len(prompt), len(prompt) + count)]
    for start, end in pairwise(bounds):
        [sampled] = runner.step([Slice(text[start:end], start, table, GREEDY if end >= len(prompt) else None)])
        if sampled is not None:
            drawn.append(sampled)
            text.append(sampled.token)
    return drawn


def test_it_knows_the_capital_of_france(runner: Runner) -> None:
    [sampled] = generate(runner, THE_CAPITAL_OF_FRANCE_IS, [], range(2), 1)
    assert sampled.token == PARIS


def test_its_answers_are_the_same_bits_however_the_prompt_is_cut(runner: Runner) -> None:
    prompt: list[int] = torch.randint(10, 49_000, (600,), generator=torch.Generator().manual_seed(1)).tolist()
    whole = generate(runner, prompt, [], range(40), 8)
    kv = runner.pages[:37].clone()
    assert generate(runner, prompt, [1, 130, 131, 400], range(100, 140), 8) == whole
    assert torch.equal(runner.pages[100:137], kv)


def test_a_worker_stays_below_a_gigabyte(model_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WORKER, model_dir], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1e9
