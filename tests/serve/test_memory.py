"""How much memory the index is given goes by the machine, or by its container; how many clients by open files."""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.processes import START_S, Jevons, Running, until

from jevons.serve.memory import MOST_FILES, memory_bytes, most_clients


def test_a_container_limit_counts_where_there_is_one(tmp_path: Path) -> None:
    whole, limit, unlimited = memory_bytes(()), tmp_path / "memory.max", tmp_path / "no limit"
    limit.write_text(f"{64 << 20}\n")
    unlimited.write_text("max\n")

    assert whole > 64 << 20
    assert memory_bytes((limit,)) == 64 << 20
    assert memory_bytes((unlimited, tmp_path / "missing")) == whole


@contextmanager
def files(soft: int) -> Iterator[None]:
    """As many as this process, and what it starts, may open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_client_of_an_engine_takes_two_files() -> None:
    with files(1_024):
        assert (most_clients(0), most_clients(2), most_clients(1_000)) == (768, 380, 16)


def test_a_server_opens_as_many_files_as_it_may_and_serves_more_clients_than_the_usual_limit_has() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    with files(400):
        mock = Running("mock", "--port", "0", "--count", "1")
        running = Jevons("--workers", "0", "--engine", f"{mock.at}/e/0000", "--no-state")
    try:
        until(lambda: len(running.healthy()) == 1, START_S)
        assert f"Max open files {wanted} " in re.sub(" +", " ", Path(f"/proc/{running.process.pid}/limits").read_text())
        answers = streams(running.port, 250)
        assert all(answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer for answer in answers)
    finally:
        assert running.stop() == mock.stop() == 0


def streams(port: int, count: int) -> list[bytes]:
    """So many answers, all at once."""
    body = b'{"model":"mock","prompt":"hello","max_tokens":400,"stream":true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    with ExitStack() as held:
        clients = [held.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        for client in clients:
            client.sendall(head + body)
        return [held.enter_context(client.makefile("rb")).read() for client in clients]
