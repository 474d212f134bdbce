"""The frontend process: a whole server, one of several on one port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from jevons.base.errors import JevonsError
from jevons.config import Settings
from jevons.serve.app import Pages, cut_short, picking, serving
from jevons.serve.kept import Kept
from jevons.serve.siblings import Siblings
from jevons.serve.stdio import stdin_closed, tell
from jevons.wire.channel import Failed, Ready

log = logging.getLogger("jevons.frontend")


class FrontendConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend is started with."""

    settings: Settings
    number: int
    fd: int  # its end of the line to the hub
    state: str | None  # file of what is known
    picker: str | None = None  # HOST:PORT where gateways are told their endpoints, by all frontends
    picker_tls: str | None = None  # see `gateway.Listen`
    catalog: str | None = None  # file of what the page's prices come from, besides what is shipped
    log_level: int


PagesOf = Callable[[Path | None], Pages]
"""Makes pages, by the file of their catalog."""


async def run(config: FrontendConfig, ready: int, pages_of: PagesOf) -> None:
    """Serve until who started us, or a signal, wants us to end."""
    pages = pages_of(None if config.catalog is None else Path(config.catalog))
    siblings = Siblings(config.number, time.monotonic)
    await siblings.connect(socket.socket(fileno=config.fd))
    kept = None if config.state is None else Kept(Path(config.state), saves=config.number == 0)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ends = [asyncio.ensure_future(end) for end in (stdin_closed(), siblings.lost)]
    for end in ends:
        end.add_done_callback(lambda _: stop.set())
    async with contextlib.AsyncExitStack() as open_now:
        async with cut_short(stop):
            server = await open_now.enter_async_context(serving(config.settings, None, kept, siblings, pages))
            if config.picker is not None:
                tls = None if config.picker_tls is None else Path(config.picker_tls)
                await open_now.enter_async_context(picking(server, config.settings, config.picker, tls, is_shared=True))
            tell(ready, Ready(config.settings.port))
            log.info("frontend %d is ready on %s", config.number, server.url)
        await stop.wait()
        for end in ends:
            end.cancel()


def main(pages_of: PagesOf) -> None:
    """The process. Other rooms make its pages, so theirs is the module that is run: `cli.frontend`."""
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=FrontendConfig)
    ready = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the line we promise
    logging.basicConfig(level=config.log_level, format=f"%(asctime)s {config.number} %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        uvloop.run(run(config, ready, pages_of))
    except* JevonsError as errors:
        tell(ready, Failed("; ".join(str(error) for error in _leaves(errors))))
        sys.exit(1)


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
