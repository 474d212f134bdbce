"""A real server that has a program start and stop mock engines as load rises and falls."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from tests.processes import START_S, Jevons, free_ports, until

from jevons.base.errors import ConfigError
from jevons.base.ids import WorkerId
from jevons.cli import jevons
from jevons.config import make
from jevons.config.scaling import LiveScaling
from jevons.control.router import Router
from jevons.facts.scaling import WantedWorkers
from jevons.facts.worker import WorkerFacts
from jevons.serve import scaling
from jevons.serve.fleet import Fleet
from jevons.serve.front import Front
from jevons.serve.mock_fleet import PREFIX
from jevons.serve.prompts import Prompts
from jevons.serve.scaling import Order, Scale, Scaler, fate_of

SETTLES_S = 60.0
RULE = """
[scaling]
every_s = 1
hold_s = 4
headroom = 0.3

[slo]
tpot_s = 0.1

[[fleet]]
instances = 3
up_after_s = 2
"""
# What an operator would write for one host: so many ports as are wanted have an engine; those named are stopped.
PROGRAM = """#!{python}
import json, os, pathlib, signal, subprocess, sys

here, ports = pathlib.Path({here!r}), {ports!r}
model, role, wanted = sys.argv[1:]
order = json.load(sys.stdin)
with open(here / "orders", "a") as orders:
    orders.write(json.dumps(order) + "\\n")
for worker in order["stop"]:
    file = here / worker.partition(":")[2].partition("/")[0]
    if file.exists():
        os.kill(int(file.read_text()), signal.SIGTERM)
        file.unlink()
for port in [port for port in ports if not (here / str(port)).exists()][: int(wanted) - len(list(here.glob("[0-9]*")))]:
    command = [sys.executable, "-m", "jevons", "mock", "--port", str(port)]
    (here / str(port)).write_text(str(subprocess.Popen(command).pid))
