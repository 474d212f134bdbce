"""The road to attached engines: what they answer reaches the client unchanged, and a lost engine costs nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.serve.test_http import Answer, answers
from tests.serve.test_tokenizer import TEMPLATE, byte_level, write

from jevons.config import Settings
from jevons.engine.openai import Events
from jevons.policy.route import GUESS_OUTPUT_TOKENS
from jevons.serve.app import Server, serving
from jevons.serve.http import EVENT_STREAM, Door, Reply, Request
from jevons.serve.openai import refusal

MODELS = b'{"data":[{"id":"stub","max_model_len":4096}]}'
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 4}}
WHOLE = json.dumps({"id": "x", "choices": [{"index": 0, "text": "hi"}], "usage": USAGE}).encode()
EVENTS = [
    b'data: {"choices":[{"index":0,"text":"a \\"choices\\" "}]}\n\n',
    b'data: {"choices": [{"index": 0, "text": "b"}]}\n\n',
    b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode(),
    b"data: [DONE]\n\n",
]
STREAM = b"".join(EVENTS)

Serve = Callable[[Request, Reply], Awaitable[None]]
Talk = Callable[[list["Engine"], Server], Coroutine[Any, Any, None]]


class Engine:
    """An engine that answers completions as it is told."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.asked: list[Request] = []
        self.left = 0
        self.door = Door(self._handle, refusal)

    async def _handle(self, request: Request, reply: Reply) -> None:
        if request.path == "/v1/models":
            reply.send(200, MODELS)
        elif request.method == "GET":
            reply.send(200, b"{}")
        elif request.path == "/tokenize":
            reply.send(404, b"{}")
        else:
            self.asked.append(request)
            try:
                await self.serve(request, reply)
            except asyncio.CancelledError:
                self.left += 1
                raise


async def whole(request: Request, reply: Reply) -> None:
    reply.send(200, WHOLE)


async def busy(request: Request, reply: Reply) -> None:
    reply.send(503, b"{}")


async def dies(request: Request, reply: Reply) -> None:
    reply.abort()
    await asyncio.sleep(60)


async def hangs(request: Request, reply: Reply) -> None:
    await asyncio.sleep(60)


async def streams(request: Request, reply: Reply) -> None:
    reply.start(200, EVENT_STREAM)
    for event in EVENTS:
        reply.write(event)
        await asyncio.sleep(0.001)
    reply.end()


@asynccontextmanager
async def server_of(
    serves: list[Serve], tokenizer: Path | None = None, **more: Any
) -> AsyncIterator[tuple[list[Engine], Server]]:
    engines = [Engine(serve) for serve in serves]
    for engine in engines:
        await engine.door.listen("127.0.0.1", 0)
    option = "" if tokenizer is None else f",tokenizer={tokenizer}"
    urls = [f"http://127.0.0.1:{engine.door.port}{option}" for engine in engines]
    told = {"drain_s": 1.0, "hang_s": 30.0, **more}
    settings = Settings(port=0, workers=0, engines=urls, policy="round_robin", **told)
    try:
        async with serving(settings, None) as server:
            await server.ready(60.0, len(engines))
            while not json.loads((await ask(server, "/v1/models", None))[0].body)["data"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            yield engines, server
    finally:
        for engine in engines:
            await engine.door.close(0.0)


def run(serves: list[Serve], talk: Talk, **more: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), server_of(serves, **more) as (engines, server):
            await talk(engines, server)

    asyncio.run(main())


def message(path: str, body: bytes | None, close: bool = True) -> bytes:
    last = "connection: close\r\n" if close else ""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nhost: x\r\n{last}\r\n".encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{last}content-length: {len(body)}\r\n\r\n".encode() + body


def completion(**more: Any) -> bytes:
    return json.dumps({"model": "stub", "prompt": "hello", **more}).encode()


async def ask(server: Server, path: str, body: bytes | None) -> list[Answer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(message(path, body))
    try:
        return await answers(reader, 30.0)
    finally:
        writer.close()


async def complete(server: Server, **more: Any) -> Answer:
    [answer] = await ask(server, "/v1/completions", completion(**more))
    return answer


async def metric(server: Server, name: str) -> float:
    [page] = await ask(server, "/metrics", None)
    rows = [line.split() for line in page.body.decode().splitlines() if line.startswith(name)]
    return sum(float(value) for _, value in rows)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_an_answer_passes_unchanged_and_is_counted() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server)

        assert (answer.status, answer.body) == (200, WHOLE)
        assert engines[0].asked[0].body == completion()
        assert await metric(server, "jevons_output_tokens_total") == 2
        assert await metric(server, "jevons_cached_tokens_total") == 4
        assert await metric(server, 'jevons_requests_total{endpoint="/v1/completions",status="200"}') == 1
        assert await metric(server, 'jevons_request_seconds_bucket{endpoint="/v1/completions",le="+Inf"}') == 1
        outcome, answered = server.router.snapshot().recent[-1], server.front.placements.lately.since(0.0)[-1]
        assert outcome.cached_tokens == 4
        of_ours = round(4 / 9 * outcome.prompt_tokens)  # its prompt has 9 tokens, as it counts them
        assert of_ours != 4
        assert (outcome.reused_tokens, answered.cached_tokens) == (of_ours, of_ours)

    run([whole], talk)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 27}},
        {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens": 9, "completion_tokens": 2**63},
        {"prompt_tokens": -9, "completion_tokens": -2},
    ],
)
def test_a_usage_that_cannot_be_is_passed_on_and_not_believed(usage: dict[str, Any], stream: bool) -> None:
    told = json.dumps({"id": "x", "choices": [{"index": 0, "text": "hi"}], "usage": usage}).encode()
    events = EVENTS[0] + b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(usage).encode() + EVENTS[3]

    async def lies(request: Request, reply: Reply) -> None:
        reply.send(200, events if stream else told, EVENT_STREAM if stream else b"application/json")

    async def talk(engines: list[Engine], server: Server) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = await complete(server, **options)

        assert (answer.status, answer.body) == (200, events if stream else told)
        assert [w.requests for w in server.router.snapshot().workers] == [0]
        assert [outcome.cached_tokens for outcome in server.router.snapshot().recent] == [None]
        assert all(tenant.device_s >= 0 for tenant in server.front.placements.gate.snapshot().tenants)

    run([lies], talk)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}


