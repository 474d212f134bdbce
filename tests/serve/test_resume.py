"""An engine dies under a stream, and the client notices nothing: another one goes on with the answer.

The engines are servers of ours, in processes that can be killed, attached to one in front.
"""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.processes import Jevons, until

from jevons.engine.openai import SeenUsage, read_event
from jevons.serve.openai import ChatRequest, CompletionRequest
from jevons.serve.resume import COMPLETIONS, Said

CHAT = "/v1/chat/completions"
MODEL = "smol"
PROMPT = "Once upon a time, in a village by the sea,"

Start = Callable[..., Jevons]


def chunk(text: str, finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    told = {"id": "chatcmpl-1", "created": 7, "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def chat(**more: Any) -> ChatRequest:
    return ChatRequest(model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True, **more)


def said(asked: ChatRequest | CompletionRequest, *events: bytes) -> Said:
    made = Said(CHAT if isinstance(asked, ChatRequest) else COMPLETIONS, asked)
    for raw in events:
        made.add(raw)
    return made


# What is asked for, and what comes of it


def test_the_rest_of_a_chat_is_asked_for_as_the_completion_of_all_its_tokens() -> None:
    made = said(chat(max_tokens=20), chunk("", role="assistant"), chunk("It"), chunk(" was"))
    body = b'{"model":"smol","messages":[],"max_tokens":20,"temperature":0.5,"stream":true}'

    rest = made.rest(body, [1, 2, 3], [8, 9], None)

    assert rest is not None
    assert rest.path == COMPLETIONS
    assert rest.tokens == [1, 2, 3, 8, 9]
    assert json.loads(rest.body) == {
        "model": "smol",
        "temperature": 0.5,
        "prompt": [1, 2, 3, 8, 9],
        "max_tokens": 18,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_events_of_the_rest_take_the_form_and_the_name_of_the_stream_begun() -> None:
    made = said(chat(max_tokens=20), chunk("It"))
    made.rest(b"{}", [1], [8], None)
    other = {
        "id": "cmpl-2",
        "created": 9,
        "model": "x",
        "choices": [{"index": 0, "text": " was", "finish_reason": "stop"}],
    }

    told = json.loads(made.shaped(read_event(b"data: %b\n\n" % json.dumps(other).encode()))[6:])

    assert (told["id"], told["created"], told["object"]) == ("chatcmpl-1", 7, "chat.completion.chunk")
    assert told["choices"][0]["delta"] == {"content": " was"}
    assert told["choices"][0]["finish_reason"] == "stop"


def test_where_nothing_was_said_the_whole_request_is_asked_again_and_the_role_is_not_sent_twice() -> None:
    made = said(chat(), chunk("", role="assistant"))

    rest = made.rest(b'{"messages":[]}', [1, 2], [], None)

    assert rest is not None
    assert rest.is_all
    assert rest.body == b'{"messages":[]}'
    assert made.shaped(read_event(chunk("", role="assistant"))) == b""
    assert b'"content":"It"' in made.shaped(read_event(chunk("It")))


def test_usage_counts_what_was_said_before_as_answer_not_as_prompt() -> None:
    made = said(chat(max_tokens=20), chunk("It was"))
    made.rest(b"{}", [1, 2, 3], [8, 9], None)

    assert made.whole_usage(SeenUsage(5, 4)) == SeenUsage(3, 6)


def test_a_stream_of_which_only_the_usage_is_missing_gets_that_and_no_more_text() -> None:
    made = said(chat(max_tokens=20), chunk("It was"), chunk("", "stop"))

    rest = made.rest(b"{}", [1, 2, 3], [8, 9], None)

    assert rest is not None
    assert json.loads(rest.body)["max_tokens"] == 1
    assert made.shaped(read_event(_text(" more"))) == b""
    told = json.loads(made.shaped(read_event(b'data: {"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'))[6:])
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_an_answer_that_ended_by_its_limit_has_as_many_tokens_however_its_text_is_read_again() -> None:
    made = said(chat(max_tokens=4), chunk("It was"), chunk(" so", "length"))
    made.rest(b"{}", [1, 2, 3], [8, 9, 10], None)

    assert made.whole_usage(SeenUsage(6, 1)) == SeenUsage(3, 4)


def test_a_stream_with_as_many_tokens_as_it_may_have_lacks_but_its_end() -> None:
    made = said(chat(max_tokens=2), chunk("It was"))

    assert not made.is_complete([8])
    assert made.is_complete([8, 9])
    assert json.loads(made.ending()[6:])["choices"][0]["finish_reason"] == "length"


def test_the_end_that_an_engine_told_is_not_told_twice() -> None:
    made = said(chat(max_tokens=2), chunk("It was", "length"))

    assert made.is_complete([8, 9])
    assert made.ending() == b""


def test_of_several_answers_all_must_have_ended() -> None:
    other = b'data: {"id":"x","choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}\n\n'
    made = said(chat(n=2), chunk("It was", "stop"))

    assert not made.is_complete(None)
    made.add(other)
    assert made.is_complete(None)


def test_an_error_of_who_goes_on_is_told() -> None:
    made = said(chat(max_tokens=20), chunk("It"))
    made.rest(b"{}", [1], [8], None)
    error = b'data: {"error":{"message":"out of memory","code":500}}\n\n'

    assert made.shaped(read_event(error)) == error


def test_a_prompt_in_text_goes_on_as_text_where_the_tokens_are_not_known() -> None:
    made = said(CompletionRequest(model=MODEL, prompt="The sea", max_tokens=9, stream=True), _text(" is"))

    rest = made.rest(b'{"prompt":"The sea"}', [4, 4], None, None)

    assert rest is not None
    assert json.loads(rest.body)["prompt"] == "The sea is"
    assert json.loads(rest.body)["max_tokens"] == 8


def _text(text: str) -> bytes:
    return b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"%b"}]}\n\n' % text.encode()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (chat(n=2), "several answers"),
        (chat(logprobs=True), "log probabilities"),
        (chat(tools=[{"type": "function"}]), "tools"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (chat(guided_json={"type": "object"}), "guided_json"),
        (CompletionRequest(model=MODEL, prompt="x", structured_outputs={"choice": ["a"]}), "structured_outputs"),
        (CompletionRequest(model=MODEL, prompt="x", grammar='root ::= "a"'), "grammar"),
        (chat(continue_final_message=True, add_generation_prompt=False), "its prompt"),
        (chat(chat_template="{{ messages }}"), "its prompt"),
        (chat(documents=[{"title": "x", "text": "y"}]), "its prompt"),
        (CompletionRequest(model=MODEL, prompt="x", echo=True), "part of the answer"),
        (CompletionRequest(model=MODEL, prompt=["x", "y"]), "several answers"),
    ],
)
def test_what_could_not_be_taken_up_in_the_middle_says_why(asked: ChatRequest | CompletionRequest, reason: str) -> None:
    assert reason in (said(asked).stuck() or "")


