"""From the bytes of KV events to answers, beside NVIDIA Dynamo's standalone indexer (`python -m dynamo.indexer`).

    python bench/index_events.py [--blocks 200000] [--workers 8] [--json]

Both read the same batches, as vLLM sends them: events of 32 blocks with their tokens, from which both name the blocks
again. Dynamo's is a process of its own that subscribes to each worker over ZMQ and answers over HTTP; its CPU seconds
are the process's, so sockets and threads are in them, as are a few queries by which it is seen how far it is. Ours is
the intake that the router's event loop calls; CPU seconds are this process's. A query is a prompt's tokens in, depths
out: Dynamo's over HTTP with the bare round trip (`/health`) told apart, ours named and asked in the process, where the
router is. Without the package only our own numbers are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import zmq

from jevons.control.intake import Intake
from jevons.facts.event import BlocksStored, KvPayload
from jevons.kv.hashing import block_hashes
from jevons.kv.index import PrefixIndex, names_of
from jevons.wire.codec import encode_batch, encode_seq

SIZE = 16  # tokens in a block
EVENT_BLOCKS = 32
CHAIN = 200  # blocks of a prompt, all in one batch
AT_ONCE = 50  # batches, before it is seen whether they have arrived
ASKED = 100
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Batch:
    worker: int
    seq: int
    tokens: list[int]
    raw: bytes


def batches(workers: int, blocks: int) -> Iterator[Batch]:
    draw, seqs = random.Random(0), [0] * workers
    for at in range(blocks // CHAIN):
        worker, tokens = at % workers, [draw.randrange(50_000) for _ in range(SIZE * CHAIN)]
        yield Batch(worker, seqs[worker], tokens, encode_batch(0.0, _events(tokens)))
        seqs[worker] += 1


def _events(tokens: list[int]) -> list[BlocksStored]:
    """As an engine tells of them: runs of blocks, each with the one before."""
    hashes = [int.from_bytes(h[-8:], "big") for h in block_hashes(tokens, SIZE)]
    return [
        BlocksStored(
            hashes=list(hashes[at : at + EVENT_BLOCKS]),
            parent=hashes[at - 1] if at else None,
            tokens=tokens[at * SIZE : (at + EVENT_BLOCKS) * SIZE],
            block_size=SIZE,
        )
        for at in range(0, len(hashes), EVENT_BLOCKS)
    ]


class Ours:
    def __init__(self, workers: int) -> None:
        self.index = PrefixIndex()
        self._intakes = [Intake(self.index.holding(i)) for i in range(workers)]
        self.cpu_s = 0.0

    def take(self, part: list[Batch]) -> None:
        began = time.process_time()
        for batch in part:
            self._intakes[batch.worker].on_batch(KvPayload(batch.seq, batch.raw))
        self.cpu_s += time.process_time() - began

    def ask(self, tokens: list[int]) -> int:
        return int(max(self.index.find(names_of(block_hashes(tokens, SIZE)))[1], default=0))


class Indexer:
    """The peer: its process, and a socket for each worker that it subscribes to."""

    def __init__(self, port: int, pid: int, workers: int) -> None:
        self._door, self._pid = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S), pid
        context: zmq.Context[Any] = zmq.Context.instance()
        self._sockets = [context.socket(zmq.PUB) for _ in range(workers)]
        for worker, sender in enumerate(self._sockets):
            sender.setsockopt(zmq.SNDHWM, 0)
            at = f"tcp://127.0.0.1:{sender.bind_to_random_port('tcp://127.0.0.1')}"
            self.get("/register", {"instance_id": worker, "endpoint": at, "model_name": "m", "block_size": SIZE})
        time.sleep(1.0)  # subscriptions hold
        self._idle_s = self._cpu_s()

    def get(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        how = ("GET", path) if body is None else ("POST", path, json.dumps(body), {"content-type": "application/json"})
        self._door.request(*how)
        answer = self._door.getresponse()
        found = answer.read()
        assert answer.status < 300, f"{path}: {answer.status} {found!r}"
        return found

    def take(self, part: list[Batch]) -> None:
        for batch in part:
            self._sockets[batch.worker].send_multipart([b"", encode_seq(batch.seq), batch.raw])
        for batch in part[-len(self._sockets) :]:
            self._wait_for(batch)

    def _wait_for(self, batch: Batch) -> None:
        end = time.monotonic() + PATIENCE_S
        while self.ask(batch.tokens) < CHAIN:
            assert time.monotonic() < end, "the peer lost a batch"
            time.sleep(0.01)

    def ask(self, tokens: list[int]) -> int:
        found = json.loads(self.get("/query", {"token_ids": tokens, "model_name": "m"}))["instances"]
        return max((int(one["longest_matched"]) // SIZE for one in found.values()), default=0)

    @property
    def cpu_s(self) -> float:
        return self._cpu_s() - self._idle_s

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def peer(workers: int) -> Iterator[Indexer | None]:
    if importlib.util.find_spec("dynamo") is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dynamo.indexer", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, env=os.environ | {"DYN_LOG": "error"})
    try:
        _await_answer(port)
        yield Indexer(port, process.pid, workers)
    finally:
        process.terminate()
        process.wait(10)


def _await_answer(port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=PATIENCE_S).close()
        except urllib.error.URLError:
            assert time.monotonic() < end, "the peer does not answer"
            time.sleep(0.05)
        else:
            return


def run(workers: int, blocks: int) -> dict[str, Any]:
    made = list(batches(workers, blocks))
    Ours(1).take([batch for batch in made if batch.worker == 0][:2])  # kernels are compiled before anything is counted
    ours = Ours(workers)
    with peer(workers) as theirs:
        for at in range(0, len(made), AT_ONCE):
            ours.take(made[at : at + AT_ONCE])
            if theirs is not None:
                theirs.take(made[at : at + AT_ONCE])
        count = len(made) * CHAIN
        cost = {"jevons": 1e9 * ours.cpu_s / count}
        if theirs is not None:
            cost["dynamo"] = 1e9 * theirs.cpu_s / count
        return {"blocks": count, "ns_per_block": cost, "query_us": _queries(made, ours, theirs)}


def _queries(made: list[Batch], ours: Ours, theirs: Indexer | None) -> dict[str, float]:
    """Median wall microseconds of a whole prompt, the sides in turns; they must find the same depth."""
    taken: dict[str, list[float]] = {}
    for batch in random.Random(1).sample(made, min(ASKED, len(made))):
        depth = _timed(taken, "jevons", partial(ours.ask, batch.tokens))
        names = names_of(block_hashes(batch.tokens, SIZE))
        _timed(taken, "jevons, named before", partial(ours.index.find, names))
        if theirs is not None:
            asked = _timed(taken, "dynamo", partial(theirs.ask, batch.tokens))
            _timed(taken, "dynamo's round trip", partial(theirs.get, "/health"))
            assert depth == asked == CHAIN, "the two indexes disagree"
    return {side: median(us) for side, us in taken.items()}


def _timed(taken: dict[str, list[float]], side: str, work: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = work()
    taken.setdefault(side, []).append(1e6 * (time.perf_counter() - began))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    record = run(args.workers, args.blocks)
    if args.json:
        print(json.dumps(record))
        return
    print(f"{record['blocks']:,} blocks of {args.workers} workers, from event bytes; CPU ns a block:")
    for side, ns in record["ns_per_block"].items():
        print(f"  {side:24}{ns:10.0f}")
    print(f"wall us for {CHAIN} blocks, tokens in, depths out, median:")
    for side, us in record["query_us"].items():
        print(f"  {side:24}{us:10.1f}")


if __name__ == "__main__":
    main()
