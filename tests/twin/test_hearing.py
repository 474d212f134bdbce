"""KV events that are late, lost, and replayed: what the index knows when."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.hub import Hub
from jevons.kv import entries, overlaps
from jevons.kv.cache import grow_log, pool_arrays
from jevons.twin import hearing

LAG_S = 1.0
LOSS = 0.5
NAMES = range(1, 9)


class Ears:
    """Two engines that say what each test lets them, and an index."""

    def __init__(self, *, replays: bool = True) -> None:
        parts = pool_arrays([8, 8], 16, 64), entries.index_arrays(2, 256), hearing.hearing_arrays(2)
        arrays: dict[str, Any] = {"engines": np.zeros(2)}
        numbers: dict[str, int | float] = {"uses_index": 1}
        for some, more in parts:
            arrays |= some
            numbers |= more
        self.hub = Hub(arrays, numbers)
        self.hub.set("lag_s", LAG_S)
        self.hub.set("replays", int(replays))
        hearing.grow_withheld(self.hub, 8)

    def say(self, at_s: float, engine: int, name: int, change: int = 1, *, lost: bool = False) -> None:
        """An event at that time, whose fate is given, and that is heard before the next one is said."""
        grow_log(self.hub, 64)
        end = int(self.hub.number("log_end"))
        for field, value in (("log_name", name), ("log_change", change * (engine + 1)), ("log_at_s", at_s)):
            self.hub[field][end] = value
        self.hub.set("log_end", end + 1)
        heard = next(n for n in range(1000) if (hearing._chance(n + 1) < LOSS) == lost)
        self.hub.set("heard", heard)
        self.hub.set("loss", LOSS)
        entries.grow_index(self.hub, hearing.unheard(self.h) + 1)
        hearing.grow_withheld(self.hub, 1)
        self.hear(at_s + LAG_S)

    def hear(self, now_s: float) -> None:
        hearing.hear(self.h, now_s)

    @property
    def h(self) -> Any:
        return self.hub.record[0]

    def known(self, engine: int) -> list[int]:
        return [name for name in NAMES if overlaps.holds(self.h, engine, name)]


def test_the_next_event_shows_what_was_lost_and_a_replay_brings_both() -> None:
    ears = Ears()
    ears.say(0.0, 0, 1, lost=True)
    ears.hear(100.0)
    assert ears.known(0) == []  # nothing has shown it

    ears.say(100.0, 0, 2)
    ears.say(100.5, 0, 3)
    assert ears.known(0) == []  # heard at 101, asked for then
    ears.hear(102.9)
    assert ears.known(0) == []
    ears.hear(103.0)
    assert ears.known(0) == [1, 2, 3]
    ears.say(104.0, 0, 4)
    assert ears.known(0) == [1, 2, 3, 4]


def test_one_engines_gap_holds_up_no_other() -> None:
    ears = Ears()
    ears.say(0.0, 0, 1, lost=True)
    ears.say(0.1, 0, 2)
    ears.say(0.2, 1, 3)

    assert (ears.known(0), ears.known(1)) == ([], [3])


def test_what_is_lost_after_a_replay_was_asked_for_is_in_the_next() -> None:
    ears = Ears()
    ears.say(0.0, 0, 1, lost=True)
    ears.say(0.1, 0, 2)  # heard at 1.1: asked for, answered at 3.1
    ears.say(1.5, 0, 3, lost=True)
    ears.say(1.6, 0, 4)
    ears.hear(3.1)
    assert ears.known(0) == [1, 2]

    ears.hear(5.1)
    assert ears.known(0) == [1, 2, 3, 4]
    assert hearing.unheard(ears.h) == 0


def test_without_replays_the_rest_is_heard_at_its_time_and_the_lost_never() -> None:
    ears = Ears(replays=False)
    ears.say(0.0, 0, 1, lost=True)
    ears.say(0.1, 0, 2)
    ears.hear(100.0)

    assert ears.known(0) == [2]


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(NAMES), st.booleans(), st.floats(0.0, 1.5)), max_size=40))
def test_whatever_is_lost_the_index_ends_with_what_was_said(said: list[tuple[int, int, bool, float]]) -> None:
    ears, there, at_s = Ears(), [set[int](), set[int]()], 0.0
    for engine, name, lost, later_s in said:
        at_s += later_s
        ears.say(at_s, engine, name, -1 if name in there[engine] else 1, lost=lost)
        there[engine].symmetric_difference_update({name})
    for engine in (0, 1):  # shows what is still withheld
        ears.say(at_s + 1.0, engine, 99)
    for more_s in (10.0, 20.0):  # what was lost meanwhile takes another replay
        ears.hear(at_s + more_s)

    assert [set(ears.known(engine)) for engine in (0, 1)] == there
    assert hearing.unheard(ears.h) == 0
