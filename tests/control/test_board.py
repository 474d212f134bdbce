"""The kernels of the router's book against plain rules: the same numbers, the same choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.policy.plain import Candidate, answer_s, route, split, tpot_s, ttft_s, waiting_s

from jevons.base.hub import Hub
from jevons.control import board, choice, queues
from jevons.kv import entries, holders
from jevons.perf.measured import Load, Prices
from jevons.policy import disagg
from jevons.policy import route as rules
from jevons.policy.belief import confirm
from jevons.policy.route import prompt_load

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


def workers_of(prices: list[Prices], step_tokens: int = 2_048) -> Any:
    workers = np.zeros(len(prices), board.WORKER)
    for worker, price in zip(workers, prices, strict=True):
        for name in ("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s"):
            worker[name] = getattr(price, name)
    workers["step_tokens"], workers["whole"], workers["up"], workers["takes"] = step_tokens, 1, 1, rules.ALL
    workers["holder"] = np.arange(len(prices))
    return workers


class Book:
    """A book of kernels, and what its index and its queues should hold."""

    def __init__(self, prices: list[Prices], policy: int = rules.KV, kinds: list[int] | None = None) -> None:
        count, kinds = len(prices), kinds or [0] * len(prices)
        index, index_numbers = entries.index_arrays(count, 4_096)
        workers = workers_of(prices)
        workers["kind"] = kinds
        rows = board.kinds_of([(0, kind == 1, SIZE) for kind in range(max(kinds) + 1)])
        arrays, numbers = board.board_arrays(rows, workers, 256)
        self.hub = Hub(index | arrays, index_numbers | numbers)
        self.hub.set("crowd", 300.0)  # arrivals in the last half minute
        self.hub.set("policy", policy)
        board.seat(self.hub)
        self.held: list[set[int]] = [set() for _ in range(count)]
        self.waiting: list[dict[int, tuple[Load, list[int]]]] = [{} for _ in range(count)]
        self.requests = 0

    @property
    def h(self) -> Any:
        return self.hub.record[0]

    def store(self, worker: int, names: list[int]) -> None:
        holders.store(self.h, worker, np.array(names, np.int64))
        self.held[worker].update(names)
        board.rekey(self.h, worker)

    def wait(self, worker: int, names: list[int], prompt_tokens: int, cached_tokens: int = 0) -> int:
        """A request with these full blocks waits on `worker`."""
        request = self.requests
        self.requests += 1
        queues.wait(self.h, request, worker, prompt_tokens, cached_tokens, np.array(names, np.int64))
        queues.attend(self.h, worker, prompt_tokens)
        self.waiting[worker][request] = (prompt_load(prompt_tokens, cached_tokens), names)
        return request

    def unwait(self, worker: int, request: int) -> None:
        _, names = self.waiting[worker].pop(request)
        queues.unwait(self.h, request, worker, np.array(names, np.int64))

    def set(self, worker: int, **fields: int) -> None:
        for name, value in fields.items():
            self.hub["workers"][worker][name] += value
        board.rekey(self.h, worker)

    def candidate(self, worker: int, names: list[int]) -> Candidate:
        """What the plain rules would know of it."""
        w = self.hub["workers"][worker]
        there = self.held[worker].union(*(coming for _, coming in self.waiting[worker].values()))
        depth = next((i for i, name in enumerate(names) if name not in there), len(names))
        return Candidate(
            worker=worker,
            cached_tokens=SIZE * depth,
            queued=Load(tokens=float(w["queued_tokens"]), token_context=float(w["queued_context"])),
            decoding=int(w["decoding"]),
            requests=int(w["requests"]),
            prices=prices_of(w),
            step_tokens=int(w["step_tokens"]),
            held_blocks=len(self.held[worker]),
            arrivals_per_s=self.arrivals_per_s(int(w["kind"])),
            promised=float(w["promised"]),
            busy=min(1.0, float(w["prompts_s"]) / board.ARRIVALS_S),
            tpot_slo_s=float(self.hub.number("tpot_slo_s")),
            output_tokens=float(self.hub.number("answer_tokens") / self.hub.number("answers")),
            token_weight=float(self.hub.number("stream_weight")) * rules.GUESS_OUTPUT_TOKENS,
            reused_share=float(self.hub.number("reused_tokens") / self.hub.number("prompt_tokens")),
            context=float(w["context"]),
            per_context_s=self.context_s(w),
        )

    def context_s(self, w: Any) -> float:
        """For each token attended to: as told, or a stream's share of a step over the tokens of a prompt."""
        usual = float(self.hub.number("prompt_tokens") / self.hub.number("prompts"))
        return float(w["per_context_s"]) or float(w["per_decode_s"]) / usual

    def arrivals_per_s(self, kind: int) -> float:
        """At each worker of a kind that is up; they are all that compute prompts alone, or all others."""
        alike = self.hub["workers"]["kind"] == kind
        each = float(self.hub.number("crowd")) / board.ARRIVALS_S
        return each / max(1, int(self.hub["workers"]["up"][alike].sum()))

    def candidates(self, names: list[int], workers: range | None = None) -> list[Candidate]:
        up = [worker for worker, w in enumerate(self.hub["workers"]) if w["up"]]
        return [self.candidate(worker, names) for worker in up if workers is None or worker in workers]

    def conclude(self, names: list[int], prompt_tokens: int) -> tuple[Any, Any]:
        """The candidates chosen to compute the prompt and to go on; the latter None if it is the same."""
        there, at = choice.place(self.h, np.array(names, np.int64), prompt_tokens, SIZE)
        assert at >= 0
        found, desk = self.hub["candidates"], int(self.hub.number("desk"))
        return (found[at], None) if there < 0 else (found[desk + there], found[at])

    def place(self, names: list[int], prompt_tokens: int) -> tuple[int, float, int]:
        """Whom the kernels choose, the predicted seconds and the cached tokens."""
        chosen, _ = self.conclude(names, prompt_tokens)
        return int(chosen["worker"]), float(chosen["seconds"]), int(chosen["cached"])