@pytest.mark.parametrize("content", [[{"type": "text", "text": "what is this?"}, IMAGE], "no template here"])
def test_what_only_the_engine_can_read_is_sent_to_it(content: Any, tmp_path: Path) -> None:
    async def breaks(request: Request, reply: Reply) -> None:
        if not json.loads(request.body).get("stream"):
            reply.send(200, WHOLE)
            return
        reply.start(200, EVENT_STREAM)
        reply.write(b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n')
        await asyncio.sleep(0.05)
        await dies(request, reply)

    async def talk(engines: list[Engine], server: Server) -> None:
        chat = {"model": "stub", "messages": [{"role": "user", "content": content}], "max_tokens": 50}
        [answer] = await ask(server, "/v1/chat/completions", json.dumps(chat).encode())
        assert (answer.status, answer.body) == (200, WHOLE)

        [broken] = await ask(server, "/v1/chat/completions", json.dumps({**chat, "stream": True}).encode())
        assert b"its tokens are not known here" in broken.body
        assert {request.path for engine in engines for request in engine.asked} == {"/v1/chat/completions"}

    template = TEMPLATE if isinstance(content, list) else None
    directory = write(tmp_path / "model", byte_level(), tokenizer_config={"chat_template": template})
    run([breaks, breaks], talk, tokenizer=directory)


def test_what_an_engine_refuses_is_told_with_its_status() -> None:
    async def refuse(request: Request, reply: Reply) -> None:
        reply.send(422, b'{"error":"no"}')

    async def talk(engines: list[Engine], server: Server) -> None:
        for stream in (False, True):
            answer = await complete(server, stream=stream)
            assert (answer.status, answer.body) == (422, b'{"error":"no"}')
        assert await metric(server, 'jevons_requests_total{endpoint="/v1/completions",status="422"}') == 2

    run([refuse], talk)


def test_when_to_come_again_is_told_as_the_engine_says() -> None:
    async def full(request: Request, reply: Reply) -> None:
        reply.send(429, b'{"error":"full"}', headers=b"retry-after: 7\r\nretry-after-ms: 6500\r\nserver: x\r\n")

    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server)

        assert answer.status == 429
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "6500")
        assert "server" not in answer.headers

    run([full], talk)


@pytest.mark.parametrize("stream", [False, True])
def test_where_all_engines_are_busy_the_last_ones_answer_is_told(stream: bool) -> None:
    async def full(request: Request, reply: Reply) -> None:
        reply.send(503, b'{"error":"queue is full"}', headers=b"retry-after: 7\r\n")

    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server, stream=stream)

        assert (answer.status, answer.body) == (503, b'{"error":"queue is full"}')
        assert answer.headers["retry-after"] == "7"
        assert sum(len(engine.asked) for engine in engines) == 4
        assert await metric(server, "jevons_retries_total") == 3
        assert await metric(server, 'jevons_requests_total{endpoint="/v1/completions",status="503"}') == 1

    run([full, full], talk)


