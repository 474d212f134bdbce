"""What the connector's scheduler side claims, orders and learns, with requests and a node of our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jevons.base.clock import HandClock
from jevons.engine.vllm.answers import Answers
from jevons.engine.vllm.scheduler import FRESH_S, LOOK_S, TRY_EVERY, Scheduler
from jevons.engine.vllm.step import Told
from jevons.facts.block import Tier
from jevons.facts.move import Ask, Found, Look, MoveReport
from jevons.kv.hashing import block_hashes
from jevons.kv.layout import Layout

SIZE = 4
LAYOUT = Layout(layers=2, kv_heads=1, head_dim=8, block_size=SIZE, dtype="float32")
TOKENS = list(range(100, 122))  # five blocks and two tokens


def request(id: str = "a", tokens: list[int] = TOKENS, **more: Any) -> Any:
    values: dict[str, Any] = {
        "request_id": id,
        "prompt_token_ids": tokens,
        "all_token_ids": list(tokens),
        "num_tokens": len(tokens),
        "num_computed_tokens": 0,
        "num_preemptions": 0,
        "cache_salt": None,
        "lora_request": None,
        "mm_features": [],
        "prompt_embeds": None,
    }
    return SimpleNamespace(**values | more)


class House:
    """A scheduler side, and the node it asks."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.asked: list[Ask] = []
        self.answers = Answers(self.clock)
        self.scheduler = Scheduler(LAYOUT, 2048, self.asked.append, self.answers, self.clock)

    def new(self, asks: Any, *tiers: Tier | None) -> Any:
        """A request arrives, and its blocks are in these tiers."""
        self.scheduler.on_new(asks)
        self.tell(*tiers)
        return asks

    def tell(self, *tiers: Tier | None) -> None:
        (look,) = self.asked
        assert isinstance(look, Look)
        self.asked.clear()
        self.answers.put(Found(look.id, [*tiers, *[None] * (len(look.names) - len(tiers))], {}))

    def fetch(self, asks: Any, computed: int = 0, blocks: tuple[int, ...] = (10, 11, 12, 13, 14, 15)) -> int:
        """It has its turn. Returns the tokens fetched."""
        tokens = self.scheduler.matched(asks, computed)
        assert tokens is not None
        self.scheduler.allocated(asks, blocks, tokens)
        return tokens


@pytest.fixture
def house() -> House:
    return House()


DRAM, DISK, REMOTE = Tier.DRAM, Tier.DISK, Tier.REMOTE


def test_blocks_have_the_names_that_all_of_jevons_gives_them(house: House) -> None:
    house.scheduler.on_new(request(cache_salt="tenant"))

    assert house.asked == [Look(1, block_hashes(TOKENS, SIZE, "tenant"))]


def test_a_run_of_held_blocks_after_the_computed_ones_is_fetched_to_its_places(house: House) -> None:
    asks = house.new(request(), DRAM, DRAM, DRAM, DRAM, None)

    assert house.fetch(asks, computed=SIZE) == 3 * SIZE
    (fetch,) = house.scheduler.orders({}, lambda id: ()).fetches
    assert fetch.names == block_hashes(TOKENS, SIZE)[1:4]
    assert fetch.blocks == [11, 12, 13]
    assert fetch.tiers == [DRAM, DRAM, DRAM]
    assert fetch.wait_s > 0
    assert house.scheduler.orders({}, lambda id: ()).fetches == []


def test_a_hole_ends_the_run(house: House) -> None:
    assert house.fetch(house.new(request(), DRAM, None, DRAM)) == SIZE


def test_at_least_one_token_is_left_to_compute(house: House) -> None:
    asks = house.new(request(tokens=TOKENS[: 3 * SIZE]), DRAM, DRAM)

    assert house.fetch(asks) == 2 * SIZE