def prices_of(w: Any) -> Prices:
    return Prices(*(float(w[name]) for name in ("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s")))


def filled(book: Book, states: Any) -> Book:
    for worker, (held, depth, waiting, decoding, _) in enumerate(states):
        for names in held:
            book.store(worker, names[:depth])
        for i, names in enumerate(waiting):
            book.wait(worker, names, SIZE * len(names) + 5, SIZE * i)
        book.set(worker, decoding=decoding, promised=decoding % 3, requests=decoding)
    if any(up for *_, up in states):
        for worker, (*_, up) in enumerate(states):
            board.set_up(book.hub.record, worker, up)
    return book


@given(
    st.tuples(SECONDS, SECONDS, SECONDS, SECONDS),
    st.integers(1, 16_384),
    st.tuples(st.integers(0, 200_000), st.integers(0, 1 << 40), st.integers(0, 256)),
    st.tuples(st.integers(1, 131_072), st.integers(0, 131_072), st.floats(0, 2)),
    st.tuples(
        *(st.floats(0, 10), st.floats(0, 100), st.floats(1e-4, 1), st.floats(1, 4_096), st.floats(0, 100)),
        st.floats(0, 1),
    ),
    st.tuples(st.floats(0, 300), st.floats(0, 1.5), st.floats(0, 1e7), st.floats(0, 1e-6)),
)
def test_seconds_to_the_first_token_are_those_of_the_plain_rule(
    prices: tuple[float, float, float, float],
    step_tokens: int,
    queue: tuple[int, int, int],
    prompt: tuple[int, int, float],
    weights: rules.Weights,
    streams: tuple[float, float, float, float],
) -> None:
    c = np.zeros(1, rules.CANDIDATE)[0]
    for name, price in zip(("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s"), prices, strict=True):
        c[name] = price
    c["step_tokens"] = step_tokens
    c["queued_tokens"], c["queued_context"], c["decoding"] = queue
    prompt_tokens, c["cached"], c["bring_s"] = prompt
    c["promised"], c["busy"], c["context"], c["per_context_s"] = streams
    c["requests"] = queue[2]
    plain = Candidate(
        worker=0,
        cached_tokens=int(c["cached"]),
        queued=Load(tokens=queue[0], token_context=queue[1]),
        decoding=queue[2],
        requests=queue[2],
        prices=Prices(*prices),
        step_tokens=step_tokens,
        bring_s=float(c["bring_s"]),
        stream_weight=weights[0],
        arrivals_per_s=weights[1],
        promised=streams[0],
        busy=streams[1],
        context=streams[2],
        per_context_s=streams[3],
        tpot_slo_s=weights[2],
        output_tokens=weights[3],
        token_weight=weights[4],
        reused_share=weights[5],
    )

    predicted_s = rules.first_token_s(c, float(prompt_tokens))
    assert predicted_s == pytest.approx(ttft_s(prompt_tokens, plain), rel=1e-12)
    rules.weigh(c, prompt_tokens, weights)
    assert c["seconds"] == predicted_s
    assert c["waiting_s"] == pytest.approx(waiting_s(prompt_tokens, plain), rel=1e-12)
    assert c["tpot_s"] == pytest.approx(tpot_s(plain), rel=1e-12)
    assert c["answer_s"] == pytest.approx(answer_s(prompt_tokens, plain), rel=1e-9)