def test_a_status_that_has_no_name_is_told_as_it_is() -> None:
    async def overloaded(request: Request, reply: Reply) -> None:
        reply.send(529, b'{"error":"overloaded"}')

    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server)

        assert (answer.status, answer.body) == (529, b'{"error":"overloaded"}')
        assert await metric(server, 'jevons_requests_total{endpoint="/v1/completions",status="529"}') == 1

    run([overloaded], talk)


@pytest.mark.parametrize("bad", [busy, dies])
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_lost_before_its_answer_costs_no_client(bad: Serve, stream: bool) -> None:
    async def both(request: Request, reply: Reply) -> None:
        await (streams if stream else whole)(request, reply)

    async def talk(engines: list[Engine], server: Server) -> None:
        found = [await complete(server, stream=stream) for _ in range(4)]

        assert [answer.status for answer in found] == [200] * 4
        assert all(answer.complete for answer in found)
        # A kept connection that breaks is tried once more on a fresh one.
        assert 1 <= await metric(server, "jevons_retries_total") <= len(engines[0].asked)

    run([bad, both], talk)


def test_a_kept_connection_that_the_engine_closed_is_not_a_lost_engine() -> None:
    async def once(request: Request, reply: Reply) -> None:
        if len(asked) % 2 == 0:
            asked.append(request)
            reply.send(200, WHOLE)
        else:
            asked.append(request)
            await dies(request, reply)  # as if it had closed the idle connection just before the request came

    asked: list[Request] = []

    async def talk(engines: list[Engine], server: Server) -> None:
        assert [(await complete(server)).status for _ in range(4)] == [200] * 4
        assert await metric(server, "jevons_retries_total") == 0

    run([once], talk)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, EVENTS[0] + EVENTS[1] + EVENTS[3]), ({"stream_options": {"include_usage": True}}, STREAM)],
)
def test_a_stream_passes_and_its_usage_only_if_it_was_asked_for(options: dict[str, Any], expected: bytes) -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server, stream=True, **options)

        assert (answer.status, answer.body, answer.complete) == (200, expected, True)
        assert json.loads(engines[0].asked[0].body)["stream_options"] == {"include_usage": True}
        assert await metric(server, "jevons_output_tokens_total") == 2
        assert await metric(server, "jevons_ttft_seconds_count") == 1
        assert await metric(server, "jevons_cached_tokens_total") == 4

    run([streams], talk)


def test_a_last_event_without_its_blank_line_is_the_end_too() -> None:
    async def ends_short(request: Request, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM)
        reply.write(STREAM[:-1])
        reply.end()

    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server, stream=True)

        assert answer.body == EVENTS[0] + EVENTS[1] + EVENTS[3]
        assert await metric(server, "jevons_retries_total") == await metric(server, "jevons_cut_streams_total") == 0

    run([ends_short], talk)


def test_stream_options_of_null_are_none_at_all() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server, stream=True, stream_options=None, prompt='"stream_options" é', user="x")

        assert answer.body == EVENTS[0] + EVENTS[1] + EVENTS[3]
        pairs = json.loads(engines[0].asked[0].body, object_pairs_hook=list)
        assert [value for name, value in pairs if name == "stream_options"] == [[("include_usage", True)]]
        assert sorted(name for name, _ in pairs) == ["model", "prompt", "stream", "stream_options", "user"]
        assert dict(pairs)["prompt"] == '"stream_options" é'

    run([streams], talk)


def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    async def breaks(request: Request, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM)
        reply.write(EVENTS[0])
        await asyncio.sleep(0.05)
        await dies(request, reply)

    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server, stream=True)

        assert answer.complete
        assert answer.body.startswith(EVENTS[0])
        assert b'"error"' in answer.body
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert await metric(server, "jevons_cut_streams_total") == 1

    run([breaks], talk)


@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_stream_that_breaks_off_at_its_end_gets_no_more_text(wants_usage: bool) -> None:
    async def breaks(request: Request, reply: Reply) -> None:
        first = len(engines_asked) == 0
        engines_asked.append(json.loads(request.body))
        reply.start(200, EVENT_STREAM)
        for event in EVENTS[:2] if first else [*EVENTS[:1], *EVENTS[2:]]:
            reply.write(event)
        await asyncio.sleep(0.05)
        await (dies(request, reply) if first else asyncio.sleep(0))
        reply.end()

    async def talk(engines: list[Engine], server: Server) -> None:
        options = {"stream_options": {"include_usage": True}} if wants_usage else {}
        answer = await complete(server, stream=True, max_tokens=2, **options)

        events = [json.loads(line[6:]) for line in answer.body.split(b"\n\n")[:-2]]
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert "".join(c["text"] for e in events for c in e["choices"]) == 'a "choices" b'
        assert [c["finish_reason"] for e in events[2:] for c in e["choices"]] == ["length"]
        assert [e["usage"]["completion_tokens"] for e in events if "usage" in e] == [2] * wants_usage
        assert [asked["max_tokens"] for asked in engines_asked[1:]] == [1] * wants_usage

    engines_asked: list[dict[str, Any]] = []
    run([breaks, breaks], talk)


