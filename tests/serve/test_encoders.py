"""Prompts as an engine's own tokenizer reads them, and where there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from tests.serve.test_relay import Engine, whole

from jevons.engine.openai import OpenAIEngine
from jevons.engine.specs import parse_spec
from jevons.serve.http import Reply, Request
from jevons.serve.openai import ChatRequest, CompletionRequest
from jevons.serve.prompts import Encode, PseudoTokens, pseudo_encoder, remote_encoder

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
TALK = [{"role": "user", "content": "hello there"}]


class Tokenizing(Engine):
    """A token for each character of what it is asked, as it is asked."""

    async def _handle(self, request: Request, reply: Reply) -> None:
        if request.path != "/tokenize":
            await super()._handle(request, reply)
            return
        self.asked.append(request)
        told = json.loads(request.body)
        text = told["prompt"] if "prompt" in told else json.dumps([told.get("tools"), told["messages"]])
        if text == "strange":
            reply.send(500, b"{}")
        else:
            reply.send(200, json.dumps({"tokens": [ord(c) for c in text]}).encode())


def by_engine(*asked: ChatRequest | CompletionRequest) -> tuple[list[list[Sequence[int]]], list[dict[str, Any]]]:
    """The prompts, and what the engine was asked."""

    async def main() -> tuple[list[list[Sequence[int]]], list[dict[str, Any]]]:
        engine = Tokenizing(whole)
        await engine.door.listen("127.0.0.1", 0)
        client = OpenAIEngine(parse_spec(f"http://127.0.0.1:{engine.door.port}"))
        encode = remote_encoder(client)
        found = [await encode(one) for one in asked]
        client.close()
        await engine.door.close(0.0)
        return found, [json.loads(request.body) for request in engine.asked]

    return asyncio.run(main())


def test_an_engine_is_told_all_that_its_prompt_is_made_of() -> None:
    kwargs = {"enable_thinking": False}
    plain = ChatRequest(model="m", messages=TALK)
    tooled = ChatRequest(model="m", messages=TALK, tools=TOOLS, chat_template_kwargs=kwargs)
    (first, second), asked = by_engine(plain, tooled)

    assert first != second
    assert asked[0] == {"model": "m", "messages": TALK, "add_generation_prompt": True}
    assert asked[1] == {**asked[0], "tools": TOOLS, "chat_template_kwargs": kwargs}


def test_each_of_several_prompts_is_read() -> None:
    [texts, ids, strange], _ = by_engine(
        CompletionRequest(model="m", prompt=["ab", "cde"]),
        CompletionRequest(model="m", prompt=[[1, 2], [3]]),
        CompletionRequest(model="m", prompt=["ab", "strange"]),
    )

    [many], asked = by_engine(CompletionRequest(model="m", prompt=["ab"] * 70))
    assert (len(many), many[63], len(asked)) == (70, [97, 98], 64)
    assert isinstance(many[64], PseudoTokens)
    assert texts == [[97, 98], [99, 100, 101]]
    assert ids == [[1, 2], [3]]
    assert strange[0] == [97, 98]
    assert isinstance(strange[1], PseudoTokens)


def encoded(encode: Encode, asked: ChatRequest | CompletionRequest) -> list[Sequence[int]]:
    async def main() -> list[Sequence[int]]:
        return await encode(asked)

    return asyncio.run(main())


def test_prompts_with_other_tools_share_nothing_where_bytes_are_compared() -> None:
    encode = pseudo_encoder()
    [plain] = encoded(encode, ChatRequest(model="m", messages=TALK))
    [tooled] = encoded(encode, ChatRequest(model="m", messages=TALK, tools=TOOLS))
    [longer] = encoded(encode, ChatRequest(model="m", messages=[*TALK, *TALK], tools=TOOLS))

    assert plain[:8] != tooled[:8]
    assert tooled[:-1] == longer[: len(tooled) - 1]


def test_a_text_is_the_same_prompt_alone_and_beside_others() -> None:
    encode = pseudo_encoder()
    [alone] = encoded(encode, CompletionRequest(model="m", prompt="once upon a time"))
    beside = encoded(encode, CompletionRequest(model="m", prompt=["once upon a time", "there was"]))

    assert beside[0] == alone
    assert len(beside) == 2
