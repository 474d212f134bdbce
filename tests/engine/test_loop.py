"""The engine's loop between its batcher, its runner and the tiers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from jevons.base.ids import RequestId
from jevons.control.batch import Batcher
from jevons.control.restore import Restore
from jevons.engine.reference.loop import Done, EngineLoop
from jevons.engine.reference.plan import Slice
from jevons.engine.reference.runner import Abandoned, OnLayer
from jevons.engine.reference.sampling import Sampled
from jevons.facts.block import Tier
from jevons.facts.move import Arrived, Ask, Bring, Cancel, Computed, Found, Look, MoveReport, Over, Save, Written
from jevons.facts.request import Sampling, Work
from jevons.kv.pool import BlockPool

SIZE, PAGE_BYTES = 4, 1_000
STEP_S = 0.3


class _Tiers:
    """Hold everything; what is asked to be brought comes at once, or while the next step is computed."""

    def __init__(self, *, at_once: bool) -> None:
        self.loop: EngineLoop | None = None
        self.steps: list[list[int]] = []  # of each, the positions where its slices begin
        self.steps_before_look = 0
        self._at_once = at_once
        self._bring: Bring | None = None

    def ask(self, ask: Ask) -> None:
        assert self.loop is not None
        match ask:
            case Look(id, names):
                self.steps_before_look = len(self.steps)
                self.loop.answer(Found(id, [Tier.DISK] * len(names), {}))
            case Bring():
                self._bring = ask
                if self._at_once:
                    self._deliver()
            case Save(id=id, names=names):
                self.loop.answer(Over(id, refused=len(names)))

    def step(
        self, slices: Sequence[Slice], is_abandoned: Callable[[], bool], on_layer: OnLayer
    ) -> list[Sampled | None]:
        """A step of the engine: long after the blocks came, it ends."""
        self.steps.append([s.start for s in slices])
        if self._bring is not None:
            self._deliver()
            time.sleep(STEP_S)
        return [Sampled(7, None) if s.sampling is not None else None for s in slices]

    def _deliver(self) -> None:
        bring, self._bring = self._bring, None
        assert bring is not None
        assert self.loop is not None
        self.loop.answer(Arrived(bring.id, [(i, Tier.DISK) for i in range(len(bring.names))]))
        self.loop.answer(Over(bring.id))


def _work(name: str, prompt: list[int], max_tokens: int, *, hand_over: bool = False) -> Work:
    id = RequestId(name)
    return Work(id=id, prompt=prompt, max_tokens=max_tokens, sampling=Sampling(), stop_ids=[], hand_over=hand_over)


def _come_back(tiers: _Tiers) -> list[MoveReport]:
    """A prompt of ten held blocks and a token comes to an engine that is decoding. Returns what moves took."""
    pool = BlockPool(64, SIZE)
    restore = Restore(pool, page_bytes=PAGE_BYTES, step_tokens=8)
    batcher = Batcher(pool, step_tokens=8, max_running=4, context_tokens=200, restore=restore)
    moves, ended = list[MoveReport](), threading.Event()

    def on_done(done: Done) -> None:
        moves.extend(done.moves)
        if any(step.id == "back" and step.finish for step in done.steps):
            ended.set()

    tiers.loop = loop = EngineLoop(batcher, tiers, on_done, tiers.ask)
    loop.submit(_work("busy", [1], max_tokens=150))
    loop.submit(_work("back", list(range(41)), max_tokens=1))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        assert ended.wait(20.0)
    finally:
        loop.stop()
        thread.join()
    return moves


def test_blocks_that_come_during_a_step_took_no_longer_though_it_ends_later() -> None:
    moves = _come_back(_Tiers(at_once=False))

    assert [move.tier for move in moves] == [Tier.DISK]
    assert moves[0].seconds < STEP_S


def test_who_waits_for_blocks_that_come_at_once_joins_the_next_step() -> None:
    tiers = _Tiers(at_once=True)
    _come_back(tiers)

    assert 40 in tiers.steps[tiers.steps_before_look]


class _Layered:
    """An engine of three layers whose first step is given up after two; tiers that hold nothing and take everything."""

    def __init__(self) -> None:
        self.loop: EngineLoop | None = None
        self.asked: list[Ask] = []
        self.steps = 0

    def ask(self, ask: Ask) -> None:
        assert self.loop is not None
        self.asked.append(ask)
        match ask:
            case Look(id, names):
                self.loop.answer(Found(id, [None] * len(names), {}))
            case Cancel(id) | Computed(id) | Save(id, is_ahead=False):
                self.loop.answer(Over(id))

    def step(
        self, slices: Sequence[Slice], is_abandoned: Callable[[], bool], on_layer: OnLayer
    ) -> list[Sampled | None]:
        self.steps += 1
        for layers in range(1, 4):
            if self.steps == 1 and layers == 3:
                raise Abandoned
            on_layer(layers, 3)
        return [Sampled(7, None) if s.sampling is not None else None for s in slices]


def test_the_tiers_hear_of_each_layer_then_that_the_step_is_booked_or_given_up() -> None:
    engine, ended = _Layered(), threading.Event()
    pool = BlockPool(64, SIZE)
    restore = Restore(pool, page_bytes=PAGE_BYTES, step_tokens=16)
    batcher = Batcher(pool, step_tokens=16, max_running=4, context_tokens=200, restore=restore)

    def on_done(done: Done) -> None:
        if any(step.finish for step in done.steps):
            ended.set()

    engine.loop = loop = EngineLoop(batcher, engine, on_done, engine.ask)
    loop.submit(_work("a", list(range(13)), max_tokens=3))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        assert ended.wait(20.0)
    finally:
        loop.stop()
        thread.join()

    first, second = [ask for ask in engine.asked if isinstance(ask, Save)]
    assert (first.is_ahead, second.names, second.places) == (True, first.names, first.places)
    given_up = [first, Written(1, 3), Written(2, 3), Cancel(first.id)]
    booked = [second, Written(1, 3), Written(2, 3), Written(3, 3), Computed(second.id)]
    assert engine.asked[1:] == given_up + booked  # after the look; decodes fill no page here


class _Saving:
    """An engine and tiers that hold nothing: what its first step filled is saved while the second runs."""

    def __init__(self) -> None:
        self.loop: EngineLoop | None = None
        self.done: list[Done] = []
        self.left_in_step: list[RequestId] = []
        self.has_ended = threading.Event()
        self._saved: list[int] = []
        self._steps = 0

    def on_done(self, done: Done) -> None:
        self.done.append(done)
        if any(step.finish == "length" for step in done.steps):
            self.has_ended.set()

    def ask(self, ask: Ask) -> None:
        assert self.loop is not None
        match ask:
            case Look(id, names):
                self.loop.answer(Found(id, [None] * len(names), {}))
            case Computed(id):
                self._saved.append(id)

    def step(
        self, slices: Sequence[Slice], is_abandoned: Callable[[], bool], on_layer: OnLayer
    ) -> list[Sampled | None]:
        assert self.loop is not None
        self._steps += 1
        if self._steps == 2:
            self.loop.answer(Over(self._saved[0]))
            assert not is_abandoned()
            self.left_in_step = [step.id for done in self.done for step in done.steps if step.finish == "handover"]
        return [Sampled(7, None) if s.sampling is not None else None for s in slices]


def test_a_handover_does_not_wait_for_the_end_of_the_next_step() -> None:
    engine = _Saving()
    pool = BlockPool(64, SIZE)
    restore = Restore(pool, page_bytes=PAGE_BYTES, step_tokens=9)
    batcher = Batcher(pool, step_tokens=9, max_running=4, context_tokens=200, restore=restore)
    engine.loop = loop = EngineLoop(batcher, engine, engine.on_done, engine.ask)
    loop.submit(_work("leaves", list(range(9)), max_tokens=5, hand_over=True))
    loop.submit(_work("stays", list(range(20, 29)), max_tokens=1))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        assert engine.has_ended.wait(20.0)
    finally:
        loop.stop()
        thread.join()

    assert engine.left_in_step == ["leaves"]
