"""The router remembers what it was told and what it promised."""

import pytest

from jevons.base.errors import ConfigError, NoWorker
from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.control.watch import Watch
from jevons.facts.block import Tier
from jevons.facts.event import BlocksStored, KvBatch
from jevons.facts.move import MoveReport
from jevons.facts.view import Reuse
from jevons.facts.worker import Health, IndexMode, PageFacts, Role, StepReport, WorkerFacts
from jevons.kv.hashing import block_hashes
from jevons.perf.measured import Load
from jevons.policy.admit import USUAL, Promise

A, B = WorkerId("a"), WorkerId("b")
PROMPT = list(range(100, 164))
SIZE = 16


def router(*workers: WorkerId, policy: str = "kv", events: bool = True) -> Router:
    made = Router(policy, hang_s=1.0, shadow_ttl_s=60.0)
    for worker in workers or (A, B):
        made.join(
            WorkerFacts(
                id=worker, model="m", kind="reference", block_size=SIZE if events else None, sends_events=events
            )
        )
        made.roster.heard(worker, 0.0)
    return made


def tell(r: Router, worker: WorkerId, tokens: list[int], seq: int = 0) -> None:
    blocks = len(tokens) // SIZE
    event = BlocksStored(hashes=list(range(blocks)), tokens=tokens[: blocks * SIZE], block_size=SIZE)
    r.intake(worker).on_batch(KvBatch(seq=seq, events=[event]))


def hot(*workers: WorkerId) -> tuple[Router, list[int]]:
    """A prefix, and who prefers one holder of it to be busy rather than compute it once more; nobody has it yet."""
    router, prefix = Router(), list(range(4_000))
    for id in workers:
        router.join(WorkerFacts(id=id, model="m", kind="openai", sends_events=False))
        router.roster.heard(id, 0.0)
        for _ in range(8):
            router._measured(router._workers[id], Load(1, 1_000, 0, 0), 0.1)
            router._measured(router._workers[id], Load(1, 1, 0, 16), 0.01 + 16 * 0.01)
    return router, prefix


def place(r: Router, name: str, tokens: list[int] = PROMPT, now_s: float = 0.0, **more: object) -> WorkerId:
    return r.place(RequestId(name), tokens, now_s, **more).worker  # type: ignore[arg-type]


def test_a_stored_prefix_attracts_the_next_prompt_that_shares_it() -> None:
    r = router()
    tell(r, B, PROMPT[:48])
    placement = r.place(RequestId("1"), PROMPT, 0.0)

    assert (placement.worker, placement.cached_tokens) == (B, 48)


def test_the_last_token_is_never_counted_as_cached() -> None:
    r = router()
    tell(r, B, PROMPT)

    assert r.place(RequestId("1"), PROMPT, 0.0).cached_tokens == 48


def test_a_ranking_begins_with_what_place_would_choose_and_changes_nothing() -> None:
    r = router()
    tell(r, B, PROMPT[:48])
    before = r.snapshot()

    ranked = r.rank(PROMPT)

    assert r.snapshot() == before
    assert [(p.worker, p.cached_tokens) for p in ranked] == [(B, 48), (A, 0)]
    assert ranked[0].ttft_s < ranked[1].ttft_s
    assert all(p.tpot_s > 0 for p in ranked)
    assert r.place(RequestId("1"), PROMPT, 0.0) == ranked[0]


def test_who_is_in_a_hurry_waits_for_no_streams_and_who_is_not_lets_them_be() -> None:
    def placed(ttft_slo_s: float) -> WorkerId:
        r = router()
        for step in range(20):
            for worker in (A, B):  # 1 ms a token
                r.on_step(
                    worker, StepReport(seconds=0.064 + step % 2 * 1e-4, tokens=64, token_context=2_000, decodes=0)
                )
        tell(r, B, PROMPT[:32])
        for i in range(4):  # streams of B
            r.place(RequestId(f"b{i}"), list(range(40)), 0.0, avoid={A})
            r.on_first(RequestId(f"b{i}"), 0.1)
        return r.place(RequestId("x"), PROMPT, 60.0, promise=Promise(ttft_slo_s)).worker

    assert (placed(0.5), placed(100.0)) == (B, A)


