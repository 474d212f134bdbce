"""`jevons mock` behind `jevons serve`: processes, sockets, no model."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.processes import READ_S, START_S, Jevons, Running, read, until

from jevons.base.errors import ConfigError
from jevons.engine.contents import token_after
from jevons.engine.mock_engine import MockFacts
from jevons.engine.specs import read_specs
from jevons.perf.measured import Prices
from jevons.perf.pace import pace_of
from jevons.serve.mock import Words
from jevons.serve.mock_fleet import Made, Plan, mock_fleet

COUNT = 4
BLOCK = 16


class Pair(NamedTuple):
    """A fleet and the server before it."""

    fleet: Running
    server: Jevons
    specs: list[str]

    def held(self) -> dict[str, set[str]]:
        """By engine, the blocks it has."""
        return {id: set(names) for id, names in json.loads(read(self.fleet.at + "/held")).items()}

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(read(self.fleet.at + "/state"))
        return state

    def chaos(self, **what: Any) -> None:
        post(self.fleet.at + "/chaos", what)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=READ_S) as response:
        answer: dict[str, Any] = json.loads(response.read())
        return answer


def refused(url: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and message with which `url` refuses."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, body)
    with caught.value as error:
        return error.code, json.loads(error.read())["error"]["message"]


@pytest.fixture(scope="module", params=["paths", "ports"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    file = tmp_path_factory.mktemp("fleet") / "engines"
    own = ["--own-ports"] if request.param == "ports" else []
    fleet = Running("mock", "--count", str(COUNT), "--port", "0", "--speed", "20", "--out", str(file), *own)
    server = Jevons("--engine", f"@{file}")
    until(lambda: len(server.healthy()) == COUNT, START_S)
    yield Pair(fleet, server, file.read_text().split())
    assert server.stop() == 0
    assert fleet.stop() == 0


def ask(url: str, prompt: list[int], output: int = 3) -> tuple[str, int]:
    """The answer, and how many of its prompt's tokens were cached."""
    answer = post(url + "/v1/completions", {"model": "mock", "prompt": prompt, "max_tokens": output})
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def answer_to(prompt: list[int], output: int = 3) -> str:
    tokens = list(prompt)
    for _ in range(output):
        tokens.append(token_after(tokens, BLOCK))
    return "".join(f" w{token}" for token in tokens[len(prompt) :])


def knows_all(pair: Pair) -> bool:
    """Whether the server believes of every engine that it holds as many blocks as it does."""
    known = [worker["held_blocks"] for worker in pair.server.snapshot()["workers"]]
    return sorted(known) == sorted(len(names) for names in pair.held().values())


def test_a_server_sends_prompts_back_to_where_their_blocks_are(pair: Pair) -> None:
    prompts = [[1_000 * n + i for i in range(70)] for n in range(1, 9)]
    before = sum(len(names) for names in pair.held().values())
    first = [ask(pair.server.url, prompt) for prompt in prompts]
    until(lambda: knows_all(pair), 5.0)
    second = [ask(pair.server.url, prompt) for prompt in prompts]

    assert [text for text, _ in first] == [answer_to(prompt) for prompt in prompts]
    assert [text for text, _ in second] == [answer_to(prompt) for prompt in prompts]
    assert [cached for _, cached in second] == [64] * len(prompts)
    assert sum(len(names) for names in pair.held().values()) - before == 4 * len(prompts)
    assert {worker["index"] for worker in pair.server.snapshot()["workers"]} == {"exact"}


def test_an_engine_streams_as_it_computes_and_tells_its_use(pair: Pair) -> None:
    body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True}
    request = urllib.request.Request(
        pair.server.url + "/v1/chat/completions",
        json.dumps({**body, "stream_options": {"include_usage": True}}).encode(),
    )
    with urllib.request.urlopen(request, timeout=READ_S) as response:
        *chunks, done = [line[6:] for line in response.read().decode().split("\n\n") if line]
    told = [json.loads(chunk) for chunk in chunks]

    assert done == "[DONE]"
    assert sum(bool(c["choices"] and c["choices"][0]["delta"].get("content")) for c in told) == 3
    assert told[-1]["usage"]["completion_tokens"] == 3


