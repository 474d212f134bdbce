"""How much of a trace's prompts could be reused at most, whoever routes it: all workers' pools seen as one.

    python bench/bounds.py TRACE [--instances 8,64,1024] [--json]

A trace in Mooncake's format; pools as `bench/twin.py` has them, of so many instances together. Requests come one after
another and are computed at once. `lru` lets go what was used longest ago, which no router over LRU pools beats but by
luck; `belady` what is used farthest in the future, the optimum, which has to know it; `infinite` nothing. Of a chain
the tail goes first. Blocks are the trace's own, of 512 tokens.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

BLOCK = 512
POOL_TOKENS = 16_384 * 64  # of one instance
STEP = 64  # what is reused is of blocks of these
NEVER = 1 << 60


class Asked(NamedTuple):
    prompt_tokens: int
    ids: Sequence[int]


class Bounds(NamedTuple):
    """Shares of all prompt tokens."""

    lru: float
    belady: float
    infinite: float

    def __str__(self) -> str:
        return f"all pools as one: LRU {self.lru:.2%}, Belady {self.belady:.2%}, without end {self.infinite:.2%}"


class Pool(Protocol):
    def holds(self, id: int) -> bool: ...
    def use(self, ids: Sequence[int], number: int) -> None: ...


class Lru:
    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._held: OrderedDict[int, None] = OrderedDict()

    def holds(self, id: int) -> bool:
        return id in self._held

    def use(self, ids: Sequence[int], number: int) -> None:
        for id in reversed(ids):
            self._held[id] = None
            self._held.move_to_end(id)
        while len(self._held) > self._blocks:
            self._held.popitem(last=False)


class Belady:
    """`asked`: all that will be asked."""

    def __init__(self, blocks: int, asked: Sequence[Asked]) -> None:
        self._blocks = blocks
        self._next: dict[int, int] = {}  # of what is held
        self._uses: dict[int, deque[int]] = {}
        for number, (_, ids) in enumerate(asked):
            for id in ids:
                self._uses.setdefault(id, deque()).append(number)
        self._farthest: list[tuple[int, int, int]] = []  # -next use, -place in its chain, id; some are outdated

    def holds(self, id: int) -> bool:
        return id in self._next

    def use(self, ids: Sequence[int], number: int) -> None:
        for place, id in enumerate(ids):
            uses = self._uses[id]
            while uses and uses[0] <= number:
                uses.popleft()
            self._next[id] = next = uses[0] if uses else NEVER
            heapq.heappush(self._farthest, (-next, -place, id))
        while len(self._next) > self._blocks:
            next, _, id = heapq.heappop(self._farthest)
            if self._next.get(id) == -next:
                del self._next[id]


def reused(asked: Sequence[Asked], pool: Pool) -> float:
    """The share of all prompt tokens that `pool` had."""
    found = 0
    for number, (prompt_tokens, ids) in enumerate(asked):
        depth = next((depth for depth, id in enumerate(ids) if not pool.holds(id)), len(ids))
        found += min(depth * BLOCK, (prompt_tokens - 1) // STEP * STEP)  # the last token is always computed
        pool.use(ids, number)
    return found / sum(prompt_tokens for prompt_tokens, _ in asked)


def bounds(asked: Sequence[Asked], instances: int) -> Bounds:
    blocks, distinct = instances * POOL_TOKENS // BLOCK, len({id for _, ids in asked for id in ids})
    return Bounds(reused(asked, Lru(blocks)), reused(asked, Belady(blocks, asked)), reused(asked, Lru(distinct)))


def read(path: Path) -> list[Asked]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Asked(row["input_length"], row["hash_ids"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--instances", default="8,64,1024")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    asked = read(args.trace)
    found = {int(count): bounds(asked, int(count)) for count in args.instances.split(",")}
    if args.json:
        print(json.dumps({count: each._asdict() for count, each in found.items()}))
        return
    for count, each in found.items():
        print(f"{count:>5} instances, {each}")


if __name__ == "__main__":
    main()