def measured(r: Router, worker: WorkerId, decodes_s: float = 0.002) -> None:
    """Its steps take 10 ms, 1 ms a prompt token, and this for each stream."""
    for step in range(40):
        decodes, tokens = step % 8, 64 * (step % 2)
        seconds = 0.01 + decodes * decodes_s + tokens * 0.001
        r.on_step(worker, StepReport(seconds=seconds, tokens=tokens, token_context=tokens * 20, decodes=decodes))


def stream(r: Router, name: str, worker: WorkerId, promise: Promise = USUAL) -> None:
    """It runs on `worker`, past its first token."""
    avoid = {A, B} - {worker}
    r.place(RequestId(name), [int(name) * 1_000 + i for i in range(24)], 0.0, avoid=avoid, promise=promise)
    r.on_first(RequestId(name), 0.1)


def busy_and_idle() -> Router:
    """A holds most of the prompt, and 3 streams."""
    r = router()
    for worker in (A, B):
        measured(r, worker)
    tell(r, A, PROMPT[:48])
    for i in range(3):
        stream(r, str(i), A)
    return r


def test_a_promise_for_each_token_keeps_a_prompt_from_where_tokens_come_too_slowly() -> None:
    usual, promised = busy_and_idle().rank(PROMPT), busy_and_idle().rank(PROMPT, promise=Promise(tpot_s=0.014))

    assert (usual[0].worker, promised[0].worker) == (A, B)
    assert usual[0].tpot_s == pytest.approx(0.01 + 4 * 0.002, rel=0.1)
    assert promised[0].tpot_s == pytest.approx(0.012, rel=0.1)


def test_tokens_are_not_forecast_to_be_slow_for_ever_after_many_prompts_came() -> None:
    r = router()
    for worker in (A, B):
        measured(r, worker)
    idle_s = r.rank(PROMPT, now_s=100.0)[0].tpot_s
    for i in range(40):
        r.place(RequestId(str(i)), [i] * 2_000, 100.0)
    for i in range(40):
        r.on_first(RequestId(str(i)), 110.0)
        r.done(RequestId(str(i)))

    after = [r.rank(PROMPT, now_s=110.0 + later_s)[0].tpot_s for later_s in (0.0, 30.0, 300.0)]

    assert after[0] > 1.5 * idle_s
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(idle_s, rel=0.01)


def test_the_soonest_is_what_an_idle_fleet_is_predicted_to_take_however_busy_it_is() -> None:
    r = router()
    for worker in (A, B):
        measured(r, worker)
    tell(r, A, PROMPT[:48])
    idle = r.rank(PROMPT)[0]
    for i in range(9):
        stream(r, str(i), B if i % 3 else A)
        place(r, f"waits {i}", [i] * 5_000)

    assert r.rank(PROMPT)[0].ttft_s > 2 * idle.ttft_s
    assert r.soonest(PROMPT, model="m") == pytest.approx((idle.ttft_s, idle.tpot_s), rel=1e-9)
    cold_s = r.soonest(PROMPT, avoid={A})[0]
    assert cold_s > 2 * idle.ttft_s
    assert r.soonest(PROMPT, model="other") == (0.0, 0.0)


def test_a_stream_that_is_promised_quick_tokens_is_left_alone() -> None:
    def placed(promise: Promise) -> WorkerId:
        r = router()
        for worker in (A, B):
            measured(r, worker)
        tell(r, A, PROMPT[:32])
        stream(r, "1", A, promise)
        return place(r, "x", now_s=1.0)

    assert (placed(USUAL), placed(Promise(tpot_s=0.001))) == (A, B)


def test_answers_are_expected_to_be_as_long_as_the_last_ones_and_no_longer_than_they_may_be() -> None:
    r = router()
    assert r.answer_tokens(None) == 256
    for i in range(200):
        place(r, str(i))
        r.done(RequestId(str(i)), 20)

    assert r.answer_tokens(None) == pytest.approx(20, rel=0.2)
    assert r.answer_tokens(8) == 8
    before = r.answer_tokens(None)
    place(r, "left")
    assert r.done(RequestId("left"), 1, is_answered=False) is not None
    assert r.answer_tokens(None) == before


