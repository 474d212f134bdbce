"""What the door costs: CPU, latency, affinity of `jevons serve`, beside vllm-router and sglang-router (Rust).

    python bench/door.py [--rounds 5] [--seconds 1.5] [--only short-1,16k] [--peers DIR] [--tokenizer DIR]
                         [--prefill RATE] [--json]

    short-1     one connection, prompts of 64 bytes: what is added to the engine's own time
    short-64    64 connections, the same: CPU per request
    16k         32 connections, 16 KB of which 64 groups share 80 %: CPU per request, and affinity: how often a group's
                prompt went where its last one went
    light       8 streams at 50 tokens/s each: time to first token, one-way time of a chunk
    streams     256 streams at 50 tokens/s each: CPU per chunk

Two stub engines that take no time, one load generator, each a process of its own on bare asyncio protocols; targets
take turns within a round, medians of the rounds count. `bare relay` is what Python itself can do: a process on uvloop
that passes bytes on to an engine and back, each client's connection to one of the engine's, and looks at none of them:
two reads and two writes a request, as every proxy has. CPU is that of the target's process, all its threads; the
generator manages some 15,000 requests/s, so `direct` and fast peers are bound by it, CPU per request is not. `kv`
tokenizes every prompt with the model's tokenizer (SmolLM2's; `--tokenizer ''`: by its bytes), names its blocks, places
it; it knows workers by what it placed on them, as there are no KV events. With engines that take no time a cache saves
none, and `kv` goes by who has least to do; with `--prefill` they take time, one prompt after another, for so many
tokens a second (of four bytes) of what they do not hold, so affinity means something. The peers (`pip install
vllm-router==0.1.17 sglang-router==0.3.2` into a venv, `--peers VENV/bin`) are left out where they are not installed.
Linux only.
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
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple, cast

import uvloop

from jevons.engine.openai import OpenAIEngine
from jevons.engine.pull import resolve
from jevons.engine.specs import parse_spec

PACE_S, CHUNKS = 0.02, 50
RUNNING = 8
BARE = "bare relay"
SHARED_BYTES, SHARED_BEGINS, BYTES_A_TOKEN = 13_107, 100, 4
WORDS = (
    "the",
    "cache",
    "of",
    "every",
    "token",
    "model",
    "server",
    "and",
    "route",
    "with",
    "prefix",
    "block",
    "is",
    "a",
)
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"stub","object":"model","max_model_len":32768}]}'
# What sglang-router asks an engine of itself.
INFO = b'{"model_path":"stub","tokenizer_path":"stub","served_model_name":"stub","is_generation":true,"tp_size":1}'


class Scenario(NamedTuple):
    name: str
    connections: int
    prompt_bytes: int
    streams: bool = False


SCENARIOS = (
    Scenario("short-1", 1, 64),
    Scenario("short-64", 64, 64),
    Scenario("16k", 32, 16_384),
    Scenario("light", 8, 64, True),
    Scenario("streams", 256, 64, True),
)


class Http(asyncio.Protocol):
    """Messages with a content-length, or chunked: enough for a stub and for who asks it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = data[:end].lower()
        if b"transfer-encoding: chunked" in head:
            self.on_part(data)
            if data.endswith(b"0\r\n\r\n"):
                self._data = b""
                self.on_message(head, data[end:])
            return
        at = head.find(b"content-length:")
        size = int(head[at + 15 : head.index(b"\r", at)]) if at >= 0 else 0
        if len(data) >= end + size:
            self._data = b""
            self.on_message(head, data[end : end + size])

    def on_part(self, data: bytes) -> None:
        """All of a chunked message so far."""

    def on_message(self, head: bytes, body: bytes) -> None:
        raise NotImplementedError


