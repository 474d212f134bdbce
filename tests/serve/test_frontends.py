"""Several frontends on one port, restarts that are not blind: processes, sockets, kills; engines without a model."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.processes import READ_S, START_S, Jevons, Running, free_ports, read, until

from jevons.base.errors import ConfigError
from jevons.cli.serve import command
from jevons.kv.engine_names import EngineNames
from jevons.serve.kept import decode

ENGINES, TALKS, TURNS, SYSTEM, TURN = 4, 12, 8, 256, 128
WINDOW = 40  # batches an engine keeps for replays: fewer than it sends


@contextmanager
def fleet(tmp_path: Path, *flags: str) -> Iterator[Running]:
    """Engines; their addresses are in the file `engines`."""
    file = tmp_path / "engines"
    running = Running("mock", "--count", str(ENGINES), "--port", "0", "--speed", "2", "--out", str(file), *flags)
    try:
        yield running
    finally:
        assert running.stop() == 0


@contextmanager
def server(tmp_path: Path, *flags: str) -> Iterator[Jevons]:
    running = Jevons("--engine", f"@{tmp_path / 'engines'}", *flags)
    try:
        until(lambda: len(running.healthy()) == ENGINES, START_S)
        yield running
    finally:
        if running.process.poll() is None:
            assert running.stop() == 0, running.lines
        else:
            running.stop()


def ask(url: str, prompt: list[int]) -> int:
    """How many of the prompt's tokens were cached."""
    body = json.dumps({"model": "mock", "prompt": prompt, "max_tokens": 2}).encode()
    with urllib.request.urlopen(urllib.request.Request(url + "/v1/completions", body), timeout=READ_S) as response:
        answer = json.loads(response.read())
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def prompt_of(talk: int, turn: int, story: int = 0) -> list[int]:
    """Talks in groups of three with a system prompt each; each turn has all that was said before."""
    group = 1_000_000 * (story + 1) + 10_000 * (talk % 4)
    own = 1_000_000 * (story + 1) + 100_000 + 5_000 * talk
    return [group + i for i in range(SYSTEM)] + [own + i for i in range(TURN * (turn + 1))]


def play(url: str, story: int = 0) -> float:
    """The share of prompt tokens that was cached, of talks that go on side by side, each over a new connection."""

    def talk(number: int) -> int:
        return sum(ask(url, prompt_of(number, turn, story)) for turn in range(TURNS))

    with ThreadPoolExecutor(6) as pool:
        cached = sum(pool.map(talk, range(TALKS)))
    return cached / sum(len(prompt_of(talk, turn)) for talk in range(TALKS) for turn in range(TURNS))


def held(engines: Running) -> dict[str, set[str]]:
    """By engine, the names of the blocks it has: the truth."""
    return {id: set(names) for id, names in json.loads(read(engines.at + "/held")).items()}


def known(path: Path) -> dict[str, set[str]]:
    """By engine, the names of the blocks that a server which has ended knew."""
    found = {}
    for state in decode(path.read_bytes()):
        assert state.source is not None
        names = EngineNames().load(state.source.names)
        found[state.worker.rpartition("/")[2]] = {name.hex() for name, _ in names}
    return found


def counts_match(engines: Running, running: Jevons) -> bool:
    """Whether the server knows of as many blocks as each engine has."""
    truth = {id: len(names) for id, names in held(engines).items()}
    return {w["id"].rpartition("/")[2]: w["held_blocks"] for w in running.snapshot()["workers"]} == truth


def events(running: Jevons, fate: str) -> int:
    return sum(w["event_counts"].get(fate, 0) for w in running.snapshot()["workers"])


def metric(running: Jevons, line: str) -> float:
    found = [row for row in running.get("/metrics").decode().splitlines() if row.startswith(line + " ")]
    return float(found[0].split()[-1]) if found else 0.0


def frontend(running: Jevons, number: int) -> dict[str, Any] | None:
    return next((f for f in running.snapshot()["frontends"] if f["number"] == number), None)


def test_three_frontends_find_as_much_cached_as_one(tmp_path: Path) -> None:
    found = {}
    for count in (1, 3):
        with fleet(tmp_path), server(tmp_path, "--frontends", str(count)) as running:
            found[count] = play(running.url)
            asked = TALKS * TURNS
            assert running.snapshot()["placements"] == asked
            assert metric(running, 'jevons_requests_total{endpoint="/v1/completions",status="200"}') == asked
            if count > 1:
                frontends = running.snapshot()["frontends"]
                assert [f["number"] for f in frontends] == [0, 1, 2]
                assert all(f["placements"] > 0 for f in frontends)
                until(lambda: all(f["requests_elsewhere"] == 0 for f in running.snapshot()["frontends"]), READ_S)

    assert found[1] > 0.5
    assert abs(found[3] - found[1]) < 0.05 * found[1], found


