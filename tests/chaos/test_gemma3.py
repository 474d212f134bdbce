"""A real sliding-window model, Gemma 3 270M: no answer may tell that its prompt's KV was stored, lost and brought back.

By hand, and only where the model is: `jevons model pull gemma3-270m --accept-license gemma`, then `make chaos`.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.processes import Jevons, until

from jevons.engine.pull import KNOWN, cache_dir, is_complete
from jevons.engine.shape import read_shape
from jevons.serve.tokenizer import Tokenizer

pytestmark = pytest.mark.chaos

NAME = "gemma3-270m"
TALKS, TURNS, OUTPUT = 3, 4, 16
OPENING, TURN = 420, 150  # tokens; the window is 512, so only the first turn lies within it
BLOCK = 16
START_S, ANSWER_S = 120.0, 120.0

Start = Callable[..., Jevons]


class Answer(NamedTuple):
    tokens: list[str]
    logprobs: list[float]


class Asked(NamedTuple):
    answer: Answer
    prompt_tokens: int
    cached_tokens: int


@pytest.fixture(scope="module")
def gemma_dir() -> Path:
    path = cache_dir() / "models" / NAME
    if not is_complete(path, KNOWN[NAME], verify=False):
        pytest.skip(f"needs {NAME}, under terms of its own: jevons model pull {NAME} --accept-license gemma")
    return path


@pytest.fixture
def begin(gemma_dir: Path) -> Iterator[Start]:
    begun: list[Jevons] = []
    page_bytes = read_shape(gemma_dir).kv_bytes_per_token() * BLOCK

    def start(*flags: str, blocks: int) -> Jevons:
        pool = ("--kv-bytes", str(blocks * page_bytes), "--workers", "1", "--invariant")
        running = Jevons("--model", NAME, *pool, *flags)
        begun.append(running)
        until(lambda: len(running.healthy()) == 1, START_S)
        return running

    yield start
    for running in begun:
        if running.process.poll() is None:
            running.stop()
        else:
            assert running.process.stderr is not None
            running.process.stderr.close()


def ask(running: Jevons, prompt: list[int], salt: str) -> Asked:
    body = {"model": NAME, "prompt": prompt, "max_tokens": OUTPUT, "temperature": 0, "logprobs": 1, "cache_salt": salt}
    body |= {"ignore_eos": True}
    request = urllib.request.Request(
        running.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        answered: dict[str, Any] = json.load(response)
    rows, usage = answered["choices"][0]["logprobs"], answered["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Asked(Answer(rows["tokens"], rows["token_logprobs"]), usage["prompt_tokens"], cached)


def prompts(gemma_dir: Path) -> list[list[int]]:
    """The prompts of all turns of all conversations, interleaved: each holds the one before it."""
    text = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
    ids = list(Tokenizer(gemma_dir).encode(text))
    ends = [OPENING + turn * TURN for turn in range(TURNS)]
    starts = [300 * talk for talk in range(TALKS)]
    assert len(ids) >= starts[-1] + ends[-1], "the page that they talk about is too short"
    return [ids[start : start + end] for end in ends for start in starts]


def test_stored_evicted_killed_and_restored_prefixes_give_the_answers_of_no_cache_at_all(
    begin: Start, gemma_dir: Path, tmp_path: Path
) -> None:
    asked = prompts(gemma_dir)
    bare = begin(blocks=80)
    expected = [ask(bare, prompt, f"alone {number}") for number, prompt in enumerate(asked)]
    bare.stop()
    assert [each.cached_tokens for each in expected] == [0] * len(asked)

    page_bytes = read_shape(gemma_dir).kv_bytes_per_token() * BLOCK
    tiers = ("--dram-bytes", str(60 * page_bytes), "--disk-path", str(tmp_path / "kv"), "--disk-bytes", str(1 << 29))
    running, cached = begin(*tiers, blocks=80), 0
    for number, (prompt, alone) in enumerate(zip(asked, expected, strict=True)):
        got = ask(running, prompt, "all")
        cached += got.cached_tokens
        print(
            f"{number}: {got.prompt_tokens} tokens, {got.cached_tokens} cached, {running.snapshot()['tiers']['blocks']}"
        )
        assert got.answer == alone.answer
        if number in (len(asked) // 2, len(asked) - 2):  # with writes on their way, and with most on disk
            running.process.kill()
            running.process.wait(20)
            running = begin(*tiers, blocks=80)
    again = [ask(running, prompt, "all") for prompt in asked]
    print(f"again: {[each.cached_tokens for each in again]} cached")
    assert [each.answer for each in again] == [each.answer for each in expected]
    assert cached + sum(each.cached_tokens for each in again) > sum(map(len, asked)) // 2