@given(STATES, st.sampled_from(CHAINS), st.integers(1, 12), st.lists(SECONDS, min_size=8, max_size=8))
def test_kv_places_as_the_plain_rule_does(states: Any, names: list[int], blocks: int, per_token_s: list[float]) -> None:
    prices = [Prices(0.005, per_token_s[i] / 100, 1e-9, 2e-4) for i in range(len(states))]
    book = filled(Book(prices), states)
    prompt_tokens = SIZE * blocks + 1  # all its blocks can be reused
    plain = route("kv", prompt_tokens, book.candidates(names[:blocks]))

    worker, seconds, cached = book.place(names[:blocks], prompt_tokens)

    assert (worker, cached) == (plain.worker, plain.cached_tokens)
    assert seconds == pytest.approx(ttft_s(prompt_tokens, plain), rel=1e-12)


@pytest.mark.parametrize(
    ("policy", "name"),
    [(rules.ROUND_ROBIN, "round_robin"), (rules.RANDOM, "random"), (rules.LEAST_LOADED, "least_loaded")],
)
@given(states=STATES)
def test_the_policies_to_compare_with_place_as_the_plain_ones_do(policy: int, name: str, states: Any) -> None:
    book = filled(Book([PRICES] * len(states), policy), states)

    for turn in range(12):
        plain = route(name, 200, book.candidates(CHAINS[0]), turn)
        assert book.place(CHAINS[0], 200)[0] == plain.worker
        if policy == rules.LEAST_LOADED:
            book.wait(plain.worker, CHAINS[turn % 4], 200)


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
        keys = {w: board.busy_key(book.hub["workers"][w], 0, rules.KV) for w in those}
        count = board.least_busy(book.h, kind)
        found = [int(w) for w in book.hub["least"][:count]]
        assert found == sorted(those, key=lambda w: (keys[w], w))[: board.LOOKED_AT]
    assert np.array_equal(before, book.hub["tree"])


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "wait", "unwait", "computed"]), st.integers(1, 5_000), st.floats(0, 1), st.integers(0)
    ),
    max_size=40,
)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_the_rate_of_arrivals_forgets(gaps_s: list[float]) -> None:
    book, now_s, times = Book([PRICES]), 1_000.0, list[float]()
    book.hub.set("crowd", 0.0)
    for gap_s in gaps_s:
        now_s += gap_s
        times.append(now_s)
        queues.count_arrival(book.h, now_s)

    expected = sum(np.exp((at_s - now_s) / board.ARRIVALS_S) for at_s in times)
    assert book.hub.number("crowd") == pytest.approx(expected)