def attached(*workers: WorkerId) -> Router:
    """Of attached engines, which have been measured."""
    r = router(*workers, events=False)
    for worker in workers:
        for i in range(3):
            r.place(RequestId(f"{worker}{i}"), PROMPT, 0.0, avoid={A, B} - {worker})
            r.on_first(RequestId(f"{worker}{i}"), 0.1)
            r.done(RequestId(f"{worker}{i}"))
    r.stalled(0.2)
    return r


def test_who_answers_probes_and_nothing_else_gets_no_new_work_until_it_does() -> None:
    r = attached(A, B)
    assert place(r, "1", now_s=1.0, avoid={B}) == A
    for tick in range(20):
        r.roster.heard(A, 1.0 + tick / 10)  # its probe
        assert r.stalled(1.0 + tick / 10) == ([A] if tick == 11 else [])  # after a second, as `hang_s`
    assert [w.is_stalled for w in r.snapshot().workers] == [True, False]
    assert r.is_saturated(A)
    assert {place(r, f"x{i}", now_s=3.0) for i in range(8)} == {B}

    r.on_first(RequestId("1"), 3.5)
    assert r.stalled(3.5) == []
    assert not r.is_saturated(A)
    assert place(r, "y", now_s=3.6) == A


def test_who_works_on_a_long_queue_has_not_stalled() -> None:
    r = attached(A)
    for i in range(8):
        place(r, str(i), now_s=1.0)
    for i in range(8):
        assert r.stalled(1.0 + 0.9 * i) == []
        r.on_first(RequestId(str(i)), 1.0 + 0.9 * i)


def test_last_resorts_are_those_that_are_late_now_and_no_others() -> None:
    r = attached(A, B)
    r.roster.heard(A, 1.0, silent_s=5.0)
    place(r, "1", now_s=1.0)
    assert r.stalled(30.0) == [B]
    assert place(r, "2", now_s=30.0, avoid={B}) == A  # suspect, but there
    r.gone(A)
    assert place(r, "3", now_s=30.0) == B
    with pytest.raises(NoWorker):
        place(r, "4", now_s=30.0, avoid={B})
    r.leave(B)
    with pytest.raises(NoWorker):
        place(r, "5", now_s=30.0)


def test_an_answer_that_comes_whole_may_take_as_long_as_its_tokens() -> None:
    r = attached(A)
    r.place(RequestId("1"), PROMPT, 1.0, tells_first=False)

    assert r.stalled(3.0) == []
    assert r.stalled(30.0) == [A]


def test_where_all_have_stalled_they_get_work_all_the_same() -> None:
    r = attached(A)
    place(r, "1", now_s=1.0)
    r.stalled(1.1)
    assert r.stalled(60.0) == [A]

    assert place(r, "2", now_s=61.0) == A
    assert r.is_saturated(A)


def test_an_engine_that_was_never_measured_may_warm_up() -> None:
    r = router(A, events=False)
    place(r, "1")

    assert r.stalled(0.1) == r.stalled(20.0) == []
    assert r.stalled(31.0) == [A]


def test_an_index_that_lies_attracts_no_more_and_one_that_is_right_again_does() -> None:
    def answered(found: int, times: int) -> float:
        for i in range(times):
            name = RequestId(f"{found}-{i}")
            r.place(name, long, 0.0, avoid={A})
            r.on_first(name, 0.1)
            r.on_cached(name, found)
            r.done(name)
        return r.snapshot().workers[1].index_confidence

    r, long = router(), list(range(2_000))
    tell(r, B, long)
    assert r.rank(long)[0].worker == B
    assert answered(0, 60) < 0.05
    assert max(p.cached_tokens for p in r.rank(long)) < 100
    assert answered(1_984, 150) > 0.9
    assert r.rank(long)[0].worker == B


