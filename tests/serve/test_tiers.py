"""The tiers behind a real server: what spills comes back, through kills, damage and dead stores, or is computed again.

The mock engine draws every token from all blocks of its cache, so one wrong block anywhere makes a wrong answer.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.processes import Jevons, until
from tests.serve.talk import BLOCK, Talker
from tests.store.s3 import Moto

pytestmark = pytest.mark.model  # its tokenizer

POOL = 40 * BLOCK * 32  # a third of one worker's share of the prompts below
DRAM = 60 * 4096
START_S = 90.0


@pytest.fixture
def begin(model_dir: Path) -> Iterator[Callable[..., Jevons]]:
    begun: list[Jevons] = []

    def start(*flags: str, tokens_per_s: int = 800) -> Jevons:
        sizes = [
            "--mock-tokens-per-s",
            str(tokens_per_s),
            "--served-name",
            "smol",
            "--model",
            str(model_dir),
            "--kv-bytes",
            str(POOL),
        ]
        running = Jevons(*sizes, "--dram-bytes", str(DRAM), *flags)
        begun.append(running)
        until(lambda: len(running.healthy()) == 2, START_S)
        until(lambda: running.snapshot()["tiers"] is not None, START_S)
        return running

    yield start
    for running in begun:
        if running.process.poll() is None:
            assert running.stop() == 0
        else:
            assert running.process.stderr is not None
            running.process.stderr.close()


@pytest.fixture
def talker(model_dir: Path) -> Iterator[Talker]:
    made = Talker(model_dir, prefixes=30, seed=2)
    yield made
    made.close()


def counts(running: Jevons) -> dict[str, int]:
    found: dict[str, int] = running.snapshot()["tiers"]["counts"]
    return found


def settled(running: Jevons) -> dict[str, Any]:
    """The tiers once nothing is on its way."""

    def is_idle() -> bool:
        tiers = running.snapshot()["tiers"]
        return tiers is not None and not tiers["leases"] and not any(tiers["waiting_bytes"].values())

    until(is_idle, 30.0, "the tiers have settled")
    tiers: dict[str, Any] = running.snapshot()["tiers"]
    return tiers


def crash(running: Jevons) -> None:
    running.process.kill()
    running.process.wait(20)


def test_prompts_that_spill_to_disk_come_back_after_the_whole_service_is_killed(
    begin: Callable[..., Jevons], talker: Talker, tmp_path: Path
) -> None:
    flags = ["--disk-path", str(tmp_path / "kv"), "--disk-bytes", str(64 << 20)]
    running = begin(*flags)
    asks = talker.make(60)
    talker.check(running.port, asks)
    tiers = settled(running)
    assert tiers["blocks"]["disk"] > tiers["blocks"]["dram"] > 0
    load = threading.Thread(target=lambda: _until_it_breaks(talker, running.port))
    load.start()
    time.sleep(0.5)  # in the middle of it
    crash(running)
    load.join(60)

    running = begin(*flags, tokens_per_s=250)  # as slow as a model on a core: computing is never worth it
    cached = talker.check(running.port, asks)
    assert cached >= 0.9 * sum((len(a.prompt) - 1) // BLOCK * BLOCK for a in asks)
    assert settled(running)["leases"] == 0


def _until_it_breaks(talker: Talker, port: int) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):  # the server dies under its clients
        talker.check(port, talker.make(2_000))


def test_damage_on_disk_is_counted_and_computed_again(
    begin: Callable[..., Jevons], talker: Talker, tmp_path: Path
) -> None:
    path = tmp_path / "kv"
    flags = ["--disk-path", str(path), "--disk-bytes", str(64 << 20)]
    running = begin(*flags)
    asks = talker.make(60)
    talker.check(running.port, asks)
    settled(running)
    crash(running)
    draw = random.Random(4)
    for file in path.iterdir():
        raw = bytearray(file.read_bytes())
        for _ in range(len(raw) // 4_000):
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        file.write_bytes(raw)

    running = begin(*flags)
    talker.check(running.port, asks)
    assert sum(n for reason, n in counts(running).items() if reason.startswith("disk_")) > 0


def test_workers_and_the_keeper_may_die_at_any_time(
    begin: Callable[..., Jevons], talker: Talker, tmp_path: Path
) -> None:
    running = begin("--disk-path", str(tmp_path / "kv"), "--disk-bytes", str(8 << 20))
    over = threading.Event()

    def kill_now_and_then() -> None:
        draw = random.Random(1)
        while not over.wait(draw.uniform(0.3, 0.8)):
            snapshot = running.snapshot()
            tiers = snapshot["tiers"]
            pids = [] if tiers is None else [tiers["pid"]]
            if len(running.healthy()) == 2:
                pids.append(snapshot["workers"][0]["pid"])
            if pids:
                os.kill(draw.choice(pids), signal.SIGKILL)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        for _ in range(3):
            talker.check(running.port, talker.make(80))
    finally:
        over.set()
        killer.join(30)
    until(lambda: running.snapshot()["tiers"] is not None, 30.0)
    assert settled(running)["leases"] == 0


def test_a_conversation_that_will_be_back_is_kept_while_others_come_and_go(
    begin: Callable[..., Jevons], talker: Talker
) -> None:
    running = begin(tokens_per_s=250)
    [kept, other] = talker.make(2)
    for asked, headers in ((kept, {"x-jevons-keep-s": "600"}), (other, {})):
        assert talker.ask(running.port, asked, **headers)[0] == asked.answer
    talker.check(running.port, talker.others(30).make(40))

    assert talker.ask(running.port, kept)[1] > 0  # how much is brought and how much computed depends on the machine
    assert talker.ask(running.port, other)[1] == 0


def test_blocks_go_to_a_bucket_and_come_back_to_another_node(
    begin: Callable[..., Jevons], talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    s3 = Moto()
    try:
        s3.ask("PUT", "kv-blocks")
        flags = ["--object-url", "s3://kv-blocks/of-ours", "--object-endpoint", s3.url]
        running = begin(*flags)
        asks = talker.make(20)
        talker.check(running.port, asks)
        until(lambda: not any(running.snapshot()["tiers"]["waiting_bytes"].values()), 60.0, "all is written")
        crash(running)

        running = begin(*flags)
        until(lambda: running.snapshot()["tiers"]["blocks"].get("remote", 0) > 0, 30.0, "the bucket is listed")
        talker.check(running.port, asks, parallel=2)
        assert running.snapshot()["tiers"]["blocks"]["dram"] > 0
        assert sum(o["cached_tokens"] for o in running.snapshot()["recent"]) > 1_000  # of 20 prompts of 120 and more
        assert not any("corrupt" in w["tier_counts"] for w in running.snapshot()["workers"])
    finally:
        s3.stop()
    talker.check(running.port, talker.make(60))  # the server is gone: nobody notices
    assert any(reason.startswith("remote_") for reason in counts(running))


def test_a_bucket_that_accepts_and_never_answers_costs_no_client_anything(
    begin: Callable[..., Jevons], talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        running = begin("--object-url", "s3://kv-blocks/of-ours", "--object-endpoint", endpoint)
        talker.check(running.port, talker.make(100))
        talker.check(running.port, talker.make(100))