def test_steady_arrivals_are_counted_at_their_rate() -> None:
    book = Book([PRICES])
    for i in range(5_000):
        queues.count_arrival(book.h, i / 20)

    assert book.hub.number("crowd") / board.ARRIVALS_S == pytest.approx(20, rel=0.01)


@given(OPERATIONS)
def test_what_waits_is_its_sum(operations: list[tuple[str, int, float, int]]) -> None:
    book, waiting = Book([PRICES]), list[int]()
    worker, left = book.hub["workers"][0], dict[int, Load]()
    for what, tokens, share, which in operations:
        if what == "wait":
            request = book.wait(0, CHAINS[tokens % 4], tokens, int(tokens * share))
            waiting.append(request)
            left[request] = prompt_load(tokens, int(tokens * share))
        elif what == "unwait" and waiting:
            request = waiting.pop(which % len(waiting))
            book.unwait(0, request)
            del left[request]
        elif what == "computed":
            queues.computed(book.h, 0, float(tokens))
            take_off(left, float(tokens))
        assert worker["queued_tokens"] == pytest.approx(sum(load.tokens for load in left.values()), abs=1e-6)
        context = sum(load.token_context for load in left.values())
        assert worker["queued_context"] == pytest.approx(context, rel=1e-9, abs=1e-3)
        assert worker["requests"] == len(left)


def take_off(left: dict[int, Load], tokens: float) -> None:
    """That many tokens were computed: off the oldest first, all but the last of each."""
    for request, load in left.items():
        done = max(0.0, min(tokens, load.tokens - 1))
        share = 1 - done / load.tokens
        left[request] = Load(tokens=load.tokens * share, token_context=load.token_context * share)
        tokens -= done


def apart(d: int, p: int, per_token_s: list[float]) -> Book:
    """Decoders first, then prefillers."""
    prices = [Prices(0.005, s, 0.0, s) for s in per_token_s[: d + p]]
    book = Book(prices, kinds=[0] * d + [1] * p)
    for far in ("near", "far"):
        book.hub["workers"][f"{far}_s"], book.hub["workers"][f"{far}_token_s"] = 0.003, 2e-6
    return book


def plain_costs(decoders: list[Candidate], prefillers: list[Candidate], tokens: int) -> dict[tuple[int, int], float]:
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
def test_apart_is_weighed_as_the_plain_rule_does(
    states: Any, decoders: int, names: list[int], blocks: int, per_token_s: list[float]
) -> None:
    states = [(*state[:-1], True) for state in states]
    assume(len(states) > 1)  # with nobody to compute prompts alone, there is nothing to weigh
    d = min(decoders, len(states) - 1)
    book = filled(apart(d, len(states) - d, per_token_s), states)
    tokens = SIZE * blocks + 1
    ones, others = (book.candidates(names[:blocks], r) for r in (range(d), range(d, len(states))))
    costs = plain_costs(ones, others, tokens)

    prompt, rest = book.conclude(names[:blocks], tokens)

    chosen = (int(prompt["worker"]), int((prompt if rest is None else rest)["worker"]))
    assert costs[chosen] == pytest.approx(min(costs.values()), rel=1e-9)
    near = [choice for choice, cost in costs.items() if cost <= min(costs.values()) * (1 + 1e-9)]
    plain = split(tokens, ones, others, handover_s(tokens))
    assert plain is not None
    assert len(near) > 1 or chosen == (plain.prefill.worker, plain.decode.worker)


def test_of_equal_costs_whole_goes_before_apart_whatever_the_order() -> None:
    book = apart(2, 1, [2.0, 1.0, 1.0])  # worker 0 would be handed over to, worker 1 does it whole for as much
    for far in ("near", "far"):
        book.hub["workers"][f"{far}_s"] = book.hub["workers"][f"{far}_token_s"] = 0.0
    ones, others = book.candidates([1], range(2)), book.candidates([1], range(2, 3))
    plain = split(17, ones, others, lambda p, d: 0.0)

    prompt, rest = book.conclude([1], 17)

    assert plain is not None
    assert (plain.prefill.worker, plain.decode.worker) == (1, 1)
    assert (prompt["worker"], rest) == (1, None)


