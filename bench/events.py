"""KV events beside NVIDIA Dynamo (PyPI `ai-dynamo-runtime`), the sides in turns in one run.

    python bench/events.py [--blocks 100000] [--sources 64] [--json]
    python bench/events.py --poll 4096

The first: CPU from an event's bytes until the index knows of it, with 32 blocks an event and with one, all on one CPU.
Ours reads what engines send: msgpack with token ids, from which it names the blocks. Dynamo's RadixTree takes JSON with
both hashes ready, so it neither reads tokens nor names blocks; what our naming takes is told apart, and so are its hops
to the thread that it lives in, and what it takes where that thread may be on another CPU. Then names of prompts, CPU a
token, beside `compute_block_hash_for_seq`, from a list and from an array.

The second: what so many sources take to listen to, over sockets, with publishers in another process.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zmq

from jevons.base.ids import BlockHash
from jevons.control.intake import Intake
from jevons.control.reading import Scratch
from jevons.facts.event import BlocksStored, KvPayload
from jevons.kv.blake2b import name_chain, name_prompt
from jevons.kv.hashing import block_hashes, root
from jevons.kv.index import PrefixIndex
from jevons.wire.codec import encode_batch, encode_seq
from jevons.wire.sources import Sources

SIZE = 16  # tokens in a block
CHAIN = 128  # blocks
TURNS = 7
PROMPT_TOKENS = 8_192


class Feed:
    """The same conversations as both sides are told of them: (source, bytes)."""

    def __init__(self, blocks: int, sources: int, per_event: int, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.ours: list[tuple[int, KvPayload]] = []
        self.theirs: list[tuple[int, bytes]] = []
        seqs = [0] * sources
        for _ in range(max(1, blocks // CHAIN)):
            tokens, source = [draw.randrange(128_000) for _ in range(CHAIN * SIZE)], draw.randrange(sources)
            names = block_hashes(tokens, SIZE)
            for at in range(0, CHAIN, per_event):
                hashes = [_number(name) for name in names[at : at + per_event]]
                parent = _number(names[at - 1]) if at else None
                self._add(source, seqs[source], hashes, parent, tokens[at * SIZE : (at + per_event) * SIZE])
                seqs[source] += 1
        self.blocks = max(1, blocks // CHAIN) * CHAIN

    def _add(self, source: int, seq: int, hashes: list[int], parent: int | None, tokens: list[int]) -> None:
        stored = BlocksStored(hashes=list(hashes), parent=parent, tokens=tokens, block_size=SIZE, medium="GPU")
        self.ours.append((source, KvPayload(seq, encode_batch(0.0, [stored]))))
        blocks = [{"block_hash": h, "tokens_hash": h ^ 1} for h in hashes]
        event = {"event_id": seq, "data": {"stored": {"parent_hash": parent, "blocks": blocks}}, "dp_rank": 0}
        self.theirs.append((source, json.dumps(event, separators=(",", ":")).encode()))


def _number(name: BlockHash) -> int:
    return int.from_bytes(name[-8:], "big") >> 1


class Nothing:
    """An index that keeps nothing: what is measured with it is all that comes before."""

    def store_names(self, names: object) -> None: ...


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def take(intakes: list[Intake], feed: Feed) -> None:
    for source, payload in feed.ours:
        intakes[source].on_batch(payload)


def intakes_of(holdings: list[Any]) -> list[Intake]:
    scratch = Scratch()
    return [Intake(holding, scratch=scratch) for holding in holdings]


def stored(feed: Feed, sources: int, tree: Any) -> dict[str, float]:
    """CPU ns a block, medians of turns; each side stores all into an empty index, which is there before."""
    costs: dict[str, list[float]] = {"read and named": [], "visible in the index": [], "dynamo": []}
    for _ in range(TURNS):
        costs["read and named"].append(cpu_s(partial(take, intakes_of([Nothing()] * sources), feed)))
        index = PrefixIndex()
        intakes = intakes_of([index.holding(n) for n in range(sources)])
        costs["visible in the index"].append(cpu_s(partial(take, intakes, feed)))
        if tree is not None:
            costs["dynamo"].append(cpu_s(partial(apply, tree(), feed.theirs)))
            costs.setdefault("… of which hops to its thread", []).append(_hop_s(tree(), len(feed.theirs)))
            costs.setdefault("… its thread on any CPU", []).append(cpu_s(partial(apply, _free(tree), feed.theirs)))
    return {side: 1e9 * median(seconds) / feed.blocks for side, seconds in costs.items() if seconds}


def apply(tree: Any, events: list[tuple[int, bytes]]) -> None:
    for source, event in events:
        tree.apply_event(source, event)
    tree.find_matches([1])  # whose thread has then done all that came before


def _free(tree: Any) -> Any:
    """One whose thread may run on any CPU."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    made = tree()
    os.sched_setaffinity(0, mine)
    return made