def test_vllm_is_asked_to_wait_until_the_answer_is_there_but_not_for_long(house: House) -> None:
    asks = request()
    house.scheduler.on_new(asks)

    assert house.scheduler.matched(asks, 0) is None
    house.clock.advance(LOOK_S * 1.1)
    assert house.scheduler.matched(asks, 0) == 0
    assert house.scheduler.counts["look_timeout"] == 1
    house.tell(DRAM)  # too late
    assert house.scheduler.matched(asks, 0) == 0


def test_what_was_heard_long_ago_is_asked_again(house: House) -> None:
    asks = house.new(request(), DRAM)
    assert house.scheduler.matched(asks, 0) == SIZE
    house.clock.advance(FRESH_S * 1.1)

    assert house.scheduler.matched(asks, 0) is None
    house.tell(None)
    assert house.scheduler.matched(asks, 0) == 0


def test_a_request_fetches_once_and_once_more_after_it_was_preempted(house: House) -> None:
    asks = house.new(request(), DRAM)
    assert house.fetch(asks) == SIZE

    assert house.scheduler.matched(asks, 0) == 0  # it did not come, say
    asks.num_preemptions = 1
    assert house.scheduler.matched(asks, 0) == SIZE


@pytest.mark.parametrize(
    ("reason", "more"),
    [
        ("adapter", {"lora_request": object()}),
        ("multimodal", {"mm_features": [object()]}),
        ("embeds", {"prompt_embeds": object()}),
        ("embeds", {"prompt_token_ids": None}),
        ("session", {"resumable": True}),
    ],
)
def test_requests_of_more_than_tokens_and_a_salt_are_left_alone_and_counted(
    house: House, reason: str, more: dict[str, Any]
) -> None:
    asks = request(**more)
    house.scheduler.on_new(asks)

    assert house.scheduler.matched(asks, 0) == 0
    assert house.scheduler.orders({"a": 22}, lambda id: range(6)).stores == []
    assert house.asked == []
    assert house.scheduler.counts == {f"skipped_{reason}": 1}


def test_after_a_reset_nothing_is_fetched_or_saved(house: House) -> None:
    before = house.new(request("before"), DRAM)
    house.scheduler.stop()
    after = request("after")
    house.scheduler.on_new(after)

    assert house.scheduler.matched(before, 0) == house.scheduler.matched(after, 0) == 0
    assert house.scheduler.orders({"before": 22, "after": 22}, lambda id: range(6)).stores == []
    assert house.scheduler.counts == {"skipped_reset": 1}


def test_blocks_are_saved_once_as_they_become_full(house: House) -> None:
    asks = house.new(request())
    names = block_hashes(TOKENS, SIZE)

    (first,) = house.scheduler.orders({"a": 10}, lambda id: [7, 8, 9]).stores
    asks.num_computed_tokens = 10
    (second,) = house.scheduler.orders({"a": 12}, lambda id: [7, 8, 9, 3, 4, 5]).stores
    asks.num_computed_tokens = 22

    assert (first.names, first.blocks, first.depth) == (names[:2], [7, 8], 0)
    assert (second.names, second.blocks, second.depth) == (names[2:], [9, 3, 4], 2 * SIZE)
    assert house.scheduler.orders({"a": 1}, lambda id: range(6)).stores == []


def test_a_block_whose_last_token_is_not_known_yet_is_saved_when_it_is(house: House) -> None:
    asks = house.new(request())
    house.scheduler.orders({"a": 22}, lambda id: range(6))
    asks.num_computed_tokens = 23  # vLLM runs ahead: the scheduler has not seen the token computed last

    assert house.scheduler.orders({"a": 1}, lambda id: range(6)).stores == []
    asks.num_computed_tokens, asks.all_token_ids = 24, [*TOKENS, 1, 2]
    (store,) = house.scheduler.orders({"a": 1}, lambda id: range(7)).stores
    assert store.names == block_hashes([*TOKENS, 1, 2], SIZE)[5:]