print("as ordered")
"""


class Clients:
    """Ask again and again, each something new, until told to stop."""

    def __init__(self, url: str, count: int, tokens: int, pause_s: float = 0.0) -> None:
        self._url, self._tokens, self._pause_s = url, tokens, pause_s
        self._over = threading.Event()
        self.answered, self.failed = 0, list[str]()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over.wait(self._pause_s):
            turn += 1
            prompt = [(number * 7_919 + turn * 104_729 + i) % 50_000 for i in range(self._tokens)]
            body = json.dumps({"model": "mock", "prompt": prompt, "max_tokens": 8}).encode()
            request = urllib.request.Request(self._url + "/v1/completions", body, {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=30.0) as response:
                    told = json.loads(response.read())
                assert told["usage"]["completion_tokens"] == 8
                self.answered += 1
            except (OSError, AssertionError) as error:
                self.failed.append(str(error))

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def ports() -> list[int]:
    return sorted(free_ports(3))


@pytest.fixture
def program(tmp_path: Path, ports: list[int]) -> Iterator[Path]:
    path = tmp_path / "scale"
    path.write_text(PROGRAM.format(python=sys.executable, here=str(tmp_path), ports=ports))
    path.chmod(0o755)
    subprocess.run([path, "mock", "both", "1"], input=b'{"stop": []}', check=True)
    yield path
    for file in tmp_path.glob("[0-9]*"):
        os.kill(int(file.read_text()), signal.SIGTERM)


def serve(tmp_path: Path, ports: list[int], program: Path) -> Jevons:
    rule = tmp_path / "rule.toml"
    rule.write_text(RULE)
    engines = [flag for port in ports for flag in ("--engine", f"http://127.0.0.1:{port}{PREFIX}0000")]
    return Jevons(*engines, "--workers", "0", "--scaling", str(rule), "--scale-command", str(program), "--no-state")


def wanted(server: Jevons) -> dict[str, Any]:
    found = server.snapshot()["scaling"]
    return found[0] if found else {"wanted": 0, "up": 0}


def test_as_load_rises_workers_are_started_and_as_it_falls_stopped_and_no_client_notices(
    tmp_path: Path, ports: list[int], program: Path
) -> None:
    server = serve(tmp_path, ports, program)
    try:
        until(lambda: wanted(server)["up"] == 1, START_S, "the first engine is up")
        clients = Clients(server.url, 12, tokens=2_000)
        try:
            until(lambda: len(server.healthy()) == 3, SETTLES_S, "three are up")
            told = wanted(server)
            assert told["wanted"] == 3
            assert "computing needs" in told["reason"]
            until(lambda: all(server.worker(id)["requests"] > 0 for id in server.healthy()), SETTLES_S, "all have work")
            gentle = Clients(server.url, 1, tokens=200, pause_s=0.5)  # what one alone is enough for, on any machine
        finally:
            clients.stop()
        try:
            until(lambda: len(server.healthy()) < 3, SETTLES_S, "one is stopped")
        finally:
            gentle.stop()
        until(lambda: len(server.healthy()) == 1, SETTLES_S, "one is left")
        assert clients.failed + gentle.failed == []
        metrics = server.get("/metrics").decode()
        assert 'jevons_wanted_workers{model="mock",role="both"} 1.0' in metrics
        assert 'jevons_scale_commands_total{fate="failed"} 0.0' in metrics
        data = json.loads(server.get("/ui/data"))["view"]
        assert data["scaling"] == server.snapshot()["scaling"]
        orders = [json.loads(line) for line in (tmp_path / "orders").read_text().splitlines()[1:]]
        assert max(order["wanted"] for order in orders) == 3
        assert orders[-1]["wanted"] == 1
        assert all(order["reason"] for order in orders)
    finally:
        server.stop()


ORDER = Order(model="mock", role="both", wanted=3, up=1, reason="computing needs 2.31 instances", stop=[])


def run(tmp_path: Path, text: str | None) -> tuple[str, str]:
    """The fate of a program, and what it said."""
    path = tmp_path / "program"
    if text is not None:
        path.write_text(text)
        path.chmod(0o755)
    with (tmp_path / "said").open("w+b") as said:
        fate = asyncio.run(fate_of(path, ORDER, said))
        said.seek(0)
        return fate, said.read().decode().strip()


def test_a_program_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    assert run(tmp_path, "#!/bin/sh\necho no machine left for $1 $2 $3 >&2\nexit 3\n") == (
        "failed",
        "no machine left for mock both 3",
    )


def test_a_program_has_the_order_on_its_input_and_need_not_read_it(tmp_path: Path) -> None:
    assert run(tmp_path, "#!/bin/sh\nexit 0\n") == ("done", "")
    fate, said = run(tmp_path, "#!/bin/sh\ncat\n")
    assert fate == "done"
    assert msgspec.json.decode(said, type=Order) == ORDER


def test_a_program_that_is_not_there_is_a_failure_not_an_end(tmp_path: Path) -> None:
    assert run(tmp_path, None) == ("failed", "cannot be started: No such file or directory")


def test_a_program_that_no_file_can_be_made_for_is_a_failure_not_an_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    settings, router = make({"engines": ["http://127.0.0.1:1"]}, "test"), Router()
    front = Front(settings, router, Fleet(settings, router, lambda: 0.0), Prompts(), lambda: 0.0)
    scaler = Scaler(front, Scale(LiveScaling(), Path("/bin/true")))
    router.join(WorkerFacts(id=WorkerId("a"), model="mock", kind="openai"))
    router.roster.heard(WorkerId("a"), 0.0)
    told = {"model": "mock", "role": "both", "wanted": 2, "up": 1, "starting": 0, "reason": "computing"}
    front.wanted = [msgspec.convert(told | {"prompt_s": 2.0, "tokens_per_s": 0.0}, WantedWorkers)]
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    asyncio.run(scaler._act(Path("/bin/true")))

    assert scaler.counts["failed"] == 1
    assert "failed: no file for what it says: No space left on device" in caplog.text


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "COMMAND_S", 0.1)
    assert run(tmp_path, "#!/bin/sh\nexec sleep 60\n")[0] == "late"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--workers", "2"], "it starts and stops attached engines, got 0 of them and 2 embedded workers"),
        (["--engine", "http://127.0.0.1:9", "--workers", "0", "--frontends", "2"], "by one process that sees all"),
    ],
)
def test_where_it_cannot_be_acted_on_that_is_told_at_the_start(flags: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CliRunner().invoke(jevons, ["serve", *flags, "--scale-command", "/bin/true"], catch_exceptions=False)
