"""Sessions and adapters lead requests to where they are at home."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.ids import RequestId, WorkerId
from jevons.control.affinity import DEFAULT_SLOTS, Adapters, Last, Sessions
from jevons.control.router import Router
from jevons.facts.event import BlocksStored, KvBatch
from jevons.facts.worker import WorkerFacts

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
LONG = list(range(4_000))
SIZE = 16


def fleet(*ids: WorkerId, adapters: dict[WorkerId, set[str]] | None = None, events: bool = True) -> Router:
    made = Router()
    for id in ids:
        carried = frozenset((adapters or {}).get(id, set()))
        made.join(WorkerFacts(id=id, model="m", kind="openai", sends_events=events, adapters=carried))
        made.roster.heard(id, 0.0)
    return made


def answered(r: Router, tokens: list[int], **asked: object) -> WorkerId:
    placement = r.place(RequestId("x"), tokens, 0.0, **asked)  # type: ignore[arg-type]
    r.on_first(RequestId("x"), 0.1)
    r.done(RequestId("x"), 10)
    return placement.worker


def tell(r: Router, worker: WorkerId, adapter: str | None = None) -> None:
    blocks = len(LONG) // SIZE
    event = BlocksStored(hashes=list(range(blocks)), tokens=LONG, block_size=SIZE, adapter=adapter)
    r.intake(worker).on_batch(KvBatch(seq=0, events=[event]))


# Sessions


def test_a_session_goes_on_where_it_was_where_no_index_is_known() -> None:
    r = fleet(A, B)
    assert answered(r, LONG, session="s", avoid={A}) == B
    placement = r.place(RequestId("1"), [*LONG, *range(100)], 0.0, session="s")

    assert (placement.worker, placement.cached_tokens) == (B, 4_010)  # its prompt and its answer
    assert r.rank(LONG, session="another")[0].cached_tokens == 0
    assert r.rank(LONG)[0].cached_tokens == 0


def test_an_index_knows_better_than_a_session() -> None:
    r = fleet(A, B)
    answered(r, LONG, session="s", avoid={A})
    tell(r, A)
    r.intake(B).begin_replay()
    r.intake(B).on_replay_end(complete=True)  # it holds nothing

    assert [(p.worker, p.cached_tokens) for p in r.rank(LONG, session="s")] == [(A, 3_984), (B, 0)]


def test_a_session_is_found_among_more_workers_than_are_looked_at() -> None:
    ids = [WorkerId(f"w{i:02}") for i in range(40)]
    r = fleet(*ids)
    assert answered(r, LONG, session="s", avoid=set(ids[:39])) == "w39"

    assert answered(r, LONG, session="s") == "w39"


def test_a_session_does_not_wait_for_a_worker_that_is_gone_or_must_not_be() -> None:
    r = fleet(A, B)
    answered(r, LONG, session="s", avoid={A})
    assert answered(r, LONG, session="s", avoid={B}) == A
    answered(r, LONG, session="t", avoid={A})
    r.gone(B)
    assert answered(r, LONG, session="t") == A
    r.leave(B)
    assert answered(r, LONG, session="t") == A


def test_a_worker_that_starts_anew_holds_nothing_of_its_sessions() -> None:
    r = fleet(A)
    answered(r, LONG, session="s")
    r.place(RequestId("under way"), LONG, 0.0, session="t")
    facts = r.facts(A)

    r.gone(A)
    r.roster.heard(A, 1.0)
    assert r.rank(LONG, session="s")[0].cached_tokens == 0
    answered(r, LONG, session="s")
    r.join(facts)
    r.done(RequestId("under way"), 10)
    assert [r.rank(LONG, session=name)[0].cached_tokens for name in "st"] == [0, 0]

    answered(r, LONG, session="s")
    assert r.rank(LONG, session="s")[0].cached_tokens == 3_999


@given(st.lists(st.integers(0, 9), max_size=60))
def test_the_sessions_used_last_are_remembered(used: list[int]) -> None:
    sessions, order = Sessions(most=4), list[int]()
    for at, session in enumerate(used):
        sessions.note(str(session), Last(A, 0, at))
        order = [s for s in order if s != session] + [session]

    assert {s for s in range(10) if sessions.last(str(s)) is not None} == set(order[-4:])


def test_no_session_is_no_session() -> None:
    sessions = Sessions()
    sessions.note("", Last(A, 0, 10))
    assert sessions.last("") is None


# Adapters


def test_a_prompt_for_an_adapter_finds_the_blocks_computed_with_it_and_no_others() -> None:
    r = fleet(A, B, adapters={A: {"poet"}, B: {"poet"}})
    tell(r, A)
    tell(r, B, "poet")

    with_it, without = r.rank(LONG, model="poet"), r.rank(LONG, model="m")
    assert {p.worker: p.cached_tokens for p in with_it} == {A: 0, B: 3_984}
    assert {p.worker: p.cached_tokens for p in without} == {A: 3_984, B: 0}


def test_an_adapter_is_asked_only_of_who_serves_it() -> None:
    r = fleet(A, B, C, adapters={B: {"poet"}, C: {"clerk"}})
    tell(r, A, "poet")  # of an adapter that it has no more

    assert [p.worker for p in r.rank(LONG, model="poet")] == [B]
    assert {p.worker for p in r.rank(LONG, model="m")} == {A, B, C}
    r.carry(A, {"poet"})
    assert {p.worker for p in r.rank(LONG, model="poet")} == {A, B}


def test_what_was_an_adapter_may_be_a_model_once_nobody_serves_it_as_one() -> None:
    r = fleet(A, B, adapters={A: {"poet"}})
    r.join(WorkerFacts(id=C, model="poet", kind="openai", sends_events=False))
    r.roster.heard(C, 0.0)
    assert answered(r, LONG, model="poet") == A

    r.carry(A, ())
    assert answered(r, LONG, model="poet") == C
    r.carry(A, {"poet"})
    assert answered(r, LONG, model="poet") == A
    r.leave(A)
    assert answered(r, LONG, model="poet") == C


def test_an_adapter_of_two_models_is_served_as_long_as_one_of_them_is() -> None:
    r = fleet(A, adapters={A: {"poet"}})
    facts = WorkerFacts(id=B, model="other", kind="openai", sends_events=False, adapters=frozenset({"poet"}))
    r.join(facts)
    r.join(facts)  # again, after a restart
    r.roster.heard(B, 0.0)
    assert answered(r, LONG, model="poet") == B

    r.leave(B)
    assert answered(r, LONG, model="poet") == A


def test_an_adapter_that_is_loaded_saves_loading_it() -> None:
    r = fleet(A, B, adapters={A: {"poet", "clerk"}, B: {"poet", "clerk"}})
    assert answered(r, LONG[:50], model="poet") == A
    assert answered(r, LONG[100:150], model="clerk", avoid={A}) == B

    assert [answered(r, LONG[i : i + 50], model="poet") for i in (200, 300, 400)] == [A, A, A]
    assert r.snapshot().workers[0].adapters == ["poet"]


def test_a_worker_that_reports_its_adapters_is_believed() -> None:
    r = fleet(A, B, adapters={A: {"poet", "clerk"}, B: {"poet", "clerk"}})
    r.on_adapters(B, ["clerk", "poet"], 2)
    r.on_adapters(WorkerId("nobody"), ["poet"], 2)

    assert {answered(r, LONG[i : i + 50], model=name) for i, name in ((0, "poet"), (100, "clerk"))} == {B}


def test_as_many_adapters_are_loaded_as_have_room_the_last_used() -> None:
    adapters = Adapters({"a", "b", "c"})
    for name in ("a", "b"):
        adapters.use(name)
    assert (DEFAULT_SLOTS, adapters.loaded) == (1, ["b"])
    adapters.tell(["c"], 2)
    assert adapters.loaded == ["b", "c"]
    assert (adapters.load_s("a") > 0, adapters.load_s("b"), adapters.load_s("c")) == (True, 0.0, 0.0)


def by_number(number: int) -> BlocksStored:
    """As engines tell it that know adapters by numbers alone."""
    blocks = len(LONG) // SIZE
    return BlocksStored(hashes=list(range(blocks)), tokens=LONG, block_size=SIZE, adapter_number=number)


def test_an_adapter_told_by_number_is_the_one_that_its_engine_listed_so() -> None:
    r = Router()
    facts = WorkerFacts(id=A, model="m", kind="openai", adapters=frozenset({"poet", "clerk"}))
    r.join(msgspec.structs.replace(facts, adapter_numbers={1: "poet", 2: "clerk"}))
    r.roster.heard(A, 0.0)
    r.intake(A).on_batch(KvBatch(seq=0, events=[by_number(2)]))

    cached = {model: r.rank(LONG, model=model)[0].cached_tokens for model in ("m", "poet", "clerk")}
    assert (cached["m"], cached["poet"]) == (0, 0)
    assert cached["clerk"] >= len(LONG) - SIZE


def test_blocks_of_an_adapter_that_nobody_named_are_counted_as_ignored() -> None:
    r = fleet(A, adapters={A: {"poet"}})
    r.intake(A).on_batch(KvBatch(seq=0, events=[by_number(1), by_number(0)]))
    counts = r.intake(A).counts

    assert counts["ignored_adapter"] == counts["stored"] == len(LONG) // SIZE  # 0 is no adapter
    r.carry(A, {"poet"}, {1: "poet"})
    r.intake(A).on_batch(KvBatch(seq=1, events=[by_number(1)]))
    assert r.intake(A).counts["ignored_adapter"] == len(LONG) // SIZE
