"""KV events over ZMQ, published with a replay window; `wire.sources` listens.

Neither ever waits for the other: a subscriber that is slow or away loses batches, sees the gap in their numbers, and
asks the replay socket. Publishing from inside an engine's step must never block it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.asyncio

from jevons.base.errors import ConfigError
from jevons.control.shapes import Malformed
from jevons.facts.event import KvEvent
from jevons.wire.codec import decode_seq, encode_batch, encode_seq

REPLAY_BATCHES = 10_000  # as many as vLLM keeps
HIGH_WATER = 100_000  # messages queued for a slow subscriber before ZMQ drops; vLLM's value
_END_SEQ = -1


class Publisher:
    """Binds two sockets on `host`: PUB for live batches, ROUTER for replays. For one event loop.

    Args:
        context: one for many publishers of a process: each of its own takes two threads.
        ports: for live batches and replays; None takes free ones.
        keeps: batches kept for replays.
    """

    def __init__(
        self,
        host: str,
        topic: str,
        *,
        context: zmq.asyncio.Context | None = None,
        ports: tuple[int, int] | None = None,
        keeps: int = REPLAY_BATCHES,
    ) -> None:
        self._own_context = context is None
        self._context = context or zmq.asyncio.Context()
        self._topic = topic.encode()
        live: zmq.Socket[bytes] = zmq.Context.shadow(self._context.underlying).socket(zmq.PUB)
        self._live = live  # a plain socket: PUB never waits, so there is no future to await
        self._live.set_hwm(HIGH_WATER)
        self._replay = self._context.socket(zmq.ROUTER)
        host = in_url(host)
        for each in (self._live, self._replay):
            each.setsockopt(zmq.IPV6, is_ipv6(f"tcp://{host}:0"))
        try:
            self.ports = _bind(self._live, host, ports and ports[0]), _bind(self._replay, host, ports and ports[1])
        except zmq.ZMQError:
            self.close()
            raise
        self.endpoint, self.replay_endpoint = (f"tcp://{host}:{port}" for port in self.ports)
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=keeps)
        self._next = 0

    def publish(self, ts: float, events: Sequence[KvEvent], *, is_lost: bool = False) -> None:
        """Send one batch; at the high-water mark ZMQ drops it for the subscribers that are behind.

        Args:
            is_lost: it is dropped for all of them, as on a bad network; a replay has it.
        """
        payload = encode_batch(ts, events)
        self._kept.append((self._next, payload))
        if not is_lost:
            self._live.send_multipart([self._topic, encode_seq(self._next), payload], zmq.NOBLOCK)
        self._next += 1

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled."""
        while True:
            frames = await self._replay.recv_multipart()
            client, request = frames[0], frames[-1]
            try:
                start = decode_seq(request)
            except Malformed:
                continue
            for seq, payload in list(self._kept):
                if seq >= start:
                    await self._replay.send_multipart([client, b"", self._topic, encode_seq(seq), payload])
            await self._replay.send_multipart([client, b"", self._topic, encode_seq(_END_SEQ), b""])

    def close(self) -> None:
        self._live.close(linger=0)
        self._replay.close(linger=0)
        if self._own_context:
            self._context.destroy(linger=0)


def _bind(socket: zmq.Socket[Any], host: str, port: int | None) -> int:
    """Returns the port."""
    if port is None:
        return socket.bind_to_random_port(f"tcp://{host}")
    socket.bind(f"tcp://{host}:{port}")
    return port


def in_url(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def is_ipv6(endpoint: str) -> bool:
    """Whether it has an IPv6 address, which ZMQ speaks if it is told to. Not of names: of one that has both kinds ZMQ
    would then take that one, where engines listen at the other unless they are told to."""
    return ":" in endpoint.removeprefix("tcp://").rpartition(":")[0]


def check_endpoint(name: str, endpoint: str) -> None:
    """Raises ConfigError unless `endpoint` is one a subscriber can use."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not (endpoint.startswith("tcp://") and host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"{name}: must look like tcp://HOST:PORT, got {endpoint!r}")
