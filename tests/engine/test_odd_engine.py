"""What an engine tells of itself is checked: none of it may end the server that asked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from jevons.base.errors import EngineError
from jevons.engine.openai import OpenAIEngine, read_adapters, read_pool, read_tokens
from jevons.engine.specs import parse_spec


def models(body: bytes) -> dict[str, int | None]:
    """What is made of an answer of /v1/models."""

    async def whole() -> bytes:
        return body

    @asynccontextmanager
    async def request(*_: Any) -> Any:
        yield SimpleNamespace(status=200, body=whole)

    async def go() -> dict[str, int | None]:
        engine = OpenAIEngine(parse_spec("http://h:1"))
        engine._http = SimpleNamespace(request=request)  # type: ignore[assignment]
        return await engine.models()

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("row", "context"),
    [
        (b'{"id": "m", "max_model_len": 4096}', 4096),
        (b'{"id": "m", "meta": {"n_ctx_train": 2048}}', 2048),
        (b'{"id": "m", "meta": [], "root": 7}', None),
        (b'{"id": "m", "max_model_len": "4k"}', None),
        (b'{"id": "m", "max_model_len": -1}', None),
        (b'{"id": "m", "max_model_len": 99999999999999999999999}', None),
    ],
)
def test_a_context_that_is_no_number_of_tokens_is_not_known(row: bytes, context: int | None) -> None:
    assert models(b'{"data": [%b]}' % row) == {"m": context}


@pytest.mark.parametrize(
    "body", [b"[]", b'{"data": null}', b'{"data": [{"id": 5}]}', b'{"data": [{"id": "\xff"}]}', b'{"data": [{}]}']
)
def test_what_is_no_list_of_models_is_an_error_of_the_engine(body: bytes) -> None:
    with pytest.raises(EngineError, match="/v1/models"):
        models(body)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"count": 2, "tokens": [1, 2]}', [1, 2]),
        (b"[1, 2]", None),
        (b'{"tokens": ["a"]}', None),
        (b'{"tokens": [-1]}', None),
        (b'{"tokens": [4294967296]}', None),
        (b"\xff", None),
    ],
)
def test_what_cannot_be_tokens_is_none(body: bytes, tokens: list[int] | None) -> None:
    assert read_tokens(body) == tokens


def test_rows_of_metrics_may_end_with_a_time_and_hold_what_is_no_number() -> None:
    old, new = 'vllm:lora_requests_info{max_lora="x",running_lora_adapters="%s"}', "1.0 1764000000"
    page = "\n".join((old % "a" + " odd", old % "b" + f" {new}", old % "c" + " "))

    assert read_adapters(page) == (["b"], 1)
    assert read_pool('vllm:cache_config_info{num_gpu_blocks="4096"} 1 1764000000') == 4096
    assert read_pool('vllm:cache_config_info{num_gpu_blocks="%s"} 1' % ("9" * 5_000)) is None