def test_a_restarted_engine_is_known_to_hold_nothing(pair: Pair) -> None:
    ask(pair.server.url, list(range(50_000, 50_100)))
    until(lambda: knows_all(pair), 5.0)
    starts = {id: state["counts"]["starts"] for id, state in pair.state().items()}
    pair.chaos(do="crash", engines=["0000", "0001"])
    until(lambda: len(pair.server.healthy()) == COUNT - 2, START_S)
    pair.chaos(do="start", engines=["0000", "0001"])
    until(lambda: len(pair.server.healthy()) == COUNT, START_S)
    until(lambda: knows_all(pair), 5.0)

    assert pair.held()["0000"] == pair.held()["0001"] == set()
    assert pair.state()["0000"]["counts"]["starts"] == starts["0000"] + 1
    assert ask(pair.server.url, list(range(60_000, 60_100)))[0] == answer_to(list(range(60_000, 60_100)))


def test_an_engine_answers_as_vllm_does_where_it_cannot(pair: Pair) -> None:
    url = pair.specs[0].split(",")[0]

    assert refused(url + "/v1/completions", {"model": "other", "prompt": [1]})[0] == 404
    status, message = refused(url + "/v1/completions", {"model": "mock", "prompt": [1], "max_tokens": 1 << 20})
    assert status == 400
    assert "this worker holds at most" in message
    assert b'vllm:num_requests_running{model_name="mock",engine="0"} 0' in read(url + "/metrics")


def test_an_answer_of_no_told_length_takes_what_room_its_prompt_leaves_and_tokens_without_text_count() -> None:
    words = Words(spell=lambda token: "" if token % 2 else "a")
    facts = MockFacts(id="0", model="mock", blocks=8, block_size=BLOCK)
    asked = {"model": "mock", "messages": [{"role": "user", "content": "x" * 360}]}

    async def go() -> dict[str, Any]:
        made = Made(facts, pace_of(Prices(0.001, 1e-6, 0.0, 1e-4)))
        async with mock_fleet([made], Plan(), words) as fleet:
            answer: dict[str, Any] = await asyncio.to_thread(post, f"{fleet.url}/e/0/v1/chat/completions", asked)
            return answer

    answer = asyncio.run(go())
    usage, (choice,) = answer["usage"], answer["choices"]
    assert usage["prompt_tokens"] > 8 * BLOCK - 64  # fewer than a usual answer has are left
    assert usage["total_tokens"] == 8 * BLOCK
    assert 0 < len(choice["message"]["content"]) < usage["completion_tokens"]


def test_what_is_asked_of_chaos_is_checked(pair: Pair) -> None:
    at = pair.fleet.at + "/chaos"

    assert "ids of this fleet, got 'x'" in refused(at, {"engines": ["x"]})[1]
    assert "Invalid enum value" in refused(at, {"do": "explode"})[1]
    assert "unknown field `speed`" in refused(at, {"faults": {"speed": 2}})[1]
    assert "Expected `bool | float`" in refused(at, {"faults": {"slowdown": "much"}})[1]
    assert "`float` > 0.0 - at `$.slowdown`" in refused(at, {"faults": {"slowdown": -1}})[1]
    assert "`float` <= 1.0 - at `$.event_loss`" in refused(at, {"faults": {"event_loss": 5}})[1]  # a share, not %
    assert "`float` >= 0.0 - at `$.event_lag_s`" in refused(at, {"faults": {"event_lag_s": -1}})[1]


