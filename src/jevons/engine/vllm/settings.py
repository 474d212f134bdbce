"""What the connector is given as `kv_connector_extra_config`, and the keeper it starts for itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from jevons.base.clock import Clock
from jevons.base.errors import ConfigError
from jevons.store.node import readable
from jevons.wire.channel import Failed, KeeperConfig, Ready

WHERE = "kv_connector_extra_config"
START_S = 30.0  # 0.4 s usually; a large disk tier reads its headers first
RESTART_S = 5.0  # between two tries to start a keeper again
END_S = 5.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either the socket of a keeper that runs, or the tiers of one to start; sizes in bytes."""

    socket: str | None = None
    dram_bytes: int | None = None
    disk_path: str | None = None
    disk_bytes: int = 0
    disk_key_file: str | None = None
    object_url: str | None = None
    object_endpoint: str | None = None


def read_settings(extra: Mapping[str, Any], page_bytes: int) -> Settings:
    """Check the keys.

    Args:
        page_bytes: of one block.

    Raises:
        ConfigError: one is unknown, of the wrong kind, missing, too small, or at odds with another.
    """
    try:
        settings = msgspec.convert(dict(extra), Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{WHERE}: {error}; known are {', '.join(Settings.__struct_fields__)}") from None
    own = [key for key in Settings.__struct_fields__ if key != "socket" and getattr(settings, key)]
    if settings.socket is not None and own:
        raise ConfigError(
            f"{WHERE}: socket names a keeper that runs, {own[0]} belongs to one to start; give one of them"
        )
    if settings.socket is None and not settings.dram_bytes:
        raise ConfigError(f"{WHERE}: must name a running keeper's socket, or dram_bytes for one to start")
    if settings.dram_bytes is not None and settings.dram_bytes < page_bytes:
        rule = f"must hold at least one block ({page_bytes} bytes for this model)"
        raise ConfigError(f"{WHERE}: dram_bytes: {rule}, got {settings.dram_bytes}")
    if (settings.disk_path is None) != (not settings.disk_bytes):
        raise ConfigError(
            f"{WHERE}: disk_path and disk_bytes belong together, got {settings.disk_path!r} and {settings.disk_bytes}"
        )
    return settings


def socket_of(settings: Settings, engine_id: str) -> Path:
    """The keeper's socket: the one named, or one that all processes of this vLLM know."""
    if settings.socket is not None:
        return Path(settings.socket)
    name = blake2b(engine_id.encode(), digest_size=8).hexdigest()  # sockets' paths are short
    return Path(tempfile.gettempdir()) / f"jevons-{os.getuid()}-{name}.sock"


class Keeper:
    """A keeper process of our own. It ends with this process, however that ends, and is started again if it dies.

    Raises:
        ConfigError: it cannot start; tells why.
    """

    def __init__(self, settings: Settings, socket: Path, clock: Clock) -> None:
        values = msgspec.to_builtins(settings)
        self._line = msgspec.json.encode(msgspec.convert(values | {"socket": str(socket)}, KeeperConfig)) + b"\n"
        self._clock = clock
        self.starts = 0
        self._start()
        self._await_ready()

    def revive(self) -> None:
        """Start it again if it has ended; does not wait for it. Costs a microsecond while it runs."""
        if self.process.poll() is not None and self._clock.now_s() - self._started_s >= RESTART_S:
            self._close_pipes()
            self._start()

    def close(self) -> None:
        """End it and wait for it."""
        self._close_pipes()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _start(self) -> None:
        self._started_s = self._clock.now_s()
        self.starts += 1
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jevons.serve.keeper"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `revive` will see it
            self.process.stdin.write(self._line)
            self.process.stdin.flush()

    def _await_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline() if readable([self.process.stdout.fileno()], START_S) else b""
        if not line:
            self.close()
            raise ConfigError(f"{WHERE}: the keeper did not start within {START_S:.0f} s, or ended; it says why above")
        first = msgspec.json.decode(line, type=Ready | Failed)
        if isinstance(first, Failed):
            self.close()
            raise ConfigError(f"{WHERE}: {first.error}")

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
