"""The endpoint picker, asked over gRPC as a gateway asks it: a real server, engines that answer as told."""

from __future__ import annotations

import json
import queue
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
import pytest
from tests.processes import until
from tests.serve.envoy import MODEL, Engine, Picking

from jevons.serve.extproc import DESTINATION, SERVED, SUBSET, Mode, ProcessingRequest, ProcessingResponse

WAIT_S = 30.0
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    three = [Engine(name) for name in "abc"]
    yield three
    for engine in three:
        engine.kill()


@pytest.fixture(scope="module")
def server(engines: list[Engine]) -> Iterator[Picking]:
    running = Picking(engines, "--max-body-bytes", "200000")
    yield running
    assert running.stop() == 0


@pytest.fixture
def stream(server: Picking) -> Iterator[Callable[[], Stream]]:
    with grpc.insecure_channel(f"127.0.0.1:{server.picker}") as channel:
        yield lambda: Stream(channel)


class Stream:
    """One ext_proc stream."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._said: queue.Queue[bytes | None] = queue.Queue()
        process: Any = channel.stream_stream("/envoy.service.ext_proc.v3.ExternalProcessor/Process")
        self.call = process(iter(self._said.get, None), timeout=WAIT_S)

    def say(self, part: str, *, last: bool = False, **more: Any) -> None:
        message = ProcessingRequest()
        content = getattr(message, part)
        content.SetInParent()
        for name, value in more.get("headers", {}).items():
            content.headers.headers.add(key=name.encode(), raw_value=value.encode())
        if "body" in more:
            content.body = more["body"]
        if not part.endswith("trailers"):
            content.end_of_stream = last
        if "mode" in more:
            message.protocol.request, message.protocol.response = more["mode"]
        for space, key, values in more.get("metadata", ()):
            value = message.metadata.spaces.add(key=space.encode()).value.fields.add(key=key.encode()).value
            if isinstance(values, str):
                value.text = values.encode()
            else:
                value.list.SetInParent()
                for text in values:
                    value.list.values.add(text=text.encode())
        self.raw(message.SerializeToString())

    def raw(self, message: bytes) -> None:
        self._said.put(message)

    def hear(self) -> Any:
        return ProcessingResponse.FromString(next(self.call))

    def end(self) -> None:
        """The gateway has nothing more to say: the picker ends the stream too."""
        self._said.put(None)
        assert list(self.call) == []
        assert self.call.code() is grpc.StatusCode.OK

    def leave(self) -> None:
        self.call.cancel()
        self._said.put(None)


def asked(prompt: str = "of the winds and the seas " * 20, **more: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}).encode()


def headers(**more: str) -> dict[str, str]:
    return {":method": "POST", ":path": CHAT, **{name.replace("_", "-"): value for name, value in more.items()}}


def duplex(stream: Stream, body: bytes, **more: Any) -> Any:
    """Ask in full duplex; gives the answer to the headers, or the one instead of any."""
    stream.say("request_headers", headers=more.pop("headers", headers()), mode=(4, 4), **more)
    stream.say("request_body", body=body, last=True)
    return stream.hear()


def destination(answer: Any, part: str = "request_headers") -> str:
    """The endpoints of an answer: told twice, alike."""
    (option,) = (
        option
        for option in getattr(answer, part).response.headers.set_headers
        if option.header.key == DESTINATION.encode()
    )
    (space,) = answer.dynamic_metadata.fields
    (field,) = space.value.struct.fields
    assert (space.key, field.key) == (b"envoy.lb", DESTINATION.encode())
    assert field.value.text == option.header.raw_value
    return cast(str, field.value.text.decode())


def place(server: Picking, body: bytes) -> list[str]:
    request = urllib.request.Request(server.url + "/v1/place", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        return [worker["worker"] for worker in json.load(answer)["workers"]]


def answer_whole(stream: Stream, engine: str | None = None) -> None:
    """The engine answers 200 with usage, in full duplex."""
    served = [("envoy.lb", SERVED, engine)] if engine else []
    stream.say("response_headers", headers={":status": "200", "content-type": "application/json"}, metadata=served)
    assert stream.hear().HasField("response_headers")
    usage = {"prompt_tokens": 19, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 16}}
    body = json.dumps({"choices": [{"text": "yes"}], "usage": usage}).encode()
    stream.say("response_body", body=body[:20])
    stream.say("response_body", body=body[20:], last=True)
    back = [stream.hear().response_body.response.body.streamed for _ in range(2)]
    assert b"".join(piece.body for piece in back) == body
    assert [piece.end_of_stream for piece in back] == [False, True]


def test_a_body_in_pieces_is_held_until_it_is_whole_and_sent_back_as_it_came(
    server: Picking, stream: Callable[[], Stream]
) -> None:
    body = asked("é" * 20_000)
    talk = stream()
    talk.say("request_headers", headers=headers(), mode=(4, 4))
    for start in range(0, len(body), 7_001):
        talk.say("request_body", body=body[start : start + 7_001])
    talk.say("request_body", last=True)

    assert set(destination(talk.hear()).split(",")) == set(server.running())
    pieces = [talk.hear().request_body.response.body.streamed for _ in range(-(-len(body) // (60 << 10)))]
    assert b"".join(piece.body for piece in pieces) == body
    assert [piece.end_of_stream for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(server.running().values()) == 1
    answer_whole(talk)
    talk.end()

    assert sum(server.running().values()) == 0
    assert server.snapshot()["recent"][-1]["cached_tokens"] == 16


def test_trailers_end_a_body_too(stream: Callable[[], Stream]) -> None:
    talk = stream()
    talk.say("request_headers", headers=headers(), mode=(4, 4))
    talk.say("request_body", body=asked())
    talk.say("request_trailers")

    assert destination(talk.hear())
    streamed = talk.hear().request_body.response.body.streamed
    assert (streamed.body, streamed.end_of_stream) == (asked(), False)
    assert talk.hear().HasField("request_trailers")
    talk.end()


def test_a_buffered_body_gets_its_pick_with_the_body(stream: Callable[[], Stream]) -> None:
    talk = stream()
    talk.say("request_headers", headers=headers(), mode=(2, 0))
    first = talk.hear()
    assert not first.request_headers.response.headers.set_headers
    talk.say("request_body", body=asked(), last=True)

    answer = talk.hear()
    assert destination(answer, "request_body")
    assert answer.request_body.response.body.body == b""  # stays as it is
    talk.end()


def test_a_body_that_is_streamed_unasked_is_answered_piece_by_piece(
    server: Picking, stream: Callable[[], Stream]
) -> None:
    before = server.counted('jevons_picks_total{by="prompt"}')
    talk = stream()
    message = ProcessingRequest()
    message.protocol.request, message.protocol.unasked = Mode.STREAMED, True
    message.request_headers.headers.headers.add(key=b":path", raw_value=CHAT.encode())
    talk.raw(message.SerializeToString())
    talk.say("request_body", body=asked()[:10])
    talk.say("request_body", body=asked()[10:], last=True)

    assert destination(talk.hear())
    assert [talk.hear().HasField("request_body") for _ in range(2)] == [True, True]
    assert server.counted('jevons_picks_total{by="prompt"}') == before + 1
    talk.end()


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.STREAMED, Mode.BUFFERED_PARTIAL])
def test_where_the_headers_leave_before_the_body_comes_load_decides(
    server: Picking, stream: Callable[[], Stream], mode: Mode
) -> None:
    before = server.counted('jevons_picks_total{by="load"}')
    first, second = stream(), stream()
    for talk in (first, second):
        talk.say("request_headers", headers=headers(content_length="4000"), mode=(mode, 0))
    picked = [destination(talk.hear()).split(",")[0] for talk in (first, second)]

    assert picked[0] != picked[1]  # a thousand tokens wait at the first
    assert server.counted('jevons_picks_total{by="load"}') == before + 2
    if mode is not Mode.NONE:
        first.say("request_body", body=b"anything", last=True)
        assert first.hear().HasField("request_body")
    for talk in (first, second):
        talk.end()
    assert sum(server.running().values()) == 0


def test_a_gateway_that_does_not_tell_its_mode_streams_in_full_duplex(stream: Callable[[], Stream]) -> None:
    talk = stream()
    talk.say("request_headers", headers=headers())
    talk.say("request_body", body=asked(), last=True)

    assert destination(talk.hear())
    assert talk.hear().request_body.response.body.streamed.body == asked()
    talk.end()


def test_what_the_picker_answers_is_what_place_answers(server: Picking, stream: Callable[[], Stream]) -> None:
    holds: list[Stream] = []
    for number in range(24):
        body = asked(f"conversation {number % 6} " * 40 + f"turn {number}")
        told = place(server, body)
        holds.append(stream())
        picked = destination(duplex(holds[-1], body)).split(",")

        assert picked == told
        if number % 3 == 2:
            holds[-1].hear()
            answer_whole(holds[-1], picked[0])
    for talk in holds:
        talk.leave()
    until(lambda: sum(server.running().values()) == 0, WAIT_S)


def test_what_an_engine_has_is_asked_of_it_again(stream: Callable[[], Stream]) -> None:
    body, picked = asked("a prompt of its own " * 60), []
    for _ in range(3):
        talk = stream()
        picked.append(destination(duplex(talk, body)).split(",")[0])
        talk.hear()
        answer_whole(talk, picked[-1])
        talk.end()

    assert len(set(picked)) == 1


def test_only_endpoints_of_the_subset_are_picked(server: Picking, stream: Callable[[], Stream]) -> None:
    names = sorted(server.running())
    for subset in (names[:1], names[1:], [names[2], "10.9.9.9:80"]):
        talk = stream()
        answer = duplex(talk, asked(), metadata=[("envoy.lb.subset_hint", SUBSET, subset)])
        assert set(destination(answer).split(",")) == set(subset) & set(names)
        talk.leave()


@pytest.mark.parametrize("subset", [[], ["10.9.9.9:80"]])
def test_a_subset_without_an_engine_is_answered_503(stream: Callable[[], Stream], subset: list[str]) -> None:
    talk = stream()
    answer = duplex(talk, asked(), metadata=[("envoy.lb.subset_hint", SUBSET, subset)]).immediate

    assert answer.status.code == 503
    assert SUBSET in json.loads(answer.body)["error"]["message"]
    talk.end()


@pytest.mark.parametrize(
    ("body", "more", "told"),
    [
        (b"{nope", {}, (400, "invalid_json", "must be a JSON object")),
        (b'{"model": "stub"}', {}, (400, None, "messages: is required")),
        (b'{"model": "\xff"}', {}, (400, "invalid_utf8", "body: must be UTF-8")),
        (asked(), {"x_slo_ttft_ms": "soon"}, (400, None, "x-slo-ttft-ms: must be")),
        (asked(), {"x_slo_ttft_ms": "1", "x_slo_miss": "refuse"}, (429, "too_late", "would be missed")),
        (asked(), {"x_llm_d_slo_ttft_ms": "1", "x_slo_miss": "refuse"}, (429, "too_late", "would be missed")),
        (asked(), {"x_llm_d_router_slo_tpot_ms": "1", "x_slo_miss": "refuse"}, (429, "too_late", "be missed")),
        (b"[" * 200_001, {}, (413, None, "must be at most 200000 bytes")),
    ],
)
def test_what_is_wrong_is_answered_at_once(
    server: Picking,
    stream: Callable[[], Stream],
    body: bytes,
    more: dict[str, str],
    told: tuple[int, str | None, str],
) -> None:
    status, code, says = told
    before = server.counted(f'jevons_requests_total{{endpoint="picker",status="{status}"}}')
    talk = stream()
    answer = duplex(talk, body, headers=headers(**more)).immediate

    assert answer.status.code == status
    error = json.loads(answer.body)["error"]
    assert error["code"] == code
    assert says in error["message"]
    sent = {option.header.key: option.header.raw_value for option in answer.headers.set_headers}
    assert sent[b"content-type"] == b"application/json"
    assert (b"retry-after" in sent) == (status == 429)
    assert server.counted(f'jevons_requests_total{{endpoint="picker",status="{status}"}}') == before + 1
    talk.end()


@pytest.mark.parametrize(
    "header",
    ["x_gateway_inference_fairness_id", "x_llm_d_inference_fairness_id", "x_llm_d_router_inference_fairness_id"],
)
def test_whose_request_it_is_is_told_by_the_fairness_id(
    server: Picking, stream: Callable[[], Stream], header: str
) -> None:
    talk = stream()
    assert destination(duplex(talk, asked(), headers=headers(**{header: f"team of {header}"})))

    assert f"team of {header}" in [tenant["id"] for tenant in server.snapshot()["gate"]["tenants"]]
    talk.leave()


def test_who_would_be_late_may_wait_in_front_of_a_gateway_too(stream: Callable[[], Stream]) -> None:
    talk = stream()
    waits = headers(x_slo_ttft_ms="1", x_slo_miss="queue", x_slo_queue_s="0.3")
    answer = duplex(talk, asked(), headers=waits).immediate

    assert (answer.status.code, json.loads(answer.body)["error"]["code"]) == (429, "too_late")
    talk.end()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/embeddings", b'{"input": "a"}'), (CHAT, asked(model="an-adapter")), ("/v1/files", b"\x00\x01"), (CHAT, b"")],
)
def test_what_is_no_prompt_of_ours_goes_where_it_waits_least(
    stream: Callable[[], Stream], path: str, body: bytes
) -> None:
    talk = stream()
    assert len(destination(duplex(talk, body, headers=headers() | {":path": path})).split(",")) == 3
    talk.leave()


def test_a_request_without_a_body_is_picked_by_its_headers(stream: Callable[[], Stream]) -> None:
    talk = stream()
    talk.say("request_headers", headers={":method": "GET", ":path": "/v1/models"}, mode=(4, 4), last=True)

    assert len(destination(talk.hear()).split(",")) == 3
    talk.end()


def test_a_model_may_be_asked_for_by_another_name(stream: Callable[[], Stream]) -> None:
    body = asked(model="theirs")
    sent = headers(x_llm_d_model_name_rewrite=MODEL, content_length=str(len(body)))
    talk = stream()
    answer = duplex(talk, body, headers=sent)
    streamed = talk.hear().request_body.response.body.streamed
    told = {o.header.key: o.header.raw_value for o in answer.request_headers.response.headers.set_headers}

    assert json.loads(streamed.body) == json.loads(body) | {"model": MODEL}
    assert told[b"content-length"] == str(len(streamed.body)).encode()
    talk.leave()


def test_an_answer_of_the_second_endpoint_is_counted_there(server: Picking, stream: Callable[[], Stream]) -> None:
    talk = stream()
    first, second, _ = destination(duplex(talk, asked("moved " * 90))).split(",")
    talk.hear()
    assert server.running()[first] == 1
    talk.say("response_headers", headers={":status": "200"}, metadata=[("envoy.lb", SERVED, second)])
    answer = talk.hear()

    (option,) = answer.response_headers.response.headers.set_headers
    assert (option.header.key, option.header.raw_value) == (b"x-jevons-worker", second.encode())
    assert (server.running()[first], server.running()[second]) == (0, 1)
    assert server.counted(f'jevons_retries_total{{worker="{first}"}}') >= 1
    talk.leave()


def test_a_client_that_leaves_in_the_middle_leaves_no_engine_busy(
    server: Picking, stream: Callable[[], Stream]
) -> None:
    before = server.counted("jevons_clients_gone_total")
    early, late = stream(), stream()
    early.say("request_headers", headers=headers(), mode=(4, 4))
    early.say("request_body", body=asked()[:30])
    assert destination(duplex(late, asked()))
    late.hear()
    late.say("response_headers", headers={":status": "200", "content-type": "text/event-stream"})
    late.hear()
    late.say("response_body", body=b'data: {"choices":[{"text":"a"}]}\n\n')
    late.hear()
    assert sum(server.running().values()) == 1
    early.leave()
    late.leave()

    until(lambda: sum(server.running().values()) == 0, WAIT_S)
    until(lambda: server.counted("jevons_picker_streams") == 0, WAIT_S)
    assert server.counted("jevons_clients_gone_total") == before + 1
    assert server.snapshot()["recent"][-1]["ttft_s"] > 0


def test_a_hundred_at_once_are_picked_and_spread(server: Picking, stream: Callable[[], Stream]) -> None:
    talks = [stream() for _ in range(100)]
    for number, talk in enumerate(talks):
        talk.say("request_headers", headers=headers(), mode=(4, 4))
        talk.say("request_body", body=asked(f"number {number} " * 50), last=True)
    for talk in talks:
        assert destination(talk.hear())
        talk.hear()

    assert sum(server.running().values()) == 100
    assert min(server.running().values()) >= 20
    for talk in talks:
        answer_whole(talk)
        talk.end()
    assert sum(server.running().values()) == 0


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([b"\xff\xff\xff"], "cannot be read"),
        ([b""], "must hold one of request_headers"),
        ([ProcessingRequest(request_body={"body": b"a"}).SerializeToString()], "before request_headers"),
        ([ProcessingRequest(request_headers={}).SerializeToString()] * 2, "came twice"),
        ([ProcessingRequest(request_headers={}, protocol={"request": 9}).SerializeToString()], "protocol_config: 9"),
    ],
)
def test_a_message_of_another_protocol_ends_its_stream_and_no_other(
    server: Picking, stream: Callable[[], Stream], messages: list[bytes], says: str
) -> None:
    before = server.counted('jevons_picker_faults_total{reason="malformed"}')
    other, talk = stream(), stream()
    assert destination(duplex(other, asked()))
    for message in messages:
        talk.raw(message)

    with pytest.raises(grpc.RpcError):
        talk.hear()
    assert talk.call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in talk.call.details()
    assert server.counted('jevons_picker_faults_total{reason="malformed"}') == before + 1
    other.hear()
    answer_whole(other)
    other.end()


def test_fields_that_are_not_known_are_passed_over(stream: Callable[[], Stream]) -> None:
    message = ProcessingRequest()
    message.request_headers.headers.headers.add(key=b":path", value=b"/v1/models")
    message.request_headers.end_of_stream = True
    unknown = b"\xa2\x06\x03abc"  # field 100, three bytes
    talk = stream()
    talk.raw(message.SerializeToString() + unknown)

    assert destination(talk.hear())
    talk.end()


def test_a_gateway_that_only_shows_is_told_nothing(server: Picking, stream: Callable[[], Stream]) -> None:
    message = ProcessingRequest(observability_mode=True)
    message.request_headers.end_of_stream = True
    talk = stream()
    talk.raw(message.SerializeToString())
    talk.end()

    assert sum(server.running().values()) == 0


def test_health_tells_what_kubernetes_asks(server: Picking) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.picker}") as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        named = [b"\x0a" + bytes([len(name)]) + name for name in (b"liveness", b"readiness")]
        assert [check(request, timeout=WAIT_S) for request in (b"", *named)] == [b"\x08\x01"] * 3
        with pytest.raises(grpc.RpcError) as failed:
            check(b"\x0a\x05other", timeout=WAIT_S)
        assert cast(Any, failed.value).code() is grpc.StatusCode.NOT_FOUND


def test_without_a_live_engine_it_is_not_ready_and_says_503() -> None:
    engine = Engine("d")
    server = Picking([engine])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.picker}") as channel:
            watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
            states = watch(b"", timeout=WAIT_S)
            assert next(states) == b"\x08\x01"
            engine.kill()
            assert next(states) == b"\x08\x02"
            states.cancel()
            talk = Stream(channel)
            answer = duplex(talk, asked()).immediate
            assert (answer.status.code, json.loads(answer.body)["error"]["code"]) == (503, "no_worker")
            talk.end()
            engine.begin()
            until(lambda: bool(server.healthy()), WAIT_S)
            again = Stream(channel)
            assert destination(duplex(again, asked())) == engine.endpoint
            again.leave()
    finally:
        assert server.stop() == 0
        engine.kill()


def test_several_frontends_pick_at_one_port_and_see_each_others_load(engines: list[Engine]) -> None:
    server, channels, streams = Picking(engines, "--frontends", "2"), [], []
    try:
        for number in range(32):  # the kernel spreads connections over those who listen
            channel = grpc.insecure_channel(f"127.0.0.1:{server.picker}", [("grpc.use_local_subchannel_pool", 1)])
            channels.append(channel)
            streams.append(Stream(channel))
            assert destination(duplex(streams[-1], asked(f"{number} of the winds and the seas"))).split(",")[0]
            picked = [frontend["placements"] for frontend in server.snapshot()["frontends"]]
            if number >= 5 and len(picked) == 2 and all(picked):
                break
        assert sum(picked) == len(streams)
        assert all(picked)
        until(lambda: sum(server.running().values()) == len(streams), WAIT_S)  # each knows of the other's too
        assert max(server.running().values()) - min(server.running().values()) <= len(streams) // 2
        for stream in streams:
            stream.leave()
        until(lambda: sum(server.running().values()) == 0, WAIT_S)
    finally:
        for channel in channels:
            channel.close()
        assert server.stop() == 0
