"""What users see where prompts are computed on some engines and answers decoded on others, in a closed loop."""

from __future__ import annotations

import heapq
import math
from collections import deque

import msgspec

from jevons.perf.closed import Loop, Request, Seen, Sums, rounds_of
from jevons.perf.roofline import Engine, Work, iteration

_MOST_USERS = 500  # that ask by themselves


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """Two pools, of equal engines each."""

    prefill: Engine
    prefill_workers: int
    decode: Engine
    decode_workers: int
    move_s_per_token: float = 0.0  # of keys and values from one to the other, what cannot be hidden


def split_loop(split: Split, loop: Loop) -> Seen:
    """Means of what users see; `loop.room_tokens` and `loop.seats` are those of one decode worker.

    The first token comes once the prompt is computed, its keys and values are moved, and a decode worker has a place.
    Decode workers are loaded alike, so all pass their iterations at the pace of the mean one. Of very many users
    several ask together, as one.
    """
    return _Pools(split, loop).run()


class _Pools:
    def __init__(self, split: Split, loop: Loop) -> None:
        self._crowd = max(1, loop.users // _MOST_USERS)  # users that ask together
        self._split, self._loop = split, msgspec.structs.replace(loop, users=loop.users // self._crowd)
        loop = self._loop
        self._simulated = rounds_of(loop)
        self._sums = Sums(loop.rounds, self._simulated)
        self._now = self._iterations = self._context = self._held = self._decoding = 0.0
        self._asked = 0
        self._waiting: deque[Request] = deque()  # for a prefill worker
        self._computed: deque[Request] = deque()  # for a place to decode
        self._busy: list[tuple[float, int, list[Request]]] = []  # prefill workers, by when they are done
        self._running: list[tuple[float, int, Request]] = []

    def run(self) -> Seen:
        for _ in range(self._loop.users):
            self._ask()
        while self._waiting or self._busy or self._computed or self._running:
            self._begin()
            self._pass(*self._ahead(max(0.0, self._busy[0][0] - self._now) if self._busy else math.inf))
            while self._busy and self._busy[0][0] <= self._now + 1e-12:
                self._computed.extend(heapq.heappop(self._busy)[2])
            self._finish()
            self._place()
        return self._sums.seen(self._loop.users * self._crowd, self._crowd * self._decoding / self._now)

    def _ask(self) -> None:
        if self._asked < self._simulated * self._loop.users:
            self._waiting.append(Request(self._asked, self._loop, self._now))
            self._asked += 1

    def _begin(self) -> None:
        """Idle prefill workers take what waits, up to one iteration's tokens, at least one prompt."""
        while self._waiting and len(self._busy) < self._split.prefill_workers:
            taken: list[Request] = []
            tokens = pairs = 0.0
            while self._waiting and (
                not taken or tokens + self._crowd * self._waiting[0].prompt <= self._loop.step_tokens
            ):
                request = self._waiting.popleft()
                taken.append(request)
                tokens += self._crowd * request.prompt
                pairs += self._crowd * request.prompt**2 / 2
            seconds = iteration(self._split.prefill, Work(prompt_tokens=tokens, prompt_pairs=pairs)).seconds
            seconds += taken[-1].prompt * self._split.move_s_per_token
            heapq.heappush(self._busy, (self._now + seconds, taken[0].number, taken))

    def _iteration_s(self, ahead: float) -> float:
        """Seconds of the iteration so many after this change, of the mean decode worker."""
        count, workers, gain = len(self._running), self._split.decode_workers, self._split.decode.shares.tokens_per_step
        each = max(1.0, self._crowd * count / workers)
        context = each * (self._context / count + ahead * gain)
        return iteration(self._split.decode, Work(decodes=each, context_tokens=context)).seconds

    def _ahead(self, most_s: float) -> tuple[float, float]:
        """Seconds and iterations to the first end of an answer, at most `most_s`, to the end of a prompt.

        An iteration's time is affine in the context: all take so many times the middle one's.
        """
        if not self._running:
            return most_s, 0.0
        ahead = max(0.0, self._running[0][0] - self._iterations)
        first_s, middle_s = self._iteration_s(0.0), self._iteration_s(ahead / 2)
        if ahead * middle_s <= most_s:
            return ahead * middle_s, ahead
        growth_s = 2 * (middle_s - first_s) / ahead
        return most_s, 2 * most_s / (first_s + math.sqrt(first_s**2 + 2 * growth_s * most_s))

    def _pass(self, seconds: float, iterations: float) -> None:
        count = len(self._running)
        self._iterations += iterations
        self._context += count * iterations * self._split.decode.shares.tokens_per_step
        self._decoding += count * seconds
        self._now += seconds

    def _finish(self) -> None:
        while self._running and self._running[0][0] <= self._iterations + 1e-9:
            request = heapq.heappop(self._running)[2]
            self._context = max(0.0, self._context - (request.prompt + request.output - 1))
            self._held -= self._needs(request)
            self._sums.add(request, self._now)
            self._ask()

    def _needs(self, request: Request) -> float:
        """Tokens for which there must be room when it begins to decode."""
        return self._crowd * (request.prompt + self._loop.reserve * request.output)

    def _place(self) -> None:
        loop, workers = self._loop, self._split.decode_workers
        while self._computed:
            request = self._computed[0]
            needs = self._needs(request)
            seated = self._crowd * len(self._running)
            if seated and (seated >= loop.seats * workers or self._held + needs > loop.room_tokens * workers):
                return
            self._computed.popleft()
            self._held += needs
            self._context += request.prompt
            request.first = self._now
            finish = self._iterations + (request.output - 1) / self._split.decode.shares.tokens_per_step
            heapq.heappush(self._running, (finish, request.number, request))
