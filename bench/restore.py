"""Blocks back into an engine's cache, through a real keeper: from the shared arena, and from disk.

    python bench/restore.py

Beside them, in the same rounds: memcpy of the same bytes, and a plain sequential read of the same bytes in the same
state of the file cache. Every block is checked on the way. Blocks are SmolLM2-135M's, 368,640 bytes.
"""

from __future__ import annotations

import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from jevons.base.ids import BlockHash, BlockId
from jevons.engine.reference.exchange import Exchange
from jevons.facts.move import Answer, Arrived, Bring, Over, Save
from jevons.kv.layout import Layout
from jevons.store.node import Introduction, Node
from jevons.wire.channel import KeeperConfig

LAYOUT = Layout(30, 3, 64, 16, "bfloat16")
BLOCKS, BATCH, ROUNDS = 512, 128, 7
WAIT_S = 60.0


class Engine:
    """A cache and its node."""

    def __init__(self, socket: str) -> None:
        self.cache = torch.zeros(BLOCKS, *LAYOUT.shape, dtype=torch.bfloat16)
        self.cache.view(torch.int16).random_(-(1 << 15), 1 << 15)
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        own = Introduction("bench", b"f" * 16, LAYOUT.page_bytes)
        self.node = Node(Path(socket), own, Exchange(self.cache, LAYOUT, range(3)), self._answers.put)
        self._id = 0
        until(lambda: self.node.is_attached)

    def save(self, numbers: Sequence[int]) -> None:
        self._id += 1
        self.node.ask(Save(self._id, names(numbers), places(numbers), [0] * len(numbers), ""))
        over = self._answers.get(timeout=WAIT_S)
        assert over == Over(self._id, 0), over

    def bring(self, numbers: Sequence[int]) -> None:
        self._id += 1
        self.node.ask(Bring(self._id, names(numbers), places(numbers)))
        arrived = 0
        while not isinstance(answer := self._answers.get(timeout=WAIT_S), Over):
            assert isinstance(answer, Arrived), answer
            arrived += len(answer.blocks)
        assert arrived == len(numbers)


def names(numbers: Sequence[int]) -> list[BlockHash]:
    return [BlockHash(n.to_bytes(16, "big")) for n in numbers]


def places(numbers: Sequence[int]) -> list[BlockId]:
    return [BlockId(n % BLOCKS) for n in numbers]


@contextmanager
def keeper(config: KeeperConfig) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "jevons.serve.keeper"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        yield process
        process.stdin.close()


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def rate(work: Callable[[], None], size_bytes: int, keeper: int) -> tuple[float, float, float]:
    """GB/s, and CPU seconds a GB of this process and of the keeper."""
    used, kept = time.process_time(), cpu_of(keeper)
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    cpu = time.process_time() - used
    return size_bytes / seconds / 1e9, cpu / size_bytes * 1e9, (cpu_of(keeper) - kept) / size_bytes * 1e9


def cpu_of(pid: int) -> float:
    """CPU seconds of all its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def bring_twice(engine: Engine, numbers: Sequence[int]) -> None:
    engine.bring(numbers)
    engine.bring(numbers)


def main() -> None:
    torch.set_num_threads(1)
    size = BATCH * LAYOUT.page_bytes
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        plain.write_bytes(os.urandom(1 << 20) * (BLOCKS * LAYOUT.page_bytes >> 20))
        source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
        into = memoryview(bytearray(LAYOUT.page_bytes))

        def copy() -> None:
            for at in range(0, size, LAYOUT.page_bytes):
                target[at : at + LAYOUT.page_bytes] = source[at : at + LAYOUT.page_bytes]

        def read(numbers: range) -> None:
            with plain.open("rb", buffering=0) as file:
                for n in numbers:
                    os.preadv(file.fileno(), [into], n * LAYOUT.page_bytes)

        config = KeeperConfig(
            socket=f"{folder}/k",
            dram_bytes=(BATCH + 16) * (LAYOUT.page_bytes + 4096),
            disk_path=f"{folder}/kv",
            disk_bytes=4 << 30,
        )
        with keeper(config) as process:
            engine = Engine(config.socket)
            for first in range(0, BLOCKS, 64):
                engine.save(range(first, first + 64))
                time.sleep(0.5)  # the disk is behind: what is not written yet keeps its place
            recent = range(BLOCKS - 64, BLOCKS)
            for i in range(ROUNDS):
                old = range(i % 3 * BATCH, (i % 3 + 1) * BATCH)
                engine.bring(recent)
                measured = {
                    "memcpy": rate(copy, size, process.pid),
                    "from the arena": rate(partial(bring_twice, engine, recent), size, process.pid),
                    "plain read, cached": rate(partial(read, old), size, process.pid),
                    "from disk, cached": rate(partial(engine.bring, old), size, process.pid),
                }
                for name, value in measured.items():
                    rows.setdefault(name, []).append(value)
            engine.node.close()
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in rows.items()}
    for name, (gb_s, cpu, kept) in medians.items():
        peer = "memcpy" if name in ("memcpy", "from the arena") else "plain read, cached"
        share, copied = gb_s / medians[peer][0], gb_s / medians["memcpy"][0]
        print(f"{name:20} {gb_s:6.2f} GB/s  {share:4.0%} of {peer}, {copied:4.0%} of memcpy", end="")
        print(f"; CPU s/GB {cpu:.2f} here, {kept:.2f} keeper")


if __name__ == "__main__":
    main()
