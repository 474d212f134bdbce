"""Pages from a process's arena to another's: every link against `memcpy`, in one run.

    python bench/link.py [--json]

Pages of 368,640 bytes (16 tokens of SmolLM2-135M in bf16), in batches. CPU is that of all processes that take part, the
reader's and the source's. NIXL needs the extra `nixl`; over shared memory it stands for hardware that reads remote
memory by itself, for there the source has nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import uvloop

from jevons.serve.stdio import stdin_closed, tell
from jevons.store.arena import Arena
from jevons.wire.link import Link, LinkAddress, Range, Source
from jevons.wire.nixl_link import NixlLink, NixlSource
from jevons.wire.nixl_process import installed
from jevons.wire.tcp_link import TcpLink, TcpSource

PAGE, BATCHES = 368_640, (1, 8, 64)
TURN_PAGES = 64  # of each contender, one batch after the other
ARENA_BYTES = 256 * PAGE
ROUNDS, MOST_S = 25, 35.0
READ_S = 30.0
HOST = "127.0.0.1"
Work = Callable[[list[Range]], Awaitable[None]]


async def serve(kind: str, ready: int) -> None:
    arena = Arena.create(ARENA_BYTES)
    arena.memory[:] = os.urandom(PAGE) * (ARENA_BYTES // PAGE)
    source: Source = await (NixlSource if kind == "nixl" else TcpSource).open(arena, HOST)
    tell(ready, source.address)
    await stdin_closed()
    await source.close()


@contextmanager
def serving(kind: str) -> Iterator[tuple[int, LinkAddress]]:
    """A source in a process of its own: its id and address."""
    command = [sys.executable, __file__, "--source", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, msgspec.json.decode(process.stdout.readline(), type=LinkAddress)
        process.stdin.close()


def cpu_s(pids: list[int]) -> float:
    """What all threads of these processes have computed so far."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def with_children(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


class Contender:
    """One way to bring pages, and what its turns took so far: by batch, seconds and CPU seconds."""

    def __init__(self, name: str, work: Work, pids: list[int]) -> None:
        self.name, self.work, self.pids = name, work, pids
        self.took: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}

    async def run(self, batch: int, shift: int) -> None:
        pages = [((shift + n) % (ARENA_BYTES // PAGE)) * PAGE for n in range(TURN_PAGES)]
        ranges = [Range(page, ARENA_BYTES - PAGE - page, PAGE) for page in pages]
        cpu, start = cpu_s(self.pids), time.perf_counter()
        for first in range(0, TURN_PAGES, batch):
            await self.work(ranges[first : first + batch])
        wall_s = time.perf_counter() - start
        self.took[batch].append((wall_s, cpu_s(self.pids) - cpu))

    def rates(self, batch: int) -> tuple[float, float]:
        """GB/s of the median turn, and CPU seconds per GB over all."""
        walls, cpus = zip(*self.took[batch], strict=True)
        gb = TURN_PAGES * PAGE / 1e9
        return gb / statistics.median(walls), sum(cpus) / (gb * len(cpus))


async def contend(sources: dict[str, tuple[int, LinkAddress]]) -> list[Contender]:
    arena, other = Arena.create(ARENA_BYTES), Arena.create(ARENA_BYTES)
    arena.memory[:] = other.memory[:] = bytes(ARENA_BYTES)  # every page is there

    async def copy(ranges: list[Range]) -> None:
        for remote, local, size in ranges:
            arena.memory[local : local + size] = other.memory[remote : remote + size]

    contenders, links = [Contender("memcpy", copy, [os.getpid()])], []
    for name, (pid, address) in sources.items():
        choose_transport(name)
        link: Link = (NixlLink if address.kind == "nixl" else TcpLink)(address, HOST, arena)
        links.append(link)
        before = with_children(os.getpid())
        await link.read([Range(0, 0, PAGE)], READ_S)  # connected
        started = [pid for pid in with_children(os.getpid()) if pid not in before]
        contenders.append(Contender(name, reading(link), [os.getpid(), *started, *with_children(pid)]))
    await take_turns(contenders)
    for link in links:
        await link.close()
    return contenders


def reading(link: Link) -> Work:
    return lambda ranges: link.read(ranges, READ_S)


async def take_turns(contenders: list[Contender]) -> None:
    """So that a busy moment of the machine hits all."""
    end_s = time.monotonic() + MOST_S
    for round in range(ROUNDS):
        for batch in BATCHES:
            for contender in contenders:
                await contender.run(batch, round * 17)
        if time.monotonic() > end_s:
            break


def choose_transport(name: str) -> None:
    """For NIXL processes that are started from now on."""
    if name == "nixl, TCP":
        os.environ["UCX_TLS"] = "tcp"
    else:
        os.environ.pop("UCX_TLS", None)


def measure() -> list[Contender]:
    kinds = {"tcp": "tcp"}
    if installed() is not None:
        kinds |= {"nixl, shared memory": "nixl", "nixl, TCP": "nixl"}
    sources = {}
    with ExitStack() as stack:
        for name, kind in kinds.items():
            choose_transport(name)
            sources[name] = stack.enter_context(serving(kind))
        return uvloop.run(contend(sources))


def results(contenders: list[Contender]) -> dict[str, dict[str, float]]:
    found = {}
    for batch in BATCHES:
        limit, _ = contenders[0].rates(batch)
        for contender in contenders:
            rate, cpu = contender.rates(batch)
            row = {"gb_per_s": rate, "of_memcpy": rate / limit, "cpu_s_per_gb": cpu}
            found[f"{batch} pages, {contender.name}"] = row | {"turns": len(contender.took[batch])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.source is not None:
        ready = os.dup(1)
        os.dup2(2, 1)
        uvloop.run(serve(asked.source, ready))
        return
    load = os.getloadavg()[0]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load before {load:.1f}"
    )
    found = results(measure())
    rows = [
        f"{name:32} " + "  ".join(f"{key} {value:.3g}" for key, value in row.items()) for name, row in found.items()
    ]
    print(json.dumps({"machine": machine, "results": found}) if asked.json else "\n".join([machine, *rows]))


if __name__ == "__main__":
    main()
