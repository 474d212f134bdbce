"""OpenAI's records: whatever JSON comes, a request or an error that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import RequestError
from jevons.serve.openai import read_chat, read_completion

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n", "seed",
    "stop", "stop_token_ids", "stream", "stream_options", "logprobs", "top_logprobs", "tools", "logit_bias", "user",
    "response_format", "cache_salt", "chat_template_kwargs", "echo", "ignore_eos",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=6), st.booleans())
def test_any_json_is_a_request_or_an_error_that_names_a_field(changes: dict[str, Any], chat: bool) -> None:
    raw = json.dumps({**CHAT, "prompt": "x", **changes}).encode()
    error = refused(raw, chat)
    if error is not None:
        assert error.status == 400
        assert error.param
        assert error.param.split(".")[0].split("[")[0] in FIELDS
        assert str(error).startswith(error.param)


def refused(raw: bytes, chat: bool) -> RequestError | None:
    try:
        if chat:
            read_chat(raw)
        else:
            _ = read_completion(raw).prompts
    except RequestError as error:
        return error
    return None


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_word(raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_chat(raw)

    assert str(caught.value)


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"", "invalid_json", "body: must be a JSON object"),
        (b"{", "invalid_json", "body: must be a JSON object"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', "invalid_utf8", "got byte 0xff at 57"),
        (b"[]", None, "body: must be object, got []"),
        (b'{"messages": [{}]}', None, "model: is required"),
    ],
)
def test_broken_bodies_say_what_is_wrong(raw: bytes, code: str | None, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_chat(raw)

    assert says in str(caught.value)
    assert caught.value.code == code


@pytest.mark.parametrize("field", ["stop", "user", "response_format"])
def test_nesting_of_any_depth_is_read_or_refused(field: str) -> None:
    says: list[str] = []
    for depth in (10, *range(850, 1_010), 100_000):
        raw = b',"%b":%b1%b}' % (field.encode(), b"[" * depth, b"]" * depth)
        error = refused(json.dumps(CHAT)[:-1].encode() + raw, chat=True)
        if error is not None:
            says.append(str(error))

    assert says[-1] == "body: must be a JSON object in UTF-8: it is nested too deeply"


def test_a_deep_value_is_quoted_where_it_stands() -> None:
    with pytest.raises(RequestError, match=r"stop\[1\]: must be str, got 7") as caught:
        read_chat(json.dumps({**CHAT, "stop": ["a", 7]}).encode())

    assert caught.value.param == "stop[1]"


def test_a_long_value_is_quoted_in_part() -> None:
    with pytest.raises(RequestError) as caught:
        read_chat(json.dumps({**CHAT, "temperature": "x" * 10_000}).encode())

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_are_texts_or_tokens_one_or_many(prompt: Any, expected: list[Any]) -> None:
    assert read_completion(json.dumps({"model": "m", "prompt": prompt}).encode()).prompts == expected


def test_limits_have_one_name_each() -> None:
    asked = read_chat(json.dumps({**CHAT, "max_tokens": 5, "max_completion_tokens": 7, "stop": "x"}).encode())

    assert (asked.output_limit, asked.stops, asked.logprob_count) == (7, ["x"], None)
