"""Continuous batching: every token is computed once, in order, within the budget, and no block is lost."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import CapacityError
from jevons.base.ids import RequestId
from jevons.control.batch import Batcher, Chunk, Drawn
from jevons.facts.event import BlocksRemoved, BlocksStored
from jevons.facts.request import Sampling, Step, Work
from jevons.kv.hashing import block_hashes
from jevons.kv.pool import BlockPool

SIZE = 4
EOS = 9


def batcher(blocks: int = 16, step_tokens: int = 8, max_running: int = 4) -> Batcher:
    return Batcher(BlockPool(blocks, SIZE), step_tokens=step_tokens, max_running=max_running, context_tokens=1_000)


def work(name: str, prompt: list[int], max_tokens: int = 3, salt: str = "", emitted: list[int] | None = None) -> Work:
    return Work(
        id=RequestId(name),
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=Sampling(),
        stop_ids=[EOS],
        emitted=emitted or [],
        salt=salt,
    )


def step(b: Batcher, token: int = 1) -> tuple[list[Chunk], list[Step]]:
    chunks = b.schedule(0.0)
    return chunks, b.complete(chunks, [Drawn(token) if c.sampling is not None else None for c in chunks], 0.0)


def drain(b: Batcher, limit: int = 1_000) -> list[Step]:
    steps: list[Step] = []
    for _ in range(limit):
        chunks, made = step(b)
        steps += made
        if not chunks and not b.waiting:
            return steps
    raise AssertionError("the batcher never came to an end")


def test_a_prompt_is_cut_into_chunks_of_the_budget_and_then_decodes() -> None:
    b = batcher()
    b.add(work("a", list(range(19))))

    shapes = [[(c.start, len(c.tokens), c.sampling is not None) for c in step(b)[0]] for _ in range(5)]
    assert shapes == [[(0, 8, False)], [(8, 8, False)], [(16, 3, True)], [(19, 1, True)], [(20, 1, True)]]
    assert b.running == 0


def test_running_sequences_come_before_prompts_in_every_step() -> None:
    b = batcher()
    b.add(work("a", [1, 2, 3], max_tokens=10))
    step(b)
    b.add(work("b", list(range(20))))

    assert [(c.id, len(c.tokens)) for c in step(b)[0]] == [("a", 1), ("b", 7)]


def test_the_lower_the_priority_number_the_earlier_a_prompt_is_computed() -> None:
    b = batcher(max_running=1)
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", -1)):
        b.add(msgspec.structs.replace(work(name, [ord(name)] * 3, max_tokens=1), priority=priority))

    assert [made.id for made in drain(b)] == ["d", "a", "c", "b"]


def test_a_prompt_of_lower_priority_lets_others_go_first_in_the_middle_of_it() -> None:
    b = batcher()
    b.add(msgspec.structs.replace(work("low", list(range(100, 130))), priority=1))
    step(b)
    b.add(work("high", [1, 2, 3, 4, 5, 6]))
    step(b)  # the budget of this step went to who ran

    b.add(work("higher", [7, 8]))
    assert [made.id for made in drain(b) if made.finish] == ["high", "higher", "low"]


def test_without_a_free_block_the_one_of_the_lowest_priority_gives_way() -> None:
    b = batcher(blocks=4)
    b.add(msgspec.structs.replace(work("low", [1, 2, 3, 4], max_tokens=6), priority=1))
    step(b)
    b.add(work("a", [5, 6, 7, 8], max_tokens=6))
    order = [made.id for made in drain(b) if made.finish]

    assert b.preemptions > 0
    assert order == ["a", "low"]


def test_a_prompt_seen_before_is_taken_from_the_pool_and_reported_cached() -> None:
    b, prompt = batcher(), list(range(10, 23))
    b.add(work("a", prompt))
    first = drain(b)
    b.add(work("b", prompt))
    second = drain(b)

    assert [s.cached_tokens for s in first] == [0, None, None]
    assert [s.cached_tokens for s in second] == [12, None, None]


def test_a_fully_cached_prompt_still_computes_its_last_block() -> None:
    b, prompt = batcher(), list(range(10, 18))
    b.add(work("a", prompt))
    drain(b)
    b.add(work("b", prompt))

    assert [(c.start, len(c.tokens)) for c in b.schedule(0.0)] == [(4, 4)]


def test_salts_never_share() -> None:
    b, prompt = batcher(), list(range(10, 23))
    b.add(work("a", prompt, salt="x"))
    drain(b)
    b.add(work("b", prompt, salt="y"))

    assert drain(b)[0].cached_tokens == 0


def test_a_prompt_whose_prefix_is_being_computed_waits_for_it() -> None:
    b, prompt = batcher(), list(range(10, 30))
    b.add(work("a", [*prompt, 1]))
    b.add(work("b", [*prompt, 2]))
    b.add(work("c", [50, 51]))

    assert [c.id for c in step(b)[0]] == ["a"]
    steps = [(c.id, c.start, len(c.tokens)) for _ in range(2) for c in step(b)[0]]
    assert ("c", 0, 2) in steps  # one that needs nothing of it goes ahead
    later = [s for s in drain(b) if s.id == "b"]
    assert b.waiting == 0
    assert later[0].cached_tokens == 20


def test_a_waiting_prompt_goes_on_when_the_one_it_waited_for_is_cancelled() -> None:
    b, prompt = batcher(), list(range(10, 30))
    b.add(work("a", prompt))
    b.add(work("b", prompt))
    step(b)

    assert b.cancel(RequestId("a"))
    assert not b.cancel(RequestId("a"))
    assert [s.id for s in drain(b)] == ["b"] * 3


def test_a_stop_token_and_the_limit_end_a_sequence() -> None:
    b = batcher()
    b.add(work("a", [1, 2, 3]))
    assert [s.finish for s in step(b, EOS)[1]] == ["stop"]

    b.add(work("b", [1, 2, 3], max_tokens=2))
    assert [s.finish for s in drain(b)] == [None, "length"]


def test_tokens_made_elsewhere_are_computed_not_sent_again() -> None:
    b = batcher()
    b.add(work("a", [1, 2, 3], max_tokens=4, emitted=[7, 8]))
    chunks, steps = step(b)

    assert [(list(c.tokens), c.draw) for c in chunks] == [([1, 2, 3, 7, 8], 2)]
    assert [s.tokens for s in steps] == [[1]]
    assert [s.finish for s in drain(b)] == ["length"]


def test_without_a_free_block_the_youngest_gives_way_and_comes_back() -> None:
    b = batcher(blocks=6)
    b.add(work("a", list(range(10, 18)), max_tokens=12))
    b.add(work("b", list(range(20, 28)), max_tokens=12))
    steps = drain(b)

    assert b.preemptions >= 1
    assert {s.id: s.finish for s in steps if s.finish} == {"a": "length", "b": "length"}
    assert sum(len(s.tokens) for s in steps) == 24
    assert [s.cached_tokens for s in steps if s.cached_tokens is not None] == [0, 0]


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(CapacityError, match=r"60 prompt tokens \+ 5 output tokens = 65: .* at most 64"):
        batcher(blocks=16).add(work("a", list(range(60)), max_tokens=5))


@given(st.integers(0, 2**32))
def test_any_mix_ends_with_every_sequence_whole_and_the_pool_as_it_was(seed: int) -> None:
    draw = random.Random(seed)
    b = batcher(blocks=draw.randrange(10, 24), step_tokens=draw.randrange(4, 20))
    asked, cancelled, sent = {}, set(), dict[str, int]()
    told: set[object] = set()
    for i in range(200):
        if i < 60 and draw.random() < 0.4:
            prompt = [draw.randrange(2)] * draw.randrange(1, 17)
            asked[f"s{i}"] = draw.randrange(1, 16)
            new = work(f"s{i}", prompt, max_tokens=asked[f"s{i}"])
            b.add(msgspec.structs.replace(new, priority=draw.randrange(-1, 2)))
        if draw.random() < 0.05 and asked:
            victim = draw.choice(sorted(asked))
            if b.cancel(RequestId(victim)):
                cancelled.add(victim)
        chunks = b.schedule(0.0)
        assert sum(len(c.tokens) for c in chunks) <= 20
        assert len({c.id for c in chunks}) == len(chunks)
        if draw.random() < 0.1:
            continue  # the step is given up in the middle: nothing is booked, and it is scheduled again
        for made in b.complete(chunks, [Drawn(1) if c.sampling is not None else None for c in chunks], 0.0):
            sent[made.id] = sent.get(made.id, 0) + len(made.tokens)
        told = follow(b, told)
    drain(b)

    follow(b, told)
    assert b.pool.free == b.pool.blocks
    assert all(sent.get(name, 0) <= limit for name, limit in asked.items())


def follow(b: Batcher, told: set[object]) -> set[object]:
    """A consumer of the events believes exactly what the pool can reuse."""
    for event in b.pool.drain_events():
        told = told | set(event.hashes) if isinstance(event, BlocksStored) else told - set(event.hashes)  # type: ignore[union-attr]
        assert isinstance(event, BlocksStored | BlocksRemoved)
        if isinstance(event, BlocksStored) and event.parent is None:
            assert list(event.hashes) == block_hashes(event.tokens, SIZE)
    assert len(told) == b.pool.named
    return told