def test_tokens_counted_otherwise_than_by_the_engine_are_compared_as_shares_of_the_prompt() -> None:
    r, long = router(), list(range(2_000))
    tell(r, B, long)
    for i in range(60):
        r.place(RequestId(str(i)), long, 0.0, avoid={A})
        r.on_cached(RequestId(str(i)), 1_490, 1_500)  # 0.993 of its prompt, ours is 2,000
        r.done(RequestId(str(i)))

    assert r.snapshot().workers[1].index_confidence == 1.0


def test_what_was_reused_is_told_in_tokens_as_the_prompt_is_counted() -> None:
    r, watch, id = router(), Watch(0.0), RequestId("1")
    watch.placed(id, r.place(id, list(range(2_000)), 0.0), 2_000, 0.0)
    r.on_cached(id, 2_700, 3_000)  # 0.9 of its prompt, ours is 2,000
    outcome = r.done(id)
    assert outcome is not None
    watch.done(outcome, 0, 1.0)

    assert outcome.cached_tokens == 2_700
    assert watch.reuse({}) == Reuse(computed=200, device=1_800, tiers={}, untold=0)


def test_a_ranking_does_not_take_a_turn() -> None:
    r = router(policy="round_robin")

    assert [r.rank(PROMPT)[0].worker for _ in range(3)] == [A, A, A]
    assert [place(r, "1"), r.rank(PROMPT)[0].worker, place(r, "2")] == [A, B, B]


@pytest.mark.parametrize("policy", ["kv", "round_robin"])
def test_a_ranking_of_nobody_is_an_error_and_no_placement(policy: str) -> None:
    r = router(policy=policy)
    with pytest.raises(NoWorker, match="0 candidates"):
        r.rank(PROMPT, model="other")
    with pytest.raises(NoWorker, match="0 candidates"):
        place(r, "1", model="other")

    assert r.snapshot().placements == 0
    assert place(r, "2") == A


def test_two_equal_prompts_arriving_together_do_not_herd() -> None:
    r = router()

    assert {place(r, "1"), place(r, "2")} == {A, B}


def test_a_prefix_that_is_about_to_be_computed_counts_as_held() -> None:
    r = router()
    first = place(r, "1")
    place(r, "2", list(range(1000, 1100)))
    placement = r.place(RequestId("3"), PROMPT, 0.0)

    assert (placement.worker, placement.cached_tokens) == (first, 48)


def test_a_prefix_whose_request_ended_before_it_was_computed_does_not_count() -> None:
    r = router(A)
    place(r, "1")
    r.done(RequestId("1"))

    assert r.place(RequestId("2"), PROMPT, 0.0).cached_tokens == 0


def test_promised_work_counts_until_its_first_token() -> None:
    r = router()
    first, second = place(r, "1"), place(r, "2")
    r.on_first(RequestId("2"), 0.037)  # as predicted
    r.done(RequestId("2"))

    assert first != second
    assert place(r, "3", list(range(500, 564))) == second


def test_steps_take_computed_tokens_off_the_queue() -> None:
    r = router(A)
    place(r, "1", list(range(1_000)))
    r.on_step(A, StepReport(0.5, 400, 80_000, 0))

    assert r.snapshot().workers[0].queued_tokens == 600


def test_rates_are_learned_so_the_faster_worker_gets_cold_prompts() -> None:
    r = router()
    for _ in range(50):
        r.on_step(A, StepReport(0.5, 128, 8_000, 0))
        r.on_step(B, StepReport(0.05, 128, 8_000, 0))

    assert [place(r, str(i), list(range(i * 1_000, i * 1_000 + 500))) for i in range(3)] == [B, B, B]


def test_equal_workers_are_believed_equally_fast_whoever_made_the_last_steps() -> None:
    r = router()
    for i in range(60):
        r.on_step(A, StepReport(0.2 + 0.001 * (i % 7), 128, 8_000, 0))
        if i % 3 == 0:
            r.on_step(B, StepReport(0.21, 128, 8_000, 0))

    a, b = r.snapshot().workers

    assert (a.prefill_tokens_per_s, a.step_s) == (b.prefill_tokens_per_s, b.step_s)
    assert place(r, "1", list(range(500))) == A  # a tie