def test_a_client_that_leaves_takes_its_request_from_the_engine() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(message("/v1/completions", completion()))

        async def is_asked() -> bool:
            return bool(engines[0].asked)

        async def is_left() -> bool:
            return engines[0].left == 1

        await until(is_asked)
        writer.close()
        await until(is_left)
        assert await metric(server, "jevons_clients_gone_total") == 1
        assert [w.requests for w in server.router.snapshot().workers] == [0]

    run([hangs], talk)


def test_a_client_that_leaves_as_its_engine_is_lost_is_counted() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(message("/v1/completions", completion()))

        async def is_asked() -> bool:
            return bool(engines[0].asked)

        await until(is_asked)
        [attached] = server.fleet.attached.values()
        [exchange] = cast(Any, attached)._active.values()
        exchange.taker._reply.abort()
        attached.drop()  # at once: that the client has left is heard of before another engine is looked for

        async def is_counted() -> bool:
            return await metric(server, 'jevons_requests_total{endpoint="/v1/completions",status="499"}') == 1

        await until(is_counted)
        writer.close()
        assert await metric(server, "jevons_clients_gone_total") == 1
        assert [w.requests for w in server.router.snapshot().workers] == [0]

    run([hangs], talk)


def test_what_a_client_did_not_wait_for_is_no_answer_as_long_as_others_will_be() -> None:
    async def begins(request: Request, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM)
        reply.write(EVENTS[0])
        await asyncio.sleep(60)

    async def talk(engines: list[Engine], server: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(message("/v1/completions", completion(stream=True)))
        await reader.readuntil(EVENTS[0])
        writer.close()

        async def is_over() -> bool:
            return bool(server.router.snapshot().recent)

        await until(is_over)
        assert await metric(server, "jevons_output_tokens_total") == 1
        assert server.router.answer_tokens(None) == GUESS_OUTPUT_TOKENS

    run([begins], talk)


def test_a_client_that_leaves_when_it_has_all_of_a_stream_has_been_answered() -> None:
    may_end = asyncio.Event()

    async def ends_late(request: Request, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM)
        reply.write(STREAM)
        await may_end.wait()
        reply.end()

    async def talk(engines: list[Engine], server: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(message("/v1/completions", completion(stream=True, stream_options={"include_usage": True})))
        await reader.readuntil(b"data: [DONE]\n\n")
        writer.close()

        async def is_over() -> bool:
            return bool(server.router.snapshot().recent)

        await until(is_over)
        [outcome] = server.router.snapshot().recent
        assert outcome.cached_tokens == 4
        assert await metric(server, "jevons_clients_gone_total") == 0
        may_end.set()
        await complete(server)
        assert engines[0].left == 0

    run([ends_late], talk)


@pytest.mark.parametrize("cuts", [True, False])
def test_a_stream_is_over_at_done_whether_or_not_its_engine_ends_the_message(cuts: bool) -> None:
    async def never_ends(request: Request, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM)
        reply.write(STREAM)
        if cuts:
            await passed.wait()
            await dies(request, reply)
        await asyncio.sleep(60)

    async def talk(engines: list[Engine], server: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(message("/v1/completions", completion(stream=True, stream_options={"include_usage": True})))
        raw = await reader.readuntil(b"data: [DONE]\n\n")
        passed.set()
        raw += await reader.read()
        writer.close()

        assert raw.count(b"data:") == len(EVENTS)
        assert raw.endswith(b"0\r\n\r\n")
        assert await metric(server, 'jevons_requests_total{endpoint="/v1/completions",status="200"}') == 1
        assert await metric(server, "jevons_cached_tokens_total") == 4
        assert await metric(server, "jevons_retries_total") == await metric(server, "jevons_cut_streams_total") == 0
        assert [w.requests for w in server.router.snapshot().workers] == [0]

    passed = asyncio.Event()
    run([never_ends], talk, request_timeout_s=60.0 if cuts else 1.0)


def test_a_request_that_takes_too_long_is_ended() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server)

        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (504, "timeout")
        assert [w.requests for w in server.router.snapshot().workers] == [0]

    run([hangs], talk, request_timeout_s=1.0)


def test_a_request_that_was_placed_again_has_no_more_time_than_others() -> None:
    async def late(request: Request, reply: Reply) -> None:
        await asyncio.sleep(1.0)
        reply.send(503, b"{}")

    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server)

        assert answer.status == 504
        assert sum(len(engine.asked) for engine in engines) == 2  # a third would begin after 2 s

    run([late, late], talk, request_timeout_s=1.5)


class Flood:
    """Streams of comments without end, and how many bytes of them engines got rid of."""

    def __init__(self) -> None:
        self.sent = 0
        self._before = -1

    async def __call__(self, request: Request, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM)
        event = b": %b\n\n" % (b"x" * 65_000)
        while self.sent < 1 << 28:
            reply.write(event)
            self.sent += len(event)
            await reply.drain()

    async def is_still(self) -> bool:
        await asyncio.sleep(0.3)
        still, self._before = self.sent == self._before and self.sent > 0, self.sent
        return still


def test_an_engine_is_not_read_faster_than_its_client_reads() -> None:
    flood = Flood()

    async def talk(engines: list[Engine], server: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]), limit=1_000)
        writer.write(message("/v1/completions", completion(stream=True)))
        await until(flood.is_still)
        assert flood.sent < 64 << 20  # what sockets hold
        stood = flood.sent
        await reader.readexactly(stood // 2)

        async def goes_on() -> bool:
            return flood.sent > stood

        await until(goes_on)
        writer.close()

    run([flood], talk)


def test_nor_is_the_one_that_takes_the_place_of_a_lost_one() -> None:
    floods = [Flood(), Flood()]

    async def talk(engines: list[Engine], server: Server) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]), limit=1_000)
        writer.write(message("/v1/completions", completion(stream=True)))
        both = list(zip(floods, server.fleet.attached.values(), strict=True))

        async def is_asked() -> bool:
            return any(flood.sent for flood in floods)

        await until(is_asked)
        [(first, attached)] = [(flood, attached) for flood, attached in both if flood.sent]
        [second] = [flood for flood in floods if flood is not first]
        await until(first.is_still)
        attached.drop()
        await until(second.is_still)
        assert second.sent < 64 << 20
        writer.close()

    run(list(floods), talk)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_end_is_given_up(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jevons.serve.relay.MOST_ANSWER_BYTES", 1 << 20)
    monkeypatch.setattr("jevons.serve.relay.MOST_EVENT_BYTES", 1 << 20)

    async def endless(request: Request, reply: Reply) -> None:
        reply.start(200, EVENT_STREAM if stream else b"application/json")
        for _ in range(1 << 10):
            reply.write(b"x" * 65_000)
            await reply.drain()
        reply.end()

    async def talk(engines: list[Engine], server: Server) -> None:
        answer = await complete(server, stream=stream)

        assert b"has more than 1048576 bytes" in answer.body
        assert answer.complete
        assert [w.requests for w in server.router.snapshot().workers] == [0]

    run([endless], talk)


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_events_are_the_same_however_they_are_cut(size: int) -> None:
    events = Events(keeps_usage=False)
    passed, tokens = b"", 0
    for start in range(0, len(STREAM), size):
        passed += events.read(STREAM[start : start + size])
        tokens += events.tokens

    assert passed == EVENTS[0] + EVENTS[1] + EVENTS[3]
    assert (tokens, events.is_done) == (2, True)
    assert msgspec.to_builtins(events.usage)["prompt_tokens_details"] == {"cached_tokens": 4}


@pytest.mark.parametrize("before", [b"event: message\n", b"id: 7\nretry: 5\n", b": here\n"])
@pytest.mark.parametrize("size", [7, 10_000])
def test_events_with_names_and_remarks_are_read_too(before: bytes, size: int) -> None:
    events = Events(keeps_usage=False)
    named = [before + event for event in EVENTS]
    stream, passed, tokens = b"".join(named), b"", 0
    for start in range(0, len(stream), size):
        passed += events.read(stream[start : start + size])
        tokens += events.tokens

    assert passed == named[0] + named[1] + named[3]
    assert (tokens, events.is_done) == (2, True)
    assert msgspec.to_builtins(events.usage)["prompt_tokens_details"] == {"cached_tokens": 4}


def test_events_that_come_together_pass_as_they_are() -> None:
    events = Events(keeps_usage=True)

    assert events.read(EVENTS[0] + EVENTS[1]) == EVENTS[0] + EVENTS[1]
    assert events.tokens == 2
