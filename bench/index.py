"""The prefix index beside NVIDIA Dynamo's RadixTree (PyPI `ai-dynamo-runtime`), on the same blocks in the same run.

    python bench/index.py [--workers 8 1024 4096] [--entries 1000000] [--checks 100000] [--json]

An entry is one block on one worker. Conversations share system prompts, the first of which all workers hold, and go on
alone; four are 8,192 blocks long. Each side stores and is asked the same, in turns, pinned to one core. Dynamo's
binding takes events as JSON and hops to a thread for every call: the hop, an empty query, is told apart and is in its
other figures. It tells all workers that hold the first block; ours tells those that hold most and 32 of a crowd, which
is what a router asks, and all of them where the row says so. Memory is what the process grew by while it stored.

A call from Python costs ours most of a microsecond: how long a query takes inside a kernel, where the router asks, is
told besides. A thousand workers then join at once, each with 512 blocks, and leave. Last come random queries with
holes, answered as the index of plain dicts of the tests answers them. Without the package only our own numbers are
printed. What an event costs from its bytes: `bench/index_events.py`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tests.kv.dict_index import DictIndex

from jevons.base.compiled import Ints, Places, Records, compiled
from jevons.base.ids import BlockHash, WorkerId
from jevons.kv import overlaps
from jevons.kv.index import PrefixIndex

GROUPS = 200  # system prompts
EVENT_BLOCKS = 32
BATCH = 40_000  # entries stored by one side before the other's turn
LONG = 8_192
ASKED = 200  # queries of each kind, each asked by both sides in turns
JOINING = 1_000


@compiled
def _ask_again(hubs: Records, names: Ints, workers: Places, depths: Places, most: int, times: int) -> int:
    found = 0
    for _ in range(times):
        found += overlaps.overlaps(hubs[0], names, workers, depths, most)
    return found


@dataclass(frozen=True)
class Chain:
    """Blocks in a row. Dynamo asks by the hash of each one's own tokens; a name covers all before it too."""

    locals: Ints
    names: Ints

    def __add__(self, more: Chain) -> Chain:
        return Chain(np.concatenate([self.locals, more.locals]), np.concatenate([self.names, more.names]))

    def __getitem__(self, part: slice) -> Chain:
        return Chain(self.locals[part], self.names[part])

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Told:
    """What a worker stores in a row, after the block `parent`."""

    worker: int
    parent: int | None
    chain: Chain