def test_a_worker_that_joins_is_believed_as_fast_as_those_that_are_alike() -> None:
    r = router(A)
    for _ in range(40):
        r.on_step(A, StepReport(0.5, 128, 8_000, 0))

    r.join(WorkerFacts(id=B, model="m", kind="reference", block_size=16))

    a, b = r.snapshot().workers
    assert b.prefill_tokens_per_s == a.prefill_tokens_per_s
    other = WorkerFacts(id=WorkerId("c"), model="m", kind="reference", block_size=16, step_tokens=64)
    r.join(other)
    assert r.snapshot().workers[2].prefill_tokens_per_s != a.prefill_tokens_per_s


def test_where_steps_go_unreported_rates_are_learned_from_first_tokens() -> None:
    r = router(A, events=False)
    for i in range(40):
        name = RequestId(str(i))
        r.place(name, list(range(i * 10_000, i * 10_000 + 1_000)), float(i))
        r.on_first(name, i + 2.0)
        r.done(name)

    assert r.place(RequestId("last"), list(range(900_000, 901_000)), 50.0).ttft_s == pytest.approx(2.0, rel=0.1)


def test_what_was_predicted_and_measured_is_kept_for_each_request() -> None:
    r = router()
    tell(r, A, PROMPT[:32])
    place(r, "1", now_s=5.0)
    r.on_cached(RequestId("1"), 16)
    r.on_first(RequestId("1"), 5.25)
    outcome = r.done(RequestId("1"))

    assert outcome is not None
    assert (outcome.predicted_cached_tokens, outcome.cached_tokens, outcome.ttft_s) == (32, 16, 0.25)
    assert r.done(RequestId("1")) is None
    assert r.snapshot().recent == [outcome]


def test_without_events_a_worker_is_believed_to_hold_what_it_was_given_until_that_expires() -> None:
    r = router(events=False)
    first = place(r, "1")
    r.on_first(RequestId("1"), 0.1)
    r.done(RequestId("1"))

    assert r.place(RequestId("2"), [*PROMPT, 7], 1.0).cached_tokens == 64
    assert r.snapshot().workers[0].index is IndexMode.APPROXIMATE
    r.done(RequestId("2"))
    r.roster.heard(A, 100.0)
    r.roster.heard(B, 100.0)
    assert r.place(RequestId("3"), [*PROMPT, 7], 100.0).cached_tokens == 0
    assert first in (A, B)


def test_salts_and_models_are_kept_apart() -> None:
    r = router()
    tell(r, B, PROMPT[:48])

    assert r.place(RequestId("1"), PROMPT, 0.0, salt="tenant").cached_tokens == 0
    with pytest.raises(NoWorker):
        r.place(RequestId("2"), PROMPT, 0.0, model="other")


def test_a_worker_that_is_gone_gets_nothing_and_comes_back_empty() -> None:
    r = router()
    tell(r, B, PROMPT[:48])
    r.gone(B)
    assert place(r, "1") == A

    r.join(r.facts(B))
    r.roster.heard(B, 1.0)
    placement = r.place(RequestId("2"), PROMPT, 1.0)
    assert (placement.worker, placement.cached_tokens) == (B, 0)


def test_a_silent_worker_gets_nothing_while_another_is_up() -> None:
    r = router()
    r.roster.heard(A, 5.0)
    assert r.roster.suspects(5.0) == [B]
    assert {place(r, str(i), now_s=5.0) for i in range(4)} == {A}

    r.roster.heard(B, 5.1)
    assert r.roster.health(B) is Health.UP


def test_a_worker_that_beats_but_is_stuck_in_a_step_counts_as_silent() -> None:
    r = router()
    r.on_beat(B, 5.0, StepReport(seconds=3.0, tokens=0, token_context=0, decodes=1))

    assert r.roster.health(B) is Health.SUSPECT


def test_a_worker_whose_steps_are_known_to_take_long_is_not_stuck() -> None:
    r = router()
    slow = StepReport(seconds=2.0, tokens=512, token_context=0, decodes=0)
    for _ in range(20):
        r.on_step(B, slow)
    r.on_beat(B, 5.0, slow)

    assert r.roster.health(B) is Health.UP


def test_a_suspect_is_better_than_nobody() -> None:
    r = router(A)
    r.roster.suspects(9.0)

    assert place(r, "1") == A