def costs_of(node: int, takes: int) -> tuple[float, float]:
    """Of being given the KV of a prompt of 1,005 tokens by a worker of node 0 and of node 1, with 320 of them there."""
    c = np.zeros(1, rules.CANDIDATE)[0]
    c["near_s"], c["near_token_s"], c["far_s"], c["far_token_s"] = 0.001, 1e-6, 0.01, 1e-5
    c["per_step_s"], c["per_token_s"], c["takes"], c["block_size"], c["cached"] = 0.5, 0.001, takes, SIZE, 320
    near, far = (disagg.handover_s(c, 1_005, other == node) for other in (0, 1))
    return near, far


def test_a_prompt_computed_elsewhere_is_taken_over_as_the_worker_can() -> None:
    assert costs_of(0, rules.ALL) == pytest.approx((0.001 + 685e-6, 0.01 + 685e-5))
    assert costs_of(1, rules.ALL) == pytest.approx((0.01 + 685e-5, 0.001 + 685e-6))
    last_s = 0.5 + 14 * 0.001  # 1,005 = 62 blocks and 13 tokens; the last one of the blocks is computed again
    assert costs_of(0, rules.BLOCKS) == pytest.approx((0.001 + 672e-6 + last_s, 0.01 + 672e-5 + last_s))
    assert costs_of(0, rules.ANEW) == pytest.approx((0.685, 0.685))


def test_nobody_up_is_nobody_chosen() -> None:
    for policy in (rules.KV, rules.ROUND_ROBIN, rules.LEAST_LOADED, rules.RANDOM):
        book = Book([PRICES] * 2, policy)
        for worker in range(2):
            board.set_up(book.hub.record, worker, False)
        assert choice.place(book.h, np.array(CHAINS[0], np.int64), 200, SIZE) == (-1, -1)


def test_in_a_large_fleet_who_holds_the_prompt_is_found_however_busy() -> None:
    book = Book([PRICES] * 100)
    book.store(77, CHAINS[0])
    book.set(77, decoding=3, requests=3)

    worker, _, cached = book.place(CHAINS[0], SIZE * 12 + 1)

    assert (worker, cached) == (77, SIZE * 12)


def test_what_an_index_claims_counts_as_far_as_it_is_believed() -> None:
    book = Book([PRICES])
    book.store(0, CHAINS[0])
    assert book.place(CHAINS[0], 400)[2] == 12 * SIZE

    for _ in range(100):
        confirm(book.hub["workers"][0], 1_000, 250)
    assert book.place(CHAINS[0], 400)[2] == 4 * SIZE  # 0.27 / 0.95 of 12 blocks

    for _ in range(400):
        confirm(book.hub["workers"][0], 1_000, 1_000)
    assert book.place(CHAINS[0], 400)[2] == 12 * SIZE


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.data())
def test_many_are_set_up_or_down_at_once_as_one_by_one(up: list[bool], data: Any) -> None:
    books = [Book([PRICES] * len(up), kinds=sorted(i % 2 for i in range(len(up)))) for _ in range(2)]
    for worker, is_up in enumerate(up):
        for book in books:
            board.set_up(book.hub.record, worker, is_up)
    those, to = data.draw(st.sets(st.integers(0, len(up) - 1))), data.draw(st.booleans())
    for worker in those:
        board.set_up(books[0].hub.record, worker, to)
    board.set_all_up(books[1].hub.record, np.array(sorted(those), np.int64), to)

    ups = int(books[0].hub["kinds"]["up_count"].sum())
    assert np.array_equal(books[0].hub["up"][:ups], books[1].hub["up"][:ups])
    for name in ("tree", "kinds"):
        assert np.array_equal(books[0].hub[name], books[1].hub[name])
    assert np.array_equal(books[0].hub["workers"]["up"], books[1].hub["workers"]["up"])