def test_what_was_fetched_or_found_in_the_pool_is_not_saved_again(house: House) -> None:
    asks = house.new(request(), DRAM, DRAM)
    house.fetch(asks)
    asks.num_computed_tokens = 2 * SIZE

    (store,) = house.scheduler.orders({"a": 14}, lambda id: range(6)).stores
    assert store.names == block_hashes(TOKENS, SIZE)[2:]


def test_what_was_fetched_but_did_not_come_is_saved_once_it_is_computed(house: House) -> None:
    asks = house.new(request(), DRAM, DRAM)
    house.fetch(asks)
    asks.num_computed_tokens = SIZE  # vLLM takes back what was reported lost

    (store,) = house.scheduler.orders({"a": 18}, lambda id: range(6)).stores
    assert store.names == block_hashes(TOKENS, SIZE)[1:]


def test_a_request_that_leaves_while_it_is_loaded_is_cancelled(house: House) -> None:
    asks = house.new(request(), DRAM)
    house.fetch(asks)
    house.scheduler.on_finished("a")

    assert house.scheduler.orders({}, lambda id: ()).cancels == ["a"]
    house.scheduler.on_loaded("a")
    house.scheduler.on_finished("a")
    assert house.scheduler.orders({}, lambda id: ()).cancels == []


def test_a_tier_slower_than_computing_is_left_alone_but_tried_now_and_then(house: House) -> None:
    for _ in range(20):
        learn(house, step_s=0.001, move_s=0.1)

    fetched = [house.fetch(house.new(request(str(n)), DISK, DISK, DISK, DISK)) for n in range(TRY_EVERY)]

    assert sorted(fetched) == [0] * (TRY_EVERY - 1) + [SIZE]
    assert house.scheduler.counts["too_slow"] == TRY_EVERY


def test_a_run_ends_where_a_tier_begins_that_is_too_slow(house: House) -> None:
    for _ in range(20):
        learn(house, step_s=0.02, move_s=0.1)

    assert house.fetch(house.new(request(), DRAM, DRAM, DISK, DISK)) == 2 * SIZE


def test_a_tier_that_was_late_is_left_alone_until_a_block_comes_in_time(house: House) -> None:
    house.scheduler.on_told(Told(1, 0.0, [], [DISK]))
    assert house.fetch(house.new(request("a"), DRAM, DISK, DISK)) == SIZE
    assert house.fetch(house.new(request("b"), DISK, DISK)) == 0

    house.scheduler.on_told(Told(2, 0.0, [MoveReport(DISK, LAYOUT.page_bytes, 0.001)], []))
    assert house.fetch(house.new(request("c"), DISK, DISK)) == 2 * SIZE


def test_the_wait_is_what_computing_takes_once_that_was_measured(house: House) -> None:
    for _ in range(20):
        learn(house, step_s=0.5, move_s=0.001)

    house.fetch(house.new(request(), DISK, DISK, DISK, DISK))
    (fetch,) = house.scheduler.orders({}, lambda id: ()).fetches
    assert 0.2 < fetch.wait_s < 0.8


def learn(house: House, step_s: float, move_s: float) -> None:
    """A step of 16 prompt tokens, and a move of four blocks from disk, took so long."""
    warm = request("learns")
    house.scheduler.on_new(warm)
    house.asked.clear()
    orders = house.scheduler.orders({"learns": 16}, lambda id: range(9))
    house.scheduler.on_told(Told(orders.number, step_s, [MoveReport(DISK, 4 * LAYOUT.page_bytes, move_s)], []))
    house.scheduler.on_finished("learns")


def test_the_tiers_of_what_is_fetched_are_told(house: House) -> None:
    asks = house.new(request(), DRAM, DISK, DISK)
    tokens = house.fetch(asks)

    assert house.scheduler.sources(asks, tokens) == {DRAM: SIZE, DISK: 2 * SIZE}