def test_a_suspect_computes_no_prompt_where_somebody_is_up_who_may_do_all_of_it() -> None:
    r = Router(hang_s=1.0)
    for id, role in ((A, Role.DECODE), (B, Role.PREFILL)):
        pages = PageFacts(b"f", SIZE, 1_000)
        r.join(WorkerFacts(id=id, model="m", kind="reference", block_size=SIZE, role=role, pages=pages))
        r.roster.heard(id, 0.0)
    for i in range(5):  # streams that a long prompt would hold up
        r.go_on(RequestId(str(i)), [i] * 100, 0.0)
        r.on_first(RequestId(str(i)), 0.1)
    long = list(range(4_000))
    assert r.rank(long)[0].worker == B

    r.drain(B, True)
    assert place(r, "drains", long) == A
    r.drain(B, False)
    r.roster.heard(A, 5.0)
    assert r.roster.suspects(5.0) == [B]
    assert {p.worker for p in r.rank(long)} == {A}
    r.roster.gone(A)
    assert place(r, "alone", long) == B


def test_workers_that_failed_a_request_are_avoided() -> None:
    r = router()

    assert place(r, "1", avoid={A}) == B
    with pytest.raises(NoWorker, match="0 candidates"):
        place(r, "2", avoid={A, B})


def test_a_worker_may_leave_with_work_on_it() -> None:
    r = router()
    tell(r, B, PROMPT[:48])
    place(r, "1")
    r.leave(B)

    assert r.done(RequestId("1")) is not None
    assert [w.id for w in r.snapshot().workers] == [A]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy: must be one of"):
        router(policy="best")


@pytest.mark.parametrize("policy", ["kv", "round_robin", "least_loaded", "random"])
def test_the_same_history_places_the_same(policy: str) -> None:
    def history() -> list[WorkerId]:
        r = router(A, B, WorkerId("c"), policy=policy)
        tell(r, B, PROMPT[:32])
        return [place(r, str(i), PROMPT[: 20 + i]) for i in range(30)]

    assert history() == history()


def test_a_worker_that_was_slow_at_bringing_once_is_known_by_the_others_of_its_node() -> None:
    r, pages = Router("kv"), PageFacts(b"f", SIZE, 400_000)
    for worker, node in ((A, ""), (B, ""), (WorkerId("c"), "far:1")):
        r.join(WorkerFacts(id=worker, model="m", kind="reference", block_size=SIZE, pages=pages), node)
        r.roster.heard(worker, 0.0)
        r.on_step(worker, StepReport(seconds=0.5, tokens=128, token_context=8_000, decodes=0))
    for node in ("", "far:1"):
        r.node(node).holdings.stored(b"f", Tier.DISK, block_hashes(PROMPT, SIZE))

    def predicted(only: WorkerId) -> float:
        placement = r.place(RequestId("?"), PROMPT, 0.0, avoid={A, B, WorkerId("c")} - {only})
        r.done(RequestId("?"))
        return placement.ttft_s

    before = predicted(B)
    r.on_moves(B, [MoveReport(Tier.DISK, 1_200_000, 3.0)])
    slow = predicted(B)
    for _ in range(40):
        r.on_moves(A, [MoveReport(Tier.DISK, 1_200_000, 0.004)])

    assert slow > 2 * before
    assert predicted(B) < 1.2 * before
    r.on_moves(WorkerId("c"), [MoveReport(Tier.DISK, 1_200_000, 3.0)])
    assert predicted(B) < 1.2 * before  # another node's disk is another disk


def test_copies_that_are_made_on_purpose_are_counted() -> None:
    router, prefix = hot(A, B)
    assert router.snapshot().copies == 0
    placed = []
    for number in range(60):  # all go where the prefix is, until one more place for it is worth its computing
        request = RequestId(str(number))
        placed.append(router.place(request, [*prefix, number, number, number], 0.1 * number))
        router.on_first(request, 0.1 * number)

    copies = router.snapshot().copies
    assert {p.worker for p in placed} == {"a", "b"}
    assert 0 < copies <= sum(p.cached_tokens == 0 for p in placed)
