"""Several frontend processes on one port, and the process that keeps them alive.

    this process ── Hub ─┬─ frontend 0 ─┐
      port, signals      ├─ frontend 1 ─┼─ HOST:PORT, spread by the kernel over those that listen
                         └─ frontend 2 ─┘

Each is a whole server of its own and hears the engines' events by itself. What they tell each other passes through the
hub. One that dies is started again, and learns from a sibling what the engines hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from jevons.base.errors import ConfigError, EngineError
from jevons.config import Settings
from jevons.engine.http_client import url_of
from jevons.engine.specs import read_specs
from jevons.serve.frontend import FrontendConfig
from jevons.serve.hub import Hub
from jevons.serve.memory import raise_files
from jevons.serve.substrate import Process

log = logging.getLogger("jevons.frontends")

RESTART_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # waits before starting one again, one after another
STABLE_S = 30.0  # one that lived so long starts from the first wait again
STOP_S = 5.0  # beyond what running answers get to end, for what is kept to be written


def check(settings: Settings) -> None:
    """Raises ConfigError where several frontends cannot serve this."""
    if settings.embedded_workers or settings.nodes:
        raise ConfigError(
            f"frontends, workers, nodes: workers of our own have one frontend, got {settings.embedded_workers} workers "
            f"and {len(settings.nodes)} nodes; attach engines, or leave frontends at 1"
        )
    if settings.record is not None:
        raise ConfigError("frontends, record: a record is written by one frontend; leave frontends at 1 to record")
    for spec in read_specs(settings.engines):
        if spec.events is not None and "*" in spec.events:
            raise ConfigError(
                f"frontends, engines: kv={spec.events} can be bound by one process alone, got it for {spec.url}; have "
                f"the engine bind its endpoint (a * in its own), and give its address here"
            )


class Beside(NamedTuple):
    """What frontends do besides serving their port."""

    module: str  # that is run as each: it calls `frontend.main`
    state: Path | None = None  # file of what is known
    picker: str | None = None  # HOST:PORT where gateways are told their endpoints
    picker_tls: Path | None = None  # see `gateway.Listen`
    catalog: Path | None = None  # see `FrontendConfig`


async def run_frontends(settings: Settings, count: int, beside: Beside) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigError: a port cannot be had, or several frontends cannot serve this.
        EngineError: the first frontend cannot be started; what else goes wrong is part of an ExceptionGroup.
    """
    check(settings)
    raise_files()
    if beside.picker is not None:
        from jevons.serve.app import check_picker  # with all that a server needs, which this process does not

        check_picker(settings, beside.picker)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with contextlib.ExitStack() as held:
        port = held.enter_context(reserved(settings.host, settings.port))
        settings = msgspec.structs.replace(settings, port=port)
        if beside.picker is not None:
            host, _, asked = beside.picker.rpartition(":")
            picker_port = held.enter_context(reserved(host.strip("[]"), int(asked), "picker"))
            beside = beside._replace(picker=f"{host}:{picker_port}")
            log.info("picking endpoints for gateways at %s", beside.picker)
        frontends = Frontends(settings, count, beside)
        async with asyncio.TaskGroup() as tasks:
            keeping = [tasks.create_task(frontends.keep(number)) for number in range(count)]
            started = tasks.create_task(frontends.all_started())
            stopped = tasks.create_task(stop.wait())
            await asyncio.wait([started, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                log.info("listening on %s", url_of(settings.host, port))
                log.info("ready: policy %s, %d frontends", settings.policy, count)
            await stopped
            log.info("stopping: running answers get %g s", settings.drain_s)
            for task in (started, *keeping):
                task.cancel()
        frontends.close()


@contextmanager
def reserved(host: str, port: int, setting: str = "host, port") -> Iterator[int]:
    """A port that processes of this user may share, and nobody else may have. Nothing listens there yet.

    Raises:
        ConfigError: somebody has it; if that is another of our servers, it is not joined by mistake.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(where)  # not to be shared, for a moment: fails if any other socket is there
            port = ours.getsockname()[1]
        with socket.socket(family) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ours.bind((where[0], port, *where[2:]))
            yield port
    except OSError as error:
        raise ConfigError(f"{setting}: cannot listen on {host}:{port}: {error.strerror}") from error


class Frontends:
    """The processes of one port."""

    def __init__(self, settings: Settings, count: int, beside: Beside) -> None:
        self._settings = settings
        self._beside = beside
        self._hub = Hub()
        self._ready = [asyncio.Event() for _ in range(count)]

    async def all_started(self) -> None:
        """Wait until each has been ready once."""
        for ready in self._ready:
            await ready.wait()

    async def keep(self, number: int) -> None:
        """Keep one alive, until cancelled; the first is started before the others, which find all compiled then.

        Raises:
            EngineError: it cannot be started at all, the first time.
        """
        if number:
            await self._ready[0].wait()
        failures = 0
        while True:
            began_s = time.monotonic()
            try:
                reason = await self._live(number)
            except EngineError as error:
                if not self._ready[number].is_set():
                    raise
                reason = str(error)
            failures = 0 if time.monotonic() - began_s > STABLE_S else min(failures + 1, len(RESTART_S) - 1)
            self._hub.restarted()
            log.warning("frontend %d: %s; starting it again", number, reason)
            await asyncio.sleep(RESTART_S[max(0, failures - 1)])

    def close(self) -> None:
        self._hub.close()

    async def _live(self, number: int) -> str:
        """Run one until it ends; returns how it did."""
        end = await self._hub.invite(number)
        with contextlib.closing(end):
            beside = self._beside
            config = FrontendConfig(
                settings=self._settings,
                number=number,
                fd=end.fileno(),
                state=None if beside.state is None else str(beside.state),
                picker=beside.picker,
                picker_tls=None if beside.picker_tls is None else str(beside.picker_tls),
                catalog=None if beside.catalog is None else str(beside.catalog),
                log_level=logging.getLogger().level,
            )
            process = await Process.start(beside.module, config, f"frontend {number}", (end.fileno(),))
        try:
            self._ready[number].set()
            return f"process {process.pid} ended with code {await process.wait()}"
        finally:
            await process.stop(self._settings.drain_s + STOP_S)