def test_any_of_two_shows_the_page_of_both(tmp_path: Path) -> None:
    with fleet(tmp_path), server(tmp_path, "--frontends", "2") as running:
        for number in range(16):  # each over a new connection
            ask(running.url, prompt_of(number, 0))
        assert all(f["placements"] > 0 for f in running.snapshot()["frontends"])
        until(lambda: shown(running)["finished"] == 16, READ_S)

        views = [shown(running) for _ in range(16)]

        assert b"<title>" in running.get("/ui")
        rehearsed = post(running.url + "/ui/what-if", {"policy": "random"}, {"content-type": "application/json"})
        assert (rehearsed["now"]["requests"], rehearsed["then"]["requests"]) == (16, 16)
        assert not any("missing" in note for note in rehearsed["notes"])
        assert len({view["began"] for view in views}) == 1
        for view in views:
            assert (view["placed"], view["finished"], view["under_way"]) == (16, 16, 0)
            assert len({going[0] for going in view["requests"]}) == 16
            assert view["title"] == "mock, by 2 frontends"
            assert sorted(view["workers"]["who"]["ids"]) == sorted(w["id"] for w in running.snapshot()["workers"])


def shown(running: Jevons) -> dict[str, Any]:
    told = json.loads(running.get("/ui/data"))
    assert told["can"] == ["chat", "what-if"]
    view: dict[str, Any] = told["view"]
    return view


def test_a_gateway_may_tell_any_frontend_what_became_of_a_placement(tmp_path: Path) -> None:
    with fleet(tmp_path), server(tmp_path, "--frontends", "2") as running:
        body = {"model": "mock", "prompt": prompt_of(1, 1)}
        held = [post(running.url + "/v1/place", body, {"x-jevons-hold-s": "60"})["id"] for _ in range(12)]
        until(lambda: sum(w["requests"] for w in running.snapshot()["workers"]) == 12, READ_S)
        for id in held:
            post(running.url + "/v1/placed", {"id": id, "event": "first_token"})
            post(running.url + "/v1/placed", {"id": id, "event": "done"})
        until(lambda: sum(w["requests"] for w in running.snapshot()["workers"]) == 0, READ_S)

        with pytest.raises(urllib.error.HTTPError) as unknown:
            post(running.url + "/v1/placed", {"id": held[0], "event": "done"})
        with unknown.value as error:
            assert error.code == 404


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), headers or {})
    with urllib.request.urlopen(request, timeout=START_S) as response:  # the first rehearsal compiles its kernels
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def test_a_frontend_killed_under_load_costs_the_others_nothing_and_is_soon_as_good(tmp_path: Path) -> None:
    with fleet(tmp_path) as engines, server(tmp_path, "--frontends", "3") as running:
        before = play(running.url)
        victim = frontend(running, 1)
        assert victim is not None
        failed: list[Exception] = []
        stop = threading.Event()

        def load(number: int) -> int:
            asked = 0
            while not stop.is_set():
                try:
                    ask(running.url, prompt_of(number, asked % TURNS, 7))
                except (HTTPException, OSError) as error:
                    failed.append(error)
                asked += 1
            return asked

        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load, number) for number in range(4)]
            os.kill(victim["pid"], signal.SIGKILL)
            try:
                until(lambda: is_back(running, 1, victim["pid"]), START_S)
            finally:
                stop.set()
            assert sum(each.result() for each in loads) > 20
        assert len(failed) <= 4, failed  # at most what was under way in it

        until(lambda: len(running.snapshot()["frontends"]) == 3 and counts_match(engines, running), READ_S)
        assert metric(running, 'jevons_hub_total{fate="restarts"}') == 1
        assert metric(running, 'jevons_requests_total{endpoint="/v1/completions",status="200"}') > TALKS * TURNS
        assert play(running.url, story=1) > 0.98 * before


def test_a_frontend_that_was_stopped_does_not_take_engines_for_hanging(tmp_path: Path) -> None:
    many = 24  # more than are suspected at once
    with fleet(tmp_path, "--count", str(many), "--prefill-tokens-per-s", "2000") as engines:
        running = Jevons("--engine", f"@{tmp_path / 'engines'}", "--frontends", "2")
        try:
            until(lambda: len(running.healthy()) == many, START_S)
            pids = [f["pid"] for f in running.snapshot()["frontends"]]
            with ThreadPoolExecutor(48) as pool:
                answers = [pool.submit(ask, running.url, [10_000 * n + i for i in range(5_000)]) for n in range(48)]
                until(lambda: running.snapshot()["placements"] == len(answers), READ_S)
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                time.sleep(1.5)  # longer than an engine may be silent
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
                assert [answer.result() for answer in answers] == [0] * len(answers)
            counts = [state["counts"] for state in json.loads(read(engines.at + "/state")).values()]
            assert sum(each["requests"] for each in counts) == len(answers)
            assert sum(each.get("aborted", 0) for each in counts) == 0
        finally:
            assert running.stop() == 0


