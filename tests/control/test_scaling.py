"""How many workers are wanted, from what a router has in its book."""

from __future__ import annotations

import math

import pytest

from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.control.scaling import Crewed, Scaling
from jevons.facts.view import HEALTHS
from jevons.facts.worker import Role, StepReport, WorkerFacts
from jevons.policy.scale import Rule

RULE = Rule(every_s=10.0, least=1, headroom=0.0, tpot_s=0.1)
STEP = StepReport(seconds=0.06, tokens=1_000, token_context=0, decodes=0)


def crew(**more: object) -> Crewed:
    usual: dict[str, object] = {
        "model": "m",
        "role": "both",
        "up": [WorkerId("a")],
        "draining": [],
        "prompts_s": 0.0,
        "queued_s": 0.0,
        "decoding": 0.0,
        "step_s": 0.05,
        "token_s": 0.001,
        "held_tokens": 0.0,
        "room_tokens": 1_000.0,
    }
    return Crewed(**usual | more)  # type: ignore[arg-type]


def scaling(hold_s: float = 60.0, **most: int) -> Scaling:
    return Scaling(RULE, hold_s, most, {"both": 0.0})


def fleet(*ids: str, role: Role = Role.BOTH) -> Router:
    router = Router(hang_s=1.0)
    for id in ids:
        router.join(WorkerFacts(id=WorkerId(id), model="m", kind="k", block_size=16, blocks=64, role=role))
        router.roster.heard(WorkerId(id), 0.0)
        router.on_step(WorkerId(id), STEP)
    return router


def test_a_fleet_without_work_asks_for_nothing() -> None:
    [found] = fleet("b", "a").crewed(0.0)
    assert (found.model, found.role, found.up) == ("m", "both", ["a", "b"])
    assert (found.prompts_s, found.queued_s, found.decoding, found.held_tokens) == (0.0, 0.0, 0.0, 0.0)
    assert found.room_tokens == 64 * 16


def test_prompts_that_came_lately_count_by_their_seconds_and_are_forgotten() -> None:
    router = fleet("a")
    for number in range(10):
        router.place(RequestId(str(number)), list(range(number * 1_000, (number + 1) * 1_000)), 0.0)
    [now], [later] = router.crewed(0.0), router.crewed(90.0)
    assert now.queued_s > 0.0
    assert now.prompts_s == pytest.approx(now.queued_s, rel=0.2)
    assert later.prompts_s == pytest.approx(now.prompts_s * math.exp(-3.0))


def test_what_arrived_since_the_last_look_is_told_from_what_came_before() -> None:
    """By hand: 0.9 s of prompts each second, of which 30 s in the end are remembered; then none."""
    looks = scaling(hold_s=0.0)
    assert looks.look([crew(prompts_s=27.0)], 0.0, 0.0)[0].prompt_s == pytest.approx(0.9)
    assert looks.look([crew(prompts_s=27.0)], 0.0, 10.0)[0].prompt_s == pytest.approx(0.9)
    assert looks.look([crew(prompts_s=27.0 * math.exp(-1 / 3))], 0.0, 20.0)[0].prompt_s == pytest.approx(0.0)


def test_who_runs_counts_as_decoding_and_holds_its_tokens() -> None:
    router = fleet("a")
    router.place(RequestId("1"), list(range(500)), 0.0)
    router.on_first(RequestId("1"), 0.5)
    [found] = router.crewed(1.0)
    assert found.decoding == 1.0
    assert found.held_tokens >= 500


def test_who_is_drained_gets_no_work_and_is_told_apart() -> None:
    router = fleet("a", "b")
    router.drain(WorkerId("a"), True)
    [found] = router.crewed(0.0)
    assert (found.up, found.draining) == (["b"], ["a"])
    assert {router.place(RequestId(str(n)), [n] * 100, 0.0).worker for n in range(8)} == {"b"}
    assert [HEALTHS[h] for h in router.columns().health] == ["draining", "up"]
    router.drain(WorkerId("a"), False)
    assert router.crewed(0.0)[0].up == ["a", "b"]


def test_who_joins_again_after_it_was_drained_takes_work() -> None:
    router = fleet("a", "b")
    router.drain(WorkerId("a"), True)
    router.join(router.facts(WorkerId("a")))
    assert router.crewed(0.0)[0].draining == []


def test_the_number_wanted_is_that_of_the_policy() -> None:
    """By hand: 0.9 s of prompts and 20 tokens/s at 1 ms, in the half of the time that steps of 50 of 100 ms leave."""
    [told] = scaling().look([crew(prompts_s=27.0)], 0.0, 0.0)
    assert (told.wanted, told.up) == (2, 1)  # 1.8
    [told] = scaling().look([crew(prompts_s=27.0, decoding=2.0)], 0.0, 0.0)
    assert told.tokens_per_s == 20.0  # two streams at what is promised
    assert told.reason.startswith("computing needs 1.84 instances")


def test_tokens_go_to_who_decodes() -> None:
    crews = [crew(role="prefill", step_s=0.0, prompts_s=45.0), crew(role="decode", decoding=1.0)]
    prefill, decode = scaling().look(crews, 400.0, 0.0)
    assert (prefill.tokens_per_s, decode.tokens_per_s) == (0.0, 400.0)
    assert prefill.wanted == 2


def test_fewer_are_wanted_only_after_the_hold_time() -> None:
    looks = scaling(hold_s=25.0)
    ups = [WorkerId(id) for id in "abc"]
    counts = [looks.look([crew(up=ups)], 0.0, 10.0 * number)[0].wanted for number in range(5)]
    assert counts == [3, 3, 3, 1, 1]


def test_who_was_wanted_and_does_not_come_is_expected_for_a_while_only() -> None:
    looks = scaling()
    starting = [looks.look([crew(prompts_s=27.0)], 0.0, 5.0 * number)[0].starting for number in range(4)]
    assert starting == [0, 1, 1, 0]


def test_no_more_are_wanted_than_there_can_be() -> None:
    [told] = scaling(both=2).look([crew(prompts_s=270.0)], 0.0, 0.0)
    assert told.wanted == 2
    assert "there are 2" in told.reason
