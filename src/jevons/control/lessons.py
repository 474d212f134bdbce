"""What steps take, learned from reports and from times to first tokens, by workers that are alike together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from jevons.base.ids import WorkerId
from jevons.control.book import Book
from jevons.control.candidates import GUESS_TOKEN_BYTES
from jevons.control.ledger import Member, Placed
from jevons.facts.state import Measured
from jevons.facts.worker import WorkerFacts
from jevons.perf.kin import Kin, WorkerSeconds
from jevons.perf.measured import Load

# A step may take so many times its prediction before its worker counts as silent, and a first token before it counts as
# stalled. Below is noise: on cores that something else uses too, a step takes 2 to 3 times as long.
LATE_STEP = 4.0
LATELY = 32  # measurements of a worker handed on: of two or more alike, all that `perf.measured` remembers


class Lessons:
    """Of all workers; what they teach goes into the book."""

    def __init__(self, book: Book, workers: Mapping[WorkerId, Member]) -> None:
        self._book = book
        self._workers = workers
        self._kins: dict[tuple[Any, ...], Kin] = {}  # by what makes workers alike
        self._lately: dict[WorkerId, deque[Measured]] = {}  # by the worker it was measured on

    def begin(self, facts: WorkerFacts, old: Member | None) -> WorkerSeconds:
        """What is known of its seconds, from before or from those that are alike."""
        alike = (facts.model, facts.kind, facts.role, facts.step_tokens, facts.max_running)
        kin = self._kins.setdefault(alike, Kin())
        if old is None:
            return WorkerSeconds(kin)
        if old.learned.kin is kin:
            return old.learned
        old.learned.leave()  # it is another one now
        return WorkerSeconds(kin)

    def measured(self, worker: Member, load: Load, seconds: float) -> None:
        """A step of `worker` took so long."""
        lately = self._lately.setdefault(worker.facts.id, deque(maxlen=LATELY))
        lately.append(Measured(load.steps, load.tokens, load.token_context, load.decodes, seconds))
        was_alike = worker.learned.is_alike
        are_new = worker.learned.measured(load, seconds)
        if are_new:
            for member in self._workers.values():
                if member.learned.kin is worker.learned.kin and member.learned.is_alike:
                    self._book.set_prices(member.number, member.learned.prices)
        elif not (was_alike and worker.learned.is_alike):
            self._book.set_prices(worker.number, worker.learned.prices)

    def lately(self, worker: WorkerId) -> list[Measured]:
        """What was measured of it last."""
        return list(self._lately.get(worker, ()))

    def forget(self, worker: WorkerId) -> None:
        """It is gone for good."""
        self._lately.pop(worker, None)


def learn_load(placed: Placed, seconds: float, computing_s: float) -> None:
    """What its first token waited for besides is what loading took, of all that was found in the host's memory.

    Once slow says little: who is believed to be slow gets no work that would show that it is not.

    Args:
        seconds: until its first token.
        computing_s: as predicted, of these.
    """
    missing = 0 if placed.cached_tokens is None else max(0, placed.claimed_tokens - placed.found_tokens)
    size_bytes, loads = (placed.loaded_tokens - missing) * GUESS_TOKEN_BYTES, placed.member.learned.kin.loads
    if size_bytes > 0:
        loads.left(size_bytes, seconds - computing_s, computing_s)
