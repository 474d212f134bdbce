"""A tier gives up what has waited longest for its worth; never what is kept, and a chain from its tail."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jevons.policy.evict import Evictor

SIZE = 1_000
WORTH_S = 0.01


def filled(keys: str, worth_s: float = WORTH_S) -> Evictor[str]:
    """One block a second, from 0 s on."""
    evictor: Evictor[str] = Evictor()
    for at_s, key in enumerate(keys):
        evictor.insert(key, SIZE, worth_s, float(at_s))
    return evictor


def nothing(key: object) -> bool:
    return False


def drained(evictor: Evictor[str], now_s: float) -> str:
    return "".join(iter(lambda: evictor.victim(nothing, now_s) or "", ""))


def test_of_blocks_worth_the_same_the_least_recently_inserted_goes_first() -> None:
    assert drained(filled("abcd"), 10.0) == "abcd"


def test_a_block_used_again_may_wait_twice_as_long() -> None:
    for now_s, first in ((18.0, "a"), (21.0, "b")):  # a waited 17, then 20 s for twice the worth; b 8, then 11
        evictor = filled("a")
        evictor.hit("a", 1.0)
        evictor.insert("b", SIZE, WORTH_S, 10.0)

        assert evictor.victim(nothing, now_s) == first


def test_further_uses_renew_the_wait_and_nothing_else() -> None:
    evictor = filled("ab")
    for at_s in (2.0, 3.0, 4.0):
        evictor.hit("a", at_s)
    evictor.hit("b", 5.0)

    assert drained(evictor, 9.0) == "ab"


def test_seconds_saved_per_byte_decide_between_models() -> None:
    evictor: Evictor[str] = Evictor()
    evictor.insert("dear", SIZE, 4 * WORTH_S, 0.0)
    evictor.insert("bulky", 4 * SIZE, 4 * WORTH_S, 6.0)
    evictor.insert("cheap", SIZE, WORTH_S, 7.0)

    # At 9 s they waited 9 / 4, 3 and 2 for their worth.
    assert [evictor.victim(nothing, 9.0) for _ in range(3)] == ["bulky", "dear", "cheap"]


def test_a_block_that_is_worth_nothing_goes_first() -> None:
    evictor = filled("abc")
    evictor.insert("free", SIZE, 0.0, 3.0)

    assert evictor.victim(nothing, 4.0) == "free"


def test_a_scan_does_not_flush_what_is_used_again_and_again() -> None:
    evictor, held = Evictor[str](), set[str]()
    for at_s in range(200):
        if at_s % 20 == 0:  # eight blocks come back every 20 s; between their visits 20 others pass
            for key in "abcdefgh":
                if key in held:
                    evictor.hit(key, float(at_s))
                else:
                    evictor.insert(key, SIZE, WORTH_S, float(at_s))
                    held.add(key)
        evictor.insert(f"scan {at_s}", SIZE, WORTH_S, float(at_s))
        held.add(f"scan {at_s}")
        while len(evictor) > 20:
            victim = evictor.victim(nothing, float(at_s))
            assert victim is not None
            held.remove(victim)

    assert held >= set("abcdefgh")  # LRU would have lost them each time: 20 blocks passed since


def test_a_chain_given_last_to_first_loses_its_tail_before_its_head() -> None:
    evictor: Evictor[str] = Evictor()
    for key in reversed("abcd"):
        evictor.insert(key, SIZE, WORTH_S, 0.0)
    for key in reversed("ab"):
        evictor.hit(key, 5.0)

    assert drained(evictor, 9.0) == "dcba"


def test_what_comes_back_soon_after_it_was_given_up_counts_as_used_again() -> None:
    evictor = filled("ab")
    assert evictor.victim(nothing, 2.0) == "a"
    evictor.insert("a", SIZE, WORTH_S, 2.0)
    evictor.insert("c", SIZE, WORTH_S, 4.0)

    assert drained(evictor, 9.0) == "bca"  # a waited 7 / 2, c 5


def test_what_was_given_up_is_forgotten_when_as_many_went_after_it_as_are_here() -> None:
    evictor = filled("abc")
    for at_s, key in enumerate("defgh", start=3):
        evictor.victim(nothing, float(at_s))
        evictor.insert(key, SIZE, WORTH_S, float(at_s))
    evictor.insert("a", SIZE, WORTH_S, 8.0)
    evictor.insert("i", SIZE, WORTH_S, 10.0)

    assert drained(evictor, 20.0) == "fghai"


def test_a_removed_block_is_neither_here_nor_remembered() -> None:
    evictor = filled("ab")
    evictor.hit("a", 2.0)
    evictor.remove("a")
    assert len(evictor) == 1
    assert "a" not in evictor
    evictor.insert("a", SIZE, WORTH_S, 3.0)

    assert drained(evictor, 9.0) == "ba"


def test_kept_blocks_are_passed_over_and_go_first_once_let_go() -> None:
    evictor, kept = filled("abcd"), {"a", "b"}

    assert evictor.victim(kept.__contains__, 4.0) == "c"
    kept.clear()
    assert [evictor.victim(kept.__contains__, 4.0) for _ in range(4)] == ["a", "b", "d", None]


def test_a_kept_block_that_is_used_takes_its_place_among_the_others_again() -> None:
    evictor, kept = filled("abc"), {"a"}
    assert evictor.victim(kept.__contains__, 3.0) == "b"
    kept.clear()
    evictor.hit("a", 3.0)

    assert drained(evictor, 4.0) == "ca"


def test_when_all_are_kept_there_is_no_victim_and_nobody_is_lost() -> None:
    evictor = filled("abc")

    assert evictor.victim(lambda key: True, 3.0) is None
    assert len(evictor) == 3
    assert evictor.victim(lambda key: key != "c", 3.0) == "c"  # found among those set aside, wherever it is


def test_a_thousand_pinned_blocks_are_asked_once_not_at_every_eviction() -> None:
    evictor: Evictor[int] = Evictor()
    for key in range(1_200):
        evictor.insert(key, SIZE, WORTH_S, float(key))
    asked = 0

    def is_pinned(key: int) -> bool:
        nonlocal asked
        asked += 1
        return key < 1_000

    victims = [evictor.victim(is_pinned, 2_000.0) for _ in range(200)]

    assert victims == list(range(1_000, 1_200))
    assert asked < 1_000 + 2 * 200 + 1


# (block, whether it is offered with another's worth), each a second after the one before
uses = st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=300)


def replay(steps: list[tuple[int, bool]], blocks: int) -> Iterator[int | None]:
    evictor: Evictor[int] = Evictor()
    for at_s, (key, dear) in enumerate(steps):
        if key in evictor:
            evictor.hit(key, float(at_s))
        else:
            evictor.insert(key, SIZE, WORTH_S * (3 if dear else 1), float(at_s))
        if len(evictor) > blocks:
            yield evictor.victim(key.__eq__, float(at_s))


@given(uses, st.integers(1, 12))
def test_a_replay_decides_the_same(steps: list[tuple[int, bool]], blocks: int) -> None:
    assert list(replay(steps, blocks)) == list(replay(steps, blocks))


@given(st.lists(st.integers(0, 12), max_size=200))
def test_without_second_uses_it_is_lru(keys: list[int]) -> None:
    """Each key is new when it comes: the reference is an ordered dict."""
    evictor, reference = Evictor[tuple[int, int]](), OrderedDict[tuple[int, int], None]()
    for at_s, key in enumerate(keys):
        evictor.insert((at_s, key), SIZE, WORTH_S, float(at_s))
        reference[(at_s, key)] = None
        if key % 3 == 0:
            assert evictor.victim(nothing, float(at_s)) == reference.popitem(last=False)[0]


class EvictorMachine(RuleBasedStateMachine):
    """Blocks come, are used, kept, let go and given up in any order, beside a set that knows who is here."""

    def __init__(self) -> None:
        super().__init__()
        self.evictor: Evictor[int] = Evictor()
        self.here: set[int] = set()
        self.kept: set[int] = set()
        self.now_s = 0.0

    def one_of(self, data: Any) -> int:
        chosen: int = data.draw(st.sampled_from(sorted(self.here)))
        return chosen

    @rule(key=st.integers(0, 15), size=st.integers(1, 9), worth=st.integers(0, 9), later=st.integers(0, 3))
    def use(self, key: int, size: int, worth: int, later: int) -> None:
        self.now_s += later
        if key in self.here:
            self.evictor.hit(key, self.now_s)
        else:
            self.evictor.insert(key, size, worth / 10, self.now_s)
            self.here.add(key)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        key = self.one_of(data)
        self.evictor.remove(key)
        self.here.remove(key)
        self.kept.discard(key)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def keep_or_let_go(self, data: Any) -> None:
        self.kept ^= {self.one_of(data)}

    @rule()
    def give_up(self) -> None:
        victim = self.evictor.victim(self.kept.__contains__, self.now_s)
        if victim is None:
            assert self.here <= self.kept
        else:
            assert victim in self.here - self.kept
            self.here.remove(victim)

    @invariant()
    def it_knows_who_is_here(self) -> None:
        assert len(self.evictor) == len(self.here)
        assert all(key in self.evictor for key in self.here)

    def teardown(self) -> None:
        gone = [self.evictor.victim(nothing, self.now_s) for _ in range(len(self.here))]
        assert {*gone} == self.here
        assert self.evictor.victim(nothing, self.now_s) is None


TestEvictor = EvictorMachine.TestCase
TestEvictor.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
