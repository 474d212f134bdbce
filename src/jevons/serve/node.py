"""`jevons node`: the workers and tiers of a host whose requests come from servers on other hosts.

server ══ door (one port, a secret) ══╦══ worker, worker …   each as on the server's own host
                                      ╚══ keeper
keeper ══ links (peer_listen) ══ keepers of other nodes       blocks do not pass through servers
"""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from pathlib import Path

from jevons.base.errors import ConfigError, EngineGone
from jevons.config import Settings
from jevons.control.ledger import HERE, NodeTiers
from jevons.serve.link import HOST, keep_alive
from jevons.serve.memory import raise_files
from jevons.serve.peers import host_port
from jevons.serve.tiers import Tiers, read_secret
from jevons.serve.workers import worker_configs
from jevons.wire.channel import TO_FRONT, Channel, Hello, ToFront
from jevons.wire.tunnel import Address, Directory, Door

log = logging.getLogger("jevons.node")


class Node:
    """What is behind the door.

    Args:
        keeper: the path of its socket; None without tiers.
    """

    def __init__(self, door: Door, keeper: str | None) -> None:
        self._door = door
        self._keeper = keeper
        self._workers: dict[str, Hello] = {}
        self._ports: dict[str, int] = {}

    async def show(self) -> None:
        """Show what is there now."""
        places: dict[str, Address] = {} if self._keeper is None else {"keeper": self._keeper}
        for name, hello in self._workers.items():
            places |= {
                f"{name}/channel": (HOST, self._ports[name]),
                f"{name}/events": host_port(hello.events.removeprefix("tcp://"), "events"),
                f"{name}/replays": host_port(hello.replays.removeprefix("tcp://"), "replays"),
            }
        await self._door.show(Directory(sorted(self._workers), self._keeper is not None), places)

    async def live(self, name: str, port: int) -> str:
        """Show the worker at `port` until it is lost; returns why.

        Raises:
            EngineGone: it cannot be connected to.
        """
        loop = asyncio.get_running_loop()
        hello: asyncio.Future[Hello] = loop.create_future()
        lost: asyncio.Future[str] = loop.create_future()

        def on_message(channel: Channel[ToFront], message: ToFront) -> None:
            if isinstance(message, Hello):
                hello.set_result(message)

        def on_lost(channel: Channel[ToFront], reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        channel = Channel(TO_FRONT, on_message, on_lost)
        try:
            await loop.create_connection(lambda: channel, HOST, port)
        except OSError as error:
            raise EngineGone(f"worker {name}: {error}") from error
        try:
            await asyncio.wait((hello, lost), return_when=asyncio.FIRST_COMPLETED)
            if hello.done():
                self._workers[name], self._ports[name] = hello.result(), port
                await self.show()
            return await lost
        finally:
            channel.close()
            self._workers.pop(name, None)
            await self.show()


async def run(settings: Settings, model_dir: Path) -> None:
    """Serve other hosts' servers until SIGINT or SIGTERM.

    Raises:
        ConfigError: the settings contradict the model, or the door cannot be opened.
        EngineError: a worker cannot be started at all (raised as part of an ExceptionGroup).
    """
    raise_files()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, port = host_port(settings.node_listen, "node_listen")
    tiers = Tiers(settings, NodeTiers(HERE)) if settings.dram_bytes else None
    configs = worker_configs(settings, model_dir, tiers)
    door = Door(read_secret(settings).encode())
    node = Node(door, None if tiers is None else tiers.config.socket)
    try:
        port = await door.listen(host, port)
    except OSError as error:
        raise ConfigError(f"node_listen: cannot listen on {settings.node_listen}: {error.strerror}") from error
    try:
        await node.show()
        async with asyncio.TaskGroup() as tasks:
            chores = [tasks.create_task(keep_alive(c, partial(node.live, c.id), lambda: None)) for c in configs]
            if tiers is not None:
                chores.append(tasks.create_task(tiers.keep()))
            log.info("listening on %s:%d", host, port)
            await stop.wait()
            for chore in chores:
                chore.cancel()
    finally:
        door.close()
        if tiers is not None:
            tiers.close()
