"""The HTTP side of an engine without a model: OpenAI's API and vLLM's metrics, whole answers and streams."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from time import time

import msgspec

from jevons.base.errors import CapacityError, EngineGone, RequestError
from jevons.base.ids import RequestId
from jevons.engine.mock_engine import GONE, MockEngine
from jevons.engine.specs import RANK_HEADER
from jevons.facts.request import Sampling, Step, Work
from jevons.serve.call import CHAT, COMPLETIONS
from jevons.serve.http import EVENT_STREAM, NO_CACHE, ClientGone, Reply, Request
from jevons.serve.openai import (
    ChatRequest,
    CompletionRequest,
    Usage,
    error_body,
    read_chat,
    read_completion,
)
from jevons.serve.prompts import Encode, pseudo_encoder
from jevons.serve.stream import DONE, ChatShape, Choice, CompletionShape, Delta, Shape

# Of answers that name no limit: where a model would end by itself, a mock must be told.
GUESS_OUTPUT_TOKENS = 64
METRICS = b"text/plain; version=0.0.4; charset=utf-8"

Spell = Callable[[int], str]
"""Token → its text."""


class Words(msgspec.Struct, frozen=True):
    """How text becomes tokens and tokens text. `root`: directory of the tokenizer, which routers may read too."""

    encode: Encode = pseudo_encoder()
    spell: Spell = " w{}".format
    root: str | None = None


class MockServer:
    """The HTTP side of one engine, or of data-parallel ranks that are alike: a request goes to the rank that its header
    names, else to the one with the fewest, as where vLLM balances them."""

    def __init__(self, ranks: Sequence[MockEngine], words: Words) -> None:
        self.ranks = ranks
        self.engine = ranks[0]
        self._words = words

    async def answer(self, request: Request, reply: Reply, path: str) -> None:
        """Answer a request for `path` of this engine; a client of an engine that is down sees its connection end. Ranks
        are up and down together.

        Raises:
            ClientGone: the engine ended, or the client.
        """
        if not self.engine.is_up:
            raise ClientGone
        while any(rank.faults.hangs for rank in self.ranks):  # noqa: ASYNC110 — rare, and ended from wherever faults are set
            await asyncio.sleep(0.05)
        try:
            if request.method == "POST":
                await self._post(request, reply, path)
            else:
                self._get(reply, path)
        except RequestError as error:
            reply.send(error.status, error_body(str(error), error.status, error.param, error.code))
        except CapacityError as error:
            reply.send(400, error_body(str(error), 400, code="context_length_exceeded"))
        except EngineGone:
            raise ClientGone from None

    def _get(self, reply: Reply, path: str) -> None:
        if path in ("/health", "/ping"):
            reply.send(200, b"")
        elif path == "/v1/models":
            reply.send(200, _models(self.engine, self._words.root))
        elif path == "/metrics":
            reply.send(200, _metrics(self.ranks), METRICS)
        else:
            raise RequestError(f"path: this engine has no {path[:100]!r}", status=404)

    async def _post(self, request: Request, reply: Reply, path: str) -> None:
        asked: ChatRequest | CompletionRequest
        if path == CHAT:
            asked = read_chat(request.body)
        elif path == COMPLETIONS:
            asked = read_completion(request.body)
        else:
            raise RequestError(f"path: this engine takes no {path[:100]!r}", status=404)
        engine, name = self._rank(request), asked.model
        facts = engine.facts
        if name not in (facts.model, *facts.adapters):
            there = ", ".join((facts.model, *facts.adapters))
            raise RequestError(f"model: {name!r} is not served here; there is {there}", "model", 404)
        prompts = await self._words.encode(asked)
        if len(prompts) != 1 or (asked.n or 1) != 1:
            raise RequestError("n, prompt: a mock gives one answer to one prompt; ask several times", "n")
        prompt = list(prompts[0])
        usual = max(1, min(GUESS_OUTPUT_TOKENS, _context_tokens(engine) - len(prompt)))
        work = _work(asked, prompt, usual, name if name in facts.adapters else "")
        shape = (ChatShape if path == CHAT else CompletionShape)(work.id, int(time()), name)
        await _Answer(asked, work, shape, self._words.spell, reply).run(engine)

    def _rank(self, request: Request) -> MockEngine:
        """Raises RequestError: it has no such rank."""
        told = request.headers.get(RANK_HEADER, "")
        if not told.isdecimal():
            return min(self.ranks, key=lambda rank: sum(rank.load[:2]))
        if int(told) >= len(self.ranks):
            raise RequestError(f"{RANK_HEADER}: must be below {len(self.ranks)} here, got {told[:20]}")
        return self.ranks[int(told)]


class _Answer:
    """One answer on its way."""

    def __init__(
        self, asked: ChatRequest | CompletionRequest, work: Work, shape: Shape, spell: Spell, reply: Reply
    ) -> None:
        self._work = work
        self._streams = bool(asked.stream)
        self._wants_usage = asked.wants_usage
        self._shape = shape
        self._spell = spell
        self._reply = reply
        self._done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._texts: list[str] = []
        self._tokens = self._cached_tokens = 0

    async def run(self, engine: MockEngine) -> None:
        engine.submit(self._work, self._told)
        try:
            finish = await self._done
        except BaseException:
            engine.cancel(self._work.id)
            raise
        if finish == GONE:
            raise ClientGone
        usage = Usage(len(self._work.prompt), self._tokens, self._cached_tokens)
        if not self._streams:
            self._reply.send(200, self._shape.whole([Choice(0, "".join(self._texts), finish=finish)], usage))
            return
        end = self._shape.usage(usage) if self._wants_usage else b""
        self._reply.write(end + DONE)
        self._reply.end()

    def _told(self, step: Step) -> None:
        if step.cached_tokens is not None:
            self._cached_tokens = step.cached_tokens
        text = "".join(map(self._spell, step.tokens))
        self._texts.append(text)
        self._tokens += len(step.tokens)
        if self._streams:
            self._write(text, step.finish)
        if step.finish is not None and not self._done.done():
            self._done.set_result(step.finish)

    def _write(self, text: str, finish: str | None) -> None:
        if finish == GONE:
            return
        opening = b""
        if not self._reply.started:
            self._reply.start(200, EVENT_STREAM, NO_CACHE)
            opening = self._shape.opening(0)
        self._reply.write(opening + self._shape.chunk(0, Delta(text, [], finish)))


def _context_tokens(engine: MockEngine) -> int:
    return min(engine.facts.context_tokens, engine.facts.blocks * engine.facts.block_size)


def _work(asked: ChatRequest | CompletionRequest, prompt: list[int], usual_tokens: int, adapter: str) -> Work:
    return Work(
        id=RequestId(secrets.token_hex(12)),
        prompt=prompt,
        max_tokens=asked.output_limit or usual_tokens,
        sampling=Sampling(),
        stop_ids=[] if asked.ignore_eos else asked.stop_token_ids or [],
        salt=asked.cache_salt or "",
        adapter=adapter,
        priority=asked.priority or 0,
    )


def _models(engine: MockEngine, root: str | None) -> bytes:
    facts = engine.facts
    row = {
        "id": facts.model,
        "object": "model",
        "created": 0,
        "owned_by": "jevons mock",
        "root": root or facts.model,
        "max_model_len": _context_tokens(engine),
    }
    adapters = [{**row, "id": name, "root": name, "parent": facts.model} for name in facts.adapters]
    return msgspec.json.encode({"object": "list", "data": [row, *adapters]})


def _metrics(ranks: Sequence[MockEngine]) -> bytes:
    """By vLLM's names, as far as a mock has them; each rank is an `engine` of its own."""
    rows: dict[str, list[str]] = {}
    for number, engine in enumerate(ranks):
        labels = f'model_name="{engine.facts.model}",engine="{number}"'
        pool = f'{labels},block_size="{engine.facts.block_size}",num_gpu_blocks="{engine.facts.blocks}"'
        rows.setdefault("# TYPE vllm:cache_config_info gauge", []).append(f"vllm:cache_config_info{{{pool}}} 1")
        for name, kind, value in _measured(engine):
            rows.setdefault(f"# TYPE vllm:{name} {kind}", []).append(f"vllm:{name}{{{labels}}} {value}")
        for reason in ("stop", "length"):
            told, count = f'{labels},finished_reason="{reason}"', engine.counts[f"finished_{reason}"]
            success = rows.setdefault("# TYPE vllm:request_success_total counter", [])
            success.append(f"vllm:request_success_total{{{told}}} {count}")
    return ("\n".join(line for kind, told in rows.items() for line in (kind, *told)) + "\n").encode()


def _measured(engine: MockEngine) -> list[tuple[str, str, float]]:
    """Name, kind and value of each."""
    running, waiting, usage = engine.load
    counts = engine.counts
    gauges = {"num_requests_running": running, "num_requests_waiting": waiting, "kv_cache_usage_perc": usage}
    totals = {
        "num_preemptions": engine.preemptions,
        "prompt_tokens": counts["prompt_tokens"],
        "generation_tokens": counts["output_tokens"],
        "prefix_cache_queries": counts["prompt_tokens"],
        "prefix_cache_hits": counts["cached_tokens"],
    }
    return [(n, "gauge", v) for n, v in gauges.items()] + [(f"{n}_total", "counter", v) for n, v in totals.items()]
