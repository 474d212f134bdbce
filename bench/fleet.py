"""A thousand attached engines: what joins, departures and idleness cost the server's event loop.

    python bench/fleet.py [--count 1000] [--leave 200] [--blocks 256] [--idle-s 10] [--json]

The engines are `jevons mock`, a process of its own; the server runs in this one, as `jevons serve` would. Each engine
first computes a prompt of so many blocks. Then, before the server: all are up and it starts (`start`); nothing happens
(`idle`); some crash at once (`leave`) and come back (`return`); metrics, snapshot and page are read once (`look`).

Turns of the loop are counted as `bench/turns.py` tells, with what was at work in the longest. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import uvloop
from bench.turns import Told, Turns

from jevons.cli.pages import live_pages
from jevons.config import make
from jevons.control.warm import warm
from jevons.engine.http_client import HttpClient, parse_url
from jevons.facts.worker import IndexMode
from jevons.serve.app import Server, serving

BLOCK = 16


@contextmanager
def fleet(count: int, folder: Path, blocks: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Its address, and its engines."""
    file = folder / "engines"
    options = ["mock", "--count", str(count), "--port", "0", "--out", str(file), "--speed", "50"]
    options += [] if blocks is None else ["--blocks", str(blocks)]
    said = folder / "said"
    with said.open("w") as errors:
        process = subprocess.Popen([sys.executable, "-m", "jevons", *options], stderr=errors)
    try:
        while "listening on" not in said.read_text():
            assert process.poll() is None, said.read_text()
            time.sleep(0.1)
        url = said.read_text().partition("listening on")[2].split()[0]
        yield url, file.read_text().split()
    finally:
        process.terminate()
        process.wait(20)


async def post(url: str, path: str, body: dict[str, Any]) -> None:
    client = HttpClient(parse_url("bench", url))
    async with client.request("POST", path, json.dumps(body).encode()) as response:
        answer = await response.body()
        assert response.status == 200, answer
    client.close()


async def fill(engines: list[str], blocks: int) -> None:
    """Have every engine compute a prompt of its own; a third of it is everybody's."""
    gate = asyncio.Semaphore(8)

    async def one(number: int, spec: str) -> None:
        shared, own = blocks // 3 * BLOCK, (blocks - blocks // 3) * BLOCK
        prompt = [*range(shared), *(1_000_000 + number * own + i for i in range(own + 1))]
        async with gate:
            body = {"model": "mock", "prompt": prompt, "max_tokens": 1}
            await post(spec.split(",")[0], "/v1/completions", body)

    await asyncio.gather(*(one(number, spec) for number, spec in enumerate(engines)))


async def phase(name: str, turns: Turns, act: Callable[[], Awaitable[None]], rows: dict[str, Any]) -> None:
    """Do it, and note what it cost."""
    turns.begin()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await act()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    rows[name] = {"wall_s": wall_s, "cpu_s": cpu_s, "turns": turns.told()._asdict()}


async def until(is_so: Callable[[], bool], turns: Turns, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            turns.skip()
            await asyncio.sleep(0.2)
    turns.skip()


def knows(server: Server, count: int, blocks: int) -> bool:
    """Whether so many workers are up and hold so many blocks all together."""
    router = server.router
    if len(router.roster.up()) != count:
        return False
    workers = router.snapshot().workers
    return sum(w.held_blocks for w in workers if w.index is IndexMode.EXACT) == blocks


async def measure(args: argparse.Namespace, url: str, engines: list[str]) -> dict[str, Any]:
    await fill(engines, args.blocks)
    count, held = len(engines), len(engines) * args.blocks
    settings = make({"engines": engines, "port": 0}, "bench")
    rows: dict[str, Any] = {}
    turns = Turns()
    async with serving(settings, None, pages=live_pages(None)) as server:

        async def start() -> None:
            await until(lambda: knows(server, count, held), turns)

        await phase("start", turns, start, rows)
        turns.end()
        cpu_s = time.process_time()
        await asyncio.sleep(args.idle_s)
        rows["idle"] = {"cpu_share": (time.process_time() - cpu_s) / args.idle_s}
        snapshot_s = time.thread_time()
        server.router.snapshot()
        rows["snapshot"] = {"cpu_ms": (time.thread_time() - snapshot_s) * 1e3}
        some = [f"{number:04}" for number in range(args.leave)]

        async def leave() -> None:
            await post(url, "/chaos", {"do": "crash", "engines": some})
            await until(lambda: len(server.router.roster.up()) == count - args.leave, turns)

        async def come_back() -> None:
            await post(url, "/chaos", {"do": "start", "engines": some})
            await until(lambda: knows(server, count, held - args.leave * args.blocks), turns)

        await phase("leave", turns, leave, rows)
        await phase("return", turns, come_back, rows)

        async def look() -> None:
            for path in ("/metrics", "/snapshot", "/ui/data"):
                read = partial(urlopen, server.url + path)
                assert (await asyncio.to_thread(read)).status == 200

        await phase("look", turns, look, rows)
        turns.end()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--leave", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=256)
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warm()
    with tempfile.TemporaryDirectory() as folder, fleet(args.count, Path(folder)) as (url, engines):
        rows = uvloop.run(measure(args, url, engines))
    if args.json:
        print(json.dumps(rows))
        return
    for name in ("start", "leave", "return", "look"):
        row = rows[name]
        print(f"{name:<7} {row['wall_s']:6.2f} s, CPU {row['cpu_s']:6.2f} s; {Told(**row['turns'])}")
        print(*(f"          {turn}" for turn in row["turns"]["worst"]), sep="\n")
    told = rows["snapshot"]["cpu_ms"]
    print(f"idle with {args.count} engines: {rows['idle']['cpu_share']:.1%} of a core; a snapshot takes {told:.1f} ms")


if __name__ == "__main__":
    main()