def test_a_frontend_started_again_learns_from_a_sibling_what_no_replay_tells(tmp_path: Path) -> None:
    with fleet(tmp_path, "--replay-batches", "1") as engines, server(tmp_path, "--frontends", "2") as running:
        play(running.url)
        until(lambda: counts_match(engines, running), READ_S)
        victim = frontend(running, 0)
        assert victim is not None
        os.kill(victim["pid"], signal.SIGKILL)
        until(lambda: is_back(running, 0, victim["pid"]), START_S)

        blocks = sum(len(names) for names in held(engines).values())
        per_worker = {f["number"]: f["index_blocks"] for f in running.snapshot()["frontends"]}
        assert per_worker[0] == per_worker[1] > 0
        for number in (0, 1):
            worker_blocks = [
                float(row.split()[-1])
                for row in running.get("/metrics").decode().splitlines()
                if row.startswith(f'jevons_worker_blocks{{frontend="{number}"')
            ]
            assert sum(worker_blocks) == blocks


def test_a_server_started_again_knows_what_it_knew_though_no_replay_goes_back_so_far(tmp_path: Path) -> None:
    state, flags = tmp_path / "state", ("--replay-batches", str(WINDOW))
    with fleet(tmp_path, *flags) as engines:
        with server(tmp_path, "--state", str(state)) as running:
            before = play(running.url)
        assert known(state) == held(engines)

        with server(tmp_path, "--state", str(state)) as running:
            assert counts_match(engines, running)
            assert events(running, "recalled") > 0
            assert events(running, "lost_batches") == 0
            assert {w["index"] for w in running.snapshot()["workers"]} == {"exact"}
            assert sum(ask(running.url, prompt_of(talk, TURNS - 1)) for talk in range(TALKS)) > 0.9 * TALKS * (
                SYSTEM + TURN * TURNS
            )
            assert play(running.url, story=1) > 0.98 * before
            running.process.kill()  # nothing is saved now: the next one knows less, and asks for what it missed
            running.process.wait(READ_S)

        with server(tmp_path, "--state", str(state)) as running:
            until(lambda: counts_match(engines, running), READ_S)
        assert known(state) == held(engines)


def test_engines_that_started_anew_meanwhile_are_not_believed_to_hold_what_they_held(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with fleet(tmp_path) as engines:
        with server(tmp_path, "--state", str(state)) as running:
            play(running.url)
        for what in ("crash", "start"):
            body = json.dumps({"do": what, "engines": ["0000", "0001"]}).encode()
            with urllib.request.urlopen(urllib.request.Request(engines.at + "/chaos", body), timeout=READ_S):
                pass

        with server(tmp_path, "--state", str(state)) as running:
            until(lambda: counts_match(engines, running), READ_S)
            assert events(running, "recall_refused") == 2
            assert {w["index"] for w in running.snapshot()["workers"]} == {"exact"}
            play(running.url, story=1)
            until(lambda: counts_match(engines, running), READ_S)
        assert known(state) == held(engines)


def test_frontends_end_with_who_started_them(tmp_path: Path) -> None:
    with fleet(tmp_path), server(tmp_path, "--frontends", "2") as running:
        pids = [f["pid"] for f in running.snapshot()["frontends"]]
        running.process.kill()
        running.process.wait(READ_S)
        until(lambda: not any(is_there(pid) for pid in pids), START_S)


def is_back(running: Jevons, number: int, old_pid: int) -> bool:
    try:
        now = frontend(running, number)
    except OSError:
        return False  # a connection that the kernel had given to the one that died
    return now is not None and now["pid"] != old_pid


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_port_that_is_served_is_not_shared_by_mistake(tmp_path: Path) -> None:
    with fleet(tmp_path), server(tmp_path, "--frontends", "2") as running:
        flags = ["--frontends", "2", "--port", str(running.port), "--engine", f"@{tmp_path / 'engines'}"]
        error = CliRunner().invoke(command, flags).exception

        assert isinstance(error, ConfigError)
        assert f"cannot listen on 127.0.0.1:{running.port}" in str(error)


def test_what_several_frontends_cannot_serve_is_said(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    engine = f"http://127.0.0.1:{port}"
    busy = socket.create_server(("127.0.0.1", 0))
    taken = busy.getsockname()[1]
    for flags, says in (
        (["--workers", "2"], "attach engines"),
        (["--engine", engine, "--record", str(tmp_path / "r")], "frontends, record"),
        (["--engine", f"{engine},kv=tcp://*:5557"], "bound by one process alone"),
        (["--engine", engine, "--picker", f"127.0.0.1:{taken}"], f"picker: cannot listen on 127.0.0.1:{taken}"),
    ):
        error = CliRunner().invoke(command, ["--frontends", "2", "--port", "0", *flags]).exception
        assert isinstance(error, ConfigError)
        assert says in str(error)
    busy.close()