def _hop_s(tree: Any, times: int) -> float:
    """What so many calls take that do nothing there: queries of no block."""
    tree.find_matches([])
    return cpu_s(lambda: [tree.find_matches([]) for _ in range(times)])


def named(theirs: Any) -> dict[str, float]:
    """CPU ns a token of a prompt's names, medians of turns."""
    tokens = [random.Random(1).randrange(128_000) for _ in range(PROMPT_TOKENS)]
    buffer, numbers = array("I", tokens), np.zeros(2 * PROMPT_TOKENS // SIZE, np.int64)
    parent = np.frombuffer(root(SIZE), np.int64)

    works: dict[str, Callable[[], object]] = {
        "kernel, from an array": lambda: name_chain(parent, np.frombuffer(buffer, np.uint32), SIZE, numbers),
        "prompt, from an array": lambda: name_prompt(buffer, SIZE),
        "prompt, from a list": lambda: name_prompt(tokens, SIZE),
        "hashlib, from a list": lambda: block_hashes(tokens, SIZE),
    }
    if theirs is not None:
        works["dynamo, from a list"] = lambda: theirs(tokens, SIZE)
    costs: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(TURNS):
        for name, work in works.items():
            work()
            costs[name].append(cpu_s(lambda w=work: [w() for _ in range(50)]) / 50)  # type: ignore[misc]
    return {name: 1e9 * median(seconds) / PROMPT_TOKENS for name, seconds in costs.items()}


def table_bytes() -> float:
    """Bytes a block that the table of an engine's names takes, mean over its sizes from 1,000 to 100,000 blocks."""
    from jevons.kv.engine_names import EngineNames

    table, draw, shares = EngineNames(), random.Random(2), []
    for block in range(100_000):
        table.put(draw.randrange(1 << 64), BlockHash(block.to_bytes(16, "big")))
        if block >= 1_000 and block % 100 == 0:
            shares.append(table.size_bytes / len(table))
    return sum(shares) / len(shares)


def publish(count: int) -> None:
    """Another process: so many publishers, whose ports are printed; a batch of each for every line on stdin."""
    made = [Feed(CHAIN, 1, 32, seed) for seed in range(count)]
    context = zmq.Context[Any]()
    context.set(zmq.MAX_SOCKETS, 2 * count)
    sockets = [context.socket(zmq.PUB) for _ in range(count)]
    print(json.dumps([socket.bind_to_random_port("tcp://127.0.0.1") for socket in sockets]), flush=True)
    for seq, _ in enumerate(sys.stdin):
        for socket, feed in zip(sockets, made, strict=True):
            socket.send_multipart([b"kv", encode_seq(seq), feed.ours[seq][1].payload])
    context.destroy(linger=0)


async def poll(count: int) -> dict[str, float]:
    """What `count` sources take."""
    command = [sys.executable, __file__, "--publish", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: ASYNC220 — once
        assert other.stdin is not None
        assert other.stdout is not None
        ports = json.loads(other.stdout.readline())
        heard = 0

        def count_batch(intake: Intake, batch: KvPayload) -> None:
            nonlocal heard
            heard += 1
            intake.on_batch(batch)

        before_bytes, threads = _rss_bytes(), threading.active_count()
        sources, index, told = Sources(), PrefixIndex(), list[bool]()
        made = intakes_of([index.holding(n) for n in range(count)])
        take(intakes_of([PrefixIndex().holding(0)]), Feed(CHAIN, 1, 32))  # compiled now
        began_s = time.process_time()
        for port, intake in zip(ports, made, strict=True):
            sources.listen(f"tcp://127.0.0.1:{port}", partial(count_batch, intake), intake.on_garbage, told.append)
        listening_s = time.process_time() - began_s
        await asyncio.sleep(3.0)
        idle_s = cpu_s(lambda: time.sleep(1.0))
        took_bytes, files = _rss_bytes() - before_bytes, len(os.listdir("/proc/self/fd"))
        gaps = asyncio.create_task(_longest_gap_s())
        began_s = time.process_time()
        for _ in range(4):
            other.stdin.write(b"\n")
            other.stdin.flush()
        async with asyncio.timeout(120.0):
            while heard < 4 * count:  # noqa: ASYNC110 — sockets tell nobody else
                await asyncio.sleep(0.05)
        busy_s = time.process_time() - began_s
        gaps.cancel()
        other.stdin.close()
        sources.close()
    return {
        "sources": count,
        "threads more": threading.active_count() - threads,
        "open files": files,
        "KiB a source": took_bytes / count / 1024,
        "us CPU to listen to one": 1e6 * listening_s / count,
        "CPU while idle, share": idle_s,
        "us CPU a batch of 32 blocks": 1e6 * busy_s / (4 * count),
        "longest hold of the loop, ms": 1e3 * max(_HELD_S, default=0.0),
    }


_HELD_S: list[float] = []


async def _longest_gap_s() -> None:
    while True:
        began_s = time.perf_counter()
        await asyncio.sleep(0)
        _HELD_S.append(time.perf_counter() - began_s)
        await asyncio.sleep(0.001)


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(blocks: int, sources: int) -> dict[str, Any]:
    try:
        peer = importlib.import_module("dynamo.llm")
    except ImportError:
        peer = None
    take(intakes_of([PrefixIndex().holding(n) for n in range(sources)]), Feed(4 * CHAIN, sources, 32))  # compiled now
    record: dict[str, Any] = {"ns a block": {}}
    for per_event in (32, 1):
        feed = Feed(blocks if per_event > 1 else blocks // 4, sources, per_event)
        record["ns a block"][str(per_event)] = stored(feed, sources, peer and peer.RadixTree)
    record["ns a token"] = named(peer and peer.compute_block_hash_for_seq)
    record["bytes a block, engine's names"] = table_bytes()
    return record


def report(record: dict[str, Any]) -> None:
    for per_event, row in record["ns a block"].items():
        print(f"CPU ns a block, {per_event} blocks an event:")
        _rows(row, row.get("dynamo"))
    print("CPU ns a token of a prompt's names:")
    _rows(record["ns a token"], record["ns a token"].get("dynamo, from a list"))
    print(f"bytes a block of the table of engines' names: {record['bytes a block, engine' + chr(39) + 's names']:.1f}")


def _rows(row: dict[str, float], peer: float | None) -> None:
    for name, ns in row.items():
        print(f"  {name:30}{ns:10.1f}" + (f"   {peer / ns:5.2f} x dynamo's rate" if peer else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--sources", type=int, default=64)
    parser.add_argument("--poll", type=int)
    parser.add_argument("--publish", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.publish is not None:
        publish(args.publish)
        return
    if args.poll is not None:
        found = asyncio.run(poll(args.poll))
        print(json.dumps(found) if args.json else "\n".join(f"{name:32}{value:12.2f}" for name, value in found.items()))
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    record = run(args.blocks, args.sources)
    print(json.dumps(record)) if args.json else report(record)


if __name__ == "__main__":
    main()