class Stub(Http):
    """An engine that takes no time; its streams get a token each at every tick."""

    streams: ClassVar[dict[Stub, int]] = {}  # chunks still to come
    whole = b""
    prefill_tokens_per_s = inf
    held: ClassVar[set[str]] = set()  # how prompts begin whose shared part was computed
    free_s = 0.0  # when it has computed what it was asked

    def on_message(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.endswith((b"/render", b"/tokenize")):
            self._send(_tokens(path, body))
        elif not path.startswith(b"/v1/") or head.startswith(b"get"):
            self._send(MODELS if path == b"/v1/models" else INFO)
        elif b'"stream":true' in body.replace(b" ", b""):
            kind = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            self.transport.write(b"HTTP/1.1 200 OK\r\n" + kind)
            self.streams[self] = CHUNKS
            self.step()
        else:
            self._answer(json.loads(body)["prompt"])

    def _answer(self, prompt: str) -> None:
        begins = prompt[:SHARED_BEGINS]
        held_bytes = SHARED_BYTES if begins in self.held else 0
        if len(prompt) > SHARED_BYTES:
            self.held.add(begins)
        seconds = (len(prompt) - held_bytes) / BYTES_A_TOKEN / self.prefill_tokens_per_s
        if not seconds:
            self.transport.write(self.whole)
            return
        loop = asyncio.get_running_loop()
        Stub.free_s = max(Stub.free_s, loop.time()) + seconds
        loop.call_at(Stub.free_s, self.transport.write, self.whole)

    def step(self) -> None:
        """One token of its stream."""
        now = b"%d" % time.monotonic_ns()
        event = b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":"%b"}]}\n\n' % now
        self.streams[self] -= 1
        if not self.streams[self]:
            del self.streams[self]
            event += b"data: [DONE]\n\n"
        last = b"" if self in self.streams else b"0\r\n\r\n"
        self.transport.write(b"%x\r\n%b\r\n%b" % (len(event), event, last))

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.pop(self, None)

    def _send(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)


class Relay(asyncio.Protocol):
    """One end of a connection whose bytes are passed on to the other end; the client's makes the engine's."""

    def __init__(self, engine: int | None = None, other: asyncio.Transport | None = None) -> None:
        self._engine, self._other = engine, other
        self._early: list[bytes] = []  # what came before the other end was there
        self._dialing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._engine is not None:
            mine = cast(asyncio.Transport, transport)
            self._dialing = asyncio.get_running_loop().create_task(self._dial(mine, self._engine))

    async def _dial(self, mine: asyncio.Transport, engine: int) -> None:
        loop = asyncio.get_running_loop()
        self._other, _ = await loop.create_connection(lambda: Relay(other=mine), "127.0.0.1", engine)
        self._other.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._other is not None:
            self._other.abort()


async def serve_relay(port: int, engine: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Relay(engine), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def _tokens(path: bytes, body: bytes) -> bytes:
    """A token for four bytes, in the forms of vLLM's /tokenize and /render."""
    asked = json.loads(body)
    raw = str(asked.get("prompt") or asked.get("messages")).encode()
    ids = [int.from_bytes(raw[i : i + 4], "big") & 0x7FFF for i in range(0, len(raw), 4)]
    if path.endswith(b"/tokenize"):
        return json.dumps({"count": len(ids), "max_model_len": 131_072, "tokens": ids}).encode()
    told = {"request_id": "r", "token_ids": ids, "sampling_params": {"max_tokens": 1}, "model": "stub"}
    return json.dumps(told if b"/chat/" in path else [told]).encode()


async def serve_stub(port: int, prefill_tokens_per_s: float = inf) -> None:
    """Each engine says in its answers who it is."""
    Stub.prefill_tokens_per_s = prefill_tokens_per_s
    usage = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
    choice = {"index": 0, "text": " word", "finish_reason": "length"}
    body = json.dumps({"id": f"e{port}", "object": "text_completion", "choices": [choice], "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    Stub.whole = head + body
    await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port, backlog=1024)
    due_s = time.monotonic()
    while True:
        due_s += PACE_S
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        for one in list(Stub.streams):
            one.step()


class Load:
    """Closed-loop clients of one target, and what they saw."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.latencies_s: list[float] = []
        self.firsts_s: list[float] = []
        self.transits_s: list[float] = []
        self.chunks = self.wrong = self.same = self.again = 0
        self._asked = seed * 1_000_003
        self._groups: dict[int, bytes] = {}  # who answered last
        self._shared = [_text(g, scenario.prompt_bytes * 4 // 5) for g in range(64)]
        self.until_s = 0.0

    def message(self) -> tuple[int, bytes]:
        """The next request, and its group."""
        self._asked += 7_919
        group = self._asked % 64
        prompt = f"hello {self._asked} " + "word " * 10
        if self.scenario.prompt_bytes > 1_000:
            shared = self._shared[group]
            prompt = f"{shared} {self._asked} {_text(self._asked, self.scenario.prompt_bytes - len(shared))}"
        asked = {"model": "stub", "prompt": prompt, "max_tokens": CHUNKS if self.scenario.streams else 1}
        body = json.dumps({**asked, "stream": self.scenario.streams}).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        return group, head % len(body) + body

    def answered(self, group: int, who: bytes) -> None:
        known = self._groups.get(group)
        self.again += known is not None
        self.same += known == who
        self._groups[group] = who

    def report(self, took_s: float) -> dict[str, float]:
        ordered = sorted(self.firsts_s if self.scenario.streams else self.latencies_s)
        transits = sorted(self.transits_s)
        return {
            "requests": len(self.latencies_s),
            "chunks": self.chunks,
            "wrong": self.wrong,
            "per_s": (self.chunks if self.scenario.streams else len(self.latencies_s)) / took_s,
            "p50_us": 1e6 * ordered[len(ordered) // 2] if ordered else 0.0,
            "p99_us": 1e6 * ordered[len(ordered) * 99 // 100] if ordered else 0.0,
            "chunk_p50_us": 1e6 * transits[len(transits) // 2] if transits else 0.0,
            "affinity": self.same / max(1, self.again),
        }


def _text(seed: int, size: int) -> str:
    words = [WORDS[(seed * 31 + i * i * 7 + i // 3) % len(WORDS)] for i in range(size // 4)]
    return f"g{seed} {' '.join(words)}"[:size]


class Client(Http):
    """Asks, waits for the answer, asks again."""

    def __init__(self, load: Load) -> None:
        super().__init__()
        self._load = load
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ask()

    def _ask(self) -> None:
        self._group, message = self._load.message()
        self._seen = 0
        self._began_s = time.monotonic()
        self.transport.write(message)

    def on_part(self, data: bytes) -> None:
        load, now_ns = self._load, time.monotonic_ns()
        while load.scenario.streams and (at := data.find(b'"text":"', self._seen)) >= 0:
            end = data.find(b'"', at + 8)
            if end < 0:
                return
            if not self._seen:
                load.firsts_s.append(now_ns / 1e9 - self._began_s)
            self._seen = end
            load.chunks += 1
            load.transits_s.append((now_ns - int(data[at + 8 : end])) / 1e9)

    def on_message(self, head: bytes, body: bytes) -> None:
        load, now_s = self._load, time.monotonic()
        load.latencies_s.append(now_s - self._began_s)
        load.wrong += not head.startswith(b"http/1.1 200") or (load.scenario.streams and b"[DONE]" not in body)
        load.answered(self._group, body[:20])
        if now_s < load.until_s:
            self._ask()
        else:
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(ConnectionError("the target closed a connection under a request"))


async def run_load(port: int, scenario: Scenario, seconds: float, seed: int) -> dict[str, float]:
    load, loop = Load(scenario, seed), asyncio.get_running_loop()
    began_s = time.monotonic()
    load.until_s = began_s + seconds
    made = [await loop.create_connection(lambda: Client(load), "127.0.0.1", port) for _ in range(scenario.connections)]
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(client.over for _, client in made))
    took_s = time.monotonic() - began_s
    for transport, _ in made:
        transport.abort()
    return load.report(took_s)


# Processes


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
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, of the threads it has."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Target(NamedTuple):
    name: str
    port: int
    pid: int


async def until_ready(url: str) -> None:
    """Raises SystemExit unless a completion is answered within three minutes: kernels may have to be compiled."""
    body = json.dumps({"model": "stub", "prompt": "ready?", "max_tokens": 1}).encode()
    asked = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})

    def answers() -> bool:
        try:
            with urllib.request.urlopen(asked, timeout=2):
                return True
        except OSError:
            return False

    for _ in range(1_800):
        if await asyncio.to_thread(answers):
            return
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


async def load(url: str, requests: int) -> int:
    """So many small requests, RUNNING at a time; returns how many were answered. For other benches."""
    engine, numbers = OpenAIEngine(parse_spec(url)), iter(range(requests))

    async def client() -> None:
        for number in numbers:
            body = {"model": "stub", "prompt": f"hello {number % 7}", "max_tokens": 1}
            answer = await engine.whole("/v1/completions", json.dumps(body).encode())
            assert answer.status == 200, answer.body

    async with asyncio.TaskGroup() as tasks:
        for _ in range(RUNNING):
            tasks.create_task(client())
    engine.close()
    return requests


def peers_of(folder: str | None, backends: list[str]) -> Iterator[tuple[str, Callable[[int], list[str]]]]:
    """Each peer and policy, as a command for a port; those that are missing are named on stderr."""
    for program, words in (("vllm-router", []), ("sglang-router", ["launch"])):
        path = shutil.which(program, path=folder) if folder else None
        path = path or shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
        if path is None:
            print(f"{program} is not installed: left out", file=sys.stderr)
            continue
        for policy in ("round_robin", "cache_aware"):

            def command(port: int, path: str = path, words: list[str] = words, policy: str = policy) -> list[str]:
                flags = ["--host", "127.0.0.1", "--port", str(port), "--policy", policy]
                metrics = ["--prometheus-host", "127.0.0.1"] if words else []
                metrics += ["--prometheus-port", str(free_ports(1)[0]), "--log-level", "warn" if words else "warning"]
                return [path, *words, *flags, *metrics, "--worker-urls", *backends]

            yield f"{program} {policy}", command


def start(running: ExitStack, peers: str | None, tokenizer: str, prefill: float) -> list[Target]:
    one, two, bare, *ports = free_ports(9)
    me = [sys.executable, __file__]
    pids = [running.enter_context(process(*me, "--stub", str(port), "--prefill", str(prefill))) for port in (one, two)]
    targets = [Target("direct", one, pids[0])]
    targets.append(Target(BARE, bare, running.enter_context(process(*me, "--relay", f"{bare},{one}"))))
    more = f",tokenizer={tokenizer}" if tokenizer else ""
    engines = [word for port in (one, two) for word in ("--engine", f"http://127.0.0.1:{port}{more}")]
    for policy in ("kv", "round_robin"):
        port = ports.pop()
        command = [sys.executable, "-m", "jevons", "serve", "--policy", policy, "--port", str(port), *engines]
        targets.append(Target(f"jevons {policy}", port, running.enter_context(process(*command))))
    backends = [f"http://127.0.0.1:{port}" for port in (one, two)]
    for name, made in peers_of(peers, backends):
        port = ports.pop()
        targets.append(Target(name, port, running.enter_context(process(*made(port)))))
    for target in targets:
        uvloop.run(until_ready(f"http://127.0.0.1:{target.port}"))
    return targets


def turn(target: Target, scenario: Scenario, seconds: float, seed: int) -> dict[str, float]:
    """One target under one load, once."""
    asked = [sys.executable, __file__, "--load", f"{target.port},{scenario.name},{seconds},{seed}"]
    before_s = cpu_s(target.pid)
    found: dict[str, float] = json.loads(subprocess.run(asked, capture_output=True, check=True, timeout=300).stdout)
    used_s = cpu_s(target.pid) - before_s
    passed = found["chunks"] if scenario.streams else found["requests"]
    return {**found, "cpu_us": 1e6 * used_s / max(1, passed), "rss_mib": rss_mib(target.pid)}


def measure(targets: list[Target], scenarios: list[Scenario], rounds: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for scenario in scenarios:
        seen: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
        for round_ in range(rounds + 1):
            for target in targets:
                found = turn(target, scenario, seconds, round_)
                if round_:  # the first one warms up
                    seen[target.name].append(found)
        bare = median(one["p50_us"] for one in seen["direct"]), median(one["p99_us"] for one in seen["direct"])
        for name, turns in seen.items():
            row: dict[str, Any] = {key: median(one[key] for one in turns) for key in turns[0]}
            row |= {"added_p50_us": row["p50_us"] - bare[0], "added_p99_us": row["p99_us"] - bare[1]}
            rows.append({"scenario": scenario.name, "target": name, **row, "wrong": sum(one["wrong"] for one in turns)})
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    columns = (
        "cpu_us",
        "p50_us",
        "added_p50_us",
        "added_p99_us",
        "per_s",
        "chunk_p50_us",
        "affinity",
        "rss_mib",
        "wrong",
    )
    print(
        f"{'':36}" + "".join(f"{column:>14}" for column in columns) + "   CPU, of the best peer's, of the bare relay's"
    )
    for row in rows:
        alike = [r for r in rows if r["scenario"] == row["scenario"]]
        best = [min((r["cpu_us"] for r in alike if "-router" in r["target"]), default=0.0)]
        best += [r["cpu_us"] for r in alike if r["target"] == BARE]
        ours = row["target"].startswith("jevons")
        ratio = "".join(f"{row['cpu_us'] / least:7.2f}" if ours and least else f"{'':7}" for least in best)
        name = f"{row['scenario']:10}{row['target']:26}"
        wrong = f"   {row['wrong']:.0f} WRONG ANSWERS" if row["wrong"] else ""
        print(name + "".join(f"{row[column]:14,.2f}" for column in columns) + ratio + wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--only", default="", help="scenarios, by comma")
    parser.add_argument("--peers", default=os.environ.get("PEERS_BIN"), help="folder of the peers' programs")
    parser.add_argument("--tokenizer", help="directory; SmolLM2's by default, '' for none")
    parser.add_argument("--prefill", type=float, default=inf, help="tokens/s of the engines; by default no time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stub", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--relay", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stub:
        uvloop.run(serve_stub(args.stub, args.prefill))
    elif args.relay:
        port, engine = map(int, args.relay.split(","))
        uvloop.run(serve_relay(port, engine))
    elif args.load:
        port, name, seconds, seed = args.load.split(",")
        scenario = next(s for s in SCENARIOS if s.name == name)
        print(json.dumps(uvloop.run(run_load(int(port), scenario, float(seconds), int(seed)))))
    else:
        run(args)


def run(args: argparse.Namespace) -> None:
    tokenizer = str(resolve("smollm2-135m")) if args.tokenizer is None else args.tokenizer
    wanted = args.only.split(",") if args.only else [s.name for s in SCENARIOS]
    with ExitStack() as running:
        targets = start(running, args.peers, tokenizer, args.prefill)
        rows = measure(targets, [s for s in SCENARIOS if s.name in wanted], args.rounds, args.seconds)
    print(json.dumps(rows)) if args.json else report(rows)


if __name__ == "__main__":
    main()
