"""The road to our own workers: tokens in, tokens out; text is made here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from jevons.base.errors import EngineError, EngineGone, NoWorker, RequestError
from jevons.base.ids import RequestId, WorkerId
from jevons.control.lived import Finished
from jevons.facts.request import Sampling, Step, Work
from jevons.policy.route import Placement
from jevons.serve.call import MAX_ATTEMPTS, Call, Placements
from jevons.serve.fleet import Fleet
from jevons.serve.http import EVENT_STREAM, NO_CACHE, Reply
from jevons.serve.link import GONE
from jevons.serve.metrics import Metrics
from jevons.serve.openai import Usage, check_supported
from jevons.serve.prompts import Prompts
from jevons.serve.reply import Stopping
from jevons.serve.sequence import Sequence
from jevons.serve.stream import DONE, Choice, Delta
from jevons.serve.tokenizer import Tokenizer

MOST_ANSWERS = 2_048  # of one request, as many prompts as OpenAI takes: each is placed and begun at once
SEED_STEP = 0x9E3779B97F4A7C15  # odd, so the choices of one request draw from seeds far apart


class Embedded:
    """Runs the sequences of a call on embedded workers and writes their answer."""

    def __init__(
        self, fleet: Fleet, placements: Placements, metrics: Metrics, tokenizer: Tokenizer, prompts: Prompts
    ) -> None:
        self._fleet = fleet
        self._placements = placements
        self._metrics = metrics
        self._tokenizer = tokenizer
        self._prompts = prompts

    async def answer(self, call: Call, id: RequestId, placement: Placement, reply: Reply) -> None:
        """Answer `call`, whose first sequence is placed as `id`.

        Raises:
            EngineError: it could not be answered; the caller tells the client.
        """
        try:
            check_supported(call.asked)
            sequences = self._sequences(call)
        except BaseException:
            self._placements.done(id)
            raise
        run = _Run(self, call, sequences)
        async with aclosing(run.deltas(id, placement)) as deltas:
            try:
                if call.asked.stream:
                    await self._stream(call, sequences, deltas, reply)
                else:
                    await self._gather(call, sequences, deltas, reply)
            except asyncio.CancelledError:  # its time is over, or the server's, unless its client has left
                if reply.started and isinstance(reply.cancelled(), Stopping):
                    self._metrics.cut.labels(sequences[0].worker or WorkerId("")).inc()
                raise

    async def _stream(
        self, call: Call, sequences: list[Sequence], deltas: AsyncGenerator[tuple[Sequence, Delta]], reply: Reply
    ) -> None:
        shape, opened = call.shape(), set()
        async for seq, delta in deltas:
            if not reply.started:
                reply.start(200, EVENT_STREAM, NO_CACHE + call.headers(seq.worker or WorkerId("")))
            out = b""
            if seq.index not in opened:
                opened.add(seq.index)
                out = shape.opening(seq.index)
            if delta.text or delta.tokens or delta.finish:
                out += shape.chunk(seq.index, delta)
            reply.write(out)
            await reply.drain()
        if call.asked.wants_usage:
            reply.write(shape.usage(_usage(call, sequences)))
        reply.write(DONE)
        reply.end()

    async def _gather(
        self, call: Call, sequences: list[Sequence], deltas: AsyncGenerator[tuple[Sequence, Delta]], reply: Reply
    ) -> None:
        choices = [Choice(seq.index, tokens=[]) for seq in sequences]
        async for seq, delta in deltas:
            choice = choices[seq.index]
            choice.text += delta.text
            choice.tokens += delta.tokens
            choice.finish = delta.finish or choice.finish
        whole = call.shape().whole(choices, _usage(call, sequences))
        reply.send(200, whole, headers=call.headers(sequences[0].worker or WorkerId("")))

    def _sequences(self, call: Call) -> list[Sequence]:
        """One for each choice of each prompt, in the order OpenAI numbers them.

        Raises:
            RequestError: they are too many.
        """
        asked, copies = call.asked, call.asked.n or 1
        if len(call.prompts) * copies > MOST_ANSWERS:
            rule = (
                f"one request gets at most {MOST_ANSWERS} answers, got {len(call.prompts)} prompts with {copies} each"
            )
            raise RequestError(f"prompt: {rule}; ask several times", "prompt")
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        sequences: list[Sequence] = []
        context_tokens = self._prompts.context_tokens(asked.model)
        assert context_tokens is not None, "our own workers' is known"
        for prompt in call.prompts:
            for copy in range(copies):
                index = len(sequences)
                work = Work(
                    id=RequestId(f"{call.id}-{index}"),
                    prompt=list(prompt),
                    max_tokens=asked.output_limit or context_tokens - len(prompt),
                    sampling=Sampling(
                        temperature=1.0 if asked.temperature is None else asked.temperature,
                        top_p=1.0 if asked.top_p is None else asked.top_p,
                        top_k=max(asked.top_k or 0, 0),
                        seed=(seed + copy * SEED_STEP) % 2**64,
                        logprobs=asked.logprob_count,
                    ),
                    stop_ids=self._stop_ids(call),
                    salt=asked.cache_salt or "",
                    keep_s=call.keep_s,
                    priority=call.priority,
                )
                sequences.append(Sequence(index, work, self._tokenizer, asked.stops))
        return sequences

    def _stop_ids(self, call: Call) -> list[int]:
        own = () if call.asked.ignore_eos else self._tokenizer.eos_ids
        return sorted({*own, *(call.asked.stop_token_ids or ())})


class _Run:
    """The sequences of one call, on their workers."""

    def __init__(self, road: Embedded, call: Call, sequences: list[Sequence]) -> None:
        self._fleet = road._fleet
        self._placements = road._placements
        self._metrics = road._metrics
        self._call = call
        self._sequences = sequences
        self._steps: asyncio.Queue[Step] = asyncio.Queue()  # bounded by max_tokens of each sequence
        self._live: dict[RequestId, Sequence] = {}

    async def deltas(self, id: RequestId, placement: Placement) -> AsyncGenerator[tuple[Sequence, Delta]]:
        """What the steps add, as they come, until every sequence is over. The first is placed already."""
        try:
            self._submit(self._sequences[0], id, placement)
            for seq in self._sequences[1:]:
                attempt = self._call.attempt()
                placed = self._placements.place(self._call, attempt, seq.work.prompt, self._fleet.attached)
                self._submit(seq, attempt, placed)
            while self._live:
                step = await self._steps.get()
                if step.id not in self._live:
                    continue
                seq = self._live[step.id]
                if step.finish == GONE:
                    await self._lost(seq, step)
                elif step.finish == "handover":
                    self._over(step.id)
                    await self._place_again(seq)
                elif step.finish == "error":
                    raise EngineError(step.error or "the engine failed without a word")
                else:
                    self._book(seq, step)
                    delta = seq.push(step)
                    if seq.finish is not None:
                        self._finished(seq)
                        self._over(step.id, is_answered=True)
                    yield seq, Delta(delta.text, delta.tokens, seq.finish)
        finally:
            for open_id in list(self._live):
                self._over(open_id)

    def _submit(self, seq: Sequence, id: RequestId, placement: Placement) -> None:
        self._live[id] = seq
        seq.worker = placement.worker
        seq.placement = seq.placement or placement
        work = seq.work_as(id, hand_over=placement.decode is not None)
        self._fleet.links[placement.worker].submit(work, self._steps)

    def _book(self, seq: Sequence, step: Step) -> None:
        assert seq.worker is not None
        self._placements.cached(step.id, step.cached_tokens)
        self._placements.token(step.id, seq.worker, len(step.tokens))
        if seq.first_s is None:
            seq.first_s = self._placements.now_s()

    def _finished(self, seq: Sequence) -> None:
        assert seq.placement is not None, "it was submitted"
        work = seq.work
        self._placements.finished(
            self._call,
            Finished(
                id=work.id,
                prompt=work.prompt,
                tokens=seq.tokens,
                output_tokens=len(seq.tokens),
                placement=seq.placement,
                first_s=seq.first_s,
                cached_tokens=seq.cached_tokens,
            ),
        )

    async def _lost(self, seq: Sequence, step: Step) -> None:
        """Its worker is gone: go on elsewhere with what there is; the client sees nothing of it.

        Raises:
            EngineGone: too many workers were lost, or none is left and the answer has begun.
            NoWorker: none is left.
        """
        worker = seq.worker
        assert worker is not None
        self._over(step.id)
        seq.failed.append(worker)
        if len(seq.failed) >= MAX_ATTEMPTS:
            raise self._cut(seq, f"{len(seq.failed)} workers were lost under it")
        self._metrics.retries.labels(worker).inc()
        try:
            await self._place_again(seq)
        except NoWorker as error:
            if seq.started:
                raise self._cut(seq, str(error)) from error
            raise

    def _cut(self, seq: Sequence, reason: str) -> EngineGone:
        if not seq.started:
            return EngineGone(f"request: {reason} before its first token")
        self._metrics.cut.labels(seq.worker or WorkerId("")).inc()
        return EngineGone(f"{reason}; the answer is cut after {len(seq.tokens)} tokens")

    async def _place_again(self, seq: Sequence) -> None:
        """Place a sequence as far as it has come."""
        id, others = self._call.attempt(), self._fleet.attached

        def place(avoid: Collection[WorkerId]) -> Placement:
            if seq.started:
                return self._placements.go_on(self._call, id, [*seq.work.prompt, *seq.tokens], avoid)
            return self._placements.place(self._call, id, seq.work.prompt, avoid)

        self._submit(seq, id, await self._placements.place_again(place, seq.failed, others))

    def _over(self, id: RequestId, *, is_answered: bool = False) -> None:
        seq = self._live.pop(id)
        if seq.worker is not None:
            self._fleet.links[seq.worker].cancel(id)
        self._placements.done(id, is_answered=is_answered)


def _usage(call: Call, sequences: list[Sequence]) -> Usage:
    """Each prompt counts once, whatever its choices; cached tokens are those of its first choice."""
    copies = call.asked.n or 1
    return Usage(
        prompt_tokens=sum(len(prompt) for prompt in call.prompts),
        completion_tokens=sum(len(seq.tokens) for seq in sequences),
        cached_tokens=sum(seq.cached_tokens or 0 for seq in sequences[::copies]),
    )
