"""Long and rough: churn, kills at random instants, a line so slow that computing is faster. By hand: `make chaos`."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.processes import Jevons, until
from tests.serve.talk import BLOCK, Asked, Talker, Use, use_of
from tests.store.s3 import Moto

pytestmark = [pytest.mark.chaos, pytest.mark.model]

START_S = 120.0
REQUESTS = 20_000
KILLS = 50
NOISE_S = 0.05  # of one request's time here

Start = Callable[..., Jevons]


@pytest.fixture
def begin(model_dir: Path) -> Iterator[Start]:
    begun: list[Jevons] = []

    def start(*flags: str, tokens_per_s: int, pool_blocks: int = 60, dram_pages: int = 100) -> Jevons:
        running = Jevons(
            *("--served-name", "smol", "--model", str(model_dir), "--mock-tokens-per-s", str(tokens_per_s)),
            *("--kv-bytes", str(pool_blocks * BLOCK * 32), "--dram-bytes", str(dram_pages * 4096)),
            *flags,
        )
        begun.append(running)
        until(lambda: len(running.healthy()) == 2, START_S)
        until(lambda: running.snapshot()["tiers"] is not None, START_S)
        return running

    yield start
    for running in begun:
        if running.process.poll() is None:
            running.stop()
        else:
            assert running.process.stderr is not None
            running.process.stderr.close()


def pids(running: Jevons) -> list[int]:
    snapshot = running.snapshot()
    return [running.process.pid, snapshot["tiers"]["pid"], *(w["pid"] for w in snapshot["workers"])]


def settled_use(running: Jevons) -> Use:
    def is_idle() -> bool:
        tiers = running.snapshot()["tiers"]
        return not tiers["leases"] and not any(tiers["waiting_bytes"].values())

    until(is_idle, 30.0)
    return use_of(pids(running))


def test_after_twenty_thousand_requests_nothing_has_grown(begin: Start, model_dir: Path, tmp_path: Path) -> None:
    talker = Talker(model_dir, prefixes=150, seed=6)
    running = begin("--disk-path", str(tmp_path / "kv"), "--disk-bytes", str(2 << 20), tokens_per_s=100_000)
    shared = set(os.listdir("/dev/shm"))
    for _ in range(10):  # pools, disk and caches fill
        talker.check(running.port, talker.make(300))
    before = settled_use(running)
    for _ in range(REQUESTS // 500):
        talker.check(running.port, talker.make(500))
    after = settled_use(running)
    tiers = running.snapshot()["tiers"]
    print(f"before {before}, after {after}, tiers {tiers}")
    talker.close()

    assert tiers["leases"] == 0
    assert tiers["dram_used_bytes"] <= tiers["dram_bytes"]
    assert tiers["counts"]["dram_evicted"] > REQUESTS
    assert after.threads == before.threads
    assert abs(after.handles - before.handles) <= 8  # disk segments come and go
    assert after.rss_bytes < before.rss_bytes * 1.05
    assert set(os.listdir("/dev/shm")) <= shared


def test_fifty_kills_of_the_whole_service_never_give_a_wrong_token(
    begin: Start, model_dir: Path, tmp_path: Path
) -> None:
    talker, draw = Talker(model_dir, prefixes=40, seed=8), random.Random(3)
    flags = ["--disk-path", str(tmp_path / "kv"), "--disk-bytes", str(16 << 20)]
    asks, checked, cached = talker.make(40), 0, 0
    for _ in range(KILLS):
        running = begin(*flags, tokens_per_s=2_000)
        some = draw.sample(asks, 6)
        cached += talker.check(running.port, some)
        checked += len(some)
        load = threading.Thread(target=_until_it_breaks, args=(talker, running.port))
        load.start()
        time.sleep(draw.uniform(0.0, 0.6))
        running.process.kill()
        running.process.wait(20)
        load.join(60)
    talker.close()

    print(f"{checked} answers right, {cached} cached tokens, {KILLS} kills")
    assert checked >= 200
    assert cached > 0


def _until_it_breaks(talker: Talker, port: int) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        talker.check(port, talker.make(3_000))


class Line:
    """A TCP line to a server, so many bytes a second in each direction."""

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._target = port
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def serve() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            server.close()
            pipes = asyncio.all_tasks() - {asyncio.current_task()}
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            await asyncio.sleep(0)  # closed transports say so to their protocols

        self._loop.run_until_complete(serve())

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            with contextlib.closing(back):
                await asyncio.gather(self._pipe(reader, back), self._pipe(there, writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(1 << 12):
                await asyncio.sleep(len(data) / self.bytes_per_s)
                writer.write(data)
                await writer.drain()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()


@pytest.mark.parametrize("bytes_per_s", [2e3, 2e4, 2e5, 1e8])
def test_a_restore_over_any_line_takes_at_most_a_tenth_longer_than_computing(
    begin: Start, model_dir: Path, monkeypatch: pytest.MonkeyPatch, bytes_per_s: float
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    s3 = Moto()
    line = Line(int(s3.url.rpartition(":")[2]), 1e9)
    try:
        s3.ask("PUT", "kv-blocks")
        flags = ["--object-url", "s3://kv-blocks/x", "--object-endpoint", f"http://127.0.0.1:{line.port}"]
        running = begin(*flags, tokens_per_s=400)
        talker = Talker(model_dir, prefixes=24, seed=4, tokens=240)
        asks = talker.make_each()
        cold = [timed(talker, running.port, asked) for asked in asks]
        until(lambda: not any(running.snapshot()["tiers"]["waiting_bytes"].values()), 60.0)
        running.process.kill()
        running.process.wait(20)

        running = begin(*flags, tokens_per_s=400)
        until(lambda: running.snapshot()["tiers"]["blocks"].get("remote", 0) > 200, 30.0)
        line.bytes_per_s = bytes_per_s
        others = Talker(model_dir, prefixes=4, seed=5, tokens=240)
        others.check(running.port, others.make(4), parallel=2)  # each worker has measured a step
        back = [timed(talker, running.port, asked) for asked in asks]
        fates = [w["tier_counts"] for w in running.snapshot()["workers"]]
        cached = sum(o["cached_tokens"] for o in running.snapshot()["recent"][-len(asks) :])
        print(f"{bytes_per_s:.0f} B/s: {statistics.median(back):.3f} s, {cached} tokens cached, {fates}")
        others.close()
        talker.close()
    finally:
        line.close()
        s3.stop()

    ratios = [b / c for b, c in zip(back, cold, strict=True)]
    print(f"cold {statistics.median(cold):.3f} s, ratio {statistics.median(ratios):.2f}, worst {max(ratios):.2f}")
    assert all(b <= 1.1 * c + NOISE_S for b, c in zip(back, cold, strict=True))


def timed(talker: Talker, port: int, asked: Asked) -> float:
    began = time.perf_counter()
    answer, _ = talker.ask(port, asked)
    assert answer == asked.answer
    return time.perf_counter() - began
