"""What users of one engine see in a closed loop: each asks again as soon as it is answered.

A small simulation, for no formula knows the burst at the start, the wait for a place, or prompts that hold up others'
tokens. It jumps from one change of the batch to the next: between them an iteration's time is affine in the context, so
n iterations take n times the middle one's. Lengths come from a sequence of low discrepancy, so the same loop gives
the same answer. About 15 µs a request and iteration that computes a prompt.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

import msgspec

from jevons.perf.roofline import Engine, Work, iteration

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill an interval evenly
_FEWEST_ROUNDS = 2  # simulated


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and how the engine batches."""

    users: int
    input_tokens: float  # the longest
    output_tokens: float
    spread: float = 0.0  # lengths lie evenly between 1 - spread and 1 of the longest
    rounds: int = 10  # requests of each user, the first all at once
    step_tokens: int = 8192  # of prompts, in one iteration at most
    seats: int = 1024  # sequences at most
    room_tokens: float = float("inf")  # of keys and values
    reserve: float = 1.0  # share of an answer for which there must be room when it begins
    apart: bool = False  # iterations compute prompts or decode, never both
    requests: int = 1_500  # simulated at most; the last rounds of these count for those left out


class Seen(msgspec.Struct, frozen=True):
    """Means over all requests."""

    ttft_s: float
    tpot_s: float
    output_rate: float  # tokens a second, all users together
    running: float  # sequences that decode, by the mean over time


class Request:
    """One question on its way; the `number` decides its lengths and its round."""

    __slots__ = ("arrived", "computed", "first", "number", "output", "prompt", "round")

    def __init__(self, number: int, loop: Loop, arrived: float) -> None:
        self.number = number
        self.round = number // loop.users
        self.arrived = arrived
        self.computed = 0.0
        self.prompt = loop.input_tokens * (1 - loop.spread * ((number * _GOLDEN) % 1.0))
        self.output = max(2, round(loop.output_tokens * (1 - loop.spread * ((number * _GOLDEN + 0.5) % 1.0))))
        self.first = 0.0


class Sums:
    """Means by round; the last simulated round stands for those left out."""

    def __init__(self, rounds: int, simulated: int) -> None:
        self._weights = [1.0] + [(rounds - 1) / max(1, simulated - 1)] * (simulated - 1)
        self.ttft = self.tpot = self.count = self.output = 0.0

    def add(self, request: Request, now: float) -> None:
        weight = self._weights[request.round]
        self.count += weight
        self.ttft += weight * (request.first - request.arrived)
        self.tpot += weight * (now - request.first) / (request.output - 1)
        self.output += weight * request.output

    def seen(self, users: int, running: float) -> Seen:
        """The means; by Little's law each user gets an answer in the mean time of one."""
        ttft_s, tpot_s, output = self.ttft / self.count, self.tpot / self.count, self.output / self.count
        return Seen(ttft_s, tpot_s, users * output / (ttft_s + tpot_s * (output - 1)), running)


def rounds_of(loop: Loop) -> int:
    """Rounds that are simulated."""
    return min(loop.rounds, max(_FEWEST_ROUNDS, loop.requests // loop.users))


def closed_loop(engine: Engine, loop: Loop) -> Seen:
    """Means of what users see.

    Args:
        engine: of whose iterations the times are.
        loop: `users` ≥ 1, `rounds` ≥ 1, lengths ≥ 1 token; room for one sequence is always made.
    """
    return _Simulation(lambda work: iteration(engine, work).seconds, engine.shares.tokens_per_step, loop).run()


class _Simulation:
    def __init__(self, seconds: Callable[[Work], float], gain: float, loop: Loop) -> None:
        self._seconds = seconds
        self._gain = gain  # tokens a sequence gains in one iteration
        self._loop = loop
        self._simulated = rounds_of(loop)
        self._sums = Sums(loop.rounds, self._simulated)
        self._now = 0.0
        self._iterations = 0.0
        self._asked = 0
        self._waiting: deque[Request] = deque()
        self._computing: deque[Request] = deque()
        self._running: list[tuple[float, int, Request]] = []
        self._context = 0.0  # tokens of all that run
        self._held = 0.0  # tokens of keys and values, all that are admitted, at their ends
        self._decoding = 0.0

    def run(self) -> Seen:
        for _ in range(self._loop.users):
            self._ask()
        while self._waiting or self._computing or self._running:
            self._admit()
            if self._computing:
                self._compute()
            else:
                self._decode()
            self._finish()
        return self._sums.seen(self._loop.users, self._decoding / self._now)

    def _ask(self) -> None:
        if self._asked < self._simulated * self._loop.users:
            self._waiting.append(Request(self._asked, self._loop, self._now))
            self._asked += 1

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            taken = len(self._running) + len(self._computing)
            needs = request.prompt + self._loop.reserve * request.output
            if taken and (taken >= self._loop.seats or self._held + needs > self._loop.room_tokens):
                return
            self._held += needs
            self._computing.append(self._waiting.popleft())

    def _compute(self) -> None:
        """One iteration with prompts: as many tokens as it may have, oldest first."""
        decodes = 0 if self._loop.apart else len(self._running)
        left, tokens, pairs = max(1.0, self._loop.step_tokens - decodes), 0.0, 0.0
        done: list[Request] = []
        while self._computing and left > 0:
            request = self._computing[0]
            part = min(left, request.prompt - request.computed)
            tokens += part
            pairs += part * (request.computed + part / 2)
            request.computed += part
            left -= part
            if request.computed >= request.prompt:
                done.append(self._computing.popleft())
        context = self._context if decodes else 0.0
        work = Work(prompt_tokens=tokens, prompt_pairs=pairs, decodes=decodes, context_tokens=context)
        self._pass(self._seconds(work), 1 if decodes else 0)
        for request in done:
            request.first = self._now
            self._context += request.prompt
            finish = self._iterations + (request.output - 1) / self._gain
            heapq.heappush(self._running, (finish, request.number, request))

    def _decode(self) -> None:
        """Iterations that only decode, up to the next end of an answer."""
        count, ahead = len(self._running), self._running[0][0] - self._iterations
        middle = self._context + count * ahead * self._gain / 2
        self._pass(ahead * self._seconds(Work(decodes=count, context_tokens=middle)), ahead)

    def _pass(self, seconds: float, iterations: float) -> None:
        self._now += seconds
        self._decoding += len(self._running) * seconds
        self._iterations += iterations
        self._context += len(self._running) * iterations * self._gain

    def _finish(self) -> None:
        while self._running and self._running[0][0] <= self._iterations + 1e-9:
            request = heapq.heappop(self._running)[2]
            self._context -= request.prompt + request.output - 1
            self._held -= request.prompt + self._loop.reserve * request.output
            self._sums.add(request, self._now)
            self._ask()
