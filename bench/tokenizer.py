"""Text to tokens and back: jevons' Tokenizer and Detokenizer against plain `tokenizers`, in one run.

    python bench/tokenizer.py [--model smollm2-135m] [--json]

Every encoding is of another text, so no cache of whole texts helps. Detokenizing is compared with decoding all ids at
each token.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable

import tokenizers

from jevons.engine.pull import resolve
from jevons.serve.tokenizer import Detokenizer, Tokenizer

ROUNDS = 31
TEXT = "the of router cache 日本語 naïve def return self. 😀 1984 3.14 {} => block hash prefill, decode.\n\t don't"


def race(*works: Callable[[], object]) -> list[float]:
    """The median seconds of each; they take turns, so that a busy moment of the machine hits all."""
    took: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for times, work in zip(took, works, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in took]


def text_of(size_bytes: int, rng: random.Random) -> str:
    return " ".join(rng.choices(TEXT.split(" "), k=size_bytes)).encode()[:size_bytes].decode(errors="ignore")


def encoding(ours: Tokenizer, plain: tokenizers.Tokenizer, texts: list[str]) -> dict[str, float]:
    mine, theirs = iter(texts), iter(texts)
    ours_s, plain_s = race(lambda: ours.encode(next(mine)), lambda: plain.encode(next(theirs)).ids)
    count = statistics.mean(len(ours.encode(text)) for text in texts)
    return {"tokens": count, "us": ours_s * 1e6, "plain_us": plain_s * 1e6, "ratio": plain_s / ours_s}


def next_turns(ours: Tokenizer, plain: tokenizers.Tokenizer, turns: list[str]) -> dict[str, float]:
    """A talk that grows by two messages a turn, encoded whole each time, the template's work included for both."""
    talks = [[{"role": "user", "content": text} for text in turns[: 2 * i + 1]] for i in range(ROUNDS)]
    mine, theirs = iter(talks), iter(talks)
    ours_s, plain_s = race(
        lambda: ours.encode_chat(next(mine)),
        lambda: plain.encode(ours.render(next(theirs)), add_special_tokens=False).ids,
    )
    count = statistics.median(len(ours.encode_chat(talk)) for talk in talks)
    return {"tokens": count, "us": ours_s * 1e6, "plain_us": plain_s * 1e6, "ratio": plain_s / ours_s}


def detokenizing(ours: Tokenizer, plain: tokenizers.Tokenizer, ids: list[int]) -> dict[str, float]:
    def push_all() -> None:
        detokenizer = Detokenizer(ours)
        for id in ids:
            detokenizer.push([id])

    def decode_again() -> None:
        for end in range(1, len(ids) + 1):
            plain.decode(ids[:end])

    ours_us, plain_us = (seconds / len(ids) * 1e6 for seconds in race(push_all, decode_again))
    return {"tokens": len(ids), "us_per_token": ours_us, "plain": plain_us, "ratio": plain_us / ours_us}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a known name or a Hugging Face directory")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    model_dir, rng = resolve(asked.model), random.Random(7)
    ours, plain = Tokenizer(model_dir), tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    encoder = ours.hasten()
    sizes = (1_024, 4_096, 16_384)
    found = {f"encode {size} B": encoding(ours, plain, [text_of(size, rng) for _ in range(ROUNDS)]) for size in sizes}
    found["encode a growing talk"] = next_turns(ours, plain, [text_of(512, rng) for _ in range(2 * ROUNDS)])
    ids = list(ours.encode(text_of(16_384, rng)))
    found |= {f"detokenize {count} tokens": detokenizing(ours, plain, ids[:count]) for count in (128, 512)}
    machine = (
        f"{platform.machine()}, Python {platform.python_version()}, tokenizers {tokenizers.__version__}; {encoder}"
    )
    rows = [
        f"{name:24} " + "  ".join(f"{key} {value:,.2f}" for key, value in row.items()) for name, row in found.items()
    ]
    print(json.dumps({"machine": machine, "results": found}) if asked.json else "\n".join([machine, *rows]))


if __name__ == "__main__":
    main()
