"""Advice is what would be done, and a promise is kept where it can be."""

from random import Random

import pytest
from tests.control.test_router import PROMPT, A, B, hot, place, router, tell

from jevons.base.ids import RequestId, WorkerId
from jevons.facts.worker import StepReport
from jevons.policy.admit import Miss, Promise


def test_a_ranking_is_by_what_is_still_believed_to_be_held() -> None:
    r = router(events=False)  # what was placed is believed to be held for 60 s
    place(r, "1")
    r.on_first(RequestId("1"), 0.1)
    r.done(RequestId("1"))
    assert r.rank(PROMPT, now_s=59.0)[0].cached_tokens > 0

    assert [p.cached_tokens for p in r.rank(PROMPT, now_s=70.0)] == [0, 0]


@pytest.mark.parametrize("seed", [7, 9, 12, 14, 15, 23])
def test_a_ranking_begins_with_what_place_chooses_whatever_happened_before(seed: int) -> None:
    draw, r = Random(seed), router(A, B, WorkerId("c"), WorkerId("d"))
    for worker in r.workers():
        rate = draw.choice([2e-3, 4e-3, 8e-3])
        for _ in range(8):
            r.on_step(worker, StepReport(0.005 + 512 * rate, 512, 512 * 256, 4))
    texts = [[draw.randrange(9_999) for _ in range(draw.choice([64, 800]))] for _ in range(4)]
    now_s, places = 0.0, 0
    for number in range(300):
        now_s += draw.choice([0.0, 0.2, 8.0])
        tokens, id = [*draw.choice(texts)[: draw.randrange(16, 801)], number], RequestId(str(number))
        promise = Promise(draw.choice([None, 0.5, 5.0]), draw.choice([None, 0.01]), draw.choice(list(Miss)))
        if draw.random() < 0.3:
            tell(r, draw.choice(r.workers()), draw.choice(texts), number)
        ranked = r.rank(tokens, promise=promise, output_tokens=50, now_s=now_s)[0]
        placed = r.place(id, tokens, now_s, promise=promise, output_tokens=50)
        assert placed == ranked
        places += placed.cached_tokens > 0
        for done in draw.sample(list(r._placed), min(2, len(r._placed))):
            r.on_first(done, now_s)
            if draw.random() < 0.5:
                r.done(done, draw.choice([0, 5, 300]))
    assert places > 5


@pytest.mark.parametrize("miss", [Miss.SERVE, Miss.REFUSE])
def test_who_is_promised_a_first_token_in_time_makes_no_copy_for_others_that_would_be_late(miss: Miss) -> None:
    router, prefix = hot(A, B)
    promise = Promise(0.5, miss=miss)
    for number in range(20):
        now_s, request = 0.1 * number, RequestId(str(number))
        if number:
            ranked = router.rank([*prefix, number], promise=promise, now_s=now_s)
            assert ranked[0].worker == A
            assert ranked[0].ttft_s < 0.5 < ranked[1].ttft_s
        router.place(request, [*prefix, number], now_s, promise=promise)
        router.on_first(request, now_s)
    assert router.snapshot().copies == 0
    assert router.rank([*prefix, 99], now_s=2.0)[0].worker == B  # who is promised nothing makes it


def test_who_would_rather_be_refused_than_late_goes_wherever_the_promise_is_kept() -> None:
    router, prefix = hot(A, B)
    for number in range(40):
        now_s, request = 0.1 * number, RequestId(str(number))
        router.place(request, [*prefix, number], now_s, avoid=[B])
        router.on_first(request, now_s)

    def first(miss: Miss, ttft_s: float = 0.8) -> tuple[WorkerId, bool]:
        best = router.rank([*prefix, 99], promise=Promise(ttft_s, miss=miss), now_s=4.0)[0]
        return best.worker, best.ttft_s <= ttft_s

    assert first(Miss.SERVE) == (B, False)  # forty streams of A are left alone
    assert {first(miss) for miss in (Miss.REFUSE, Miss.QUEUE, Miss.DOWNGRADE)} == {(A, True)}
    assert first(Miss.REFUSE, 0.01) == first(Miss.SERVE, 0.01)  # nobody keeps it