@dataclass
class Load:
    """What is stored, and what is asked for."""

    workers: int
    entries: int
    everywhere: Chain  # what all workers hold
    kinds: dict[str, list[Chain]] = field(default_factory=dict)
    whole: list[Chain] = field(default_factory=list)
    long: list[Chain] = field(default_factory=list)

    @classmethod
    def of(cls, workers: int, entries: int) -> Load:
        draw = np.random.default_rng(0)
        return cls(workers, entries, _fresh(draw, max(32, min(LONG, entries // (4 * workers)))))

    def stored(self) -> Iterator[Told]:
        """Until there are so many entries; fills `whole` and `long` as it goes."""
        draw, count = np.random.default_rng(1), 0
        groups = [self.everywhere, *(_fresh(draw, int(n)) for n in draw.integers(16, 257, GROUPS - 1))]
        weights = 1.0 / np.arange(1, GROUPS + 1)
        have = set()
        for worker in range(self.workers):
            have.add((worker, 0))
            yield Told(worker, None, self.everywhere)
            count += len(self.everywhere)
        while count < self.entries:
            worker, group = int(draw.integers(self.workers)), int(draw.choice(GROUPS, p=weights / weights.sum()))
            is_long = len(self.long) < 4
            tail = _fresh(draw, LONG if is_long else int(draw.integers(16, 513)))
            chain = groups[group] + tail
            (self.long if is_long else self.whole).append(chain[:LONG])
            known = (worker, group) in have
            have.add((worker, group))
            told = tail if known else chain
            yield Told(worker, int(groups[group].names[-1]) if known else None, told)
            count += len(told)

    def asked(self) -> dict[str, list[Chain]]:
        draw, pick = np.random.default_rng(2), random.Random(3)
        whole = [c for c in self.whole if 360 <= len(c) <= 440]
        some = [pick.choice(whole) for _ in range(ASKED)]
        all_hold = self.everywhere
        return {
            "a miss, 512 blocks": [_fresh(draw, 512) for _ in some],
            "all hold it, 32 blocks": [all_hold[:32]] * ASKED,
            f"all hold it, {len(all_hold):,} blocks": [all_hold] * ASKED,
            "all hold 32, then new, 512 blocks": [all_hold[:32] + _fresh(draw, 480) for _ in some],
            "half of it, 400 blocks": [c[: len(c) // 2] + _fresh(draw, len(c) - len(c) // 2) for c in some],
            "whole, 400 blocks": some,
            f"whole, {LONG:,} blocks": [self.long[i % 4] for i in range(ASKED)],
        }


def _fresh(draw: np.random.Generator, blocks: int) -> Chain:
    return Chain(*draw.integers(2, 1 << 62, (2, blocks)))


class Cost:
    """CPU seconds, and bytes the process grew by, for so many entries."""

    def __init__(self) -> None:
        self.seconds, self.count, self.grown = 0.0, 0, 0

    def add(self, work: Callable[[], object], count: int) -> None:
        ctypes.CDLL(None).malloc_trim(0)  # lest one side grows into what the other's input took
        had, began = _resident(), time.process_time()
        work()
        self.seconds += time.process_time() - began
        self.grown += _resident() - had
        self.count += count

    @property
    def ns(self) -> float:
        return 1e9 * self.seconds / max(1, self.count)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Dynamo:
    """The peer: 64-bit local and chained hashes, JSON events."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self._events = 0

    def encoded(self, told: Told) -> list[tuple[int, bytes]]:
        rows = []
        parent = told.parent
        for at in range(0, len(told.chain), EVENT_BLOCKS):
            part = told.chain[at : at + EVENT_BLOCKS]
            pairs = zip(part.names.tolist(), part.locals.tolist(), strict=True)
            blocks = [{"block_hash": name, "tokens_hash": local} for name, local in pairs]
            self._events += 1
            stored = {"stored": {"parent_hash": parent, "blocks": blocks}}
            event = {"event_id": self._events, "data": stored, "dp_rank": 0}
            rows.append((told.worker, json.dumps(event, separators=(",", ":")).encode()))
            parent = int(part.names[-1])
        return rows

    def store(self, rows: list[tuple[int, bytes]]) -> None:
        for worker, row in rows:
            self.tree.apply_event(worker, row)


def peer() -> Dynamo | None:
    try:
        return Dynamo(importlib.import_module("dynamo.llm").RadixTree())
    except ImportError:
        return None


def parts_of(names: Ints) -> list[Ints]:
    return [names[at : at + EVENT_BLOCKS] for at in range(0, len(names), EVENT_BLOCKS)]


class Sides:
    """Our index and the peer's, with the same in both."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.index, self.theirs = PrefixIndex(), peer()
        warm(self.index)
        self.holdings = [self.index.holding(i) for i in range(load.workers)]
        self.stored, self.dynamo = Cost(), Cost()
        self.slowest_s = 0.0  # of our stores that were timed
        self.entries = self._batches = 0
        batch: list[Told] = []
        for told in load.stored():
            batch.append(told)
            if sum(len(t.chain) for t in batch) >= BATCH:
                self._store(batch)
                batch = []
        self._store(batch)

    def _store(self, batch: list[Told]) -> None:
        """Most batches count; of one in eight each of our stores is timed, which would take a sixth of what they do."""
        self._batches += 1
        count = sum(len(told.chain) for told in batch)
        self.entries += count
        ours = [(t.worker, part) for t in batch for part in parts_of(t.chain.names)]
        theirs = [] if self.theirs is None else [row for t in batch for row in self.theirs.encoded(t)]
        if self._batches % 8 == 0:
            self._time_each(ours)
            if self.theirs is not None:
                self.theirs.store(theirs)
            return
        self.stored.add(partial(self._store_ours, ours), count)
        if self.theirs is not None:
            self.dynamo.add(partial(self.theirs.store, theirs), count)

    def _store_ours(self, parts: list[tuple[int, Ints]]) -> None:
        for worker, names in parts:
            self.holdings[worker].store_names(names)

    def _time_each(self, parts: list[tuple[int, Ints]]) -> None:
        for worker, names in parts:
            began = time.thread_time()
            self.holdings[worker].store_names(names)
            self.slowest_s = max(self.slowest_s, time.thread_time() - began)

    def queries(self) -> dict[str, dict[str, float]]:
        """Median wall microseconds of one query, the sides in turns; they must find the same depth."""
        found = {}
        for kind, prompts in self.load.asked().items():
            found[kind] = self._ask(prompts, 32)
        found["all hold it, 32 blocks, all told"] = self._ask([self.load.everywhere[:32]] * ASKED, self.load.workers)
        if self.theirs is not None:
            found["the peer's hop"] = {
                "dynamo": median(_timed(partial(self.theirs.tree.find_matches, [])) for _ in range(ASKED))
            }
        return found

    def _ask(self, prompts: list[Chain], most: int) -> dict[str, float]:
        ours, theirs = [], []
        for prompt in prompts:
            ours.append(_timed(partial(self.index.find, prompt.names, most)))
            if self.theirs is not None:
                locals_ = prompt.locals.tolist()
                theirs.append(_timed(partial(self.theirs.tree.find_matches, locals_)))
                self._compare(prompt.names, locals_, most)
        inside = {"in a kernel": self._inside(prompts[0].names, most)}
        return {"jevons": median(ours)} | ({"dynamo": median(theirs)} if theirs else {}) | inside

    def _inside(self, names: Ints, most: int, times: int = 20) -> float:
        """Microseconds of one query among others, the best of a few."""
        room = np.zeros(2 * most, np.int32), np.zeros(2 * most, np.int32)
        again = partial(_ask_again, self.index.hub.record, names, *room, most, times)
        again()
        return min(_timed(again) for _ in range(5)) / times

    def _compare(self, names: Ints, locals_: list[int], most: int) -> None:
        assert self.theirs is not None
        scores = {worker: depth for (worker, _), depth in self.theirs.tree.find_matches(locals_).scores.items()}
        workers, depths = self.index.find(names, most)
        told = dict(zip(workers.tolist(), depths.tolist(), strict=True))
        assert all(scores[worker] == depth for worker, depth in told.items()), "the two indexes disagree"
        assert max(told.values(), default=0) == max(scores.values(), default=0), "the two indexes disagree"

    def crowd_ms(self) -> dict[str, float]:
        """CPU milliseconds: a thousand workers join and tell what they hold, all leave, others store; and the worst."""
        draw, first = np.random.default_rng(4), self.load.workers
        told = [draw.integers(2, 1 << 62, 512) for _ in range(JOINING)]
        joined = [self.index.holding(first + i) for i in range(JOINING)]
        acts: dict[str, list[Callable[[], None]]] = {
            "join": [partial(holding.store_names, names) for holding, names in zip(joined, told, strict=True)],
            "leave": [holding.end for holding in joined],
            "store then": [partial(self.holdings[0].store_names, names[:EVENT_BLOCKS]) for names in told],
        }
        costs = {what: [_cpu_ms(call) for call in calls] for what, calls in acts.items()}
        return {what: sum(ms) for what, ms in costs.items()} | {"slowest call": max(map(max, costs.values()))}

    def clear_us(self) -> dict[str, float]:
        """The worst of clearing a few workers."""
        found = {"jevons": max(_timed(self.holdings[i].clear) for i in range(4))}
        if self.theirs is not None:
            found["dynamo"] = max(_timed(partial(self.theirs.tree.remove_worker, i)) for i in range(4))
        return found


def _timed(work: Callable[[], object]) -> float:
    """Wall microseconds."""
    began = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - began)


def _cpu_ms(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - began)


def warm(index: PrefixIndex) -> None:
    """Kernels are compiled, or read from the disk, before anything is counted."""
    names = np.arange(1, 64)
    holding = index.holding(0)
    holding.store_names(names)
    index.find(names)
    holding.remove_names(names)
    index.make_room(1 << 15)
    holding.clear()
    index.sweep(1 << 15)


def table(workers: int, entries: int) -> dict[str, Any]:
    gc.disable()
    sides = Sides(Load.of(workers, entries))
    stored, dynamo = sides.stored, sides.dynamo
    ours = {"ns_per_entry": stored.ns, "bytes_per_entry": stored.grown / stored.count}
    record: dict[str, Any] = {"workers": workers, "entries": sides.entries, "stored": {"jevons": ours}}
    if dynamo.count:
        theirs = {"ns_per_entry": dynamo.ns, "bytes_per_entry": dynamo.grown / dynamo.count}
        record["stored"]["dynamo"] = theirs
    record["query_us"] = sides.queries()
    record |= {"clear_us": sides.clear_us(), "slowest_store_us": 1e6 * sides.slowest_s, "crowd_ms": sides.crowd_ms()}
    return record


def wrong_answers(checks: int, workers: int = 64, seed: int = 5) -> int:
    """Of so many random queries with holes, how many are not answered as by the index of dicts."""
    draw, index, dicts, wrong = random.Random(seed), PrefixIndex(), DictIndex(), 0
    ids = [WorkerId(str(i)) for i in range(workers)]
    holdings = [index.holding(i) for i in range(workers)]
    heads = [[draw.getrandbits(62) for _ in range(draw.randint(1, 24))] for _ in range(12)]
    chains = [draw.choice(heads) + [draw.getrandbits(62) for _ in range(draw.randint(0, 24))] for _ in range(400)]
    for check in range(checks):
        chain, at = draw.choice(chains), draw.randrange(workers)
        if check % 2:
            part = chain[: draw.randint(1, len(chain))]
            holdings[at].store_names(np.array(part))
            dicts.store(ids[at], _hashes(part))
        elif check % 4:
            part = draw.sample(chain, draw.randint(1, min(6, len(chain))))
            holdings[at].remove_names(np.array(part))
            dicts.remove(ids[at], _hashes(part))
        elif check % 400 == 0:
            holdings[at].clear()
            dicts.clear(ids[at])
        asked = draw.choice(chains)
        found, depths = index.find(np.array(asked), workers)
        told = {ids[w]: d for w, d in zip(found.tolist(), depths.tolist(), strict=True) if w >= 0}
        wrong += told != dicts.overlaps(_hashes(asked))
    return wrong


def _hashes(names: list[int]) -> list[BlockHash]:
    return [BlockHash(name.to_bytes(8, "big")) for name in names]


def report(record: dict[str, Any]) -> None:
    print(f"\n{record['entries']:,} entries on {record['workers']:,} workers")
    rows = [
        (what.replace("_", " ") + " stored", {side: r[what] for side, r in record["stored"].items()})
        for what in ("ns_per_entry", "bytes_per_entry")
    ]
    rows += [(f"us: {kind}", row) for kind, row in record["query_us"].items()]
    slowest = {"jevons": record["slowest_store_us"]}
    rows += [("us: clear a worker, the worst", record["clear_us"]), ("CPU us: our slowest store of 32", slowest)]
    for name, row in rows:
        cells = "".join(f"{row[side]:9.1f} {side}" if side in row else " " * 16 for side in ("jevons", "dynamo"))
        ratio = f"{row['dynamo'] / row['jevons']:8.1f} x" if "dynamo" in row and "jevons" in row else " " * 10
        inside = f"{row['in a kernel']:9.2f} in a kernel" if "in a kernel" in row else ""
        print(f"  {name:40}{cells}{ratio}{inside}")
    print(f"  CPU ms of {JOINING:,} workers: {', '.join(f'{act} {ms:.2f}' for act, ms in record['crowd_ms'].items())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 1_024, 4_096])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--checks", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    record: dict[str, Any] = {"tables": []}
    for workers in args.workers:
        record["tables"].append(table(workers, args.entries))
        if not args.json:
            report(record["tables"][-1])
    record["wrong"] = wrong_answers(args.checks)
    told = f"\n{record['wrong']} wrong of {args.checks:,} random queries with holes"
    print(json.dumps(record) if args.json else told)


if __name__ == "__main__":
    main()
