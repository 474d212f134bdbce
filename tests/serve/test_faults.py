"""Workers die and hang, clients leave: who notices what, and how soon. Real processes, real signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.model

# What we promise, on a machine that is busy with the model itself.
LEAVES_S = 1.0
RETURNS_S = 1.0

Wait = Callable[[Callable[[], bool], float], float]


@pytest.fixture(scope="module")
def server(start: Callable[..., Any]) -> Iterator[Any]:
    running = start("--served-name", "smol", "--kv-bytes", str(64 << 20), "--policy", "round_robin")
    yield running
    assert running.stop() == 0


@pytest.fixture(autouse=True)
def _whole_again(server: Any, wait_until: Wait) -> Iterator[None]:
    """Every test finds and leaves two workers that are up and idle."""
    yield
    wait_until(lambda: len(server.healthy()) == 2, 60)
    wait_until(lambda: not any(w["requests"] for w in server.snapshot()["workers"]), 60)


def body(prompt: str, **more: Any) -> bytes:
    return json.dumps({"model": "smol", "prompt": prompt, "temperature": 0, "ignore_eos": True, **more}).encode()


class Stream:
    """A streamed completion, read event by event."""

    def __init__(self, server: Any, prompt: str, **more: Any) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.connection.request("POST", "/v1/completions", body(prompt, stream=True, **more))
        self.response = self.connection.getresponse()

    def event(self) -> Any:
        """The next event's JSON; None at [DONE] or the end."""
        for line in self.response:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                return None if data == b"[DONE]" else json.loads(data)
        return None

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def busy_worker(server: Any) -> dict[str, Any]:
    return next(w for w in server.snapshot()["workers"] if w["requests"])


def ask(server: Any, prompt: str, **more: Any) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", "/v1/completions", body(prompt, **more))
        response = connection.getresponse()
        answer: dict[str, Any] = {"status": response.status, **json.loads(response.read())}
        return answer
    finally:
        connection.close()


def test_a_killed_worker_leaves_at_once_and_is_used_again_when_it_is_back(server: Any, wait_until: Wait) -> None:
    pid = server.worker("w0")["pid"]
    os.kill(pid, signal.SIGKILL)

    assert wait_until(lambda: server.healthy() == ["w1"], LEAVES_S) < LEAVES_S
    assert all(ask(server, "Hello", max_tokens=2)["status"] == 200 for _ in range(4))
    wait_until(lambda: len(server.healthy()) == 2, 60)
    assert server.worker("w0")["pid"] != pid
    assert server.worker("w0")["held_blocks"] == 0
    placed = {ask(server, "Hello again", max_tokens=2)["status"] for _ in range(2)}  # round robin: one on each
    assert placed == {200}
    assert {o["worker"] for o in server.snapshot()["recent"][-2:]} == {"w0", "w1"}


def test_a_request_without_a_token_goes_elsewhere_unseen(server: Any, wait_until: Wait) -> None:
    answers: list[dict[str, Any]] = []
    long = "word " * 2_000
    thread = threading.Thread(target=lambda: answers.append(ask(server, long, max_tokens=2)))
    thread.start()
    wait_until(lambda: any(w["queued_tokens"] for w in server.snapshot()["workers"]), 10)
    victim = busy_worker(server)
    os.kill(victim["pid"], signal.SIGKILL)
    thread.join(60)

    assert [a["status"] for a in answers] == [200]
    assert answers[0]["usage"]["completion_tokens"] == 2
    last = server.snapshot()["recent"][-1]
    assert last["worker"] != victim["id"]
    assert f'jevons_retries_total{{worker="{victim["id"]}"}}' in server.get("/metrics").decode()


