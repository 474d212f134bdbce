"""The door as OpenAI's own client sees it, in front of the real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.model

# Its greedy answer is never a near tie between two tokens: 0.88 in the logarithm at the least.
CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "smol", "messages": CAPITAL, "temperature": 0, **more})


def test_a_question_is_answered_with_usage(client: openai.OpenAI) -> None:
    answer = chat(client)

    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (42, 8)


def test_a_stream_adds_up_to_the_answer_and_ends_with_usage(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "The capital of France is Paris."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8


def test_an_answer_says_who_made_it_and_under_which_name(server: Any, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="smol", messages=[{"role": "user", "content": "Hi"}], max_tokens=1
    )
    last = server.snapshot()["recent"][-1]

    assert raw.headers["x-jevons-worker"] == last["worker"]
    assert last["id"].startswith(raw.headers["x-request-id"])


def test_without_stream_options_no_usage_chunk_is_sent(client: openai.OpenAI) -> None:
    assert all(c.choices for c in chat(client, stream=True))


def test_a_repeated_prompt_is_cached_and_says_so(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "Tell me about the sea. " * 30}]
    first = chat(client, messages=long, max_tokens=2)
    second = chat(client, messages=long, max_tokens=2)

    total = first.usage.prompt_tokens
    assert first.usage.prompt_tokens_details.cached_tokens < 32  # the system prompt's head may be there
    assert second.usage.prompt_tokens_details.cached_tokens == (total - 1) // 16 * 16
    assert second.choices[0].message.content == first.choices[0].message.content


def test_salts_keep_tenants_apart(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "Tell me about the moon. " * 30}]
    cached = [
        chat(client, messages=long, max_tokens=1, extra_body={"cache_salt": salt}).usage.prompt_tokens_details
        for salt in ("a", "b", "a")
    ]

    assert [c.cached_tokens > 0 for c in cached] == [False, False, True]


def test_n_choices_differ_by_seed_and_repeat_with_it(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        answer = chat(client, n=3, seed=11, temperature=1.0, max_tokens=12)
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    first = ask()
    assert len(set(first)) > 1
    assert sum(a == b for a, b in zip(first, ask(), strict=True)) >= 2  # fast mode: a batch may round differently


def test_choices_are_told_apart_in_a_stream(client: openai.OpenAI) -> None:
    texts = ["", ""]
    for chunk in chat(client, n=2, seed=3, temperature=1.0, max_tokens=8, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert all(texts)


def test_logprobs_tell_the_chosen_token_and_the_likeliest(client: openai.OpenAI) -> None:
    rows = chat(client, logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content

    assert [row.token for row in rows] == ["The", " capital", " of", " France"]
    for row in rows:
        assert len(row.top_logprobs) == 3
        assert row.top_logprobs[0].token == row.token
        assert row.logprob == pytest.approx(row.top_logprobs[0].logprob)
        assert bytes(row.bytes).decode() == row.token


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    choice = chat(client, stop=["France"]).choices[0]

    assert (choice.message.content, choice.finish_reason) == ("The capital of ", "stop")


def test_max_tokens_cuts_with_finish_length(client: openai.OpenAI) -> None:
    choice = chat(client, max_tokens=3).choices[0]

    assert (choice.message.content, choice.finish_reason) == ("The capital of", "length")


def test_completions_take_texts_and_token_ids(client: openai.OpenAI) -> None:
    by_text = client.completions.create(model="smol", prompt="The capital of France is", temperature=0, max_tokens=3)
    ids = [504, 3575, 282, 4649, 314]
    by_ids = client.completions.create(model="smol", prompt=ids, temperature=0, max_tokens=3, logprobs=1)
    several = client.completions.create(model="smol", prompt=["One two three", "Four"], temperature=0, max_tokens=2)

    assert by_text.choices[0].text
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == 5
    assert by_ids.choices[0].logprobs is not None
    assert len(by_ids.choices[0].logprobs.tokens or []) == 3
    assert [c.index for c in several.choices] == [0, 1]


def test_completions_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(model="smol", prompt="Once upon a time", temperature=0, max_tokens=5, stream=True)
    )
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(c.choices[0].text for c in chunks)


def test_models_and_small_pages_answer(server: Any, client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["smol"]
    assert json.loads(server.get("/health")) == {"status": "ok"}
    assert json.loads(server.get("/ready")) == {"ready": True}
    client.completions.create(model="smol", prompt="Hello", max_tokens=1)
    metrics = server.get("/metrics").decode()
    assert 'jevons_worker_up{worker="w0"} 1.0' in metrics
    assert "jevons_ttft_measured_over_predicted_bucket" in metrics


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"model": "gpt-9"}, "model", "'gpt-9' is not served here; there is smol"),
        ({"messages": []}, "messages", "must be array of length >= 1, got []"),
        ({"max_tokens": -5}, "max_tokens", "must be int >= 1, got -5"),
        ({"temperature": 3}, "temperature", "must be float <= 2.0, got 3"),
        ({"top_p": 0}, "top_p", "must be float > 0.0, got 0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be a string or a list of parts"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "must be a non-empty string, got null"),
        ({"stop": [1]}, "stop[0]", "must be str, got 1"),
        ({"n": 0}, "n", "must be int >= 1, got 0"),
        ({"presence_penalty": 1}, "presence_penalty", "the embedded engine does not support it"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not support it"),
        ({"extra_body": {"guided_json": {}}}, "guided_json", "does not support it"),
        ({"extra_body": {"continue_final_message": True}}, "continue_final_message", "does not support it"),
        ({"extra_body": {"chat_template": "{{ messages }}"}}, "chat_template", "does not support it"),
        ({"max_tokens": 100_000}, "max_tokens", "must fit the context of"),
        ({"messages": [{"role": "user", "content": "word " * 9_000}]}, "messages", "the context is"),
        ({"extra_body": {"chat_template_kwargs": {"tools": []}}}, "chat_template_kwargs.tools", "field of the request"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "image_url",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_rule(
    client: openai.OpenAI, more: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        chat(client, **more)

    error = caught.value.body
    assert isinstance(error, dict)
    assert error["param"] == param
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_prompt_over_the_context_says_how_long_it_is_and_what_the_limit_is(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"comes to 9\d\d\d tokens, the context is 2912 tokens"):
        chat(client, messages=[{"role": "user", "content": "word " * 9_000}])


def test_many_clients_at_once_all_get_their_answer(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda i: chat(client, max_tokens=8, user=str(i)), range(24)))

    texts = [a.choices[0].message.content for a in answers]
    assert texts.count("The capital of France is Paris.") >= 20  # fast mode: rounding may turn a few


def test_what_was_predicted_and_measured_is_kept(server: Any, client: openai.OpenAI) -> None:
    for _ in range(2):
        chat(client, max_tokens=2)
    last = server.snapshot()["recent"][-1]

    assert last["cached_tokens"] == last["predicted_cached_tokens"] == 32
    assert 0 < last["ttft_s"] < 30
    assert last["predicted_ttft_s"] > 0
