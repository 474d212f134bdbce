"""The kernels of the router's book against the live rules: the same numbers, the same choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.hub import Hub
from jevons.base.ids import BlockHash, RequestId, WorkerId
from jevons.control import board
from jevons.control.ledger import Member
from jevons.facts.worker import WorkerFacts
from jevons.kv import holders
from jevons.kv.index import PrefixIndex
from jevons.perf.measured import Load, Prices
from jevons.policy.disagg import disturbed_s, split
from jevons.policy.route import Candidate, prompt_load, route, ttft_s

SIZE = 16  # tokens of a block
CHAINS = [[*range(head), *range(100 * i + head, 100 * i + 12)] for i, head in enumerate((0, 3, 3, 6), 1)]
PRICES = Prices(per_step_s=0.005, per_token_s=1e-4, per_token_context_s=1e-9, per_decode_s=2e-4)
SECONDS = st.floats(1e-7, 0.1)
STATES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(CHAINS), max_size=3),  # held
        st.integers(0, 12),  # of each so many blocks
        st.lists(st.sampled_from(CHAINS), max_size=4),  # waiting
        st.integers(0, 40),  # decoding
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


def ids(names: Any) -> list[BlockHash]:
    return [BlockHash(int(name).to_bytes(8, "big")) for name in names]


def id_of(worker: int) -> WorkerId:
    return WorkerId(f"w{worker:02}")


def workers_of(prices: list[Prices], step_tokens: int = 2_048) -> Any:
    workers = np.zeros(len(prices), board.WORKER)
    for worker, price in zip(workers, prices, strict=True):
        for name in ("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s"):
            worker[name] = getattr(price, name)
    workers["step_tokens"], workers["block_size"], workers["whole"] = step_tokens, SIZE, 1
    return workers


class Book:
    """A book of kernels, and the index and the members that the live router would keep."""

    def __init__(self, prices: list[Prices], policy: int = board.KV, kinds: list[int] | None = None) -> None:
        count = len(prices)
        index, index_numbers = holders.index_arrays(count, 4_096)
        arrays, numbers = board.board_arrays(kinds or [0] * count, workers_of(prices), 256)
        names = {"names": np.zeros(1 << 12, np.int64)}
        self.hub = Hub(index | arrays | names, index_numbers | numbers)
        self.hub.set("policy", policy)
        for worker in range(count):
            board.start(self.hub.record, worker, True)
        self.index = PrefixIndex()
        facts = [WorkerFacts(id=id_of(worker), model="m", kind="mock", block_size=SIZE) for worker in range(count)]
        self.members = [Member(each, "", self.index, 60.0) for each in facts]
        self.requests = 0

    @property
    def h(self) -> Any:
        return self.hub.record[0]

    def store(self, worker: int, names: list[int]) -> None:
        holders.store(self.h, worker, np.array(names, np.int64))
        self.index.store(id_of(worker), ids(names))
        board.rekey(self.h, worker)

    def wait(self, worker: int, names: list[int], prompt_tokens: int, cached_tokens: int = 0) -> int:
        """A request with these full blocks waits on `worker`."""
        request, first = self.requests, 16 * self.requests
        self.requests += 1
        self.hub["names"][first : first + len(names)] = names
        self.hub["waits"][request]["names"], self.hub["waits"][request]["named"] = first, len(names)
        board.wait(self.h, request, worker, prompt_tokens, cached_tokens)
        holders.promise(self.h, worker, names[0])
        self.members[worker].wait(RequestId(str(request)), prompt_load(prompt_tokens, cached_tokens), ids(names))
        board.rekey(self.h, worker)
        return request

    def set(self, worker: int, **fields: int) -> None:
        for name, value in fields.items():
            self.hub["workers"][worker][name] += value
        board.rekey(self.h, worker)

    def candidate(self, worker: int, names: Any) -> Candidate:
        """What live routing would know of it."""
        w, known = self.hub["workers"][worker], ids(names)
        depth = self.members[worker].will_hold(known, self.index.overlaps(known).get(id_of(worker), 0), self.index)
        return Candidate(
            worker=id_of(worker),
            cached_tokens=SIZE * depth,
            queued=Load(tokens=float(w["queued_tokens"]), token_context=float(w["queued_context"])),
            decoding=int(w["decoding"]),
            requests=int(w["requests"]),
            prices=prices_of(w),
            step_tokens=int(w["step_tokens"]),
            held_blocks=self.index.held(id_of(worker)),
        )

    def candidates(self, names: Any, workers: range | None = None) -> list[Candidate]:
        up = [worker for worker, w in enumerate(self.hub["workers"]) if w["up"]]
        return [self.candidate(worker, names) for worker in up if workers is None or worker in workers]

    def place(self, names: list[int], prompt_tokens: int) -> tuple[WorkerId, float, int]:
        """Whom the kernels choose, the predicted seconds and the cached tokens."""
        at = board.place(self.h, np.array(names, np.int64), prompt_tokens)
        assert at >= 0
        return id_of(self.hub["found"][at]), float(self.hub["seconds"][at]), int(self.hub["cached"][at])


def prices_of(w: Any) -> Prices:
    return Prices(*(float(w[name]) for name in ("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s")))


def filled(book: Book, states: Any) -> Book:
    for worker, (held, depth, waiting, decoding, _) in enumerate(states):
        for names in held:
            book.store(worker, names[:depth])
        for i, names in enumerate(waiting):
            book.wait(worker, names, SIZE * len(names) + 5, SIZE * i)
        book.set(worker, decoding=decoding, requests=decoding)
    if any(up for *_, up in states):
        for worker, (*_, up) in enumerate(states):
            board.set_up(book.hub.record, worker, up)
    return book


@given(
    st.tuples(SECONDS, SECONDS, SECONDS, SECONDS),
    st.integers(1, 16_384),
    st.tuples(st.integers(0, 200_000), st.integers(0, 1 << 40), st.integers(0, 256)),
    st.tuples(st.integers(1, 131_072), st.integers(0, 131_072), st.floats(0, 2)),
)
def test_seconds_to_the_first_token_are_those_of_the_live_rule(
    prices: tuple[float, float, float, float],
    step_tokens: int,
    queue: tuple[int, int, int],
    prompt: tuple[int, int, float],
) -> None:
    (worker,) = workers_of([Prices(*prices)], step_tokens)
    worker["queued_tokens"], worker["queued_context"], worker["decoding"] = queue
    prompt_tokens, cached_tokens, bring_s = prompt
    live = Candidate(
        worker=id_of(0),
        cached_tokens=cached_tokens,
        queued=Load(tokens=queue[0], token_context=queue[1]),
        decoding=queue[2],
        requests=0,
        prices=Prices(*prices),
        step_tokens=step_tokens,
        bring_s=bring_s,
    )

    predicted_s = board.first_token_s(worker, float(prompt_tokens), float(cached_tokens), bring_s)
    assert predicted_s == pytest.approx(ttft_s(prompt_tokens, live), rel=1e-12)
    others_s = board.disturbed_s(worker, float(prompt_tokens), float(cached_tokens))
    assert others_s == pytest.approx(disturbed_s(prompt_tokens, live), rel=1e-12)


@given(STATES, st.sampled_from(CHAINS), st.integers(1, 12), st.lists(SECONDS, min_size=8, max_size=8))
def test_kv_places_as_the_live_rule_does(states: Any, names: list[int], blocks: int, per_token_s: list[float]) -> None:
    prices = [Prices(0.005, per_token_s[i] / 100, 1e-9, 2e-4) for i in range(len(states))]
    book = filled(Book(prices), states)
    prompt_tokens = SIZE * blocks + 1  # all its blocks can be reused
    live = route("kv", prompt_tokens, book.candidates(names[:blocks]))

    worker, seconds, cached = book.place(names[:blocks], prompt_tokens)

    assert (worker, cached) == (live.worker, live.cached_tokens)
    assert seconds == pytest.approx(live.ttft_s, rel=1e-12)


@pytest.mark.parametrize(
    ("policy", "name"),
    [(board.ROUND_ROBIN, "round_robin"), (board.RANDOM, "random"), (board.LEAST_LOADED, "least_loaded")],
)
@given(states=STATES)
def test_the_policies_to_compare_with_place_as_the_live_ones_do(policy: int, name: str, states: Any) -> None:
    book = filled(Book([PRICES] * len(states), policy), states)

    for turn in range(12):
        live = route(name, 200, book.candidates(CHAINS[0]), turn)
        assert book.place(CHAINS[0], 200)[0] == live.worker
        if policy == board.LEAST_LOADED:
            book.wait(int(live.worker[1:]), CHAINS[turn % 4], 200)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20_000), st.booleans()), min_size=1, max_size=40))
def test_the_least_busy_come_in_order_the_first_of_equals_first(work: list[tuple[int, int, bool]]) -> None:
    kinds = [i % 2 for i in range(len(work))]
    kinds.sort()
    book = Book([PRICES] * len(work), kinds=kinds)
    for worker, (requests, tokens, up) in enumerate(work):
        book.set(worker, requests=requests, queued_tokens=tokens)
        board.set_up(book.hub.record, worker, up)
    before = book.hub["tree"].copy()

    for kind in set(kinds):
        those = [w for w in range(len(work)) if kinds[w] == kind and work[w][2]]
        keys = {w: board.busy_key(book.hub["workers"][w], 0, board.KV) for w in those}
        count = board.least_busy(book.h, kind, 3)
        found = [int(w) for w in book.hub["found"][3 : 3 + count]]
        assert found == sorted(those, key=lambda w: (keys[w], w))[: board.LOOKED_AT]
    assert np.array_equal(before, book.hub["tree"])


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "wait", "unwait", "computed"]), st.integers(1, 5_000), st.floats(0, 1), st.integers(0)
    ),
    max_size=40,
)


@given(OPERATIONS)
def test_what_waits_is_what_the_live_ledger_says(operations: list[tuple[str, int, float, int]]) -> None:
    book, waiting = Book([PRICES]), list[int]()
    worker, member = book.hub["workers"][0], book.members[0]
    for what, tokens, share, which in operations:
        if what == "wait":
            waiting.append(book.wait(0, CHAINS[tokens % 4], tokens, int(tokens * share)))
        elif what == "unwait" and waiting:
            request = waiting.pop(which % len(waiting))
            board.unwait(book.h, request, 0)
            member.unwait(RequestId(str(request)))
        elif what == "computed":
            board.computed(book.h, 0, float(tokens))
            member.computed(float(tokens))
        assert worker["queued_tokens"] == pytest.approx(member.queued.tokens, abs=1e-6)
        assert worker["queued_context"] == pytest.approx(member.queued.token_context, rel=1e-9, abs=1e-3)
        assert worker["requests"] == len(member.waiting) == len(waiting)


def apart(d: int, p: int, per_token_s: list[float]) -> Book:
    """Decoders first, then prefillers; advancing one more costs the same as computing one more token."""
    prices = [Prices(0.005, s, 0.0, s) for s in per_token_s[: d + p]]
    book = Book(prices, kinds=[0] * d + [1] * p)
    book.hub["workers"]["per_handover_s"], book.hub["workers"]["per_handed_token_s"] = 0.003, 2e-6
    return book


def live_costs(
    decoders: list[Candidate], prefillers: list[Candidate], tokens: int
) -> dict[tuple[WorkerId, WorkerId], float]:
    """Of each choice the predicted seconds that `split` weighs, asked one by one."""
    found = {}
    for d in decoders:
        whole = split(tokens, [d], [], handover_s(tokens))
        assert whole is not None
        found[d.worker, d.worker] = whole.cost_s
        for p in prefillers:
            slow = Candidate(**{**fields(d), "queued": Load(tokens=1e12)})  # nobody would keep it whole
            both = split(tokens, [slow], [p], handover_s(tokens))
            assert both is not None
            found[p.worker, d.worker] = both.cost_s
    return found


def fields(c: Candidate) -> dict[str, Any]:
    return {name: getattr(c, name) for name in c.__struct_fields__}


def handover_s(tokens: int) -> Any:
    return lambda p, d: 0.003 + max(tokens - d.cached_tokens, 0) * 2e-6


@given(
    STATES,
    st.integers(1, 8),
    st.sampled_from(CHAINS),
    st.integers(1, 12),
    st.lists(st.floats(1e-6, 1e-3), min_size=8, max_size=8),
)
def test_apart_is_weighed_as_the_live_rule_does(
    states: Any, decoders: int, names: list[int], blocks: int, per_token_s: list[float]
) -> None:
    states = [(*state[:-1], True) for state in states]
    d = min(decoders, len(states))
    book = filled(apart(d, len(states) - d, per_token_s), states)
    tokens = SIZE * blocks + 1
    ones, others = (book.candidates(names[:blocks], r) for r in (range(d), range(d, len(states))))
    costs = live_costs(ones, others, tokens)

    there, at = board.place_apart(book.h, np.array(names[:blocks], np.int64), tokens, 1)

    found = book.hub["found"]
    chosen = (id_of(found[at if there < 0 else there]), id_of(found[at]))
    assert costs[chosen] == pytest.approx(min(costs.values()), rel=1e-9)
    near = [choice for choice, cost in costs.items() if cost <= min(costs.values()) * (1 + 1e-9)]
    live = split(tokens, ones, others, handover_s(tokens))
    assert live is not None
    assert len(near) > 1 or chosen == (live.prefill.worker, live.decode.worker)


def test_of_equal_costs_whole_goes_before_apart_whatever_the_order() -> None:
    book = apart(2, 1, [2.0, 1.0, 1.0])  # worker 0 would be handed over to, worker 1 does it whole for as much
    book.hub["workers"]["per_handover_s"] = book.hub["workers"]["per_handed_token_s"] = 0.0
    ones, others = book.candidates([1], range(2)), book.candidates([1], range(2, 3))
    live = split(17, ones, others, lambda p, d: 0.0)

    there, at = board.place_apart(book.h, np.array([1], np.int64), 17, 1)

    assert live is not None
    assert (live.prefill.worker, live.decode.worker) == (id_of(1), id_of(1))
    assert (there, book.hub["found"][at]) == (-1, 1)


def test_nobody_up_is_nobody_chosen() -> None:
    for policy in (board.KV, board.ROUND_ROBIN, board.LEAST_LOADED, board.RANDOM):
        book = Book([PRICES] * 2, policy)
        for worker in range(2):
            board.set_up(book.hub.record, worker, False)
        assert board.place(book.h, np.array(CHAINS[0], np.int64), 200) == -1


def test_in_a_large_fleet_who_holds_the_prompt_is_found_however_busy() -> None:
    book = Book([PRICES] * 100)
    book.store(77, CHAINS[0])
    book.set(77, decoding=3, requests=3)

    worker, _, cached = book.place(CHAINS[0], SIZE * 12 + 1)

    assert (worker, cached) == (id_of(77), SIZE * 12)