def test_an_answer_that_reasons_or_calls_a_tool_is_not_taken_up() -> None:
    assert "reasoning_content" in (said(chat(), chunk("", reasoning_content="Hm")).stuck() or "")


def test_what_was_said_is_read_in_events_with_names_too() -> None:
    made = said(chat(), b"event: message\nid: 1\n" + chunk("It"), chunk(" was"))

    assert made.text == "It was"
    assert b'" so"' in made.shaped(read_event(b"event: message\n" + _text(" so")))


def test_what_was_said_is_read_before_it_grows_large() -> None:
    made = said(chat(), *[chunk("word ") for _ in range(5_000)])

    assert made.text == "word " * 5_000
    assert made.kept_bytes == 0


# With processes


@pytest.fixture(scope="module")
def engines(start: Start) -> Iterator[list[Jevons]]:
    """Two servers, each with a worker whose answers do not depend on what runs beside them."""
    flags = ("--served-name", MODEL, "--workers", "1", "--kv-bytes", str(64 << 20), "--invariant")
    running = [start(*flags) for _ in range(2)]
    yield running
    for engine in running:
        engine.stop()


@pytest.fixture
def front(engines: list[Jevons], model_dir: Path) -> Iterator[Jevons]:
    running = Jevons(*(word for e in engines for word in ("--engine", f"{e.url},tokenizer={model_dir}")))
    until(lambda: len(running.healthy()) == len(engines), 30, "the engines are up")
    yield running
    assert running.stop() == 0


def stream(url: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a stream; fails unless it ends as it should."""
    whole = {"model": MODEL, "temperature": 0, "stream": True, "ignore_eos": True, **body}
    request = urllib.request.Request(url + path, json.dumps(whole).encode())
    done = False
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            data = line.removeprefix(b"data: ").strip()
            done = done or data == b"[DONE]"
            if data and data != b"[DONE]":
                yield json.loads(data)
    assert done


def text_of(chunks: list[dict[str, Any]]) -> str:
    choices = [c["choices"][0] for c in chunks if c["choices"]]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


@pytest.mark.model
def test_a_stream_goes_on_when_its_engine_is_killed(front: Jevons, engines: list[Jevons]) -> None:
    ask = {"max_tokens": 48, "stream_options": {"include_usage": True}}
    talk = {"messages": [{"role": "user", "content": PROMPT}], **ask}
    undisturbed = [list(stream(front.url, CHAT, talk)), list(stream(front.url, COMPLETIONS, {"prompt": PROMPT, **ask}))]
    before = front.snapshot()["placements"]

    running = [stream(front.url, CHAT, talk), stream(front.url, COMPLETIONS, {"prompt": PROMPT, **ask})]
    begun = [[next(chunks) for _ in range(8)] for chunks in running]
    victim = next(e for e in engines if any(w["id"] in e.url for w in front.snapshot()["workers"] if w["requests"]))
    victim.process.send_signal(signal.SIGKILL)
    whole = [first + list(chunks) for first, chunks in zip(begun, running, strict=True)]

    assert front.snapshot()["placements"] > before + 2, "nobody was moved"
    for chunks, same in zip(whole, undisturbed, strict=True):
        assert "error" not in json.dumps(chunks)
        assert text_of(chunks) == text_of(same)
        assert len({c["id"] for c in chunks}) == 1
        assert chunks[-1]["usage"]["completion_tokens"] == same[-1]["usage"]["completion_tokens"] == 48
        assert chunks[-1]["usage"]["prompt_tokens"] == same[-1]["usage"]["prompt_tokens"]
