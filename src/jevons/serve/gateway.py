"""The endpoint picker of the Kubernetes Gateway API Inference Extension, for gateways built on Envoy.

    Envoy ──ext_proc over gRPC──▶ Gateway ──one Exchange a stream──▶ Picker ──▶ IP:PORT of an engine

The gateway carries requests and answers; we say where each goes and watch it go by. Health by `grpc.health.v1`, since
Kubernetes and Envoy probe with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec

from jevons.base.errors import CapacityError, ConfigError, RequestError
from jevons.serve.exchange import Exchange, Room
from jevons.serve.extproc import SERVICE, Malformed, read
from jevons.serve.front import Front
from jevons.serve.headers import MAX_HOLD_S
from jevons.serve.http import Limits
from jevons.serve.picker import Endpoints, Picker

log = logging.getLogger("jevons.picker")

MAX_STREAMS = 16_384  # one for each request of the gateway that has not ended
MAX_BODIES = 16  # of the largest size, that may be on their way in together
HEADERS_BYTES = 1 << 20  # of a message beside the body in it
HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse.status = 1
LIVENESS, READINESS = b"liveness", (b"", b"readiness", SERVICE.encode())
WATCH_S = 0.5
# A gateway whose host is gone says nothing: its requests are over when it does not answer a ping.
PING_MS, PING_TIMEOUT_MS, MIN_PING_MS = 30_000, 10_000, 5_000

Context = grpc.aio.ServicerContext[bytes, bytes]


class Listen(msgspec.Struct, frozen=True):
    """Where gateways reach the picker."""

    host: str
    port: int
    tls: Path | None = None  # a folder with tls.crt and tls.key, as a Kubernetes secret has them
    is_shared: bool = False  # with other processes, which somebody else keeps others off the port for


def parse_listen(text: str, tls: Path | None = None, *, is_shared: bool = False) -> Listen:
    """Raises ConfigError unless `text` is HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"picker: must look like HOST:PORT, got {text!r}")
    return Listen(host.strip("[]"), int(port), tls, is_shared)


