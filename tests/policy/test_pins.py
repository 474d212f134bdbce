"""Pins keep blocks until a time, within a limit, and cost nothing after it."""

from hypothesis import given
from hypothesis import strategies as st

from jevons.policy.pins import Pins

SIZE = 10


def test_a_pinned_block_is_kept_until_its_time() -> None:
    pins: Pins[str] = Pins(limit_bytes=100)

    assert pins.keep("ab", SIZE, until_s=5.0, now_s=0.0) == 2
    assert [pins.is_kept("a", now_s) for now_s in (0.0, 4.9, 5.0)] == [True, True, False]
    assert not pins.is_kept("c", 0.0)


def test_of_several_pins_the_latest_time_counts_and_the_bytes_once() -> None:
    pins: Pins[str] = Pins(limit_bytes=100)
    pins.keep("a", SIZE, until_s=9.0, now_s=0.0)
    pins.keep("a", SIZE, until_s=5.0, now_s=0.0)
    pins.keep("a", SIZE, until_s=7.0, now_s=6.0)

    assert pins.pinned_bytes == SIZE
    assert [pins.is_kept("a", now_s) for now_s in (8.9, 9.0)] == [True, False]


def test_at_the_limit_the_tail_goes_without_and_is_counted() -> None:
    pins: Pins[str] = Pins(limit_bytes=35)

    assert pins.keep("abcde", SIZE, until_s=5.0, now_s=0.0) == 3
    assert (pins.refused, pins.pinned_bytes, len(pins)) == (2, 30, 3)
    assert pins.is_kept("c", 0.0)
    assert not pins.is_kept("d", 0.0)


def test_a_lapsed_pin_makes_room_for_others() -> None:
    pins: Pins[str] = Pins(limit_bytes=20)
    pins.keep("ab", SIZE, until_s=5.0, now_s=0.0)
    pins.keep("b", SIZE, until_s=8.0, now_s=1.0)

    assert pins.keep("cd", SIZE, until_s=9.0, now_s=5.0) == 1
    assert [pins.is_kept(key, 6.0) for key in "abcd"] == [False, True, True, False]


def test_a_block_that_is_gone_takes_its_pin_along() -> None:
    pins: Pins[str] = Pins(limit_bytes=20)
    pins.keep("ab", SIZE, until_s=5.0, now_s=0.0)
    pins.drop("a")
    pins.drop("never pinned")

    assert not pins.is_kept("a", 1.0)
    assert pins.pinned_bytes == SIZE
    assert pins.keep("a", SIZE, until_s=9.0, now_s=1.0) == 1
    pins.lapse(5.0)  # the time of its first pin
    assert pins.is_kept("a", 8.0)


steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=6, unique=True), st.integers(1, 9), st.integers(-1, 5), st.booleans()
    ),
    max_size=60,
)


@given(steps)
def test_pins_agree_with_a_plain_dict_of_times(moves: list[tuple[list[int], int, int, bool]]) -> None:
    pins: Pins[int] = Pins(limit_bytes=40)
    until: dict[int, float] = {}
    for now_s, (keys, size, keep_s, dropping) in enumerate(moves):
        if dropping:
            for key in keys:
                pins.drop(key)
                until.pop(key, None)
        else:
            kept = pins.keep(keys, size, now_s + keep_s, now_s)
            until = {key: at_s for key, at_s in until.items() if at_s > now_s}
            until |= {key: max(until.get(key, 0), now_s + keep_s) for key in keys[:kept]}

        assert 0 <= pins.pinned_bytes <= pins.limit_bytes
        assert all(pins.is_kept(key, now_s) == (until.get(key, 0) > now_s) for key in range(10))
    pins.lapse(1e9)
    assert (len(pins), pins.pinned_bytes) == (0, 0)
