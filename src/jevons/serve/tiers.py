"""The node's tiers as the server sees them: a keeper process kept alive, and what it holds told to the router."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from jevons.base.errors import ConfigError, EngineError
from jevons.config import Settings
from jevons.control.ledger import NodeTiers
from jevons.serve.substrate import Process
from jevons.wire import keeper as wire
from jevons.wire.channel import Channel, KeeperConfig

log = logging.getLogger("jevons.tiers")

RESTART_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # waits before starting it again, one after another
MODULE = "jevons.serve.keeper"
SECRET_BYTES = 16


class Tiers:
    """The keeper of this node. Its socket lies in a directory of its own, there as long as it is kept alive."""

    def __init__(self, settings: Settings, known: NodeTiers) -> None:
        self.restarts = 0
        self._directory = Path(tempfile.gettempdir()) / f"jevons-{secrets.token_hex(8)}"
        self._known = known
        self.config = KeeperConfig(
            socket=str(self._directory / "keeper"),
            dram_bytes=settings.dram_bytes,
            disk_path=settings.disk_path,
            disk_bytes=settings.disk_bytes,
            disk_key_file=settings.disk_key_file,
            object_url=settings.object_url,
            object_endpoint=settings.object_endpoint,
            listen=settings.peer_listen,
            peers=settings.peers,
            peer_secret=read_secret(settings),
            link=settings.peer_link,
        )

    async def keep(self) -> None:
        """Keep the keeper alive, until cancelled. While it is away engines compute what they would have brought.

        Raises:
            ConfigError: its socket has no place.
            EngineError: it cannot be started at all, the first time.
        """
        try:
            self._directory.mkdir(mode=0o700)
        except OSError as error:
            where = self._directory.parent
            raise ConfigError(f"dram_bytes: no socket can be made in {where}: {error.strerror}; set TMPDIR") from error
        try:
            await self._keep()
        finally:
            self.close()

    async def _keep(self) -> None:
        is_first = True
        while True:
            try:
                reason = await self._live()
            except EngineError as error:
                if is_first:
                    raise
                reason = str(error)
            is_first = False
            log.warning("keeper: %s; starting it again", reason)
            await asyncio.sleep(RESTART_S[min(self.restarts, len(RESTART_S) - 1)])
            self.restarts += 1

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _live(self) -> str:
        """Start it and listen to it until it is lost; returns why."""
        process = await Process.start(MODULE, self.config, "keeper")
        loop = asyncio.get_running_loop()
        try:
            return await watch(self._known, lambda made: loop.create_unix_connection(made, self.config.socket))
        finally:
            await process.stop()


KeeperChannel = Channel[wire.ToClient]


async def watch(
    known: NodeTiers, connect: Callable[[Callable[[], KeeperChannel]], Awaitable[tuple[object, object]]]
) -> str:
    """Write down what a keeper tells of its tiers until it is lost; returns why.

    Args:
        connect: opens the connection for a channel, as the event loop does.
    """
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_lost(channel: KeeperChannel, reason: str) -> None:
        if not lost.done():
            lost.set_result(reason)

    channel = Channel(wire.TO_CLIENT, lambda _, message: _take(known, message), on_lost)
    try:
        await connect(lambda: channel)
        channel.send(wire.Watch())
        return await lost
    except OSError as error:
        return str(error)
    finally:
        channel.close()
        known.lost()


def _take(known: NodeTiers, message: wire.ToClient) -> None:
    if not isinstance(message, wire.Holding):
        return
    holdings, known.state = known.holdings, message.state
    if message.fresh:
        holdings.clear()
    for change, told in ((holdings.stored, message.stored), (holdings.removed, message.removed)):
        for fingerprint, code, names in told:
            tier = wire.TIER_CODES[code]
            assert tier is not None, "a keeper tells of tiers"
            change(fingerprint, tier, wire.unpack(names))


def read_secret(settings: Settings) -> str:
    """What all nodes share.

    Raises:
        ConfigError: the file cannot be read, or holds too little.
    """
    if settings.peer_secret_file is None:
        return ""
    try:
        secret = Path(settings.peer_secret_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"peer_secret_file: {settings.peer_secret_file} cannot be read: {error}") from error
    if len(secret) < SECRET_BYTES:
        raise ConfigError(
            f"peer_secret_file: must hold at least {SECRET_BYTES} characters, got {len(secret)} in "
            f"{settings.peer_secret_file}"
        )
    return secret
