"""Minutes of steady, moderate load through a server before mock engines: does anything grow?

    python bench/steady.py [--minutes 10] [--engines 64] [--rate 10] [--json]

Three processes: the engines (`jevons mock`), the server as `jevons serve` runs it, page and metrics included, and this
one, which begins conversations of six turns at a steady rate (so many requests a second) and reads /metrics, /snapshot
and the page's data every five seconds, as who watches a server does. The engines' pools are full after two minutes, so
from then on as many blocks are removed as stored; and what was answered is kept for rehearsals (`control.lived`) for
KEPT_S instead of ten minutes, or nothing could be flat before.

Told of each tenth of the time: requests and errors, and of the server memory, threads, open files, CPU and the turns of
its event loop (`bench/turns.py`). At the end memory in the middle is held to that at the end: the rule is that it stays
(GROWTH), with no error. Ends with 1 if not. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from bench.fleet import fleet
from bench.turns import Told, Turns

from jevons.cli.pages import live_pages
from jevons.config import make
from jevons.control import lived
from jevons.engine.http_client import HttpClient, parse_url
from jevons.engine.openai import OpenAIEngine
from jevons.engine.specs import read_specs
from jevons.serve.app import serving
from jevons.serve.load import COMPLETIONS, Measured, send

GROWTH = 0.02  # of memory, from the middle to the end
KEPT_S = 60.0
TURNS, TURN_TOKENS, ANSWER_TOKENS, SHARED_TOKENS = 6, 96, 16, 256
GROUPS = 16  # of conversations that begin alike
THINK_S = 2.0
WATCH_S = 5.0
WATCHED = ("/metrics", "/snapshot", "/ui/data")
ROWS = 10


async def serve(file: str) -> None:
    """The server's process: for each line that comes it tells of its turns since the last one."""
    lived.LATELY_S = KEPT_S
    settings = make({"engines": [f"@{file}"], "port": 0}, "bench")
    async with serving(settings, None, pages=live_pages(None)) as server:
        print(server.url, flush=True)
        turns = Turns()
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(turns.told()._asdict()), flush=True)
            turns.begin()
        turns.end()


class ServerProcess:
    def __init__(self, engines: Path) -> None:
        command = [sys.executable, __file__, "--serve", str(engines)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.url = self._read()

    def looked_at(self) -> dict[str, Any]:
        """Turns since the last time; what it takes now."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        turns, proc = json.loads(self._read()), Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        ticks = (proc / "stat").read_text().rpartition(")")[2].split()
        return {
            "rss_mb": int(status["VmRSS"].split()[0]) / 1e3,
            "threads": int(status["Threads"]),
            "open_files": len(os.listdir(proc / "fd")),
            "cpu_s": (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK"),
            "turns": turns,
        }

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server ended"
        return line.strip()


class Clients:
    """Conversations that begin at a steady rate, each turn with all that was said before."""

    def __init__(self, url: str) -> None:
        self._engine = OpenAIEngine(read_specs([url])[0])
        self._draw = random.Random(1)
        self._groups = [self._tokens(SHARED_TOKENS) for _ in range(GROUPS)]
        self._under_way: set[asyncio.Task[None]] = set()
        self.requests = self.watched = 0
        self.errors: list[str] = []

    async def begin(self, until_s: float, requests_per_s: float) -> None:
        while (now_s := time.monotonic()) < until_s:
            talk = asyncio.create_task(self._talk())
            self._under_way.add(talk)
            talk.add_done_callback(self._under_way.discard)
            await asyncio.sleep(max(0.0, now_s + TURNS / requests_per_s - time.monotonic()))
        await asyncio.gather(*self._under_way)

    async def watch(self, url: str) -> None:
        """As Prometheus and an open page do, until cancelled."""
        client = HttpClient(parse_url("bench", url))
        while True:
            for path in WATCHED:
                async with client.request("GET", path, b"") as response:
                    await response.body()
                    self.watched += 1
                    if response.status != 200:
                        self.errors.append(f"{path}: {response.status}")
            await asyncio.sleep(WATCH_S)

    async def _talk(self) -> None:
        prompt = [*self._draw.choice(self._groups)]
        for turn in range(TURNS):
            await asyncio.sleep(THINK_S if turn else 0.0)
            prompt += self._tokens(TURN_TOKENS)
            body = {"model": "mock", "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0}
            self._note(await send(self._engine, COMPLETIONS, body))
            prompt += self._tokens(ANSWER_TOKENS)

    def _note(self, answer: Measured) -> None:
        self.requests += 1
        if answer.error is not None:
            self.errors.append(answer.error)

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(1_000, 1 << 20) for _ in range(count)]


async def drive(server: ServerProcess, args: argparse.Namespace) -> list[dict[str, Any]]:
    clients, began_s, span_s = Clients(server.url), time.monotonic(), 60 * args.minutes
    watching = asyncio.create_task(clients.watch(server.url))
    talking = asyncio.create_task(clients.begin(began_s + span_s, args.rate))
    rows: list[dict[str, Any]] = []
    for row in range(ROWS + 1):
        await asyncio.sleep(max(0.0, began_s + span_s * row / ROWS - time.monotonic()))
        now = {"at_s": time.monotonic() - began_s, "requests": clients.requests, "errors": len(clients.errors)}
        rows.append(now | server.looked_at())
        if not args.json:
            _print(rows[-1])
    await talking
    watching.cancel()
    for error in clients.errors[:3]:
        print(error)
    return rows


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['at_s']:6.0f} s: {row['requests']:,} requests, {row['errors']} errors; {row['rss_mb']:.1f} MB, "
        f"{row['threads']} threads, {row['open_files']} files, {row['cpu_s']:.1f} s CPU; {Told(**row['turns'])}",
        *row["turns"]["worst"][:2],
        sep="\n           ",
        flush=True,
    )


def is_steady(rows: list[dict[str, Any]]) -> bool:
    middle, end = rows[len(rows) // 2], rows[-1]
    growth = end["rss_mb"] / middle["rss_mb"] - 1
    print(
        f"memory from the middle to the end {growth:+.2%} (the rule: {GROWTH:.0%}), threads "
        f"{end['threads'] - middle['threads']:+}, open files {end['open_files'] - middle['open_files']:+}, "
        f"{end['errors']} errors in {end['requests']:,} requests",
        file=sys.stderr,
    )
    return growth <= GROWTH and not end["errors"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        uvloop.run(serve(args.serve))
        return 0
    blocks = max(128, round(args.rate * 100 * (TURN_TOKENS + ANSWER_TOKENS) / 16 / args.engines))
    with tempfile.TemporaryDirectory() as folder, fleet(args.engines, Path(folder), blocks) as (_, engines):
        file = Path(folder) / "named"
        file.write_text("\n".join(engines))
        server = ServerProcess(file)
        rows = uvloop.run(drive(server, args))
        server.stop()
    if args.json:
        print(json.dumps(rows))
    return 0 if is_steady(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
