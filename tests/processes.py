"""Commands of ours as processes: started, read, asked, stopped."""

from __future__ import annotations

import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

START_S = 90.0
STOP_S = 30.0
READ_S = 10.0


class Running:
    """A command of ours that listens at `at` once made.

    Raises:
        AssertionError: it does not listen within `START_S`; tells what it said.
    """

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "jevons", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._urls: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.at = self._urls.get(timeout=START_S)
        except queue.Empty:
            self.process.kill()
            raise AssertionError(f"jevons does not listen:\n{''.join(self.lines)}") from None
        self.port = int(self.at.rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"listening on (\S+:\d+)", line)
            if found:
                self._urls.put(found[1])

    def stop(self) -> int:
        """Its exit code; killed if it does not end by itself, which is a failure."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(STOP_S)
            assert self.process.stderr is not None
            self.process.stderr.close()


class Jevons(Running):
    """A `jevons serve`."""

    def __init__(self, *flags: str) -> None:
        super().__init__("serve", "--port", "0", *flags)
        self.url = self.at

    def get(self, path: str) -> bytes:
        return read(self.url + path)

    def snapshot(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.get("/snapshot")))

    def worker(self, id: str) -> dict[str, Any]:
        return next(w for w in self.snapshot()["workers"] if w["id"] == id)

    def healthy(self) -> list[str]:
        return [w["id"] for w in self.snapshot()["workers"] if w["health"] == "up"]


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=READ_S) as response:
        return cast(bytes, response.read())


def until(is_so: Callable[[], bool], timeout_s: float, what: str = "it is so") -> float:
    """Seconds until `is_so` holds; fails if it does not in time."""
    began_s = time.monotonic()
    while not is_so():
        if time.monotonic() - began_s > timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)
    return time.monotonic() - began_s


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def free_row(count: int) -> range:
    """Ports one after another."""
    while True:
        [first] = free_ports(1)
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
        return range(first, first + count)
