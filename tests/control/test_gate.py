"""Who waits in front goes by priority, by whose tenant was served least, by when it is due."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.ids import RequestId
from jevons.control.gate import OTHERS, Gate, Waiter


def wait(gate: Gate, id: str, tenant: str = "", priority: int = 0, due_s: float = 1.0, model: str = "m") -> None:
    gate.enter(Waiter(RequestId(id), model, gate.begin(tenant), priority, due_s, due_s + 10.0))


def order(gate: Gate, count: int = 100, model: str = "m") -> list[str]:
    return [waiter.id for waiter in gate.first(model, count)]


def test_the_lower_the_priority_number_the_earlier_then_who_is_due_first() -> None:
    gate = Gate()
    for id, priority, due_s in (("late", 0, 9.0), ("low", 1, 0.5), ("soon", 0, 1.0), ("high", -1, 99.0)):
        wait(gate, id, priority=priority, due_s=due_s)

    assert order(gate) == ["high", "soon", "late", "low"]
    assert order(gate, 2) == ["high", "soon"]


def test_of_tenants_the_one_that_was_served_least_goes_first() -> None:
    gate = Gate()
    wait(gate, "a1", "a")
    wait(gate, "a2", "a", due_s=0.1)
    wait(gate, "b1", "b", due_s=5.0)
    gate.charge("a", 3.0)

    assert order(gate) == ["b1", "a2", "a1"]
    gate.charge("b", 4.0)
    assert order(gate) == ["a2", "a1", "b1"]


def test_who_waits_for_what_nobody_could_keep_goes_last_until_somebody_could() -> None:
    gate = Gate()
    for id, priority in (("vain", -1), ("usual", 0), ("low", 1)):
        wait(gate, id, priority=priority)
    gate.judge(RequestId("vain"), True)
    gate.judge(RequestId("low"), False)
    assert order(gate) == ["usual", "low", "vain"]

    gate.judge(RequestId("vain"), False)
    assert order(gate) == ["vain", "usual", "low"]
    gate.judge(RequestId("vain"), True)
    gate.leave(RequestId("vain"))
    wait(gate, "vain", priority=-1)  # of this name, but another one
    assert order(gate) == ["vain", "usual", "low"]


def test_models_wait_apart() -> None:
    gate = Gate()
    wait(gate, "1", model="m")
    wait(gate, "2", model="n")

    assert (gate.models(), order(gate), order(gate, model="n")) == ({"m", "n"}, ["1"], ["2"])
    gate.leave(RequestId("1"))
    gate.leave(RequestId("1"))  # it had gone already
    assert (gate.waiting, order(gate)) == (1, [])


def test_who_was_away_has_saved_up_no_claims() -> None:
    gate = Gate()
    for name in ("busy", "other"):
        gate.begin(name)
    gate.charge("busy", 100.0)
    gate.charge("other", 90.0)
    wait(gate, "b", "busy")
    wait(gate, "n", "new")  # begins where the least served at work is
    assert order(gate) == ["n", "b"]
    gate.charge("new", 11.0)
    assert order(gate) == ["b", "n"]


def test_who_was_served_alone_has_run_up_no_debts() -> None:
    gate = Gate()
    gate.begin("alone")
    gate.charge("alone", 1_000.0)
    gate.end("alone")
    wait(gate, "n", "new")
    wait(gate, "a", "alone")
    gate.charge("new", 1.0)

    assert order(gate) == ["a", "n"]


def test_tenants_are_forgotten_who_have_done_nothing_for_longest_and_only_they() -> None:
    gate = Gate(most_tenants=2)
    gate.begin("a")
    gate.end("a")
    gate.begin("b")
    gate.begin("c")
    assert [t.id for t in gate.snapshot().tenants] == ["b", "c"]
    assert gate.snapshot().forgotten_tenants == 1
    assert gate.begin("d") == OTHERS  # both are at work
    assert gate.begin("e") == OTHERS
    gate.charge(OTHERS, 2.0, placements=2)
    assert {t.id: (t.placements, t.device_s) for t in gate.snapshot().tenants}[OTHERS] == (2, 2.0)


def test_a_snapshot_tells_who_waits_and_what_each_was_given() -> None:
    gate = Gate()
    wait(gate, "1", "a")
    gate.begin("b")
    gate.charge("b", 2.5, placements=1)
    told = gate.snapshot()

    assert told.waiting == 1
    assert [(t.id, t.placements, t.waiting, t.device_s) for t in told.tenants] == [("a", 0, 1, 0.0), ("b", 1, 0, 2.5)]


WAITERS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.floats(0, 100)), min_size=2, max_size=30)


@given(WAITERS, st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50)), max_size=20))
def test_of_the_same_tenant_and_priority_a_later_promise_never_gets_an_earlier_place(
    waiters: list[tuple[str, int, float]], charges: list[tuple[str, float]]
) -> None:
    gate = Gate()
    for name in "abc":
        gate.begin(name)
    for i, (tenant, priority, due_s) in enumerate(waiters):
        wait(gate, str(i), tenant, priority, due_s)
    for tenant, seconds in charges:
        gate.charge(tenant, seconds)
    found = gate.first("m", 100)

    for one, after in pairwise(found):
        assert one.priority <= after.priority
        if (one.priority, one.tenant) == (after.priority, after.tenant):
            assert one.due_s <= after.due_s


@given(st.lists(st.floats(0.1, 5.0), min_size=40, max_size=80), st.integers(2, 4))
def test_tenants_that_always_have_requests_waiting_are_served_alike(costs_s: list[float], tenants: int) -> None:
    """The bound of virtual token counters: no two differ by more than two requests."""
    gate, served = Gate(), dict.fromkeys(range(tenants), 0.0)
    for tenant in served:
        wait(gate, f"{tenant}/0", str(tenant))
    for turn, cost_s in enumerate(costs_s):
        (waiter,) = gate.first("m", 1)
        gate.leave(waiter.id)
        gate.charge(waiter.tenant, cost_s)
        served[int(waiter.tenant)] += cost_s
        wait(gate, f"{waiter.tenant}/{turn + 1}", waiter.tenant)
        gate.end(waiter.tenant)

    assert max(served.values()) - min(served.values()) <= 2 * max(costs_s)


def test_a_gate_that_is_full_says_so() -> None:
    gate = Gate(most_waiting=1)
    assert not gate.is_full
    wait(gate, "1")
    assert gate.is_full
    with pytest.raises(AssertionError, match="refuses what it has no room for"):
        wait(gate, "2")
