"""What the front costs: CPU per request and per streamed chunk of `jevons serve`, beside vllm-router (Rust).

    python bench/door.py [--requests 1500] [--rounds 3] [--json]

Two stub engines answer at once; the front under test relays. Targets take turns in one run, medians count. CPU is that
of the front's own process, from /proc. `kv` knows each worker's blocks by the prompts it placed; `cache_aware` is the
peer's likeness of it. vllm-router (PyPI, 0.1.17) is left out where it is not installed. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from jevons.base.errors import JevonsError
from jevons.engine.openai import Answer, OpenAIEngine, parse_spec
from jevons.serve.http import EVENT_STREAM, Door, Reply, Request

CHUNKS = 50
RUNNING = 8
CHUNK = b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":" word","finish_reason":null}]}\n\n'
WHOLE = json.dumps(
    {
        "id": "c",
        "object": "text_completion",
        "model": "stub",
        "choices": [{"index": 0, "text": " word", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9},
    }
).encode()
MODELS = b'{"object":"list","data":[{"id":"stub","object":"model","max_model_len":32768}]}'
SCENARIOS = ("small", "16 KB prompt", "stream")


async def stub(request: Request, reply: Reply) -> None:
    """An engine that takes no time."""
    if request.method == "GET":
        reply.send(200, MODELS)
    elif not request.path.startswith("/v1/"):
        reply.send(404, b'{"error":"no such path"}')
    elif b'"stream":true' in request.body.replace(b" ", b""):
        reply.start(200, EVENT_STREAM)
        for _ in range(CHUNKS):
            reply.write(CHUNK)
            await asyncio.sleep(0.002)
        reply.write(b"data: [DONE]\n\n")
        reply.end()
    else:
        reply.send(200, WHOLE)


async def serve_stub(port: int) -> None:
    door = Door(stub, lambda status, message: json.dumps({"error": message}).encode())
    await door.listen("127.0.0.1", port)
    await asyncio.Event().wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def process(*command: str) -> Iterator[int]:
    """Runs `command` meanwhile; gives its pid."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield running.pid
    finally:
        running.terminate()
        running.wait(20)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until_ready(url: str) -> None:
    body = json.dumps({"model": "stub", "prompt": "ready?", "max_tokens": 1}).encode()
    for _ in range(300):
        engine = OpenAIEngine(parse_spec(url))
        try:
            answer = await engine.whole("/v1/completions", body)
            if answer.status == 200:
                return
        except (JevonsError, OSError):
            pass
        finally:
            engine.close()
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


async def load(url: str, scenario: str, requests: int) -> int:
    """Send `requests`, eight at a time; returns how many things (requests or chunks) passed."""
    engine = OpenAIEngine(parse_spec(url))
    words = "lorem ipsum dolor sit amet " * (16_384 // 27)
    passed = 0

    async def one(number: int) -> None:
        nonlocal passed
        prompt = f"{number % 7} {words}" if scenario == "16 KB prompt" else f"hello {number % 7}"
        body: dict[str, Any] = {"model": "stub", "prompt": prompt, "max_tokens": CHUNKS}
        if scenario != "stream":
            answer = await engine.whole("/v1/completions", json.dumps(body).encode())
            assert answer.status == 200, answer.body
            passed += 1
            return
        chunks = 0
        async for event in engine.stream("/v1/completions", json.dumps({**body, "stream": True}).encode()):
            assert not isinstance(event, Answer), event
            chunks += event.has_choices
        assert chunks == CHUNKS, f"{chunks} of {CHUNKS} chunks came"
        passed += chunks

    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            await one(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(RUNNING):
            tasks.create_task(client())
    engine.close()
    return passed


async def measure(targets: dict[str, tuple[str, int]], requests: int, rounds: int) -> list[dict[str, Any]]:
    for url, _ in targets.values():
        await until_ready(url)
    rows = []
    for scenario in SCENARIOS:
        count = max(16, requests // 10) if scenario == "stream" else requests
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
        for round_ in range(rounds + 1):
            for name, (url, pid) in targets.items():
                cpu, wall = cpu_s(pid), time.perf_counter()
                passed = await load(url, scenario, count)
                if round_:  # the first one warms up
                    costs[name].append(((cpu_s(pid) - cpu) / passed, (time.perf_counter() - wall) / passed))
        for name, pairs in costs.items():
            cpu, wall = (1e6 * median(column) for column in zip(*pairs, strict=True))
            rows.append({"scenario": scenario, "target": name, "cpu_us": cpu, "wall_us": wall})
    return rows


def run(requests: int, rounds: int) -> list[dict[str, Any]]:
    one, two, *ports = free_ports(6)
    backends = [f"http://127.0.0.1:{port}" for port in (one, two)]
    me, targets = [sys.executable, __file__], {}
    with ExitStack() as running:
        pids = [running.enter_context(process(*me, "--stub", str(port))) for port in (one, two)]
        targets["direct"] = (backends[0], pids[0])
        engines = [word for url in backends for word in ("--engine", url)]
        for policy in ("round_robin", "kv"):
            port = ports.pop()
            command = [sys.executable, "-m", "jevons", "serve", "--policy", policy, "--port", str(port), *engines]
            targets[f"jevons {policy}"] = (f"http://127.0.0.1:{port}", running.enter_context(process(*command)))
        peer = shutil.which("vllm-router") or shutil.which("vllm-router", path=str(Path(sys.executable).parent))
        for policy in ("round_robin", "cache_aware") if peer else ():
            port, metrics = ports.pop(), free_ports(1)[0]
            flags = f"--host 127.0.0.1 --port {port} --prometheus-port {metrics} --log-level warning --policy {policy}"
            command = [str(peer), *flags.split(), "--worker-urls", *backends]
            targets[f"vllm-router {policy}"] = (f"http://127.0.0.1:{port}", running.enter_context(process(*command)))
        return uvloop.run(measure(targets, requests, rounds))


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'':14}{'':26}{'CPU us':>9}{'wall us':>9}   per request, or per chunk of a stream")
    for row in rows:
        peer = next((r for r in rows if r["scenario"] == row["scenario"] and "vllm-router r" in r["target"]), None)
        ratio = f"   {row['cpu_us'] / peer['cpu_us']:.2f} x vllm-router's round robin" if peer else ""
        ratio = ratio if row["target"].startswith("jevons") else ""
        print(f"{row['scenario']:14}{row['target']:26}{row['cpu_us']:9.1f}{row['wall_us']:9.1f}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stub", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stub:
        uvloop.run(serve_stub(args.stub))
        return
    rows = run(args.requests, args.rounds)
    print(json.dumps(rows)) if args.json else report(rows)


if __name__ == "__main__":
    main()
