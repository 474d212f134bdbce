"""How many instances are wanted: by hand, and what holds of any load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jevons.policy.scale import Asked, Kind, Rule, Wanted, Work, scale

RULE = Rule(every_s=60.0, least=1, headroom=0.0, tpot_s=0.1)
KIND = Kind(step_s=0.02, room_tokens=100_000, start_s=120.0)
BUSY = Work(prompt_s=2.0, tokens_per_s=200.0, token_s=0.01)


def asked(work: Work = BUSY, **more: object) -> Asked:
    return replace(Asked(role="both", work=work, kind=KIND, most=10, up=6), **more)


def one(of: Asked, rule: Rule = RULE) -> Wanted:
    (wanted,) = scale([of], rule)
    return wanted


def test_prompts_and_answers_share_the_seconds_that_steps_leave() -> None:
    """2 s of prompts and 200 tokens of 10 ms are 4 s a second; a fifth of each instance goes to its steps: 5."""
    assert one(asked()) == Wanted("both", 5, 5, "computing needs 5.00 instances")


def test_headroom_is_a_share_of_what_is_asked_for() -> None:
    """(2 + 2) × 1.3 / 0.8 = 6.5."""
    assert one(asked(), replace(RULE, headroom=0.3)).count == 7


def test_what_waits_is_to_be_done_within_an_interval() -> None:
    """6 that are up do (6 - 2) × 120 s of prompts until others are: of 540 s 60 are left, 1 s for each second."""
    assert one(asked(replace(BUSY, queued_s=480.0))).count == 5
    assert one(asked(replace(BUSY, queued_s=540.0))).reason == "computing needs 6.25 instances"


def test_who_is_starting_does_half_of_what_one_does_that_is_up() -> None:
    """4 up and 4 starting do as much as 6 that are up."""
    waits = asked(replace(BUSY, queued_s=540.0), up=4)

    assert one(replace(waits, starting=4)) == one(replace(waits, up=6))
    assert one(waits).count == 10


def test_memory_must_hold_what_is_under_way() -> None:
    wanted = one(asked(replace(BUSY, held_tokens=720_000.0)))

    assert (wanted.count, wanted.reason) == (8, "memory needs 7.20 instances")


def test_prefill_instances_have_no_steps_of_answers() -> None:
    assert one(asked(Work(prompt_s=3.0), kind=replace(KIND, step_s=0.0))).count == 3


def test_where_a_step_alone_takes_longer_than_is_promised_all_are_wanted() -> None:
    wanted = one(asked(kind=replace(KIND, step_s=0.2)))

    assert (wanted.count, wanted.reason) == (10, "computing needs inf instances, there are 10")


def test_fewer_are_wanted_when_no_look_within_the_hold_time_needed_more() -> None:
    held = one(asked(needed=[5, 7, 6]))

    assert (held.count, held.needed) == (7, 5)
    assert held.reason == "computing needs 5.00 instances; 7 were needed within the hold time"
    assert one(asked(needed=[4, 3])).count == 5


def test_without_work_the_least_stay() -> None:
    wanted = one(asked(Work()), replace(RULE, least=2))

    assert (wanted.count, wanted.reason) == (2, "computing needs 0.00 instances, at least 2 stay")


def test_each_role_is_decided_on_its_own() -> None:
    prefill = asked(Work(prompt_s=1.5), kind=replace(KIND, step_s=0.0), role="prefill")

    assert [(w.role, w.count) for w in scale([prefill, asked()], RULE)] == [("prefill", 2), ("both", 5)]


AMOUNTS = st.floats(0.0, 1e5)
WORK = st.builds(
    Work,
    prompt_s=AMOUNTS,
    queued_s=AMOUNTS,
    tokens_per_s=AMOUNTS,
    token_s=st.floats(0.0, 1.0),
    held_tokens=st.floats(0.0, 1e9),
)
RULES = st.builds(
    Rule,
    every_s=st.floats(1.0, 3_600.0),
    least=st.integers(1, 10),
    headroom=st.floats(0.0, 2.0),
    tpot_s=st.floats(0.01, 1.0),
)
NEEDED = st.lists(st.integers(0, 30), max_size=5)


@given(WORK, RULES, NEEDED)
def test_never_fewer_than_least_nor_more_than_there_can_be(work: Work, rule: Rule, needed: list[int]) -> None:
    assert rule.least <= one(asked(work, needed=needed), rule).count <= 10


@given(WORK, RULES, NEEDED, st.sampled_from(Work.__struct_fields__), st.floats(0.0, 1e6))
def test_more_load_never_wants_fewer(work: Work, rule: Rule, needed: list[int], name: str, more: float) -> None:
    loaded = replace(work, **{name: getattr(work, name) + more})

    assert one(asked(loaded, needed=needed), rule).count >= one(asked(work, needed=needed), rule).count


@given(st.floats(0.0, 12.0), st.floats(0.0, 0.4), st.integers(1, 10))
def test_a_load_that_swings_about_its_mean_starts_and_stops_nothing(mean: float, swing: float, up: int) -> None:
    """Looks see a little more and a little less by turns; from the third on, as many are up as at the one before."""
    history: list[int] = []
    counts: list[int] = []
    for look in range(12):
        work = Work(prompt_s=max(0.0, mean + swing * (-1) ** look))
        wanted = one(asked(work, up=up, needed=history[-5:]), replace(RULE, headroom=0.2))
        history.append(wanted.needed)
        up = wanted.count
        counts.append(up)
    assert len(set(counts[8:])) == 1


def test_no_instance_is_wanted_for_a_rounding_error() -> None:
    """(0.1 + 0.2) × 10 is a little more than 3."""
    assert one(asked(Work(prompt_s=0.1 + 0.2), kind=replace(KIND, step_s=0.0)), replace(RULE, headroom=9.0)).count == 3
