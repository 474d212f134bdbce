"""A real `jevons serve`: processes, sockets, the embedded model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.processes import START_S, Jevons, until


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], float], float]:
    return until


@pytest.fixture(scope="session")
def start(model_dir: Path) -> Callable[..., Jevons]:
    """Starts a server with these flags; the caller stops it."""

    def begin(*flags: str) -> Jevons:
        running = Jevons("--model", str(model_dir), *flags)
        wanted = int(flags[flags.index("--workers") + 1]) if "--workers" in flags else 2
        try:
            until(lambda: len(running.healthy()) == wanted, START_S)
        except BaseException:
            running.process.kill()
            raise
        return running

    return begin


@pytest.fixture(scope="session")
def server(start: Callable[..., Jevons]) -> Iterator[Jevons]:
    """One server with two workers, for tests that leave it as it was."""
    running = start("--served-name", "smol", "--kv-bytes", str(64 << 20))
    yield running
    assert running.stop() == 0


@pytest.fixture(autouse=True, scope="session")
def _offline() -> None:
    os.environ.pop("http_proxy", None)
