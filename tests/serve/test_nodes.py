"""Workers of other hosts, behind their nodes' doors: here processes of this one, which share nothing but sockets."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.processes import START_S, Jevons, Running, free_ports, until
from tests.serve import asking
from tests.serve.asking import rows

from jevons.twin.workload import Chat, conversations
from jevons.wire.channel import framed
from jevons.wire.tunnel import Knock

pytestmark = pytest.mark.model

TALKS = conversations(Chat(conversations=8, turns=1, groups=8, system_tokens=150, turn_tokens=40, seed=9))
OUTPUT = 10
COMMON = ["--served-name", "smol", "--invariant"]


def ask(server: Jevons, number: int, **more: Any) -> list[tuple[str, float]]:
    return rows(asking.ask(server.url, TALKS[number], OUTPUT, **more))


class Fleet:
    """A server whose prefill and decode workers are each on a node of its own."""

    def __init__(self, model_dir: Path, secret: Path) -> None:
        doors = [f"127.0.0.1:{port}" for port in free_ports(2)]
        keepers = [f"127.0.0.1:{port}" for port in free_ports(2)]
        own = ["--model", str(model_dir), *COMMON, "--peer-secret-file", str(secret)]
        self.nodes = [
            Running(
                *("node", *own, "--node-listen", doors[i], role, "1", "--dram-bytes", str(128 << 20)),
                *("--peer-listen", keepers[i], "--peer", keepers[1 - i]),
            )
            for i, role in enumerate(("--prefill", "--decode"))
        ]
        self.prefill, self.decode = f"{doors[0]}/p0", f"{doors[1]}/d0"
        self.doors = doors
        self.server = Jevons(*own, "--node", doors[0], "--node", doors[1])
        until(lambda: len(self.server.healthy()) == 2, START_S, "both workers are up")
        until(lambda: len(self.server.snapshot()["nodes"]) == 2, START_S, "both keepers are known")

    def stop(self) -> None:
        assert self.server.stop() == 0
        assert [node.stop() for node in self.nodes] == [0, 0]


@pytest.fixture(scope="module")
def fleet(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    secret = tmp_path_factory.mktemp("nodes") / "secret"
    secret.write_text("only for the fleet's own eyes")
    made = Fleet(model_dir, secret)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def expected(start: Callable[..., Jevons]) -> list[list[tuple[str, float]]]:
    """Answers of one worker that does everything, on the server's own host."""
    running = start(*COMMON, "--workers", "1")
    try:
        return [ask(running, i) for i in range(len(TALKS))]
    finally:
        assert running.stop() == 0


def test_prompts_computed_on_one_node_go_on_bit_for_bit_on_another(
    fleet: Fleet, expected: list[list[tuple[str, float]]]
) -> None:
    with ThreadPoolExecutor(len(TALKS)) as pool:
        answers = list(pool.map(lambda i: ask(fleet.server, i), range(len(TALKS))))
    recent = fleet.server.snapshot()["recent"]

    assert answers == expected
    assert fleet.prefill in {o["worker"] for o in recent}
    came = [o for o in recent if o["worker"] == fleet.decode and (o["cached_tokens"] or 0) > 100]
    assert came, "blocks computed behind one door reached the worker behind the other"


def test_a_worker_that_is_killed_behind_its_door_costs_nobody_an_answer_and_returns(
    fleet: Fleet, expected: list[list[tuple[str, float]]]
) -> None:
    with ThreadPoolExecutor(len(TALKS)) as pool:
        waiting = [pool.submit(ask, fleet.server, i, cache_salt="k") for i in range(len(TALKS))]
        until(lambda: fleet.server.worker(fleet.prefill)["requests"] > 0, 30)
        os.kill(fleet.server.worker(fleet.prefill)["pid"], signal.SIGKILL)
        answers = [each.result() for each in waiting]

    assert answers == expected
    until(lambda: len(fleet.server.healthy()) == 2, START_S, "it is back")


def test_while_a_node_hangs_others_answer_and_then_it_is_used_again(
    fleet: Fleet, expected: list[list[tuple[str, float]]]
) -> None:
    node = fleet.nodes[0].process.pid
    os.kill(node, signal.SIGSTOP)
    try:
        until(lambda: fleet.prefill not in fleet.server.healthy(), 10, "it is known to hang")
        answers = [ask(fleet.server, i, cache_salt="h") for i in range(2)]
    finally:
        os.kill(node, signal.SIGCONT)

    assert answers == expected[:2]
    until(lambda: len(fleet.server.healthy()) == 2, START_S, "it is back")


def test_a_door_opens_to_nobody_without_the_secret(fleet: Fleet) -> None:
    host, _, port = fleet.doors[0].rpartition(":")
    for knock in (framed(Knock(b"x" * 30, "")), framed(Knock(b"", "p0/channel")), b"\xff" * 64, b"GET / HTTP/1.1\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(knock)
            line.shutdown(socket.SHUT_WR)
            assert b"p0" not in line.recv(1 << 16)
    assert len(fleet.server.healthy()) == 2
