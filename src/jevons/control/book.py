"""The router's book as the live router keeps it: workers by number, over the kernels of `control.board`.

The twin fills the same arrays and calls the same kernels, only from its own loop.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from math import exp, inf
from typing import Any, NamedTuple, cast

import numpy as np

from jevons.base.compiled import Ints, Records, alike, compiled
from jevons.base.hub import Hub, view
from jevons.control import board, choice, queues
from jevons.control.orphans import Prompts
from jevons.control.reading import Scratch
from jevons.kv.entries import index_arrays, room
from jevons.kv.index import Holding, PrefixIndex
from jevons.perf.measured import Prices
from jevons.policy.admit import Miss, Promise
from jevons.policy.belief import confirm
from jevons.policy.route import CANDIDATE, prompt_load, stream_weight

_WORKERS, _WAITS, _PAIRS = 16, 256, 1 << 14  # room to begin with
USUAL_WEIGHT = stream_weight()
# A candidate's fields, all read at once: each costs as much when it is read from the array.
ROW = cast(Any, namedtuple("ROW", tuple(CANDIDATE.names or ())))


@alike
@compiled
def _gather(hubs: Records, desk: int, count: int, names: Ints, model: int, block_size: int) -> int:
    return choice.gather(hubs[0], desk, count, names, model, block_size)


@alike
@compiled
def _pick(hubs: Records, desk: int, model: int) -> int:
    return choice.pick(hubs[0], desk, model)


@alike
@compiled
def _put_alone(hubs: Records, desk: int, worker: int, names: Ints) -> None:
    choice.put_alone(hubs[0], desk, worker, names)


@alike
@compiled
def _put_also(hubs: Records, desk: int, count: int, worker: int) -> None:
    choice.put_also(hubs[0], desk, count, worker)


@alike
@compiled
def _count_arrival(hubs: Records, now_s: float) -> None:
    queues.count_arrival(hubs[0], now_s)


@alike
@compiled
def _arrive(hubs: Records, now_s: float, promised: tuple[float, float, float, float, int]) -> None:
    h = hubs[0]
    queues.count_arrival(h, now_s)
    h.stream_weight, h.ttft_slo_s, h.tpot_slo_s, h.output_tokens, h.is_strict = promised


@alike
@compiled
def _want(hubs: Records, block: int) -> None:
    h = hubs[0]
    h.ends, h.ends_depth = block, 1
    choice.want(h)
    h.ends_depth = 0


class Pick(NamedTuple):
    """Who computes a prompt, and what was known of that worker then; see CANDIDATE."""

    worker: int  # -1: there is nobody
    after: int  # who goes on; -1: the same
    tpot_s: float  # of who goes on
    seconds: float
    queued_tokens: float
    queued_context: float
    cached: int
    depth: int
    block_size: int
    decoding: int
    requests: int
    is_copy: int  # 1: computed once more on purpose
    usual_tokens: float  # of an answer, by the mean


@alike
@compiled
def _conclude(hubs: Records, prompt_tokens: int, whole: int, apart: int, counts: bool) -> tuple[Any, ...]:
    h = hubs[0]
    there, chosen = choice.conclude(h, prompt_tokens, whole, apart)
    is_there = there >= 0 or chosen >= 0
    if counts and is_there:
        choice.want(h)
    if not is_there:
        h.turn -= 1  # nothing is placed
    candidates = view(h.candidates, h.candidates_n, CANDIDATE)
    c = candidates[h.desk * board.APART + there] if there >= 0 else candidates[max(chosen, 0)]
    after = candidates[chosen] if chosen >= 0 else c
    return (
        c.worker if is_there else -1,
        after.worker if there >= 0 and chosen >= 0 else -1,
        after.tpot_s,
        c.seconds,
        c.queued_tokens,
        c.queued_context,
        c.cached,
        c.depth,
        c.block_size,
        c.decoding,
        c.requests,
        h.is_copy,
        h.answer_tokens / h.answers,
    )


@alike
@compiled
def _wait(  # noqa: PLR0913 — of one request, in one call
    hubs: Records, slot: int, worker: int, goes_on: int, prompt_tokens: int, cached_tokens: int, names: Ints
) -> bool:
    h = hubs[0]
    if room(h) < len(names):
        return False
    queues.wait(h, slot, worker, prompt_tokens, cached_tokens, names)
    queues.attend(h, goes_on, float(prompt_tokens))
    return True


@alike
@compiled
def _unwait(hubs: Records, slot: int, worker: int, names: Ints) -> None:
    queues.unwait(hubs[0], slot, worker, names)


@alike
@compiled
def _begin(hubs: Records, slot: int, worker: int, names: Ints, promised: float) -> None:
    queues.unwait(hubs[0], slot, worker, names)
    queues.count_decode(hubs[0], worker, 1, promised)


@alike
@compiled
def _finish(hubs: Records, worker: int, tokens: int, promised: float) -> None:
    queues.count_decode(hubs[0], worker, -1, promised)
    queues.attend(hubs[0], worker, -float(tokens))


@alike
@compiled
def _count_decode(hubs: Records, worker: int, change: int, promised: float) -> None:
    queues.count_decode(hubs[0], worker, change, promised)


@alike
@compiled
def _confirm(hubs: Records, worker: int, claimed: int, cached: int) -> None:
    h = hubs[0]
    confirm(view(h.workers, h.workers_n, board.WORKER)[worker], claimed, cached)


@alike
@compiled
def _attend(hubs: Records, worker: int, tokens: float) -> None:
    queues.attend(hubs[0], worker, tokens)


@alike
@compiled
def _count_answer(hubs: Records, tokens: int) -> None:
    queues.count_answer(hubs[0], tokens)


@alike
@compiled
def _computed(hubs: Records, worker: int, tokens: float) -> None:
    queues.computed(hubs[0], worker, tokens)


@compiled
def _rekey(hubs: Records, worker: int) -> None:
    board.rekey(hubs[0], worker)


@compiled
def _promise(hubs: Records, worker: int, names: Ints) -> bool:
    h = hubs[0]
    if room(h) < len(names):
        return False
    queues.promise_again(h, worker, names)
    return True


class Book:
    """Numbers for workers and for requests, and room for them.

    Args:
        policy: see `policy.route`.
    """

    def __init__(self, policy: int) -> None:
        index, index_numbers = index_arrays(0, _PAIRS)
        workers = np.zeros(_WORKERS, board.WORKER)
        workers["kind"] = -1
        arrays, numbers = board.board_arrays(board.kinds_of([]), workers, _WAITS)
        self.hub = Hub(index | arrays, index_numbers | numbers)
        self.hub.set("policy", policy)
        self.index = PrefixIndex(self.hub)
        self.scratch = Scratch()  # what events are read into
        self.prompts = Prompts()
        self.beside: set[int] = set()  # workers that hold blocks in other tiers or groups of layers too
        self._kinds: dict[tuple[int, bool, int], int] = {}
        self._sizes: dict[tuple[str | None, int], list[int]] = {}  # block sizes by model and desk, while kinds stay
        self._models: dict[str, int] = {}
        self._nodes: dict[str, int] = {}
        self._workers = list(range(_WORKERS - 1, -1, -1))  # numbers nobody has
        self._slots = list(range(_WAITS - 1, -1, -1))

    # Workers

    def add_worker(self, on_renumbered: Callable[[], None]) -> tuple[int, Holding]:
        """A number for a worker, and what it holds: nothing. It is of no kind yet, so it gets no work."""
        if not self._workers:
            had = len(self.hub["workers"])
            for name in ("workers", "up", "mark"):
                self.hub.grow(name, 2 * had)
            self.hub["workers"]["kind"][had:] = -1
            self._workers = list(range(2 * had - 1, had - 1, -1))
        number = self._workers.pop()
        self.hub["workers"][number] = np.zeros((), board.WORKER)
        w = self.hub["workers"][number]
        w["oldest"] = w["newest"] = w["kind"] = -1
        self.hub["mark"][number] = -1
        holding = self.index.holding(number, on_renumbered)
        w["holder"] = holding.holder
        return number, holding

    def drop_worker(self, number: int, holding: Holding) -> None:
        """A worker is gone for good; what waited on it is forgotten."""
        holding.end()
        self.beside.discard(number)
        self.hub["workers"][number]["kind"] = -1
        self._workers.append(number)
        board.seat(self.hub)

    def set_worker(self, number: int, values: Mapping[str, float | int]) -> None:
        """Fields of WORKER that do not change its kind."""
        w = self.hub["workers"][number]
        for name, value in values.items():
            w[name] = value
        if w["kind"] >= 0:
            _rekey(self.hub.record, number)

    def set_prices(self, number: int, prices: Prices) -> None:
        w = self.hub["workers"][number]
        w["per_step_s"], w["per_token_s"] = prices.per_step_s, prices.per_token_s
        w["per_token_context_s"], w["per_decode_s"] = prices.per_token_context_s, prices.per_decode_s
        _rekey(self.hub.record, number)

    def set_kind(self, number: int, model: str, apart: bool, block_size: int) -> None:
        """What a worker serves, whether it computes prompts alone, how long its blocks are (0: unknown)."""
        kind = self._kinds.setdefault((self._model(model), apart, block_size), len(self._kinds))
        if len(self._kinds) > len(self.hub["kinds"]):
            self._sizes.clear()
            self.hub.put("kinds", board.kinds_of(list(self._kinds)))
        self.hub["workers"][number]["kind"] = kind
        board.seat(self.hub)

    def set_up(self, number: int, up: bool) -> None:
        board.set_up(self.hub.record, number, up)

    def set_all_up(self, numbers: Sequence[int], up: bool) -> None:
        """As `set_up` for many."""
        if numbers:
            board.set_all_up(self.hub.record, np.array(numbers, np.int64), up)

    def node(self, name: str) -> int:
        return self._nodes.setdefault(name, len(self._nodes))

    def block_sizes(self, model: str | None, desk: int) -> list[int]:
        """Of the workers that a request for `model` may find at a desk."""
        sizes = self._sizes.get((model, desk))
        if sizes is None:
            number = board.ANY if model is None else self._models.get(model, -2)
            found = {size for m, apart, size in self._kinds if apart == bool(desk) and number in (board.ANY, m)}
            sizes = sorted(found)
            if number != -2:
                self._sizes[model, desk] = sizes
        return sizes

    def _model(self, name: str) -> int:
        return self._models.setdefault(name, len(self._models))

    # Requests

    def count_arrival(self, now_s: float) -> None:
        """See `queues.count_arrival`."""
        _count_arrival(self.hub.record, float(now_s))

    def want(self, block: int) -> None:
        """A request that was placed elsewhere counts, see `choice.want`."""
        _want(self.hub.record, block)

    @property
    def wants(self) -> int:
        """What the request that was placed last counted for; 0: for nothing."""
        return int(self.hub.number("ends")) if self.hub.number("ends_depth") else 0

    def pass_time(self, now_s: float) -> None:
        """It is so late, and nobody arrives: what arrived before counts for as much less."""
        before_s = float(self.hub.number("arrived_s"))
        if now_s > before_s:
            left = exp((before_s - now_s) / board.ARRIVALS_S)
            self.hub.set("crowd", float(self.hub.number("crowd")) * left)
            self.hub.set("arrived_s", float(now_s))

    def arrive(self, now_s: float, promise: Promise, output_tokens: int | None) -> None:
        """`count_arrival` and `promise`, as one."""
        _arrive(self.hub.record, float(now_s), _promised(promise, output_tokens))

    def promise(self, promise: Promise, output_tokens: int | None) -> None:
        """What the request to be placed next is promised, and how many tokens it may have."""
        names = ("stream_weight", "ttft_slo_s", "tpot_slo_s", "output_tokens", "is_strict")
        for name, value in zip(names, _promised(promise, output_tokens), strict=True):
            self.hub.set(name, value)

    def answer_tokens(self, limit: int | None) -> float:
        """How long an answer is expected to be that may have so many tokens: as they are by the mean, at most that."""
        usual = float(self.hub.number("answer_tokens") / self.hub.number("answers"))
        return usual if limit is None else min(usual, limit)

    def soonest(self, model: str | None, prompt_tokens: int, cached_tokens: int) -> tuple[float, float]:
        """The least seconds of any worker that is up to a prompt's first token and for each after it, had it nothing
        else to do; 0 where none is. Costs O(workers)."""
        w, models = self.hub["workers"], self.hub["kinds"]["model"]
        is_there = (w["kind"] >= 0) & (w["up"] > 0)
        w = w[is_there if model is None else is_there & (models[w["kind"]] == self._number_of(model))]
        if not len(w):
            return 0.0, 0.0
        own = prompt_load(prompt_tokens, cached_tokens)
        first_s = np.ceil(own.tokens / w["step_tokens"]) * w["per_step_s"]
        first_s += own.tokens * w["per_token_s"] + own.token_context * w["per_token_context_s"]
        return float(first_s.min()), float((w["per_step_s"] + w["per_decode_s"]).min())

    def gather(self, desk: int, count: int, names: Ints, model: str | None, block_size: int) -> int:
        """See `choice.gather`."""
        return _gather(self.hub.record, desk, count, names, self._number_of(model), block_size)

    def pick(self, desk: int, model: str | None) -> int:
        """See `choice.pick`."""
        return _pick(self.hub.record, desk, self._number_of(model))

    def put_alone(self, desk: int, worker: int, names: Ints) -> None:
        """See `choice.put_alone`."""
        _put_alone(self.hub.record, desk, worker, names)

    def has_room(self, desk: int, count: int) -> bool:
        """Whether one more can be put on a desk that has so many, and another one by `candidate_of` after it."""
        return count + 1 < int(self.hub.number("desk"))

    def candidate_of(self, desk: int, count: int, worker: int) -> tuple[int, int]:
        """Where `worker` is among the so many candidates of a desk, and how many there are then: it is put there."""
        those = np.flatnonzero(self.candidates(desk, count)["worker"] == worker)
        if len(those):
            return int(those[0]), count
        _put_also(self.hub.record, desk, count, worker)
        return count, count + 1

    def conclude(self, prompt_tokens: int, whole: int, apart: int, *, counts: bool) -> Pick:
        """See `choice.conclude`. `counts`: it will be placed so, see `choice.want`."""
        return Pick._make(_conclude(self.hub.record, prompt_tokens, whole, apart, counts))

    def candidates(self, desk: int, count: int) -> Records:
        """The first so many of a desk."""
        first = desk * int(self.hub.number("desk"))
        return self.hub["candidates"][first : first + count]

    def wait(self, worker: int, goes_on: int, prompt_tokens: int, cached_tokens: int, names: Ints) -> int:
        """A request waits. Returns its number, to be given back by `free`.

        Args:
            goes_on: where it will be after its first token, see `queues.attend`.
        """
        if not self._slots:
            had = len(self.hub["waits"])
            self.hub.grow("waits", 2 * had)
            self._slots = list(range(2 * had - 1, had - 1, -1))
        slot = self._slots.pop()
        while not _wait(self.hub.record, slot, worker, goes_on, prompt_tokens, cached_tokens, names):
            self.index.make_room(len(names))
        return slot

    def unwait(self, slot: int, worker: int, names: Ints) -> None:
        _unwait(self.hub.record, slot, worker, names)

    def begin(self, slot: int, worker: int, names: Ints, promised: float) -> None:
        """`unwait`, and it runs there from now on."""
        _begin(self.hub.record, slot, worker, names, float(promised))

    def finish(self, worker: int, tokens: int, promised: float) -> None:
        """What ran there, and attended to so many tokens, does no more."""
        _finish(self.hub.record, worker, tokens, float(promised))

    def free(self, slot: int) -> None:
        self._slots.append(slot)

    def count_decode(self, worker: int, change: int, promised: float) -> None:
        """See `queues.count_decode`."""
        _count_decode(self.hub.record, worker, change, float(promised))

    def confirm(self, worker: int, claimed: int, cached: int) -> None:
        """See `policy.belief.confirm`."""
        _confirm(self.hub.record, worker, claimed, cached)

    def attend(self, worker: int, tokens: float) -> None:
        """See `queues.attend`."""
        _attend(self.hub.record, worker, float(tokens))

    def count_answer(self, tokens: int) -> None:
        """See `queues.count_answer`."""
        _count_answer(self.hub.record, tokens)

    def computed(self, worker: int, tokens: float) -> None:
        _computed(self.hub.record, worker, float(tokens))

    def promise_again(self, worker: int, names: Ints) -> None:
        """A worker's holder is another one; what waits there will still be computed."""
        while not _promise(self.hub.record, worker, names):
            self.index.make_room(len(names))

    def _number_of(self, model: str | None) -> int:
        return board.ANY if model is None else self._models.get(model, -2)


def _promised(promise: Promise, output_tokens: int | None) -> tuple[float, float, float, float, int]:
    """Fields of the hub: stream_weight, ttft_slo_s, tpot_slo_s, output_tokens, is_strict."""
    return (
        USUAL_WEIGHT if promise.ttft_s is None else stream_weight(promise.ttft_s),
        inf if promise.ttft_s is None else promise.ttft_s,
        inf if promise.tpot_s is None else promise.tpot_s,
        inf if output_tokens is None else float(output_tokens),
        int(promise.miss is not Miss.SERVE),
    )
