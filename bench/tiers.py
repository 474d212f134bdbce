"""Conversations that return to a cache far too small for them: what the tiers save, and whether anything changes.

    PYTHONPATH=. python bench/tiers.py [conversations]

The same conversations, greedy, in batch-invariant mode, through a real server: first without any cache (every request
has a salt of its own), then with device pools that hold an eighth of the working set, over a shared arena and a disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.processes import Jevons, until

from jevons.base.stats import percentile
from jevons.engine.pull import resolve
from jevons.engine.shape import read_shape
from jevons.kv.hashing import block_hashes
from jevons.serve.tokenizer import Tokenizer
from jevons.twin.workload import Chat, Conversation, conversations

TURNS, OUTPUT, BLOCK = 6, 24, 16
PARALLEL = 2  # one request for each worker: TTFT is work, not queue
MODEL = "smollm2-135m"


class Turn(NamedTuple):
    ttft_s: float
    text: str
    cached: int
    prompt: int


def ask(url: str, messages: list[dict[str, str]], salt: str | None) -> Turn:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": messages,
        "temperature": 0,
        "max_tokens": OUTPUT,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if salt is not None:
        body["cache_salt"] = salt
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())
    began, first, text = time.perf_counter(), 0.0, ""
    usage: dict[str, Any] = {}
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece and not first:
                    first = time.perf_counter() - began
                text += piece
    return Turn(first, text, usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"])


def play(url: str, talks: list[Conversation], salted: bool) -> list[list[Turn]]:
    """Every conversation's turns: all first turns, then all second ones, and so on."""
    said: list[list[dict[str, str]]] = [[{"role": "system", "content": talk.system}] for talk in talks]
    turns: list[list[Turn]] = [[] for _ in talks]

    def one(i: int, number: int) -> None:
        said[i].append({"role": "user", "content": talks[i].turns[number]})
        turn = ask(url, said[i], f"{i} {number}" if salted else None)
        said[i].append({"role": "assistant", "content": turn.text})
        turns[i].append(turn)

    for number in range(TURNS):
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda i: one(i, number), range(len(talks))))  # noqa: B023 — done before it changes
    return turns


def reusable(tokenizer: Tokenizer, talk: Conversation, turns: list[Turn]) -> list[int]:
    """Leading tokens of each prompt that an infinite cache would hold: whole blocks of what was said before."""
    said: list[dict[str, Any]] = [{"role": "system", "content": talk.system}]
    held: set[bytes] = set()
    counts = []
    for question, turn in zip(talk.turns, turns, strict=True):
        said.append({"role": "user", "content": question})
        names = block_hashes(tokenizer.encode_chat(said), BLOCK)[: (turn.prompt - 1) // BLOCK]
        counts.append(BLOCK * next((i for i, name in enumerate(names) if name not in held), len(names)))
        said.append({"role": "assistant", "content": turn.text})
        held |= set(block_hashes(tokenizer.encode_chat(said, add_generation_prompt=False), BLOCK))
    return counts


@contextmanager
def serving(*flags: str) -> Iterator[Jevons]:
    running = Jevons("--workers", "2", "--invariant", *flags)
    try:
        until(lambda: len(running.healthy()) == 2, 120.0)
        yield running
    finally:
        running.stop()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    talks = conversations(
        Chat(conversations=count, turns=TURNS, groups=count, system_tokens=120, turn_tokens=60, seed=11)
    )
    model_dir = resolve(MODEL)
    kv_bytes = read_shape(model_dir).kv_bytes_per_token()

    with serving() as running:
        began = time.perf_counter()
        cold = play(running.url, talks, salted=True)
        cold_s = time.perf_counter() - began
    working_set = sum(turns[-1].prompt + OUTPUT for turns in cold) * kv_bytes
    pool, dram = working_set // 8 // 2, working_set // 3  # a pool must hold one conversation: 20 and more

    with tempfile.TemporaryDirectory() as disk:
        sizes = ["--kv-bytes", str(pool), "--dram-bytes", str(dram), "--disk-bytes", str(4 * working_set)]
        with serving(*sizes, "--disk-path", disk) as running:
            began = time.perf_counter()
            warm = play(running.url, talks, salted=False)
            warm_s = time.perf_counter() - began
            tiers = running.snapshot()["tiers"]

    tokenizer = Tokenizer(Path(model_dir))
    infinite = sum(sum(reusable(tokenizer, talk, turns)) for talk, turns in zip(talks, cold, strict=True))
    reused = sum(turn.cached for turns in warm for turn in turns)
    back = [percentile([turn.ttft_s for turns in played for turn in turns[1:]], 0.5) for played in (cold, warm)]
    assert back[0] is not None
    assert back[1] is not None
    same = sum(a.text == b.text for x, y in zip(cold, warm, strict=True) for a, b in zip(x, y, strict=True))
    print(f"{count} conversations x {TURNS} turns, working set {working_set / 1e6:.0f} MB")
    on_disk = tiers["lower_bytes"]["disk"]
    print(f"device pools {2 * pool / 1e6:.0f} MB, dram {dram / 1e6:.0f} MB, disk {on_disk / 1e6:.0f} MB used")
    print(f"prefix tokens reused  {reused} of {infinite} of an infinite cache: {reused / infinite:.1%} (rule: 90 %)")
    print(f"TTFT p50, returning   {back[1]:.3f} s against {back[0]:.3f} s cold: {back[1] / back[0]:.2f} (rule: 0.35)")
    print(f"answers identical     {same} of {count * TURNS}")
    print(f"wall                  {warm_s:.0f} s against {cold_s:.0f} s")
    print(f"tiers                 {json.dumps(tiers['counts'])}")


if __name__ == "__main__":
    main()