def test_a_stream_whose_worker_dies_goes_on_elsewhere_unseen(server: Any) -> None:
    stream = Stream(server, "Once upon a time", max_tokens=100)
    events = [stream.event()]
    victim = busy_worker(server)
    os.kill(victim["pid"], signal.SIGKILL)
    while (event := stream.event()) is not None:
        events.append(event)
    stream.close()

    assert all("error" not in event for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert server.snapshot()["recent"][-1]["worker"] != victim["id"]


def test_a_stream_that_nobody_can_go_on_with_ends_with_an_error_event(server: Any) -> None:
    stream = Stream(server, "Once upon a time", max_tokens=2_000)
    assert stream.event()["choices"]
    deadline = time.monotonic() + 60
    events: list[dict[str, Any]] = []
    while time.monotonic() < deadline and (not events or "error" not in events[-1]):
        for worker in server.snapshot()["workers"]:
            if worker["requests"]:
                os.kill(worker["pid"], signal.SIGKILL)  # whoever takes it
        events.append(stream.event() or {})
    rest = stream.response.read()
    stream.close()

    assert b"".join(rest.split()) in (b"", b"data:[DONE]")  # the body ended as HTTP wants it
    assert "the answer is cut after" in events[-1]["error"]["message"]
    assert events[-1]["error"]["type"] == "server_error"


def test_a_hanging_worker_leaves_the_rotation_and_returns_when_it_goes_on(server: Any, wait_until: Wait) -> None:
    pid = server.worker("w1")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: server.healthy() == ["w0"], LEAVES_S + 0.2)  # + one look at the snapshot
        assert all(ask(server, "Hello", max_tokens=2)["status"] == 200 for _ in range(3))
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: len(server.healthy()) == 2, RETURNS_S)
    assert server.worker("w1")["pid"] == pid


def test_a_request_on_a_worker_that_hangs_before_its_first_token_goes_elsewhere(server: Any, wait_until: Wait) -> None:
    pids = {w["id"]: w["pid"] for w in server.snapshot()["workers"]}
    turn = server.snapshot()["placements"] % 2
    victim = f"w{turn}"
    os.kill(pids[victim], signal.SIGSTOP)
    try:
        answer = ask(server, "Hello there", max_tokens=2)
        assert answer["status"] == 200
        assert server.snapshot()["recent"][-1]["worker"] != victim
    finally:
        os.kill(pids[victim], signal.SIGCONT)
    wait_until(lambda: len(server.healthy()) == 2, RETURNS_S)


@pytest.mark.parametrize("prompt", ["Once upon a time", "word " * 2_500], ids=["decoding", "in prefill"])
def test_a_client_that_leaves_stops_the_engines_work(server: Any, wait_until: Wait, prompt: str) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    request = body(prompt, max_tokens=300, stream=True)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(request)}\r\n\r\n".encode()
    connection.sendall(head + request)
    wait_until(lambda: any(w["requests"] for w in server.snapshot()["workers"]), 10)
    worker = busy_worker(server)["id"]
    time.sleep(0.5)  # well inside its work: 300 tokens take 6 s, the long prompt 3 s
    connection.close()
    wait_until(lambda: not server.worker(worker)["requests"], 1.0)
    steps = server.worker(worker)["measurements"]
    time.sleep(0.1)
    settled = server.worker(worker)["measurements"]
    time.sleep(0.5)

    assert settled - steps <= 2
    assert server.worker(worker)["measurements"] == settled  # not one step more: the engine is idle


def test_without_any_worker_requests_are_told_to_come_back(server: Any, wait_until: Wait) -> None:
    for worker in server.snapshot()["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: server.healthy() == [], LEAVES_S)
    answer = ask(server, "Hello", max_tokens=2)

    assert answer["status"] == 503
    assert answer["error"]["code"] == "no_worker"
    wait_until(lambda: len(server.healthy()) == 2, 60)
    assert ask(server, "Hello", max_tokens=2)["status"] == 200


def test_the_workers_end_with_the_server_even_if_it_is_killed(start: Callable[..., Any], wait_until: Wait) -> None:
    running = start("--workers", "1")
    [worker] = running.snapshot()["workers"]
    running.process.kill()
    running.process.wait(10)
    running.process.stderr.close()

    wait_until(lambda: not os.path.exists(f"/proc/{worker['pid']}"), 10)
