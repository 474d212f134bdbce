"""The prefix index beside NVIDIA Dynamo's RadixTree (PyPI `ai-dynamo-runtime`), on the same blocks in the same run.

    python bench/index.py [--workers 64] [--blocks 200000] [--json]

Conversations share system prompts (held by many workers) and go on alone; each side stores and queries the same chains,
in turns. Ours is measured twice: the index by itself, and all from the bytes of a KV event (decoding, naming the blocks
again from their tokens, storing), which is what a live router pays. Dynamo's binding takes events as JSON and hops to a
thread for every call. Without the package only our own numbers are printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from jevons.base.ids import BlockHash
from jevons.control.intake import Intake
from jevons.facts.event import BlocksStored
from jevons.kv.hashing import block_hashes
from jevons.kv.index import Holding, PrefixIndex
from jevons.wire.codec import decode_batch, encode_batch

SIZE = 16  # tokens in a block
EVENT_BLOCKS = 32
SYSTEMS = 40
BATCH = 50  # chains stored by one side before the other's turn


@dataclass(frozen=True)
class Chain:
    """The blocks of one conversation on one worker."""

    worker: int
    tokens: list[int]
    hashes: list[BlockHash]


@dataclass
class Cost:
    """CPU seconds and how many things they bought."""

    seconds: float = 0.0
    count: int = 0

    def add(self, work: Callable[[], object], count: int) -> None:
        began = time.process_time()
        work()
        self.seconds += time.process_time() - began
        self.count += count

    @property
    def ns(self) -> float:
        return 1e9 * self.seconds / max(1, self.count)


def chains(workers: int, blocks: int, seed: int = 0) -> Iterator[Chain]:
    """Conversations of 40 to 400 blocks, until there are `blocks`; popular system prompts are on many workers."""
    draw = random.Random(seed)
    systems = [[draw.randrange(50_000) for _ in range(SIZE * draw.randint(8, 64))] for _ in range(SYSTEMS)]
    weights = [1 / (i + 1) for i in range(SYSTEMS)]
    made = 0
    while made < blocks:
        system = draw.choices(systems, weights)[0]
        tokens = system + [draw.randrange(50_000) for _ in range(SIZE * draw.randint(32, 336))]
        yield Chain(draw.randrange(workers), tokens, block_hashes(tokens, SIZE))
        made += len(tokens) // SIZE


def events(chain: Chain) -> list[BlocksStored]:
    """As an engine tells of them: runs of blocks, each with the one before."""
    return [
        BlocksStored(
            hashes=list(chain.hashes[at : at + EVENT_BLOCKS]),
            parent=chain.hashes[at - 1] if at else None,
            tokens=chain.tokens[at * SIZE : (at + EVENT_BLOCKS) * SIZE],
            block_size=SIZE,
        )
        for at in range(0, len(chain.hashes), EVENT_BLOCKS)
    ]


class Dynamo:
    """The peer: 64-bit local and chained hashes, JSON events."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._events = 0

    def encoded(self, chain: Chain) -> list[tuple[int, bytes]]:
        rows = []
        for at in range(0, len(chain.hashes), EVENT_BLOCKS):
            part = chain.hashes[at : at + EVENT_BLOCKS]
            blocks = [{"block_hash": _number(h), "tokens_hash": _local(h)} for h in part]
            stored = {"parent_hash": _number(chain.hashes[at - 1]) if at else None, "blocks": blocks}
            self._events += 1
            event = {"event_id": self._events, "data": {"stored": stored}, "dp_rank": 0}
            rows.append((chain.worker, json.dumps(event, separators=(",", ":")).encode()))
        return rows

    def store(self, rows: list[tuple[int, bytes]]) -> None:
        for worker, row in rows:
            self._tree.apply_event(worker, row)

    def depths(self, locals_: list[int]) -> int:
        scores = self._tree.find_matches(locals_).scores
        return max(scores.values(), default=0)


def _number(name: BlockHash) -> int:
    return int.from_bytes(name[-8:], "big") >> 1


def _local(name: BlockHash) -> int:
    return int.from_bytes(name[:8], "big") >> 1


def peer() -> Dynamo | None:
    try:
        return Dynamo(importlib.import_module("dynamo.llm").RadixTree())
    except ImportError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    record = run(args.workers, args.blocks)
    print(json.dumps(record)) if args.json else report(record)


