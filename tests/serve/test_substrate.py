"""A process that cannot be started is an error that names it, so that who keeps it alive tries again."""

from __future__ import annotations

import asyncio
import errno

import pytest

from jevons.base.errors import EngineError
from jevons.serve import substrate
from jevons.serve.substrate import Process
from jevons.wire.channel import KeeperConfig

CONFIG = KeeperConfig(socket="", dram_bytes=4096)


def test_a_process_that_is_not_ready_in_time_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(substrate, "START_S", 0.0)

    with pytest.raises(EngineError, match="keeper: was not ready within 0 s"):
        asyncio.run(Process.start("jevons.serve.keeper", CONFIG, "keeper"))


def test_a_process_that_the_system_does_not_start_is_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    with pytest.raises(EngineError, match="keeper: cannot be started: Resource temporarily unavailable"):
        asyncio.run(Process.start("jevons.serve.keeper", CONFIG, "keeper"))
