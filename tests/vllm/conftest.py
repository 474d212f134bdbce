"""A real vLLM on CPU, and a real `jevons serve` in front of it: processes, sockets, clocks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.processes import Jevons, free_row, read, until

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".vllm" / "bin" / "vllm"
VLLM_START_S = 240.0  # 27 s eager on 2 idle cores
DOOR_START_S = 60.0
STOP_S = 30.0
BLOCK_SIZE = 32  # CPU attention takes multiples of 32 only
BLOCK_BYTES = 16 << 10  # of the small model without windows: 2 layers of 32 tokens, keys and values of 32 float32
BLOCKS = 192  # 6,144 tokens: what the conversations come to and little more, so that old blocks are evicted
SERVED = "smol"
MEASURED = pytest.StashKey[list[str]]()

VLLM_ENV = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, whole ones only; BLOCKS takes less of it
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
# In bf16 the likeliest tokens are often as likely to the last digit, and vLLM by itself then goes on differently after
# some of its own cache than after none: identity could not be told from chance. Without AVX-512 bf16 is emulated too.
DTYPE = "float32"
VLLM_FLAGS = [
    *("--served-model-name", SERVED, "--host", "127.0.0.1", "--dtype", DTYPE, "--enforce-eager"),
    *("--max-model-len", "2048", "--max-num-seqs", "8"),
    *("--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(BLOCKS)),
    *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
]


def our_path() -> dict[str, str]:
    """jevons and these tests, for vLLM's interpreter, which has them not installed."""
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    }


def offloads(blocks: int, blocks_per_chunk: int = 1, is_described: bool = False) -> tuple[str, str]:
    """Flags of a vLLM that keeps so many blocks of a small model in its host's memory, see `host_memory`.

    Args:
        is_described: it tells the tokens of what it keeps there.
    """
    extra = {
        "spec_name": "HostMemory",
        "spec_module_path": "tests.vllm.host_memory",
        "cpu_bytes_to_use": blocks * BLOCK_BYTES,
        "blocks_per_chunk": blocks_per_chunk,
        "self_describing_kv_events": is_described,
    }
    config = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    return "--kv-transfer-config", json.dumps(config)


class Vllm:
    """One vLLM server of ours, in a process group of its own, on ports it keeps when it is started again.

    Args:
        flags: more of them; where one is given twice, vLLM takes the last.
        ranks: data-parallel ones, each with a pool of its own.
        core: the one it computes on.
    """

    def __init__(self, program: Path, model: Path, log: Path, *flags: str, ranks: int = 1, core: int = 0) -> None:
        self._http, *others = free_row(1 + 2 * ranks)
        self.events, self._replay = others[0], others[ranks]
        self.url = f"http://127.0.0.1:{self._http}"
        self.attach = f"{self.url},kv=tcp://127.0.0.1:{self.events},replay=tcp://127.0.0.1:{self._replay}"
        if ranks > 1:
            self.attach += f",ranks={ranks}"
            flags = ("--data-parallel-size", str(ranks), "--api-server-count", "1", *flags)
        # vLLM binds its publisher only where the endpoint has a `*`; to any other it connects, and nobody hears it.
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://127.0.0.1:{self._replay}",
            "topic": f"kv@{SERVED}",
        }
        self._command = [str(program), "serve", str(model), "--port", str(self._http), *VLLM_FLAGS]
        self._command += ["--kv-events-config", json.dumps(events), *flags]
        self._cores = "|".join([str(core)] * ranks)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start; `is_healthy` tells when it is done."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **VLLM_ENV, "VLLM_CPU_OMP_THREADS_BIND": self._cores, **our_path()},
                stdout=log,
                stderr=log,
                process_group=0,  # no session: Linux 6.18 did not run what a new one began beside busy ones
            )

    def is_healthy(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"vLLM ended by itself:\n{self.tail()}")
        try:
            read(self.url + "/health")
        except OSError:
            return False
        return True

    def await_health(self) -> None:
        until(self.is_healthy, VLLM_START_S, "vLLM is healthy")

    def running(self) -> float:
        """Requests it runs or keeps waiting, by its own account."""
        page = read(self.url + "/metrics").decode()
        return sum(float(v) for v in re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", page, re.M))

    def signal(self, number: signal.Signals) -> None:
        """To it and everything it started."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def members(self) -> list[int]:
        """Process ids of its group."""
        assert self._process is not None
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if group(pid) == self._process.pid]

    def reap(self) -> None:
        assert self._process is not None
        self._process.wait(STOP_S)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self.signal(signal.SIGTERM)
        try:
            self.reap()
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.reap()

    def tail(self) -> str:
        return self._log.read_text(errors="replace")[-20_000:]


def group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


class Door(Jevons):
    """One `jevons serve` of ours before one engine."""

    def attached(self) -> dict[str, Any]:
        """The one engine attached; {} before it has answered for the first time."""
        workers = self.snapshot()["workers"]
        return workers[0] if workers else {}

    def is_up(self, index: str) -> bool:
        worker = self.attached()
        return worker.get("health") == "up" and worker["index"] == index

    def recent(self) -> list[dict[str, Any]]:
        """The outcomes of the requests that ended last, oldest first."""
        return cast(list[dict[str, Any]], self.snapshot()["recent"])


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], float, str], float]:
    return until


def program() -> Path:
    found = Path(os.environ.get("JEVONS_VLLM") or INSTALLED)
    if not found.is_file():
        pytest.fail(f"no vLLM at {found}: `make test-vllm` installs one, JEVONS_VLLM names another")
    return found


@pytest.fixture(scope="module")
def launch_vllm(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Vllm]]:
    """Starts a vLLM of the tests' own, with more flags; it serves when this returns."""
    servers: list[Vllm] = []

    def launch(*flags: str, model: Path = model_dir, ranks: int = 1, core: int = 0) -> Vllm:
        server = Vllm(program(), model, tmp_path_factory.mktemp("vllm") / "log", *flags, ranks=ranks, core=core)
        servers.append(server)
        server.start()
        server.await_health()
        return server

    yield launch
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def vllm(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """A vLLM that serves; who ends it starts it again."""
    server = Vllm(program(), model_dir, tmp_path_factory.mktemp("vllm") / "log")
    server.start()
    try:
        server.await_health()
        yield server
    finally:
        server.stop()


@pytest.fixture
def open_door() -> Iterator[Callable[..., Door]]:
    """Starts a jevons before one engine, ready with its index in that state."""
    doors: list[Door] = []

    def start(engine: str, index: str = "exact") -> Door:
        door = Door("--engine", engine)
        doors.append(door)
        until(lambda: door.is_up(index), DOOR_START_S, f"jevons has its engine up, index {index}")
        return door

    yield start
    for door in doors:
        door.stop()


@pytest.fixture
def door(vllm: Vllm, open_door: Callable[..., Door]) -> Door:
    """A jevons that hears vLLM's KV events."""
    return open_door(vllm.attach)


@pytest.fixture
def measured(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print when the run is over."""
    return pytestconfig.stash.setdefault(MEASURED, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(MEASURED, [])
    if lines:
        terminalreporter.section("measured against vLLM")
        for line in lines:
            terminalreporter.write_line(line)