class Gateway:
    """The picker's server.

    Args:
        front: whose router, models and metrics it shares.
        limits: of a body, as at our own door.
        timeout_s: for a whole request to be placed, once it waits in front.
    """

    def __init__(self, front: Front, limits: Limits, timeout_s: float) -> None:
        self.port = 0
        self._front = front
        self._limits = limits
        self._timeout_s = timeout_s
        self._room = Room(MAX_BODIES * limits.body_bytes, limits.body_bytes)
        self._endpoints = Endpoints(front.fleet)
        self._picker = Picker(front.router, self._endpoints, front.prompts, front.admission, front.now_s)
        self._streams = 0
        self._is_closing = False
        self._server: grpc.aio.Server | None = None
        self._keeping: asyncio.Task[None] | None = None
        front.metrics.picker_streams.set_function(lambda: self._streams)

    async def listen(self, at: Listen) -> None:
        """Serve there. Port 0 takes a free one; `port` tells which.

        Raises:
            ConfigError: the address cannot be had, or the certificate cannot be read.
        """
        await self._endpoints.refresh()
        self._server = server = grpc.aio.server(options=self._options(at.is_shared))
        server.add_generic_rpc_handlers((_process(self._process), _health(self._check, self._watch)))
        address = f"[{at.host}]:{at.port}" if ":" in at.host else f"{at.host}:{at.port}"
        try:
            if at.tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, _credentials(at.tls))
        except RuntimeError as error:
            raise ConfigError(f"picker: cannot listen on {address}: {error}") from error
        await server.start()
        self._keeping = asyncio.create_task(self._endpoints.keep())

    async def close(self, grace_s: float) -> None:
        """Take no new requests, let running ones end for up to `grace_s`, then cut."""
        self._is_closing = True
        if self._keeping is not None:
            self._keeping.cancel()
        if self._server is not None:
            await self._server.stop(grace_s)

    def _options(self, is_shared: bool) -> list[tuple[str, Any]]:
        return [
            ("grpc.max_receive_message_length", self._limits.body_bytes + HEADERS_BYTES),
            # A port that is taken is an error, not half of the requests, unless it is meant to be shared.
            ("grpc.so_reuseport", int(is_shared)),
            ("grpc.keepalive_time_ms", PING_MS),
            ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_MS),
        ]

    async def _process(self, _: AsyncIterator[bytes], context: Context) -> None:
        """One request of the gateway."""
        front = self._front
        exchange = Exchange(self._picker, front.placements, front.metrics, self._room, front.now_s)
        self._streams += 1
        try:
            if self._streams > MAX_STREAMS:
                front.metrics.picker_faults.labels("full").inc()
                full = CapacityError(f"picker: has {MAX_STREAMS} requests under way and takes no more; come again")
                await context.write(exchange.refuse(full))
            else:
                await self._talk(exchange, context)
        except Malformed as error:
            front.metrics.picker_faults.labels("malformed").inc()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            if exchange.close():
                front.metrics.left.inc()
            self._streams -= 1

    async def _talk(self, exchange: Exchange, context: Context) -> None:
        """Hear and answer, until either side has said all."""
        began_s = asyncio.get_running_loop().time()
        while not exchange.is_refused and (raw := await self._heard(exchange, context, began_s)) is not None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    replies = await exchange.on(read(raw))
            except TimeoutError:
                replies = [exchange.refuse(TimeoutError(f"request: not placed within {self._timeout_s:g} s"))]
            for reply in replies:
                await context.write(reply)

    async def _heard(self, exchange: Exchange, context: Context, began_s: float) -> bytes | None:
        """The next message; None if the gateway has said all, or has had its time."""
        longest_s = self._limits.body_s if exchange.pick is None else MAX_HOLD_S
        try:
            async with asyncio.timeout_at(began_s + longest_s):
                raw = await context.read()
                return raw if isinstance(raw, bytes) else None
        except TimeoutError:
            if exchange.pick is not None:
                self._front.metrics.expired.inc()  # ending the stream well leaves the request to the gateway
                return None
        self._front.metrics.picker_faults.labels("slow").inc()
        late = RequestError(f"body: must arrive within {self._limits.body_s:g} s", status=408)
        await context.write(exchange.refuse(late))
        return None

    # Health

    async def _check(self, request: bytes, context: Context) -> bytes:
        status = self._status(request)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service: is not one of ours")
        assert status is not None
        return status

    async def _watch(self, request: bytes, context: Context) -> None:
        """Tell the state, and again whenever it is another, until the client has had enough."""
        told: bytes | None = None
        while True:
            status = self._status(request) or b"\x08\x03"  # SERVICE_UNKNOWN
            if status != told:
                await context.write(status)
                told = status
            await asyncio.sleep(WATCH_S)

    def _status(self, request: bytes) -> bytes | None:
        """Of the service that a HealthCheckRequest names in its only field; None: not one of ours."""
        service = request[2:] if request[:1] == b"\x0a" else b""
        if service == LIVENESS:
            return SERVING
        if service not in READINESS:
            return None
        is_ready = self._picker.is_ready and self._front.fleet.is_met and not self._is_closing
        return SERVING if is_ready else NOT_SERVING


def _process(handler: Callable[[AsyncIterator[bytes], Context], Any]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(SERVICE, {"Process": grpc.stream_stream_rpc_method_handler(handler)})


def _health(check: Callable[[bytes, Context], Any], watch: Callable[[bytes, Context], Any]) -> grpc.GenericRpcHandler:
    methods: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    return grpc.method_handlers_generic_handler(HEALTH, methods)


def _credentials(folder: Path) -> grpc.ServerCredentials:
    """Read again for each connection once the files are others, as a secret's are when it is renewed.

    Raises:
        ConfigError: they cannot be read now.
    """
    files = folder / "tls.key", folder / "tls.crt"
    last: tuple[bytes, bytes] | None = None

    def load() -> Any:
        nonlocal last
        pair = (files[0].read_bytes(), files[1].read_bytes())
        if pair == last:
            return None  # the same as before
        last = pair
        return grpc.ssl_server_certificate_configuration([pair])

    def renew() -> Any:
        try:
            return load()
        except OSError as error:
            log.warning("picker-tls: %s cannot be read, the certificate of before goes on: %s", folder, error.strerror)
            return None

    try:
        first = load()
    except OSError as error:
        raise ConfigError(
            f"picker-tls: must be a folder with tls.crt and tls.key, got {folder}: {error.strerror}"
        ) from error
    return grpc.dynamic_ssl_server_credentials(first, renew)
