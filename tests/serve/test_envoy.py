"""The endpoint picker behind the gateway it is for: a real Envoy, a real server, engines that answer as told."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.processes import free_ports, until
from tests.serve.envoy import MODEL, Engine, Picking, ask, envoy, running

DUPLEX = {
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_trailer_mode": "SEND",
}
BUFFERED = {"request_body_mode": "BUFFERED", "response_body_mode": "STREAMED"}
BARE = {"request_body_mode": "NONE", "response_body_mode": "NONE"}
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    two = [Engine(name) for name in "ab"]
    yield two
    for engine in two:
        engine.kill()


@pytest.fixture(scope="module")
def server(engines: list[Engine]) -> Iterator[Picking]:
    running = Picking(engines)
    yield running
    assert running.stop() == 0


@pytest.fixture(autouse=True)
def _forgotten(engines: list[Engine]) -> None:
    for engine in engines:
        engine.asked.clear()


def body(words: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": words * 30, "max_tokens": 3, **more}


def endpoints(engines: list[Engine]) -> list[str]:
    return [engine.endpoint for engine in engines]


def text(stream: str) -> str:
    """What the events of a stream say."""
    rows = [row.removeprefix("data: ") for row in stream.split("\n\n") if row and row != "data: [DONE]"]
    return "".join(choice["text"] for row in rows for choice in json.loads(row)["choices"])


HEADER = {"header": "x-gateway-destination-endpoint"}
METADATA = {"metadata": {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]}}


@pytest.mark.parametrize("source", [HEADER, METADATA], ids=["header", "metadata"])
@pytest.mark.parametrize("mode", [DUPLEX, BUFFERED], ids=["full duplex", "buffered"])
def test_prompts_go_where_they_were_before_and_answers_come_whole(
    tmp_path: Path, server: Picking, engines: list[Engine], mode: dict[str, str], source: dict[str, Any]
) -> None:
    with envoy(tmp_path, server.picker, endpoints(engines), mode, sources=[source]) as url:
        for talk in range(6):
            asked = body(f"talk {talk} in {mode['request_body_mode']} by {len(source)} {tmp_path.name} ")
            first = ask(url, PATH, asked)
            assert (first.status, first.headers["content-type"]) == (200, "application/json")
            assert json.loads(first.body)["choices"][0]["text"] in ("a", "b")
            again = ask(url, PATH, {**asked, "stream": True})
            name = json.loads(first.body)["choices"][0]["text"]
            assert text(again.body) == f"{name}0 {name}1 {name}2 "  # the same engine, and nothing is missing
            assert again.headers["x-jevons-worker"] == first.headers["x-jevons-worker"]
            until(lambda: sum(server.running().values()) == 0, 10.0)
            outcome = server.snapshot()["recent"][-1]
            assert outcome["cached_tokens"] == 32
            assert outcome["ttft_s"] > 0
    sent = [request.body for engine in engines for request in engine.asked]
    assert all(json.loads(raw)["model"] == MODEL for raw in sent)
    assert len(sent) == 12


def test_without_bodies_it_is_load_that_decides(tmp_path: Path, server: Picking, engines: list[Engine]) -> None:
    with envoy(tmp_path, server.picker, endpoints(engines), BARE) as url:
        assert [ask(url, PATH, body("none ")).status for _ in range(4)] == [200] * 4
        until(lambda: sum(server.running().values()) == 0, 10.0)


def test_a_client_cannot_choose_its_engine_itself(tmp_path: Path, server: Picking, engines: list[Engine]) -> None:
    with envoy(tmp_path, server.picker, endpoints(engines), BUFFERED) as url:
        assert ask(url, PATH, body("mine "), x_gateway_destination_endpoint="10.9.9.9:80").status == 200
    (request,) = [request for engine in engines for request in engine.asked]
    assert set(request.headers["x-gateway-destination-endpoint"].split(",")) == set(endpoints(engines))


@pytest.mark.parametrize("mode", [DUPLEX, BUFFERED], ids=["full duplex", "buffered"])
def test_what_is_refused_reaches_the_client_and_no_engine(
    tmp_path: Path, server: Picking, engines: list[Engine], mode: dict[str, str]
) -> None:
    with envoy(tmp_path, server.picker, endpoints(engines), mode) as url:
        wrong = ask(url, PATH, b"{nope")
        late = ask(url, PATH, body("late " * 600), x_slo_ttft_ms="1", x_slo_miss="refuse")  # 18,000 tokens in 1 ms

    assert (wrong.status, json.loads(wrong.body)["error"]["code"]) == (400, "invalid_json")
    assert (late.status, json.loads(late.body)["error"]["code"]) == (429, "too_late")
    assert int(late.headers["retry-after"]) >= 1
    assert [engine.asked for engine in engines] == [[], []]


def test_envoy_may_narrow_the_choice(tmp_path: Path, server: Picking, engines: list[Engine]) -> None:
    for chosen in engines:
        with envoy(tmp_path, server.picker, endpoints(engines), BUFFERED, subset=[chosen.endpoint]) as url:
            for number in range(3):
                answer = ask(url, PATH, body(f"narrow {number} "))
                assert json.loads(answer.body)["choices"][0]["text"] == chosen.name
    with envoy(tmp_path, server.picker, endpoints(engines), BUFFERED, subset=["10.9.9.9:80"]) as url:
        assert ask(url, PATH, body("narrow ")).status == 503


def test_a_model_by_another_name_is_asked_for_by_its_own(
    tmp_path: Path, server: Picking, engines: list[Engine]
) -> None:
    for mode in (DUPLEX, BUFFERED):
        with envoy(tmp_path, server.picker, endpoints(engines), mode) as url:
            asked = body("named ") | {"model": "a much longer name than that of the engine"}
            assert ask(url, PATH, asked, x_gateway_model_name_rewrite=MODEL).status == 200
    sent = [json.loads(request.body) for engine in engines for request in engine.asked]
    assert [each["model"] for each in sent] == [MODEL] * 2
    assert [each["prompt"] for each in sent] == [body("named ")["prompt"]] * 2


def test_an_engine_that_is_busy_is_passed_over_and_the_account_follows(
    tmp_path: Path, server: Picking, engines: list[Engine]
) -> None:
    with envoy(tmp_path, server.picker, endpoints(engines), DUPLEX) as url:
        asked = body("busy ")
        name = json.loads(ask(url, PATH, asked).body)["choices"][0]["text"]
        first, second = sorted(engines, key=lambda engine: engine.name != name)
        first.status = 503
        try:
            answer = ask(url, PATH, asked)
        finally:
            first.status = 200
        assert json.loads(answer.body)["choices"][0]["text"] == second.name
        assert answer.headers["x-jevons-worker"] == second.endpoint
        until(lambda: sum(server.running().values()) == 0, 10.0)
        assert server.snapshot()["recent"][-1]["worker"] == second.endpoint
        assert server.counted(f'jevons_retries_total{{worker="{first.endpoint}"}}') >= 1


def test_an_engine_that_dies_in_mid_stream_ends_that_stream_alone_and_gets_no_more(tmp_path: Path) -> None:
    engines = [Engine(name) for name in "xy"]
    server = Picking(engines)
    try:
        with envoy(tmp_path, server.picker, endpoints(engines), DUPLEX) as url:
            for engine in engines:
                engine.hold()
            open_now = [urllib.request.urlopen(_post(url, body(f"open {n} ", stream=True)), timeout=60) for n in (0, 1)]
            firsts = [stream.readline().decode() for stream in open_now]
            names = [json.loads(line.removeprefix("data: "))["choices"][0]["text"][0] for line in firsts]
            assert set(names) == {"x", "y"}
            assert set(server.running().values()) == {1}
            dying, living = sorted(engines, key=lambda engine: engine.name != "x")
            dying.kill()
            living.release()
            rests = {name: _rest(stream) for name, stream in zip(names, open_now, strict=True)}

            assert "[DONE]" in rests["y"]
            assert "[DONE]" not in rests["x"]
            until(lambda: server.healthy() == [living.endpoint], 10.0)
            until(lambda: sum(server.running().values()) == 0, 10.0)
            answers = [ask(url, PATH, body(f"after {number} ")) for number in range(6)]
            assert [json.loads(answer.body)["choices"][0]["text"] for answer in answers] == ["y"] * 6
            assert set(living.asked[-1].headers["x-gateway-destination-endpoint"].split(",")) == {living.endpoint}
            dying.begin()
            until(lambda: len(server.healthy()) == 2, 10.0)
            again = [ask(url, PATH, body(f"back {number} ")) for number in range(8)]
            assert "x" in {json.loads(answer.body)["choices"][0]["text"] for answer in again}
    finally:
        assert server.stop() == 0
        for engine in engines:
            engine.kill()


def test_a_client_that_leaves_envoy_leaves_no_engine_busy(
    tmp_path: Path, server: Picking, engines: list[Engine]
) -> None:
    with envoy(tmp_path, server.picker, endpoints(engines), DUPLEX) as url:
        for engine in engines:
            engine.hold()
        try:
            stream = urllib.request.urlopen(_post(url, body("leaving ", stream=True)), timeout=60)
            assert stream.readline()
            assert sum(server.running().values()) == 1
            stream.close()
            until(lambda: sum(server.running().values()) == 0, 10.0)
        finally:
            for engine in engines:
                engine.release()


def test_many_at_once_are_each_answered(tmp_path: Path, server: Picking, engines: list[Engine]) -> None:
    answers: list[str] = []

    def one(number: int) -> None:
        answers.append(text(ask(url, PATH, body(f"many {number} ", stream=True)).body))

    with envoy(tmp_path, server.picker, endpoints(engines), DUPLEX) as url:
        threads = [threading.Thread(target=one, args=(number,)) for number in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        until(lambda: sum(server.running().values()) == 0, 10.0)
    assert sorted(set(answers)) == ["a0 a1 a2 ", "b0 b1 b2 "]
    assert len(answers) == 60


def _post(url: str, asked: dict[str, Any]) -> urllib.request.Request:
    return urllib.request.Request(url + PATH, json.dumps(asked).encode(), {"content-type": "application/json"})


def _rest(stream: Any) -> str:
    """What still comes, to its end or where it breaks off."""
    pieces = []
    try:
        while piece := stream.read1():
            pieces.append(piece)
    except (OSError, http.client.HTTPException) as error:
        pieces.append(repr(error).encode())
    finally:
        stream.close()
    return b"".join(pieces).decode()


def test_the_configuration_in_the_docs_works(tmp_path: Path, server: Picking, engines: list[Engine]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config, *objects = [list(yaml.safe_load_all(block)) for block in blocks]
    ours = json.dumps(config[0]).replace('"port_value": 9002', f'"port_value": {server.picker}')
    for named, engine in zip(("10.0.0.5", "10.0.0.6"), engines, strict=True):
        ours = ours.replace(f'"{named}", "port_value": 8000', f'"127.0.0.1", "port_value": {engine.port}')

    (port,) = free_ports(1)
    with running(tmp_path, json.loads(ours.replace("10000", str(port))), port) as url:
        asked = body("by the book ")
        name = json.loads(ask(url, PATH, asked).body)["choices"][0]["text"]
        assert text(ask(url, PATH, {**asked, "stream": True}).body) == f"{name}0 {name}1 {name}2 "
    assert {each["kind"] for each in objects[0]} >= {"InferencePool", "HTTPRoute", "Service", "Deployment"}


def test_the_picker_serves_tls(tmp_path: Path, engines: list[Engine]) -> None:
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=picker"]
    subprocess.run([*make, "-keyout", "tls.key", "-out", "tls.crt"], cwd=tmp_path, check=True, capture_output=True)
    server = Picking(engines, "--picker-tls", str(tmp_path))
    context = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}
    tls = {"transport_socket": {"name": "tls", "typed_config": context}}
    try:
        with envoy(tmp_path, server.picker, endpoints(engines), DUPLEX, picker_cluster=tls) as url:
            answer = ask(url, PATH, body("secret "))
        assert answer.headers["x-jevons-worker"] in endpoints(engines)
    finally:
        assert server.stop() == 0
