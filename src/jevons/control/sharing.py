"""One of several routers over the same workers: what each places counts with all of them.

    place ─ first token ─ done ──▶ news ──▶ hear: work ahead on that worker, its blocks as good as held

Each hears the workers' events by itself. What it measures on its own requests it tells too, so that all learn prices as
one would, but no more than some a second: learning from one takes 20 us, and the last 50 are all that is remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jevons.base.compiled import Ints
from jevons.base.ids import RequestId
from jevons.control.ledger import NO_NAMES, Counted, Member
from jevons.control.router import Router
from jevons.facts.news import BegunThere, DoneThere, MeasuredThere, News, PlacedThere
from jevons.facts.snapshot import Outcome
from jevons.facts.state import Measured
from jevons.perf.measured import Load
from jevons.policy.route import Placement

MEASURED = 32  # a second


class SharingRouter(Router):
    """A router that tells what it does and hears what others do.

    Args:
        on_news: called when there is news to be taken, once until it is taken.
    """

    def __init__(self, policy: str, *, hang_s: float, shadow_ttl_s: float, on_news: Callable[[], None]) -> None:
        super().__init__(policy, hang_s=hang_s, shadow_ttl_s=shadow_ttl_s)
        self.counts: Counter[str] = Counter()  # of news, by fate
        self._on_news = on_news
        self._news: list[News] = []
        self._number = 0
        self._numbers: dict[RequestId, int] = {}
        self._may_measure = MEASURED
        self._there: dict[int, dict[int, Counted]] = {}  # by router, by its number

    @property
    def open_here(self) -> int:
        """Requests under way that were placed here."""
        return len(self._placed)

    @property
    def open_there(self) -> int:
        """… and by others, as far as heard."""
        return sum(len(those) for those in self._there.values())

    def grant(self) -> None:
        """A second has passed: so many measurements may be told again."""
        self._may_measure = MEASURED

    def take_news(self) -> list[News]:
        """What happened since this was last called; all that is under way, from nothing on, is `open_news`."""
        news, self._news = self._news, []
        return news

    def open_news(self) -> list[News]:
        """News that bring who has heard nothing to where we are."""
        told: list[News] = []
        for request, number in self._numbers.items():
            told.append(self._placed_news(request, number))
            if self._placed[request].is_running:
                told.append(BegunThere(number, self._placed[request].shadowed.tobytes()))
        return told

    def hear(self, router: int, news: Sequence[News], now_s: float) -> None:
        """What another router did, in its order."""
        there = self._there.setdefault(router, {})
        for each in news:
            match each:
                case PlacedThere():
                    self._hear_placed(there, each, now_s)
                case BegunThere(number, names):
                    counted = there.get(number)
                    if counted is not None and not counted.is_running:
                        counted.shadowed = _writable(names)
                        self._begin(counted, now_s)
                case DoneThere():
                    self._hear_done(there, each)
                case MeasuredThere(worker, m):
                    member = self._workers.get(worker)
                    if member is not None:
                        super()._measured(member, Load(m.steps, m.tokens, m.token_context, m.decodes), m.seconds)
        self.counts["heard"] += len(news)

    def forget(self, router: int) -> None:
        """Another router is gone, or something it told was lost: nothing it placed counts any more."""
        for counted in self._there.pop(router, {}).values():
            self._end_counted(counted)

    # What is told

    def place(self, request: RequestId, tokens: Sequence[int], now_s: float, **asked: Any) -> Placement:
        placement = super().place(request, tokens, now_s, **asked)
        self._tell_placed(request)
        return placement

    def go_on(self, request: RequestId, tokens: Sequence[int], now_s: float, **asked: Any) -> Placement:
        placement = super().go_on(request, tokens, now_s, **asked)
        self._tell_placed(request)
        return placement

    def on_answered(self, request: RequestId, now_s: float) -> None:
        placed = self._placed[request]
        if not placed.is_running:
            self._tell(BegunThere(self._numbers[request], placed.shadowed.tobytes()))
        super().on_answered(request, now_s)

    def done(self, request: RequestId, output_tokens: int | None = None, *, is_answered: bool = True) -> Outcome | None:
        number = self._numbers.pop(request, None)
        if number is not None:
            placed = self._placed[request]
            found = -1 if placed.cached_tokens is None else placed.found_tokens
            output = output_tokens if is_answered and output_tokens is not None else -1
            self._tell(DoneThere(number, placed.claimed_tokens, found, output))
        return super().done(request, output_tokens, is_answered=is_answered)

    # Inside

    def _measured(self, worker: Member, load: Load, seconds: float) -> None:
        super()._measured(worker, load, seconds)
        if self._may_measure > 0:
            self._may_measure -= 1
            m = Measured(load.steps, load.tokens, load.token_context, load.decodes, seconds)
            self._tell(MeasuredThere(worker.facts.id, m))

    def _tell_placed(self, request: RequestId) -> None:
        self._number += 1
        self._numbers[request] = self._number
        self._tell(self._placed_news(request, self._number, self._book.wants))

    def _placed_news(self, request: RequestId, number: int, wants: int = 0) -> PlacedThere:
        placed = self._placed[request]
        return PlacedThere(
            number=number,
            worker=placed.placement.worker,
            decode=placed.placement.decode,
            prompt_tokens=placed.prompt_tokens,
            cached_tokens=placed.placement.cached_tokens,
            promised=placed.promised,
            patience_s=placed.patience_s,
            names=placed.names.tobytes(),
            wants=wants,
        )

    def _tell(self, news: News) -> None:
        if not self._news:
            self._on_news()
        self._news.append(news)

    def _hear_placed(self, there: dict[int, Counted], told: PlacedThere, now_s: float) -> None:
        member = self._workers.get(told.worker)
        self._book.count_arrival(now_s)
        if told.wants:
            self._book.want(told.wants)
        if member is None:
            self.counts["unknown_worker"] += 1
            return
        names, decode = _writable(told.names), None if told.decode is None else self._workers.get(told.decode)
        goes_on = (decode or member).number
        there[told.number] = counted = Counted(
            member=member,
            decode=decode,
            slot=self._book.wait(member.number, goes_on, told.prompt_tokens, told.cached_tokens, names),
            prompt_tokens=told.prompt_tokens,
            names=names,
            shadowed=NO_NAMES,
            promised=told.promised,
            placed_s=now_s,
            patience_s=told.patience_s,
        )
        self._count_waiting(counted)

    def _hear_done(self, there: dict[int, Counted], told: DoneThere) -> None:
        if told.output_tokens >= 0:
            self._book.count_answer(told.output_tokens)
        counted = there.pop(told.number, None)
        if counted is None:
            return
        self._end_counted(counted)
        if told.found_tokens >= 0 and self._is_current(counted.member):
            self._book.confirm(counted.member.number, told.claimed_tokens, told.found_tokens)


def _writable(names: bytes) -> Ints:
    """Kernels are compiled for arrays that may be written."""
    return np.frombuffer(names, np.int64).copy()
