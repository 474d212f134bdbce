"""A router's workers as columns say what its snapshot says."""

from __future__ import annotations

from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.facts.event import BlocksStored, KvBatch
from jevons.facts.view import HEALTHS
from jevons.facts.worker import Role, WorkerFacts

PROMPT = list(range(100))


def fleet(*ids: str) -> Router:
    router = Router(hang_s=1.0)
    for id in ids:
        router.join(WorkerFacts(id=WorkerId(id), model="m", kind="k", block_size=16, chip="h100", chips=2, blocks=64))
        router.roster.heard(WorkerId(id), 0.0)
    return router


def test_columns_say_what_the_snapshot_says() -> None:
    router = fleet("c", "a", "b")
    router.intake(WorkerId("b")).on_batch(
        KvBatch(seq=0, events=[BlocksStored(hashes=[1, 2], tokens=PROMPT[:32], block_size=16)])
    )
    for number in range(5):
        router.place(RequestId(str(number)), [*PROMPT, number], 0.0)
    router.on_first(RequestId("0"), 0.5)

    columns, snapshot = router.columns(), router.snapshot().workers

    assert columns.who is not None
    assert columns.who.ids == [w.id for w in snapshot] == ["a", "b", "c"]
    assert columns.held == [w.held_blocks for w in snapshot]
    assert columns.running == [w.decoding for w in snapshot]
    assert [r + w for r, w in zip(columns.running, columns.waiting, strict=True)] == [w.requests for w in snapshot]
    assert [q > 0 for q in columns.queue_ms] == [w.queued_tokens > 0 for w in snapshot]


def test_health_is_told_apart() -> None:
    router = fleet("down", "suspect", "up")
    router.gone(WorkerId("down"))
    router.roster.heard(WorkerId("up"), 2.0)
    router.roster.suspects(2.0)

    assert [HEALTHS[h] for h in router.columns().health] == ["down", "suspect", "up"]


def test_who_they_are_is_told_once_and_again_when_somebody_comes_or_leaves() -> None:
    router = fleet("a")
    first = router.columns()
    assert router.columns(first.version).who is None

    router.join(WorkerFacts(id=WorkerId("b"), model="m", kind="k", role=Role.DECODE))
    second = router.columns(first.version)
    assert second.who is not None
    assert second.who.roles == ["both", "decode"]
    assert router.chips() == {"h100": 2, "": 1}

    router.leave(WorkerId("a"))
    third = router.columns(second.version)
    assert third.who is not None
    assert third.who.ids == ["b"]
