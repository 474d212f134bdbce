"""What several frontends of one port show together, as one that did all of it."""

from __future__ import annotations

import msgspec
import pytest

from jevons.base.ids import RequestId, WorkerId
from jevons.control.joined import NOBODY, PIDS, Part, columns, joined
from jevons.control.watch import SHOWN, Watch
from jevons.facts.snapshot import Outcome
from jevons.facts.view import View, Who, Workers
from jevons.policy.route import Placement

PLACEMENT = Placement(WorkerId("w"), "kv", 0.1, 64, "64 of 100 tokens cached")
WHO = Who(ids=["w"], models=["m"], roles=["both"], chips=["h100"], chip_counts=[2], blocks=[10])
NOW_S = 130.0


def live(watch: Watch, id: str, at_s: float, ttft_s: float, *, is_done: bool = True) -> None:
    """A request from its placement on."""
    watch.placed(RequestId(id), PLACEMENT, 100, at_s)
    watch.first(RequestId(id), at_s + ttft_s)
    watch.gap(0.01, at_s + ttft_s)
    outcome = Outcome(
        id=RequestId(id),
        worker=WorkerId("w"),
        prompt_tokens=100,
        predicted_ttft_s=0.1,
        ttft_s=ttft_s,
        predicted_cached_tokens=64,
        cached_tokens=60,
        device_s=0.3,
        saved_s=0.5,
        chip="h100",
    )
    if is_done:
        watch.done(outcome, 8, at_s + ttft_s)


def part(watch: Watch) -> Part:
    since_s = NOW_S - watch.began_s
    view = View(
        source="live",
        title="m",
        began=f"{watch.began_s:.6f}",
        now_s=since_s,
        policy="kv",
        workers=NOBODY,
        requests=watch.requests(),
        scatter=watch.scatter(),
        ttft=watch.ttft.times(since_s, watch.slo.ttft_s),
        itl=watch.itl.times(since_s, watch.slo.tpot_s),
        rates=watch.rates(NOW_S),
        reuse=watch.reuse({"dram": 10}),
        placed=watch.placed_count,
        under_way=watch.under_way,
        finished=watch.finished,
        waiting_in_front=1,
        saved_chip_s=watch.saved_chip_s(),
    )
    ttft, itl = watch.ttft.counts(since_s).tolist(), watch.itl.counts(since_s).tolist()
    return Part(view=view, began_s=watch.began_s, ttft=ttft, itl=itl)


def test_two_show_what_one_that_saw_all_would() -> None:
    old, young, whole = Watch(100.0), Watch(120.5), Watch(100.0)
    for number in range(40):
        at_s, ttft_s, is_done = 121.0 + number / 8, 0.05 * (1 + number % 7), number % 10 != 3
        for watch in (old if number % 2 else young, whole):
            live(watch, str(number), at_s, ttft_s, is_done=is_done)

    both, one = joined(part(young), [part(old)], {"h100": 2}), part(whole).view

    for name in ("began", "now_s", "ttft", "itl", "placed", "under_way", "finished", "saved_chip_s"):
        assert getattr(both, name) == getattr(one, name), name
    assert msgspec.structs.asdict(both.rates) == pytest.approx(msgspec.structs.asdict(one.rates))
    assert both.finished == 36
    assert sorted(both.scatter) == sorted(one.scatter)
    assert [going.id for going in both.requests] == [going.id for going in one.requests]
    for ours, theirs in zip(both.requests, one.requests, strict=True):
        assert (ours.placed_s, ours.ttft_s) == pytest.approx((theirs.placed_s, theirs.ttft_s))
        assert ours.done_s == (None if theirs.done_s is None else pytest.approx(theirs.done_s))
    assert (both.reuse.computed, both.reuse.device, both.reuse.tiers) == (36 * 40, 36 * 60 - 20, {"dram": 20})
    assert both.waiting_in_front == 2
    assert both.chip_s == {"h100": 60.0}  # of the fleet, once
    assert both.title == "m, by 2 frontends"


def test_only_the_last_requests_of_all_are_shown() -> None:
    early, late = Watch(100.0), Watch(100.0)
    for number in range(SHOWN):
        live(early, f"early {number}", 101.0, 0.1)
        live(late, f"late {number}", 102.0 + number, 0.1)

    both = joined(part(early), [part(late)], {})

    assert [going.id for going in both.requests] == [f"late {number}" for number in range(SHOWN)]


def test_who_the_workers_are_is_told_again_where_another_process_answers() -> None:
    def of(seen: int | None) -> Workers:
        return msgspec.structs.replace(NOBODY, version=7, who=None if seen == 7 else WHO)

    first = columns(of, 40, None)

    assert first.who == WHO
    assert columns(of, 40, first.version).who is None
    assert columns(of, 41, first.version).who == WHO
    assert columns(of, PIDS - 1, (1 << 31) * PIDS).version < 1 << 53
