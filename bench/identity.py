"""How many greedy answers depend on who else is served: in the fast mode, and in the batch-invariant one.

    python bench/identity.py [--prompts 50] [--json]

Each prompt is answered alone with nothing cached, then all at once with shared prefixes, then once more from the cache.
An answer differs if any of its tokens does; log-probabilities are compared where the tokens are equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from jevons.config import make
from jevons.engine.openai import OpenAIEngine
from jevons.engine.pull import resolve
from jevons.engine.specs import parse_spec
from jevons.serve.app import serving
from jevons.twin.workload import Chat, Conversation, conversations

OUTPUT_TOKENS = 32
MODEL = "smollm2-135m"

Row = list[tuple[str, float]]  # tokens with their log-probabilities


async def ask(engine: OpenAIEngine, talk: Conversation, salt: str) -> Row:
    body = {
        "model": MODEL,
        "messages": [{"role": "system", "content": talk.system}, {"role": "user", "content": talk.turns[0]}],
        "temperature": 0,
        "max_tokens": OUTPUT_TOKENS,
        "logprobs": True,
        "cache_salt": salt,
    }
    answer = await engine.whole("/v1/chat/completions", json.dumps(body).encode())
    assert answer.status == 200, answer.body
    rows = json.loads(answer.body)["choices"][0]["logprobs"]["content"]
    return [(row["token"], row["logprob"]) for row in rows]


async def measure(talks: list[Conversation], invariant: bool) -> dict[str, Any]:
    """Two workers, round robin, small steps: prompts are cut, mixed and cached as badly as can be."""
    settings = make(
        {"model": MODEL, "workers": 2, "policy": "round_robin", "port": 0, "step_tokens": 48, "invariant": invariant},
        "bench",
    )
    async with serving(settings, Path(resolve(MODEL))) as server:
        await server.ready(120.0, workers=2)
        engine = OpenAIEngine(parse_spec(server.url))
        alone = [await ask(engine, talk, f"alone {i}") for i, talk in enumerate(talks)]
        together = await asyncio.gather(*(ask(engine, talk, "together") for talk in talks))
        again = [await ask(engine, talk, "together") for talk in talks]
        engine.close()
    return {"batched": compare(alone, together), "cached": compare(alone, again)}


def compare(expected: list[Row], got: list[Row]) -> dict[str, Any]:
    differ = sum([t for t, _ in a] != [t for t, _ in b] for a, b in zip(expected, got, strict=True))
    pairs = [(x, y) for a, b in zip(expected, got, strict=True) for x, y in zip(a, b, strict=False)]
    gaps = [abs(p - q) for (t, p), (u, q) in pairs if t == u]
    return {"share_that_differs": differ / len(expected), "largest_logprob_gap": max(gaps, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    chat = Chat(conversations=args.prompts, turns=1, groups=5, system_tokens=70, turn_tokens=30, seed=3)
    talks = conversations(chat)
    modes = (("fast", False), ("invariant", True))
    record = {name: asyncio.run(measure(talks, invariant)) for name, invariant in modes}
    if args.json:
        print(json.dumps(record))
        return
    print(f"{args.prompts} prompts, {OUTPUT_TOKENS} greedy tokens each, against the same prompt alone and uncached:")
    for mode, kinds in record.items():
        for kind, row in kinds.items():
            gap = f"largest log-probability gap {row['largest_logprob_gap']:.4g}"
            print(f"  {mode:10} {kind:8} {row['share_that_differs']:6.1%} differ, {gap}")


if __name__ == "__main__":
    main()
