"""Several routers over the same workers: what one places counts with all, until it is over or its router is gone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.control.sharing import SharingRouter
from jevons.facts.event import BlocksStored, KvBatch
from jevons.facts.snapshot import WorkerSnapshot
from jevons.facts.worker import WorkerFacts
from jevons.perf.measured import Load

SIZE = 16
A, B = WorkerId("a"), WorkerId("b")


def router(*workers: WorkerId, events: bool = True) -> SharingRouter:
    made = SharingRouter("kv", hang_s=1e9, shadow_ttl_s=120.0, on_news=lambda: None)
    join(made, *workers, events=events)
    return made


def join(made: Router, *workers: WorkerId, events: bool = True) -> None:
    for id in workers:
        made.join(WorkerFacts(id=id, model="m", kind="openai", block_size=SIZE, sends_events=events))
        made.roster.heard(id, 0.0)


def prompt(number: int, blocks: int = 8) -> list[int]:
    return [1_000_000 * number + i for i in range(blocks * SIZE + 1)]


def place(one: SharingRouter, name: str, tokens: list[int]) -> WorkerId:
    return one.place(RequestId(name), tokens, 0.0).worker


def pass_on(one: SharingRouter, other: SharingRouter, number: int = 1) -> None:
    other.hear(number, one.take_news(), 0.0)


def work(one: Router) -> list[tuple[str, int, int, int]]:
    """Of each worker what is ahead there."""

    def of(w: WorkerSnapshot) -> tuple[str, int, int, int]:
        return w.id, w.queued_tokens, w.requests, w.decoding

    return [of(w) for w in one.snapshot().workers]


def test_what_one_places_is_work_ahead_for_the_other() -> None:
    one, other = router(A, B), router(A, B)
    first = place(one, "x", prompt(1))
    pass_on(one, other)

    assert work(other) == work(one)
    assert place(other, "y", prompt(2)) != first


def test_a_prompt_about_to_be_computed_counts_as_held_elsewhere_too() -> None:
    one, other = router(A, B), router(A, B)
    first = place(one, "x", prompt(1))
    pass_on(one, other)

    assert other.rank(prompt(1)) == one.rank(prompt(1))
    assert {p.worker: p.cached_tokens for p in other.rank(prompt(1))}[first] == 8 * SIZE


def test_a_request_runs_and_ends_for_all() -> None:
    one, other = router(A), router(A)
    place(one, "x", prompt(1))
    pass_on(one, other)
    one.on_first(RequestId("x"), 0.1)
    pass_on(one, other)
    assert work(other) == work(one) == [("a", 0, 1, 1)]

    one.done(RequestId("x"))
    pass_on(one, other)
    assert work(other) == work(one) == [("a", 0, 0, 0)]
    assert other.place(RequestId("y"), prompt(1), 0.0).cached_tokens == 0
    assert (other.open_here, other.open_there) == (1, 0)


def test_who_is_to_take_news_is_called_once_until_they_are_taken() -> None:
    called: list[str] = []
    other = SharingRouter("kv", hang_s=1e9, shadow_ttl_s=120.0, on_news=lambda: called.append(""))
    join(other, A)
    place(other, "x", prompt(1))
    other.on_first(RequestId("x"), 0.1)
    other.done(RequestId("x"))
    assert (called, len(other.take_news())) == ([""], 4)  # the last is what its step took

    place(other, "y", prompt(2))
    assert len(called) == 2


def test_a_router_that_is_gone_takes_its_placements_with_it() -> None:
    one, other = router(A), router(A)
    for number in range(5):
        place(one, f"x{number}", prompt(number))
    one.on_first(RequestId("x0"), 0.1)
    pass_on(one, other)
    other.forget(1)

    assert work(other) == [("a", 0, 0, 0)]
    pass_on(one, other)  # what it said about them before it went does no harm
    one.done(RequestId("x0"))
    pass_on(one, other)
    assert work(other) == [("a", 0, 0, 0)]


def test_who_comes_late_is_told_what_is_under_way() -> None:
    one, late = router(A, B), router(A, B)
    for number in range(6):
        place(one, f"x{number}", prompt(number))
    one.on_first(RequestId("x0"), 0.1)
    one.done(RequestId("x1"))
    one.take_news()
    late.hear(1, one.open_news(), 0.0)

    assert work(late) == work(one)


def test_a_worker_that_restarts_forgets_what_others_placed_there() -> None:
    one, other = router(A), router(A)
    place(one, "x", prompt(1))
    pass_on(one, other)
    join(other, A)
    assert work(other) == [("a", 0, 0, 0)]

    one.on_first(RequestId("x"), 0.1)
    one.done(RequestId("x"))
    pass_on(one, other)
    assert work(other) == [("a", 0, 0, 0)]


def test_blocks_placed_elsewhere_on_a_worker_that_is_cleared_still_count_as_coming() -> None:
    one, other = router(A), router(A)
    intake = other.intake(A)
    intake.on_batch(KvBatch(seq=0, events=[BlocksStored(hashes=[1], tokens=list(range(SIZE)), block_size=SIZE)]))
    place(one, "x", prompt(1))
    pass_on(one, other)
    intake.reset()

    assert other.place(RequestId("y"), prompt(1), 0.0).cached_tokens == 8 * SIZE


def test_who_wants_a_prefix_counts_whoever_placed_it() -> None:
    def first_copy(routers: int) -> int:
        """After how many requests for a prefix it is computed once more."""
        made, prefix = [router(A, B, events=False) for _ in range(routers)], list(range(4_000))
        for one in made:
            for id in (A, B):
                for _ in range(8):
                    one._measured(one._workers[id], Load(1, 1_000, 0, 0), 0.1)
                    one._measured(one._workers[id], Load(1, 1, 0, 16), 0.01 + 16 * 0.01)
            one.take_news()
        for number in range(1, 60):
            at, request, now_s = number % routers, RequestId(str(number)), 0.1 * number
            placed = made[at].place(request, [*prefix, number, number], now_s)
            made[at].on_first(request, now_s)
            news = made[at].take_news()
            for other in range(routers):
                if other != at:
                    made[other].hear(at, news, now_s)
            if placed.cached_tokens == 0 and number > 1:
                return number
        raise AssertionError("no copy was made")

    assert first_copy(1) == first_copy(2) == first_copy(4)


def test_a_worker_unknown_here_is_counted_and_does_no_harm() -> None:
    one, other = router(A), router(B)
    place(one, "x", prompt(1))
    one.on_first(RequestId("x"), 0.1)
    one.done(RequestId("x"))
    pass_on(one, other)

    assert other.counts["unknown_worker"] == 1
    assert work(other) == [("b", 0, 0, 0)]


def test_where_a_worker_sends_no_events_what_others_placed_is_held() -> None:
    one, other = router(A, events=False), router(A, events=False)
    place(one, "x", prompt(1))
    one.on_first(RequestId("x"), 0.1)
    one.done(RequestId("x"))
    pass_on(one, other)

    assert other.place(RequestId("y"), prompt(1), 1.0).cached_tokens == 8 * SIZE


def test_who_comes_late_is_told_what_running_requests_left_where_no_events_tell() -> None:
    one, late = router(A, events=False), router(A, events=False)
    place(one, "x", prompt(1))
    one.on_first(RequestId("x"), 0.1)
    late.hear(1, one.open_news(), 0.2)

    assert late.place(RequestId("y"), prompt(1), 1.0).cached_tokens == 8 * SIZE


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from(["place", "first", "done"]))))
def test_all_agree_on_what_is_ahead_whoever_placed_it(story: list[tuple[int, int, str]]) -> None:
    routers = [router(A, B) for _ in range(3)]
    state: dict[tuple[int, int], str] = {}
    for at, number, what in story:
        one, id, now = routers[at], RequestId(f"{at}-{number}"), state.get((at, number))
        if what == "place" and now is None:
            place(one, id, prompt(number))
        elif what == "first" and now == "place":
            one.on_first(id, 0.1)
        elif what == "done" and now is not None:
            one.done(id)
        else:
            continue
        state[at, number] = what
        if what == "done":
            del state[at, number]
        news = one.take_news()
        for other in routers:
            if other is not one:
                other.hear(at, news, 0.0)

    for other in routers[1:]:
        assert [(id, requests, decoding) for id, _, requests, decoding in work(other)] == [
            (id, requests, decoding) for id, _, requests, decoding in work(routers[0])
        ]
        for (_, here, _, _), (_, there, _, _) in zip(work(other), work(routers[0]), strict=True):
            assert abs(here - there) <= 1
