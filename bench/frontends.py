"""Several frontends beside one: what a request costs, how much of its prompt is found cached, and restarts.

    python bench/frontends.py [--requests 3000] [--rounds 3] [--talks 24] [--json]

cost       stub engines answer at once; requests a second and CPU us of a request, all frontends together, by /proc
reuse      `jevons mock` engines; talks side by side, each request over a new connection; cached share of prompt tokens
restart    the same talks; then the server (1) or one frontend of several is killed; seconds until what it knows of each
           block is what the engines hold, counted from when it listens, and the cached share of the next talks

Servers of 1 and N frontends take turns, medians count. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from bench.door import cpu_s, free_ports, load, process, until_ready

SYSTEM, TURN, TURNS, GROUPS, ENGINES, AT_ONCE = 512, 256, 6, 6, 8, 8
READ_S = 30.0
START_S = 120.0


class Server:
    """A `jevons serve` of so many frontends."""

    def __init__(self, frontends: int, engines: list[str], state: Path) -> None:
        self.frontends = frontends
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        flags = ["--frontends", str(frontends), "--port", str(port), "--state", str(state), *engines]
        self._command = [sys.executable, "-m", "jevons", "serve", *flags]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(READ_S)

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = get(self.url + "/snapshot")
        return found

    def pids(self) -> list[int]:
        """Of all its processes."""
        return [self.process.pid, *(f["pid"] for f in self.snapshot()["frontends"])]

    def cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.pids())


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=READ_S) as response:
        return json.loads(response.read())


def until(is_so: Any) -> float:
    """Seconds until it holds; what cannot be asked yet does not."""
    began_s = time.monotonic()
    while True:
        try:
            if is_so():
                return time.monotonic() - began_s
        except (OSError, urllib.error.URLError):
            pass
        if time.monotonic() - began_s > START_S:
            raise SystemExit("it does not come")
        time.sleep(0.005)


# Cost


async def _loads(url: str, requests: int, sides: int) -> None:
    """Over as many connections as eight clients of several processes have, spread by the kernel."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(sides):
            tasks.create_task(load(url, requests // sides))


def cost(counts: list[int], requests: int, rounds: int) -> list[dict[str, Any]]:
    ports = free_ports(2)
    engines = [word for port in ports for word in ("--engine", f"http://127.0.0.1:{port}")]
    rows: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    with ExitStack() as running, tempfile.TemporaryDirectory() as folder:
        for port in ports:
            running.enter_context(process(sys.executable, "bench/door.py", "--stub", str(port)))
        servers = [Server(count, engines, Path(folder) / str(count)) for count in counts]
        for server in servers:
            running.callback(server.stop)
            uvloop.run(until_ready(server.url))
            until(
                lambda server=server: len(server.snapshot()["frontends"]) == server.frontends * (server.frontends > 1)
            )
        for round_ in range(rounds + 1):
            for server in servers:
                cpu, wall = server.cpu_s(), time.perf_counter()
                uvloop.run(_loads(server.url, requests, 4))
                took = time.perf_counter() - wall
                if round_:  # the first one warms up
                    rows[server.frontends].append((requests / took, 1e6 * (server.cpu_s() - cpu) / requests))
    return [
        {"frontends": count, "requests_per_s": median(r for r, _ in row), "cpu_us": median(c for _, c in row)}
        for count, row in rows.items()
    ]


# Reuse


def prompt_of(talk: int, turn: int, story: int) -> list[int]:
    """Talks in groups with a system prompt each; each turn has all that was said before."""
    group, own = 1_000_000 * (story + 1) + 2_000 * (talk % GROUPS), 1_000_000 * (story + 1) + 100_000 + 5_000 * talk
    return [group + i for i in range(SYSTEM)] + [own + i for i in range(TURN * (turn + 1))]


def ask(url: str, prompt: list[int]) -> int:
    """How many of its tokens were cached. Streamed, so that the router learns when the first token came."""
    asked = {"model": "mock", "prompt": prompt, "max_tokens": 4, "stream": True}
    body = json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()
    with urllib.request.urlopen(urllib.request.Request(url + "/v1/completions", body), timeout=READ_S) as response:
        events = [json.loads(line[6:]) for line in response.read().decode().split("\n\n") if line[6:7] == "{"]
    cached: int = events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def play(url: str, talks: int, story: int) -> float:
    """The share of prompt tokens that was cached, of talks side by side."""

    def talk(number: int) -> int:
        return sum(ask(url, prompt_of(number, turn, story)) for turn in range(TURNS))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        cached = sum(pool.map(talk, range(talks)))
    return cached / sum(len(prompt_of(talk, turn, 0)) for talk in range(talks) for turn in range(TURNS))


@contextmanager
def mock_server(count: int, folder: str, speed: float) -> Iterator[tuple[Server, str]]:
    """A server before engines that keep few batches for replays."""
    (port,), file = free_ports(1), Path(folder) / f"engines{count}"
    command = [sys.executable, "-m", "jevons", "mock", "--count", str(ENGINES), "--port", str(port)]
    flags = ["--speed", str(speed), "--blocks", "20000", "--replay-batches", "100", "--out", str(file)]
    at = f"http://127.0.0.1:{port}"
    with process(*command, *flags):
        until(lambda: get(at + "/held"))
        server = Server(count, ["--engine", f"@{file}"], Path(folder) / f"state{count}")
        try:
            until(lambda: is_up(server))
            yield server, at
        finally:
            server.stop()


def is_up(server: Server) -> bool:
    now = server.snapshot()
    several = server.frontends > 1
    return len(now["frontends"]) == server.frontends * several and all(w["health"] == "up" for w in now["workers"])


def is_equal(server: Server, at: str) -> bool:
    """Whether every process that answers knows as many blocks of each engine as that has."""
    truth = {id: len(names) for id, names in get(at + "/held").items()}
    for _ in range(4 * server.frontends):  # connections go to any of them
        if {w["id"].rpartition("/")[2]: w["held_blocks"] for w in server.snapshot()["workers"]} != truth:
            return False
    return True


def restart(server: Server, at: str) -> float:
    """Kill it, or one of its frontends. Returns seconds from when it listens until it knows what there is."""
    if server.frontends == 1:
        server.stop()  # its file is whole; then more happens that is not in it
        server.start()
        until(lambda: is_up(server))
        play(server.url, 2, 91)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(READ_S)
        server.start()
        until(server.snapshot)
    else:
        old = server.snapshot()["frontends"][1]["pid"]
        os.kill(old, signal.SIGKILL)
        until(lambda: is_up(server) and server.snapshot()["frontends"][1]["pid"] != old)
    return until(lambda: is_equal(server, at))


def reuse(counts: list[int], talks: int, rounds: int, speed: float) -> list[dict[str, Any]]:
    shares: dict[int, list[tuple[float, float, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        servers = [running.enter_context(mock_server(count, folder, speed)) for count in counts]
        for server, _ in servers:
            play(server.url, talks, 90)  # prices are learned, more batches sent than are kept
        for round_ in range(rounds):
            for server, at in servers:
                before = play(server.url, talks, 2 * round_)
                seconds = restart(server, at)
                after = play(server.url, talks, 2 * round_ + 1)
                shares[server.frontends].append((before, after, seconds))
    return [
        {
            "frontends": count,
            **dict(zip(("before", "after", "equal_s"), map(median, zip(*row, strict=True)), strict=True)),
        }
        for count, row in shares.items()
    ]


def report(costs: list[dict[str, Any]], shares: list[dict[str, Any]]) -> None:
    one = costs[0]
    for row in costs:
        ratio = row["requests_per_s"] / one["requests_per_s"], row["cpu_us"] / one["cpu_us"]
        print(
            f"cost     {row['frontends']} frontends: {row['requests_per_s']:8.0f} requests/s ({ratio[0]:.2f} x one), "
            f"{row['cpu_us']:6.1f} us CPU a request ({ratio[1]:.2f} x one)"
        )
    for row in shares:
        print(
            f"reuse    {row['frontends']} frontends: {row['before']:.3f} of prompt tokens cached "
            f"({row['before'] / shares[0]['before']:.3f} x one); after a kill {row['after']:.3f} "
            f"({row['after'] / row['before']:.3f} x before), index equal {row['equal_s']:.2f} s after it listens"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--talks", type=int, default=24)
    parser.add_argument("--frontends", type=int, default=2)
    parser.add_argument("--speed", type=float, default=2.0, help="of the engines' clock")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    counts = [1, args.frontends]
    costs = cost(counts, args.requests, args.rounds)
    shares = reuse(counts, args.talks, args.rounds, args.speed)
    print(json.dumps({"cost": costs, "reuse": shares})) if args.json else report(costs, shares)


if __name__ == "__main__":
    main()
