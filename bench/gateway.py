"""What a pick costs: CPU per request of `jevons serve --picker` over gRPC, beside `/v1/place` over HTTP and bare gRPC.

    PYTHONPATH=. python bench/gateway.py [--requests 400] [--rounds 5] [--json]

One server, two stub engines. Ways take turns in one run, medians count; CPU is that of the server's own process, from
/proc. A pick is the whole exchange of a request: headers and body in, destination out, the answer's headers in, its end
noted. `/v1/place` is asked with a hold and told the end, which is the same account; and without, which is advice alone.
Bare gRPC is a server in grpc.aio that answers as many messages without reading them: the least such a picker can cost.
Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import uvloop
from bench.door import RUNNING, cpu_s, free_ports, process, serve_stub, until_ready

from jevons.engine.http_client import HttpClient, parse_url
from jevons.serve.extproc import SERVICE, Mode, Part, ProcessingRequest, ProcessingResponse, go_on

PATH = "/v1/completions"
SIZES = {"small": "hello", "4 KB prompt": "lorem ipsum dolor sit amet " * 150}
READY_S = 90.0

Ask = Callable[[bytes], Awaitable[None]]


def said(part: str, headers: dict[str, str], mode: Mode | None = None, body: bytes = b"") -> bytes:
    message = ProcessingRequest()
    content = getattr(message, part)
    content.SetInParent()
    if body:
        content.body = body
    if part == "request_body" or ":status" in headers:
        content.end_of_stream = True
    for name, value in headers.items():
        content.headers.headers.add(key=name.encode(), raw_value=value.encode())
    if mode is not None:
        message.protocol.request, message.protocol.response = mode, Mode.FULL_DUPLEX_STREAMED
    return bytes(message.SerializeToString())


# What an Envoy sends for a small request of a browser's kind: 15 headers.
HEADERS = {":method": "POST", ":path": PATH, ":authority": "gateway", ":scheme": "https", "content-type": "a/json"}
HEADERS |= {f"x-header-{number}": "some value of a usual length" for number in range(10)}


def by_grpc(channel: grpc.aio.Channel, mode: Mode) -> Ask:
    process: Any = channel.stream_stream(f"/{SERVICE}/Process")
    head, answer = said("request_headers", HEADERS, mode), said("response_headers", {":status": "200"})

    async def ask(body: bytes) -> None:
        call = process()
        await call.write(head)
        if mode is Mode.BUFFERED:
            await call.read()
        await call.write(said("request_body", {}, body=body))
        picked = await call.read()
        if mode is Mode.FULL_DUPLEX_STREAMED:
            await call.read()
        assert not ProcessingResponse.FromString(picked).HasField("immediate"), picked
        await call.write(answer)
        await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    return ask


def by_http(client: HttpClient, hold: bool) -> Ask:
    async def post(path: str, body: bytes, headers: bytes = b"") -> Any:
        async with client.request("POST", path, body, headers=headers) as response:
            answer = json.loads(await response.body())
        assert response.status == 200, answer
        return answer

    async def ask(body: bytes) -> None:
        told = await post("/v1/place", body, b"x-jevons-hold-s: 60\r\n" if hold else b"")
        if hold:
            await post("/v1/placed", json.dumps({"id": told["id"], "event": "done"}).encode())

    return ask


async def serve_bare(port: int) -> None:
    """Answers as many messages as it gets."""

    async def answer(_: Any, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(go_on(Part.REQUEST_HEADERS, {"x-gateway-destination-endpoint": "127.0.0.1:8000"}))

    server = grpc.aio.server()
    methods: dict[str, Any] = {"Process": grpc.stream_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def load(ask: Ask, prompt: str, requests: int) -> None:
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            body = {"model": "stub", "prompt": f"{number % 7} {prompt}", "max_tokens": 8}
            await ask(json.dumps(body).encode())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(RUNNING):
            tasks.create_task(client())


async def measure(url: str, pid: int, picker: int, bare: tuple[int, int], args: Any) -> list[dict[str, Any]]:
    await until_ready(url)
    rows = []
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{picker}") as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{bare[0]}") as empty,
    ):
        await asyncio.wait_for(empty.channel_ready(), READY_S)
        http = HttpClient(parse_url("url", url))
        ways: dict[str, tuple[Ask, int]] = {
            "bare gRPC, buffered": (by_grpc(empty, Mode.BUFFERED), bare[1]),
            "picker, buffered": (by_grpc(channel, Mode.BUFFERED), pid),
            "picker, full duplex": (by_grpc(channel, Mode.FULL_DUPLEX_STREAMED), pid),
            "/v1/place": (by_http(http, hold=False), pid),
            "/v1/place held, /v1/placed": (by_http(http, hold=True), pid),
        }
        for size, prompt in SIZES.items():
            costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for round_ in range(args.rounds + 1):
                for name, (ask, who) in ways.items():
                    cpu, wall = cpu_s(who), time.perf_counter()
                    await load(ask, prompt, args.requests)
                    if round_:  # the first one warms up
                        passed = (cpu_s(who) - cpu, time.perf_counter() - wall)
                        costs[name].append((passed[0] / args.requests, passed[1] / args.requests))
            for name, pairs in costs.items():
                cpu, wall = (1e6 * median(column) for column in zip(*pairs, strict=True))
                rows.append({"size": size, "way": name, "cpu_us": cpu, "wall_us": wall})
        http.close()
    return rows


def picker_port(file: Path) -> int:
    """As the server tells it."""
    until_s = time.monotonic() + READY_S
    while time.monotonic() < until_s:
        found = re.search(r"for gateways at \S+:(\d+)", file.read_text())
        if found:
            return int(found[1])
        time.sleep(0.1)
    raise SystemExit(f"the picker does not listen:\n{file.read_text()}")


def run(args: Any) -> list[dict[str, Any]]:
    one, two, port, bare = free_ports(4)
    me = [sys.executable, __file__]
    engines = [word for stub in (one, two) for word in ("--engine", f"http://127.0.0.1:{stub}")]
    command = [sys.executable, "-m", "jevons", "serve", "--port", str(port), "--picker", "127.0.0.1:0", *engines]
    with ExitStack() as running:
        for stub in (one, two):
            running.enter_context(process(*me, "--stub", str(stub)))
        bare_pid = running.enter_context(process(*me, "--bare", str(bare)))
        log = Path(running.enter_context(tempfile.TemporaryDirectory())) / "log"
        with log.open("w") as out:
            server = subprocess.Popen(command, stderr=out)
        try:
            picker = picker_port(log)
            url = f"http://127.0.0.1:{port}"
            return uvloop.run(measure(url, server.pid, picker, (bare, bare_pid), args))
        finally:
            server.terminate()
            server.wait(30)


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'':14}{'':30}{'CPU us':>9}{'wall us':>9}   per request")
    for row in rows:
        base = next(r for r in rows if r["size"] == row["size"] and r["way"].startswith("bare"))
        ratio = f"   {row['cpu_us'] / base['cpu_us']:.2f} x bare gRPC" if row is not base else ""
        print(f"{row['size']:14}{row['way']:30}{row['cpu_us']:9.1f}{row['wall_us']:9.1f}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stub", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stub:
        uvloop.run(serve_stub(args.stub))
    elif args.bare:
        uvloop.run(serve_bare(args.bare))
    else:
        rows = run(args)
        print(json.dumps(rows)) if args.json else report(rows)


if __name__ == "__main__":
    main()
