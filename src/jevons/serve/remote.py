"""Another host's workers and tiers, reached through the one door of its `jevons node`.

To the rest of the server they are like those of this host: each has a `Link`, the node's tiers have a watcher, at
loopback ports that lead there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from jevons.base.errors import EngineGone
from jevons.base.ids import WorkerId
from jevons.control.router import Router
from jevons.serve.fleet import Fleet
from jevons.serve.link import Link
from jevons.serve.peers import host_port
from jevons.serve.prompts import Prompts
from jevons.serve.tiers import watch
from jevons.wire.channel import Hello
from jevons.wire.tunnel import Directory, Way

log = logging.getLogger("jevons.remote")

RETRY_S = 0.5
HOST = "127.0.0.1"


class RemoteNode:
    """A node, until the server stops. While it is away its workers are down.

    Args:
        address: HOST:PORT of its door.
        secret: what all nodes share.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(self, address: str, secret: str, router: Router, fleet: Fleet, prompts: Prompts) -> None:
        self.address = address
        self._way = Way(*host_port(address, "nodes"), secret.encode())
        self._router = router
        self._fleet = fleet
        self._prompts = prompts
        self._reason = ""
        self._is_unlike = False

    async def keep(self) -> None:
        """Stay connected, until cancelled."""
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._follow(tasks))
            except* EngineGone as lost:
                self._tell(str(lost.exceptions[0]))
            await asyncio.sleep(RETRY_S)

    def _tell(self, reason: str) -> None:
        """Why the node is away, once; empty: it is not."""
        if reason != self._reason:
            log.warning("%s", reason or f"node {self.address}: is back")
        self._reason = reason

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Reach all that the node has, as it is told."""
        known: set[str] = set()
        async with contextlib.aclosing(self._way.directories()) as directories:
            async for directory in directories:
                self._tell("")
                self._compare_pages()
                for name in _names(directory):
                    if name not in known:
                        known.add(name)
                        tasks.create_task(self._keep_worker(name) if name else self._keep_tiers())

    async def _keep_worker(self, name: str) -> None:
        link = self._fleet.add_remote(WorkerId(f"{self.address}/{name}"), self.address)
        link.on_hello = self._on_hello
        async with contextlib.AsyncExitStack() as open_ports:
            port, events, replays = [
                await self._lead(f"{name}/{what}", open_ports) for what in ("channel", "events", "replays")
            ]
            link.events = (f"tcp://{HOST}:{events}", f"tcp://{HOST}:{replays}")
            await _again(link, port)

    def _on_hello(self, hello: Hello) -> None:
        model = hello.facts.model
        if model in self._prompts.models():
            self._prompts.limit(model, hello.context_tokens)
        else:
            log.warning("node %s: serves %r, which is not served here: no work for it", self.address, model)

    def _compare_pages(self) -> None:
        """Say once if blocks cannot be shared with others who serve the same model."""
        known = [self._router.facts(worker) for worker in self._router.workers()]
        own = [facts for facts in known if facts.pages and facts.id.startswith(f"{self.address}/")]
        unlike = any(a.pages and a.model == b.model and a.pages != b.pages for a in known for b in own)
        if unlike and not self._is_unlike:
            log.warning(
                "node %s: its blocks are unlike others' (weights, block size, dtype or mode): none are shared, and a "
                "prompt handed over is computed again",
                self.address,
            )
        self._is_unlike = unlike

    async def _keep_tiers(self) -> None:
        known, loop = self._router.node(self.address), asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as open_ports:
            port = await self._lead("keeper", open_ports)
            while True:
                await watch(known, lambda made: loop.create_connection(made, HOST, port))
                await asyncio.sleep(RETRY_S)

    async def _lead(self, to: str, open_ports: contextlib.AsyncExitStack) -> int:
        server = await self._way.lead(to)
        open_ports.callback(server.close)
        return int(server.sockets[0].getsockname()[1])


def _names(directory: Directory) -> Sequence[str]:
    """Workers, and nothing for the tiers."""
    return [*directory.workers, *([""] if directory.has_keeper else [])]


async def _again(link: Link, port: int) -> None:
    while True:
        reason = await link.live(port)
        log.warning("worker %s: %s", link.id, reason)
        await asyncio.sleep(RETRY_S)
