"""The page before a rehearsal: `jevons simulate --watch`."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import click

from jevons.base.errors import ConfigError
from jevons.config.catalog import Catalog
from jevons.facts.page import Mount
from jevons.serve.http import Door
from jevons.serve.mounts import Mounts
from jevons.serve.openai import refusal
from jevons.twin.report import Report
from jevons.twin.watch import Watched
from jevons.web.site import site

HOST = "127.0.0.1"  # nobody else is to see it
PIECE_S = 0.05  # of real time, between two turns of the page


class Where(Protocol):
    """Where the page is wanted, and how many seconds of the rehearsal pass in one."""

    @property
    def port(self) -> int: ...
    @property
    def speed(self) -> float: ...


def watch_it(watched: Watched, catalog: Catalog, page: Where, on_over: Callable[[Report], None]) -> None:
    """Serve the page while the rehearsal goes on, and after, until SIGINT or SIGTERM.

    Raises:
        ConfigError: the port cannot be had.
    """
    going = watched.going(PIECE_S * page.speed)
    # The first time it compiles what rehearses: a page that listened would not answer meanwhile, and a loop would not
    # hear a Ctrl-C.
    next(going, None)
    asyncio.run(_watch(watched, going, site(watched, catalog, {}), page, on_over))


async def _watch(
    watched: Watched, going: Iterator[float], mounts: dict[str, Mount], page: Where, on_over: Callable[[Report], None]
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    door = Door(Mounts(mounts), refusal)
    try:
        await door.listen(HOST, page.port)
    except OSError as error:
        raise ConfigError(f"--watch-port: cannot listen on {HOST}:{page.port}: {error.strerror}") from error
    click.echo(f"listening on http://{HOST}:{door.port}: watch it at http://{HOST}:{door.port}/ui", err=True)
    try:
        report = await _run(watched, going, page.speed, stop)
        if report is not None:
            on_over(report)
            click.echo("The page stays until Ctrl-C.", err=True)
            await stop.wait()
    finally:
        await door.close(0.0)


async def _run(watched: Watched, going: Iterator[float], speed: float, stop: asyncio.Event) -> Report | None:
    """None: it was stopped."""
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    for now_s in going:
        await asyncio.sleep(max(0.0, began_s + now_s / speed - time.perf_counter()))
        if stop.is_set():
            return None
    return watched.report(time.perf_counter() - began_s, time.process_time() - cpu_began_s)
