"""A real `jevons serve`: processes, sockets, the embedded model."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

START_S = 90.0


class Running:
    """A server process of ours."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "jevons", "serve", "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._urls: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._urls.get(timeout=START_S)
        self.port = int(self.url.rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self._urls.put(found[1])

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return cast(bytes, response.read())

    def snapshot(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.get("/snapshot")))

    def worker(self, id: str) -> dict[str, Any]:
        return next(w for w in self.snapshot()["workers"] if w["id"] == id)

    def healthy(self) -> list[str]:
        return [w["id"] for w in self.snapshot()["workers"] if w["health"] == "up"]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(5)
            assert self.process.stderr is not None
            self.process.stderr.close()


def until(is_so: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until `is_so` holds; fails if it does not in time."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"not so within {timeout_s} s")
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], float], float]:
    return until


@pytest.fixture(scope="session")
def start(model_dir: Path) -> Callable[..., Running]:
    """Starts a server with these flags; the caller stops it."""

    def begin(*flags: str) -> Running:
        running = Running("--model", str(model_dir), *flags)
        wanted = int(flags[flags.index("--workers") + 1]) if "--workers" in flags else 2
        try:
            until(lambda: len(running.healthy()) == wanted, START_S)
        except BaseException:
            running.process.kill()
            raise
        return running

    return begin


@pytest.fixture(scope="session")
def server(start: Callable[..., Running]) -> Iterator[Running]:
    """One server with two workers, for tests that leave it as it was."""
    running = start("--served-name", "smol", "--kv-bytes", str(64 << 20))
    yield running
    assert running.stop() == 0


@pytest.fixture(autouse=True, scope="session")
def _offline() -> None:
    os.environ.pop("http_proxy", None)
