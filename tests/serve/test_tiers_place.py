"""The directory of a keeper's socket: there while it is kept alive, and no longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jevons.base.errors import ConfigError, EngineError
from jevons.config import make
from jevons.control.ledger import HERE, NodeTiers
from jevons.serve.substrate import Process
from jevons.serve.tiers import Tiers


def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tiers:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return Tiers(make({"dram_bytes": 1 << 20}, "test"), NodeTiers(HERE))


def test_a_server_that_cannot_start_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = made(tmp_path, monkeypatch)
    seen: list[str] = []
    assert list(tmp_path.iterdir()) == []  # its port may be taken, its settings wrong: nobody would close it

    def modes() -> list[str]:
        return [oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()]

    async def fails(*_: object) -> None:
        seen.extend(modes())
        raise EngineError("keeper: of all things")

    monkeypatch.setattr(Process, "start", fails)
    with pytest.raises(EngineError):
        asyncio.run(ours.keep())
    assert seen == ["0o700"]
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_has_no_place_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = made(tmp_path / "nowhere", monkeypatch)
    with pytest.raises(ConfigError, match=r"dram_bytes: no socket can be made in .*nowhere: No such"):
        asyncio.run(ours.keep())
