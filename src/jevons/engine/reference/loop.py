"""The engine's loop: take requests, schedule, run, tell what came of it. One thread, nothing else in it.

inbox ──▶ batcher.schedule ──▶ runner.step ──▶ batcher.complete ──▶ on_step(report, steps, events)
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence

from jevons.base.errors import CapacityError
from jevons.base.ids import RequestId
from jevons.control.batch import Batcher, Chunk, Drawn
from jevons.engine.reference.runner import Abandoned, Runner, Sampled, Slice
from jevons.facts.event import KvEvent
from jevons.facts.request import Step, Work
from jevons.facts.worker import StepReport

OnStep = Callable[[StepReport | None, list[Step], list[KvEvent]], None]

# A step is given up in the middle when cancelled sequences make up this share of its tokens: finishing it for the
# others is cheaper below, starting again without them above.
ABANDON_SHARE = 0.5


class EngineLoop:
    """Drives a `Batcher` and a `Runner`. `submit`, `cancel`, `stop` and `in_progress` are for other threads."""

    def __init__(self, batcher: Batcher, runner: Runner, on_step: OnStep) -> None:
        self._batcher = batcher
        self._runner = runner
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[Work | RequestId | None] = queue.SimpleQueue()
        self._cancelled: set[RequestId] = set()
        self._new: list[Work] = []
        self._chunks: Sequence[Chunk] = ()
        self._step_began_s: float | None = None
        self._stopping = False

    def submit(self, work: Work) -> None:
        self._inbox.put(work)

    def cancel(self, id: RequestId) -> None:
        """Stop working on `id`, now if its tokens are most of the step in progress, else after the step."""
        self._inbox.put(id)

    def stop(self) -> None:
        self._inbox.put(None)

    @property
    def in_progress(self) -> StepReport | None:
        """The step in progress, with the seconds it has run so far."""
        chunks, began = self._chunks, self._step_began_s
        return None if began is None else _report(chunks, time.perf_counter() - began)

    def run(self) -> None:
        """Work until `stop`."""
        while True:
            self._take(wait=not (self._batcher.waiting or self._batcher.running))
            if self._stopping:
                return
            self._admit()
            self._step()

    def _step(self) -> None:
        self._chunks = self._batcher.schedule()
        if not self._chunks:
            return
        self._step_began_s = began = time.perf_counter()
        try:
            sampled = self._runner.step([_slice(chunk) for chunk in self._chunks], self._is_abandoned)
        except Abandoned:
            return  # nothing is booked: what is still wanted is scheduled again, and its KV written again
        finally:
            self._step_began_s = None
        steps = self._batcher.complete(self._chunks, [_drawn(s) for s in sampled])
        self._on_step(_report(self._chunks, time.perf_counter() - began), steps, self._batcher.pool.drain_events())

    def _take(self, wait: bool) -> None:
        """Sort what came in; wait for something if there is nothing else to do."""
        while True:
            try:
                item = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if item is None:
                self._stopping = True
            elif isinstance(item, Work):
                self._new.append(item)
            else:
                self._cancelled.add(item)

    def _admit(self) -> None:
        for work in self._new:
            if work.id in self._cancelled:
                continue
            try:
                self._batcher.add(work)
            except CapacityError as error:
                self._on_step(None, [Step(id=work.id, finish="error", error=str(error))], [])
        for id in self._cancelled:
            self._batcher.cancel(id)
        self._new.clear()
        self._cancelled.clear()

    def _is_abandoned(self) -> bool:
        if self._inbox.empty() and not self._cancelled:
            return False
        self._take(wait=False)
        gone = sum(len(c.tokens) for c in self._chunks if c.id in self._cancelled)
        return self._stopping or gone > ABANDON_SHARE * sum(len(c.tokens) for c in self._chunks)


def _slice(chunk: Chunk) -> Slice:
    return Slice(chunk.tokens, chunk.start, chunk.table, chunk.sampling, chunk.draw)


def _drawn(sampled: Sampled | None) -> Drawn | None:
    return None if sampled is None else Drawn(sampled.token, sampled.logprob)


def _report(chunks: Sequence[Chunk], seconds: float) -> StepReport:
    """A chunk of one token that draws counts as a decode, whatever it belongs to."""
    prompts = [c for c in chunks if len(c.tokens) > 1 or c.sampling is None]
    return StepReport(
        seconds=seconds,
        tokens=sum(len(c.tokens) for c in prompts),
        token_context=sum(len(c.tokens) * (2 * c.start + len(c.tokens) - 1) // 2 for c in prompts),
        decodes=len(chunks) - len(prompts),
    )
