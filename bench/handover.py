"""What a handover costs a stream: the gap between its first and second token, beside the later gaps.

    PYTHONPATH=. python bench/handover.py [PROMPTS AT ONCE]

One worker prefills, one decodes; a stream that keeps the decode worker busy makes the router hand prompts over. Blocks
go to the arena layer by layer while the prefill computes, so what is left for the gap is all of them back in, what is
left of the decode worker's step, and its next one, which computes the prompt's last, unfilled block. With several
prompts at once the prefill worker is busy with the next one when it hands one over, and the streams share the decode
worker.
Pools are small, so that their memory has been touched before: the first touch of a page costs more than its copy.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

from tests.processes import Jevons, until

from jevons.twin.workload import Chat, Conversation, conversations

MODEL = "smollm2-135m"
PROMPTS, OUTPUT = 16, 16


class Stream(NamedTuple):
    ttft_s: float
    gaps_s: list[float]
    prompt_tokens: int


def stream(url: str, messages: list[dict[str, str]], max_tokens: int) -> Stream:
    body = {
        "model": MODEL,
        "messages": messages,
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())
    times, prompt_tokens = [], 0
    with urllib.request.urlopen(request, timeout=300) as response:
        for chunk in chunks(response):
            usage = chunk.get("usage")
            prompt_tokens = usage["prompt_tokens"] if usage else prompt_tokens
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                times.append(time.perf_counter() - began)
    return Stream(times[0], [b - a for a, b in pairwise(times)], prompt_tokens)


def chunks(lines: Iterator[bytes]) -> Iterator[dict]:  # type: ignore[type-arg]
    return (json.loads(line[6:]) for line in lines if line.startswith(b"data: {"))


def keep_busy(url: str, is_over: threading.Event) -> None:
    count = 0
    while not is_over.is_set():
        count += 1
        stream(url, [{"role": "user", "content": f"Count to one hundred, try {count}."}], 200)


def messages_of(talk: Conversation) -> list[dict[str, str]]:
    return [{"role": "system", "content": talk.system}, {"role": "user", "content": talk.turns[0]}]


def main(at_once: int = 1) -> None:
    chat = Chat(conversations=PROMPTS, turns=1, groups=PROMPTS, system_tokens=300, turn_tokens=40, seed=5)
    talks = conversations(chat)
    running = Jevons(
        "--prefill",
        "1",
        "--decode",
        "1",
        "--dram-bytes",
        str(at_once * 48 << 20),
        "--kv-bytes",
        str(at_once * 24 << 20),
    )
    is_over = threading.Event()
    busy = threading.Thread(target=keep_busy, args=(running.url, is_over))
    try:
        until(lambda: len(running.healthy()) == 2, 120.0)
        busy.start()
        with ThreadPoolExecutor(at_once) as pool:
            streams = list(pool.map(lambda talk: stream(running.url, messages_of(talk), OUTPUT), talks))
        recent = running.snapshot()["recent"]
    finally:
        is_over.set()
        running.stop()
        busy.join()
    handed = sum(o["worker"] == "d0" and (o["cached_tokens"] or 0) > 200 for o in recent)
    first = statistics.median(s.gaps_s[0] for s in streams)
    later = statistics.median(gap for s in streams for gap in s.gaps_s[1:])
    print(f"{handed} of {PROMPTS} prompts of {streams[0].prompt_tokens} tokens handed over")
    print(f"TTFT p50 {statistics.median(s.ttft_s for s in streams):.3f} s")
    print(f"first gap p50 {first * 1e3:.1f} ms, later gaps {later * 1e3:.1f} ms: {(first - later) * 1e3:+.1f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