def test_engines_with_an_ipv6_address_are_attached_and_their_events_heard(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    file = tmp_path / "engines"
    fleet = Running("mock", "--host", "::1", "--count", "1", "--port", "0", "--speed", "20", "--out", str(file))
    server = Jevons("--engine", f"@{file}")
    try:
        assert fleet.at.startswith("http://[::1]:")
        until(lambda: len(server.healthy()) == 1, START_S)
        ask(server.url, [*range(4 * BLOCK)])
        until(lambda: server.snapshot()["workers"][0]["held_blocks"] >= 4, START_S, "events are heard")
    finally:
        codes = server.stop(), fleet.stop()
    assert codes == (0, 0)


def test_engines_stand_in_files_too(tmp_path: Path) -> None:
    file = tmp_path / "engines"
    file.write_text("# a remark\nhttp://h:1,kv=tcp://h:2\n\nhttp://h:3\n")

    assert [s.url for s in read_specs(["http://h:4", f"@{file}"])] == ["http://h:4", "http://h:1", "http://h:3"]


def test_engines_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_specs([f"@{tmp_path}/none"])
    with pytest.raises(ConfigError, match="named once, got h:1 several"):
        read_specs(["http://h:1", "http://h:1"])


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two engines of three data-parallel ranks each."""
    file = tmp_path_factory.mktemp("ranks") / "engines"
    fleet = Running("mock", "--count", "2", "--ranks", "3", "--port", "0", "--speed", "20", "--out", str(file))
    server = Jevons("--engine", f"@{file}")
    until(lambda: len(server.healthy()) == 6, START_S)
    yield Pair(fleet, server, file.read_text().split())
    assert server.stop() == 0
    assert fleet.stop() == 0


def test_a_prompt_goes_back_to_the_rank_that_holds_it(ranked: Pair) -> None:
    prompts = [[1_000 * n + i for i in range(70)] for n in range(1, 13)]
    for prompt in prompts:
        assert ask(ranked.server.url, prompt) == (answer_to(prompt), 0)
    until(lambda: knows_all(ranked), READ_S, "it knows what each rank holds")
    cached = [ask(ranked.server.url, prompt)[1] for prompt in prompts]
    held = ranked.held()

    assert cached == [64] * len(prompts)
    assert len(held) == 6
    assert sum(map(bool, held.values())) > 1  # several ranks had some, and none has another's
    assert sum(map(len, held.values())) == len(set().union(*held.values()))


def test_ranks_are_workers_of_their_own_in_what_is_told(ranked: Pair) -> None:
    workers = {worker["id"]: worker for worker in ranked.server.snapshot()["workers"]}
    advice = post(ranked.server.url + "/v1/place", {"model": "mock", "prompt": list(range(40))})["workers"]
    urls = [spec.split(",")[0] for spec in ranked.specs]

    assert {(w["id"].rpartition("@")[0], w["rank"]) for w in workers.values()} == {
        (url.removeprefix("http://"), rank) for url in urls for rank in range(3)
    }
    assert {(w["url"], w["rank"]) for w in advice} == {(url, rank) for url in urls for rank in range(3)}
    until(lambda: any("2 attached engines" in line for line in ranked.server.lines), READ_S, "both of the file count")


def test_ranks_that_restart_are_known_to_hold_nothing(ranked: Pair) -> None:
    ask(ranked.server.url, list(range(90_000, 90_070)))
    ranked.chaos(do="restart", engines=["0001"])
    until(lambda: len(ranked.server.healthy()) == 6, READ_S)
    until(lambda: knows_all(ranked), READ_S, "it knows that they are empty")

    assert [bool(names) for id, names in ranked.held().items() if id.startswith("0001")] == [False] * 3


def test_an_engine_refuses_a_rank_that_it_has_not(ranked: Pair) -> None:
    url = ranked.specs[0].split(",")[0] + "/v1/completions"
    body = json.dumps({"model": "mock", "prompt": [1, 2, 3], "max_tokens": 1}).encode()
    headers = {"content-type": "application/json", "x-data-parallel-rank": "3"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=READ_S)

    with caught.value as error:
        assert error.code == 400
        assert "must be below 3" in json.loads(error.read())["error"]["message"]


def test_each_rank_is_read_as_an_engine_with_ports_that_count_up() -> None:
    specs = read_specs(["http://a:1,kv=tcp://*:5557,replay=tcp://a:5657,ranks=2", "http://b:1,ranks=1"])

    assert [(s.rank, s.events, s.replays) for s in specs] == [
        (0, "tcp://*:5557", "tcp://a:5657"),
        (1, "tcp://*:5558", "tcp://a:5658"),
        (None, None, None),
    ]


@pytest.mark.parametrize("option", ["ranks=0", "ranks=x", "ranks=2,kv=ipc://here", "ranks=9,kv=tcp://a:65530"])
def test_ranks_that_cannot_be_are_told_of(option: str) -> None:
    with pytest.raises(ConfigError, match="ranks="):
        read_specs([f"http://a:1,{option}"])