def run(workers: int, blocks: int) -> dict[str, Any]:
    made = list(chains(workers, blocks))
    index, behind, theirs = PrefixIndex(), PrefixIndex(), peer()
    holdings = [index.holding(i) for i in range(workers)]
    intakes = [Intake(behind.holding(i)) for i in range(workers)]
    warm(index)
    seqs = [0] * workers
    stored, whole, dynamo = Cost(), Cost(), Cost()
    for at in range(0, len(made), BATCH):
        part = made[at : at + BATCH]
        count = sum(len(c.hashes) for c in part)
        stored.add(partial(store, holdings, part), count)
        payloads = []
        for c in part:
            payloads.append((c.worker, seqs[c.worker], encode_batch(0.0, events(c))))
            seqs[c.worker] += 1
        whole.add(partial(take, intakes, payloads), count)
        if theirs is not None:
            rows = [row for c in part for row in theirs.encoded(c)]
            dynamo.add(partial(theirs.store, rows), count)
    record: dict[str, Any] = {
        "workers": workers,
        "blocks": sum(len(c.hashes) for c in made),
        "store_ns_per_block": {"index": stored.ns, "from_event_bytes": whole.ns},
        "query_us": {},
    }
    if theirs is not None:
        record["store_ns_per_block"]["dynamo_radix_tree_from_json"] = dynamo.ns
    record["query_us"] = queries(made, behind, theirs)
    return record


def warm(index: PrefixIndex) -> None:
    """Kernels are compiled, or read from the disk, before anything is counted."""
    names = block_hashes(list(range(64)), SIZE)
    holding = index.holding(0)
    holding.store(names)
    index.overlaps(names, 4_096)
    holding.remove(names)


def store(holdings: list[Holding], part: list[Chain]) -> None:
    for chain in part:
        holdings[chain.worker].store(chain.hashes)


def take(intakes: list[Intake], payloads: list[tuple[int, int, bytes]]) -> None:
    for worker, seq, raw in payloads:
        intakes[worker].on_batch(decode_batch(seq, raw))


def queries(made: list[Chain], index: PrefixIndex, theirs: Dynamo | None) -> dict[str, Any]:
    """Median wall microseconds of one query, the sides in turns; they must find the same depth."""
    draw = random.Random(1)
    picked = [draw.choice(made) for _ in range(300)]
    kinds = {
        "whole chain": [c.hashes for c in picked],
        "shared prefix, new tail": [[*c.hashes[:24], *block_hashes(_fresh(draw), SIZE)] for c in picked],
        "nothing": [block_hashes(_fresh(draw), SIZE) for _ in picked],
    }
    found: dict[str, Any] = {}
    for kind, prompts in kinds.items():
        ours_s, theirs_s = [], []
        for hashes in prompts:
            began = time.perf_counter()
            depths = index.overlaps(hashes, 4_096)
            ours_s.append(time.perf_counter() - began)
            if theirs is not None:
                locals_ = [_local(h) for h in hashes]
                began = time.perf_counter()
                deepest = theirs.depths(locals_)
                theirs_s.append(time.perf_counter() - began)
                assert deepest == max(depths.values(), default=0), "the two indexes disagree"
        found[kind] = {"jevons": 1e6 * median(ours_s)}
        if theirs_s:
            found[kind]["dynamo"] = 1e6 * median(theirs_s)
    return found


def _fresh(draw: random.Random) -> list[int]:
    return [draw.randrange(50_000, 100_000) for _ in range(SIZE * 200)]


def report(record: dict[str, Any]) -> None:
    print(f"{record['blocks']:,} blocks on {record['workers']} workers; CPU ns a block stored:")
    peer_ns = record["store_ns_per_block"].get("dynamo_radix_tree_from_json")
    for name, ns in record["store_ns_per_block"].items():
        ratio = f"   {ns / peer_ns:5.2f} x dynamo" if peer_ns else ""
        print(f"  {name:30}{ns:10.0f}{ratio}")
    print("wall us a query, median:")
    for kind, row in record["query_us"].items():
        ratio = f"   {row['jevons'] / row['dynamo']:5.2f} x dynamo ({row['dynamo']:.0f})" if "dynamo" in row else ""
        print(f"  {kind:30}{row['jevons']:10.1f}{ratio}")


if __name__ == "__main__":
    main()
