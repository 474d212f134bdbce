"""Engines behind one DNS name, one at each of its addresses, as the pods of a headless service come and go.

An address that joins the name is attached. One that leaves it gets no work more while others have room, and is let go
once its engine has ended: a pod leaves its name before it has answered what it was asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from jevons.base.ids import WorkerId
from jevons.engine.http_client import parse_url
from jevons.engine.specs import EngineSpec
from jevons.facts.worker import Health
from jevons.serve.fleet import Attached, Fleet, worker_of

log = logging.getLogger("jevons.pool")

RESOLVE_S = 5.0  # DNS names of a headless service follow its pods within seconds
ALONE_S = 0.5  # … while none of them is up: somebody waits for the next one

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
OnModel = Callable[[Attached, EngineSpec], Awaitable[None]]


def literal(host: str) -> IP | None:
    """The address that a host is named by; None: it has a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


async def look_up(host: str, port: int) -> list[IP]:
    """The addresses of a host, IPv4 first, in order; itself if it is one.

    Raises:
        OSError: it has none, or who knows cannot be asked.
    """
    if (ip := literal(host)) is not None:
        return [ip]
    rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({ipaddress.ip_address(row[4][0]) for row in rows}, key=lambda a: (a.version, int(a)))


def joined(address: IP, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


class Engines:
    """All that are to be attached, as the user named them."""

    def __init__(self, specs: Sequence[EngineSpec], fleet: Fleet, on_model: OnModel) -> None:
        self._single = [spec for spec in specs if not spec.each_address]
        self._pools = [Pool(spec, fleet, on_model) for spec in specs if spec.each_address]
        self._fleet = fleet
        self._on_model = on_model

    async def workers(self) -> list[WorkerId]:
        """Who they will be, as far as their names tell now."""
        of_pools = [await pool.workers() for pool in self._pools]
        return [worker_of(spec) for spec in self._single] + [id for ids in of_pools for id in ids]

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        """What keeps them attached, each until cancelled."""
        return [self._watch(spec) for spec in self._single] + [pool.keep() for pool in self._pools]

    def _watch(self, spec: EngineSpec) -> Coroutine[Any, Any, None]:
        return self._fleet.add_attached(spec).watch(lambda attached: self._on_model(attached, spec))


class Pool:
    """Keeps those of one name attached.

    Args:
        spec: names them; endpoints of events at the same host are at each address too.
        on_model: called whenever one has come up.
    """

    def __init__(self, spec: EngineSpec, fleet: Fleet, on_model: OnModel) -> None:
        self._spec = spec
        self._fleet = fleet
        self._on_model = on_model
        self._watches: dict[IP, tuple[WorkerId, asyncio.Task[None]]] = {}
        self._is_lost = False  # the name could not be looked up the last time
        self._is_double = False  # it had addresses of both kinds

    async def workers(self) -> list[WorkerId]:
        """Who is there now; none if the name cannot be looked up."""
        try:
            found = await self._look_up()
        except OSError:
            return []
        return [worker_of(at_address(self._spec, ip)) for ip in found]

    async def keep(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self.refresh(tasks)
                left_s = RESOLVE_S
                while left_s > 0:
                    await asyncio.sleep(min(left_s, ALONE_S))
                    left_s = left_s - ALONE_S if self._has_up() else 0.0

    def _has_up(self) -> bool:
        return any(self._fleet.health(id) is Health.UP for id, _ in self._watches.values())

    async def refresh(self, tasks: asyncio.TaskGroup) -> None:
        """Look the name up, attach who is new, let go who has left it and ended."""
        try:
            found = await self._look_up()
        except OSError as error:
            if not self._is_lost:
                log.warning("engines %s: cannot be looked up, the known ones stay: %s", self._spec.url, error.strerror)
            self._is_lost = True
            return
        self._is_lost = False
        for ip in found:
            if ip not in self._watches:
                self._attach(ip, tasks)
        for ip, (id, _) in self._watches.items():
            self._fleet.leaving(id, ip not in found)
        for ip in self._watches.keys() - set(found):
            id = self._watches[ip][0]
            if self._fleet.attached[id].is_idle and self._fleet.health(id) is not Health.UP:
                await self._let_go(ip)

    async def _look_up(self) -> list[IP]:
        """Of one kind: a pod that has addresses of both is one engine."""
        address = self._spec.address
        found = await look_up(address.host, address.port)
        alike = [ip for ip in found if ip.version == found[0].version]
        if len(alike) < len(found) and not self._is_double:
            self._is_double = True
            told = (
                "engines %s: %d IPv6 addresses beside %d IPv4 ones are taken to be the same engines', and passed over"
            )
            log.warning(told, self._spec.url, len(found) - len(alike), len(alike))
        return alike

    def _attach(self, ip: IP, tasks: asyncio.TaskGroup) -> None:
        spec = at_address(self._spec, ip)
        if worker_of(spec) in self._fleet.attached:
            return  # named by itself too
        attached = self._fleet.add_attached(spec)

        async def on_model(engine: Attached) -> None:
            await self._on_model(engine, spec)

        self._watches[ip] = attached.id, tasks.create_task(attached.watch(on_model))
        log.info("engine %s: joins, as an address of %s", attached.id, self._spec.address.host)

    async def _let_go(self, ip: IP) -> None:
        id, watch = self._watches.pop(ip)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        self._fleet.remove_attached(id)
        log.info("engine %s: is gone, and no address of %s any more", id, self._spec.address.host)


def at_address(spec: EngineSpec, ip: IP) -> EngineSpec:
    """One of them. What is not at the name's host stays where it is."""
    name, host = spec.address.host, joined(ip, 0).rpartition(":")[0]
    scheme = "https" if spec.address.tls else "http"
    url = f"{scheme}://{joined(ip, spec.address.port)}{spec.address.base}"

    def here(endpoint: str | None) -> str | None:
        return endpoint and endpoint.replace(f"//{name}:", f"//{host}:", 1)

    return msgspec.structs.replace(
        spec, url=url, address=parse_url("engines", url), events=here(spec.events), replays=here(spec.replays)
    )
