"""The engine's loop: take requests, schedule, run, tell what came of it. One thread, nothing else in it.

inbox ──▶ batcher.schedule ──▶ runner.step ──▶ batcher.complete ──▶ on_step(done)
            │ asks             │ layers             ▲ answers
            └──────────────────┴──▶ node: blocks to and from the tiers
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from jevons.base.errors import CapacityError
from jevons.base.ids import RequestId
from jevons.control.batch import Batcher, Chunk, Drawn
from jevons.engine.reference.runner import Abandoned, OnLayer, Sampled, Slice, ignore
from jevons.facts.event import KvEvent
from jevons.facts.move import Answer, Ask, MoveReport, Written
from jevons.facts.request import Step, Work
from jevons.facts.worker import StepReport
from jevons.perf.measured import StepSeconds, load_of


class Done(msgspec.Struct, frozen=True):
    """What one turn of the loop came to."""

    steps: list[Step]
    report: StepReport | None = None  # None where nothing was computed
    events: list[KvEvent] = []
    moves: list[MoveReport] = []


class _Timed(NamedTuple):
    """An answer and when it came: it may be heard a whole step later, which is not the tier's doing."""

    answer: Answer
    at_s: float


OnDone = Callable[[Done], None]

# A step is given up in the middle when cancelled sequences make up this share of its tokens: finishing it for the
# others is cheaper below, starting again without them above.
ABANDON_SHARE = 0.5


class Steps(Protocol):
    """What computes: `reference.Runner` or `mock.MockRunner`."""

    def step(
        self, slices: Sequence[Slice], is_abandoned: Callable[[], bool], on_layer: OnLayer
    ) -> list[Sampled | None]: ...


class EngineLoop:
    """Drives a `Batcher` and a runner. `submit`, `cancel`, `answer`, `stop` and `in_progress` are for other threads.

    Args:
        on_done: called in the loop's thread after each turn that came to something.
        ask: where the batcher's asks of the tiers go.
    """

    def __init__(
        self, batcher: Batcher, runner: Steps, on_done: OnDone, ask: Callable[[Ask], None] | None = None
    ) -> None:
        self._batcher = batcher
        self._runner = runner
        self._on_done = on_done
        self._ask = ask
        self._inbox: queue.SimpleQueue[Work | RequestId | _Timed | None] = queue.SimpleQueue()
        self._learned = StepSeconds()
        self._cancelled: set[RequestId] = set()
        self._new: list[Work] = []
        self._answers: list[_Timed] = []
        self._chunks: Sequence[Chunk] = ()
        self._step_began_s: float | None = None
        self._stopping = False

    def submit(self, work: Work) -> None:
        self._inbox.put(work)

    def cancel(self, id: RequestId) -> None:
        """Stop working on `id`, now if its tokens are most of the step in progress, else after the step."""
        self._inbox.put(id)

    def answer(self, answer: Answer) -> None:
        """The tiers answer something the batcher asked."""
        self._inbox.put(_Timed(answer, time.monotonic()))

    def stop(self) -> None:
        self._inbox.put(None)

    @property
    def in_progress(self) -> StepReport | None:
        """The step in progress, with the seconds it has run so far."""
        chunks, began = self._chunks, self._step_began_s
        return None if began is None else _report(chunks, time.perf_counter() - began)

    def run(self) -> None:
        """Work until `stop`."""
        has_worked = False
        while True:
            self._take(wait_s=0.0 if has_worked else self._wait_s())
            if self._stopping:
                return
            self._admit()
            has_worked = self._step()
            self._send_asks()
            self._hand_over()

    def _step(self) -> bool:
        """Returns whether there was something to do."""
        self._chunks = self._batcher.schedule(time.monotonic())
        if not self._chunks:
            return False
        self._send_asks()  # blocks come while this step runs
        if self._hears_in_time():
            return True  # more can be in this step: schedule it again
        on_layer = self._on_layer if self._batcher.save_ahead(self._chunks) else ignore
        self._send_asks()  # places for the blocks it fills are found while it runs
        self._step_began_s = began = time.perf_counter()
        try:
            sampled = self._runner.step([_slice(chunk) for chunk in self._chunks], self._is_abandoned, on_layer)
        except Abandoned:
            self._batcher.give_up()
            return True  # nothing is booked: what is still wanted is scheduled again, and its KV written again
        finally:
            self._step_began_s = None
        self._take(wait_s=0.0)
        self._hear()  # what was saved meanwhile makes room for what is saved now
        steps = self._batcher.complete(self._chunks, [_drawn(s) for s in sampled], time.monotonic())
        self._send_asks()  # what is saved can be read before anyone hears of the tokens
        report = _report(self._chunks, time.perf_counter() - began)
        self._learned.measured(load_of(report), report.seconds)
        self._batcher.prices = self._learned.prices
        self._tell(steps, report)
        return True

    def _on_layer(self, layers: int, of: int) -> None:
        assert self._ask is not None, "who saves can ask"
        self._ask(Written(layers, of))

    def _hears_in_time(self) -> bool:
        """Hold back the step while that pays. Returns whether something was heard."""
        step_s = self._learned.prices.seconds(load_of(_report(self._chunks, 0.0)))
        hold_s = self._batcher.hold_s(self._chunks, step_s, time.monotonic())
        if hold_s:
            self._take(wait_s=hold_s)
        return bool(self._answers or self._new or self._cancelled)

    def _hand_over(self) -> None:
        left = self._batcher.handed_over(time.monotonic())
        if left:
            self._tell(left)

    def _tell(self, steps: list[Step], report: StepReport | None = None) -> None:
        moves = [] if self._batcher.restore is None else self._batcher.restore.drain_reports()
        self._on_done(Done(steps, report, self._batcher.pool.drain_events(), moves))

    def _send_asks(self) -> None:
        if self._batcher.restore is not None:
            assert self._ask is not None, "who restores can ask"
            for ask in self._batcher.restore.drain_asks():
                self._ask(ask)

    def _wait_s(self) -> float | None:
        """How long there may be nothing to do; None: until something comes in."""
        wake_s = self._batcher.wake_s
        return None if wake_s is None else max(0.0, wake_s - time.monotonic())

    def _take(self, wait_s: float | None) -> None:
        """Sort what came in; wait so long for something."""
        while True:
            try:
                item = self._inbox.get(timeout=wait_s) if wait_s != 0.0 else self._inbox.get_nowait()
            except queue.Empty:
                return
            wait_s = 0.0
            if item is None:
                self._stopping = True
            elif isinstance(item, Work):
                self._new.append(item)
            elif isinstance(item, str):
                self._cancelled.add(item)
            else:
                self._answers.append(item)

    def _hear(self) -> None:
        answers, self._answers = self._answers, []
        for timed in answers:
            self._batcher.on_answer(timed.answer, timed.at_s)

    def _admit(self) -> None:
        self._hear()
        for work in self._new:
            if work.id in self._cancelled:
                continue
            try:
                self._batcher.add(work)
            except CapacityError as error:
                self._tell([Step(id=work.id, finish="error", error=str(error))])
        for id in self._cancelled:
            self._batcher.cancel(id)
        self._new.clear()
        self._cancelled.clear()

    def _is_abandoned(self) -> bool:
        """Asked before each layer, which is also the time for what cannot wait for the step's end."""
        if self._inbox.empty() and not self._cancelled:
            return False
        self._take(wait_s=0.0)
        if self._batcher.leaving:  # whose blocks are there now need not wait for this step's end
            self._hear()
            self._hand_over()
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
