"""The connector's worker side with a real keeper: blocks come back to where they belong, or are told to be lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.processes import until

from jevons.base.clock import HandClock
from jevons.base.errors import ConfigError
from jevons.base.ids import BlockHash, BlockId
from jevons.engine.vllm.answers import Answers
from jevons.engine.vllm.layout import ORDERS, Pool, bits
from jevons.engine.vllm.settings import RESTART_S, Keeper, read_settings, socket_of
from jevons.engine.vllm.step import Fetch, Orders, Store, Told
from jevons.engine.vllm.worker import Worker
from jevons.facts.block import Tier
from jevons.facts.move import Answer, MoveReport, Over
from jevons.kv.layout import Layout
from jevons.store.node import Introduction, Node

LAYOUT = Layout(layers=2, kv_heads=2, head_dim=8, block_size=16, dtype="float32")
BLOCKS, SLOTS = 40, 12
MARK = b"v" * 16
WAIT_S = 10.0


def names(first: int, count: int) -> list[BlockHash]:
    return [BlockHash(number.to_bytes(16, "big")) for number in range(first, first + count)]


class Engine:
    """A vLLM worker: caches of random numbers, and the connector's side in it."""

    def __init__(self, socket: Path, clock: HandClock) -> None:
        shape = (BLOCKS, LAYOUT.kv_heads, LAYOUT.block_size, 2 * LAYOUT.head_dim)
        self.caches = [torch.rand(shape) for _ in range(LAYOUT.layers)]
        self.pool = Pool([ORDERS["cpu"](bits(cache)) for cache in self.caches], LAYOUT, SLOTS)
        self.answers = Answers(clock)
        self.said: list[Answer] = []  # by the node
        self.node = Node(socket, Introduction("vllm", MARK, LAYOUT.page_bytes), self.pool, self._on_answer)
        self.worker = Worker(LAYOUT, self.pool, self.node.ask, self.answers, clock)
        self.moves: list[MoveReport] = []  # told by steps
        self._number = 0

    def _on_answer(self, answer: Answer) -> None:
        self.answers.put(answer)
        self.said.append(answer)

    def attached(self) -> Engine:
        until(lambda: self.node.is_attached, WAIT_S, "attached to the keeper")
        return self

    def step(
        self, fetches: tuple[Fetch, ...] = (), stores: tuple[Store, ...] = (), cancels: tuple[str, ...] = ()
    ) -> Told:
        """One of vLLM's; what came of its loads is asked for apart."""
        self._number += 1
        orders = Orders(self._number, [*fetches], [*stores], [*cancels], is_idle=not stores)
        self.worker.begin()
        self.worker.load(orders)
        told = self.worker.end(orders)
        self.moves += told.moves
        return told

    def save(self, first: int, count: int, block: int) -> None:
        """Save blocks from `block` on, and wait for it."""
        before = self.ended()
        places = [BlockId(block + i) for i in range(count)]
        self.step(stores=(Store(names(first, count), places, 0, ""),))

        def is_over() -> bool:
            self.step()
            return self.ended() - before == count

        until(is_over, WAIT_S, "saved")

    def ended(self) -> int:
        return self.worker.counts["saved"] + self.worker.counts["not_saved"]

    def fetch(self, first: int, count: int, block: int) -> set[int]:
        """Fetch blocks to `block` and on. Returns those that did not come."""
        self.step(fetches=(fetch(first, count, block),))
        return self.loaded()

    def loaded(self) -> set[int]:
        until(lambda: self.worker.loaded(is_idle=True) == {"r"}, WAIT_S, "the request is loaded")
        return self.worker.take_errors()

    def block(self, number: int) -> torch.Tensor:
        return torch.stack([cache[number] for cache in self.caches])


def fetch(first: int, count: int, block: int, wait_s: float = 5.0) -> Fetch:
    places = [BlockId(block + i) for i in range(count)]
    return Fetch("r", names(first, count), places, [Tier.DRAM] * count, wait_s)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def keeper(tmp_path: Path, clock: HandClock) -> Iterator[Keeper]:
    settings = read_settings({"dram_bytes": 64 * LAYOUT.page_bytes}, LAYOUT.page_bytes)
    made = Keeper(settings, tmp_path / "keeper", clock)
    yield made
    made.close()


@pytest.fixture
def engine(tmp_path: Path, clock: HandClock) -> Iterator[Callable[[], Engine]]:
    made: list[Engine] = []

    def make() -> Engine:
        made.append(Engine(tmp_path / "keeper", clock))
        return made[-1]

    yield make
    for each in made:
        each.node.close()


Make = Callable[[], Engine]


def test_what_one_saves_another_loads_where_it_wants_it(keeper: Keeper, engine: Make, clock: HandClock) -> None:
    a, b = engine().attached(), engine().attached()
    a.save(0, 4, block=3)

    assert b.fetch(0, 4, block=20) == set()

    for i in range(4):
        assert torch.equal(b.block(20 + i), a.block(3 + i))
    assert a.worker.counts["saved"] == b.worker.counts["loaded"] == 4
    b.step()  # tells of moves that ended since the last one: that may have heard of this one already
    assert b.moves == [MoveReport(Tier.DRAM, 4 * LAYOUT.page_bytes, 0.0)]


def test_blocks_that_came_in_time_while_a_long_step_was_computed_are_not_late(
    keeper: Keeper, engine: Make, clock: HandClock
) -> None:
    a = engine().attached()
    a.save(0, 4, block=3)

    a.step(fetches=(fetch(0, 4, block=20, wait_s=1.0),))
    until(lambda: a.said[-1:] == [Over(2)], WAIT_S, "they are there")
    clock.advance(3.0)

    assert a.loaded() == set()
    assert a.step().late == []
    assert a.worker.counts["load_timeout"] == 0


def test_a_missing_block_and_all_after_it_are_told_and_those_before_it_are_good(keeper: Keeper, engine: Make) -> None:
    a = engine().attached()
    a.save(0, 2, block=3)
    a.save(3, 2, block=6)

    assert a.fetch(0, 5, block=20) == {22, 23, 24}
    assert torch.equal(a.block(21), a.block(4))
    assert a.worker.counts["missing"] == 1
    assert (a.worker.counts["loaded"], a.worker.counts["load_errors"]) == (2, 3)


def test_a_block_that_changed_in_the_arena_is_told_and_never_written(keeper: Keeper, engine: Make) -> None:
    a = engine().attached()
    a.save(0, 3, block=3)
    arena = a.pool.arena
    assert arena is not None
    page = a.caches[0][4].numpy().tobytes()[LAYOUT.page_bytes // 8 :][:64]  # of its first head's values
    arena.memory[bytes(arena.memory).index(page)] ^= 1
    before = a.block(21).clone()

    assert a.fetch(0, 3, block=20) == {21, 22}
    assert torch.equal(a.block(21), before)
    assert a.worker.counts["corrupt"] == 1


def test_what_is_saved_is_what_the_step_computed_though_vllm_writes_on_at_once(keeper: Keeper, engine: Make) -> None:
    a, b = engine().attached(), engine().attached()
    then = a.block(3).clone()
    process = keeper.process.pid
    os.kill(process, signal.SIGSTOP)
    try:
        a.step(stores=(Store(names(0, 1), [BlockId(3)], 0, ""),))
        for cache in a.caches:
            cache[3] = 0
    finally:
        os.kill(process, signal.SIGCONT)

    until(lambda: not b.fetch(0, 1, block=9), WAIT_S, "it is there")
    assert torch.equal(b.block(9), then)


def test_without_a_keeper_loads_end_with_errors_and_saves_give_their_slots_back(engine: Make) -> None:
    a = engine()

    assert a.fetch(0, 2, block=3) == {3, 4}
    a.save(0, SLOTS, block=3)
    a.save(0, SLOTS, block=3)
    assert a.worker.counts["not_saved"] == 2 * SLOTS
    assert a.worker.counts["gone"] == 2


def test_when_the_keeper_hangs_a_load_ends_at_its_deadline_and_its_tier_is_told_to_be_late(
    keeper: Keeper, engine: Make, clock: HandClock
) -> None:
    a = engine().attached()
    a.save(0, 2, block=3)
    process = keeper.process.pid
    os.kill(process, signal.SIGSTOP)
    try:
        a.step(fetches=(fetch(0, 2, block=20, wait_s=1.0),))
        clock.advance(0.9)
        assert a.worker.loaded(is_idle=True) == set()
        clock.advance(0.2)
        assert a.loaded() == {20, 21}
    finally:
        os.kill(process, signal.SIGCONT)
    assert a.step().late == [Tier.DRAM]
    assert a.worker.counts["load_timeout"] == 1


def test_a_request_that_is_gone_is_told_to_be_loaded_at_once(keeper: Keeper, engine: Make) -> None:
    a = engine().attached()
    process = keeper.process.pid
    os.kill(process, signal.SIGSTOP)
    try:
        a.step(fetches=(fetch(0, 2, block=20),))
        a.step(cancels=("r",))
        assert a.loaded() == {20, 21}
    finally:
        os.kill(process, signal.SIGCONT)


def test_what_finds_no_slot_is_not_saved_and_counted(keeper: Keeper, engine: Make) -> None:
    a = engine().attached()
    places = [BlockId(3 + i) for i in range(SLOTS + 2)]

    a.step(stores=(Store(names(0, SLOTS + 2), places, 0, ""),))

    assert a.worker.counts["save_backlog"] == 2


# The keeper that the connector starts


def test_a_keeper_that_dies_is_started_again_but_not_over_and_over(keeper: Keeper, clock: HandClock) -> None:
    os.kill(keeper.process.pid, signal.SIGKILL)
    keeper.process.wait(WAIT_S)

    keeper.revive()
    assert keeper.starts == 1
    clock.advance(RESTART_S)
    keeper.revive()
    keeper.revive()
    assert keeper.starts == 2


def test_a_keeper_that_cannot_start_says_why(tmp_path: Path, clock: HandClock) -> None:
    (tmp_path / "file").touch()
    tiers = {"dram_bytes": 1 << 20, "disk_path": str(tmp_path / "file"), "disk_bytes": 1 << 30}
    settings = read_settings(tiers, LAYOUT.page_bytes)

    with pytest.raises(ConfigError, match=str(tmp_path / "file")):
        Keeper(settings, tmp_path / "keeper", clock)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({}, "socket, or dram_bytes"),
        ({"sokcet": "/k"}, "sokcet.*known are socket"),
        ({"socket": "/k", "disk_path": "/d"}, "disk_path belongs to one to start"),
        ({"dram_bytes": "4 GB"}, r"Expected `int \| null`, got `str` - at `\$.dram_bytes`"),
        ({"dram_bytes": 100}, r"dram_bytes: must hold at least one block \(4096 bytes for this model\), got 100"),
        ({"dram_bytes": 4096, "disk_path": "/d"}, "disk_path and disk_bytes belong together"),
    ],
)
def test_settings_that_are_wrong_are_refused_by_name(extra: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=f"kv_connector_extra_config: .*{says}"):
        read_settings(extra, LAYOUT.page_bytes)


def test_processes_of_one_vllm_find_the_same_keeper_and_those_of_others_do_not() -> None:
    own, named = read_settings({"dram_bytes": 1}, 1), read_settings({"socket": "/run/keeper"}, 1)

    assert socket_of(own, "one") == socket_of(own, "one") != socket_of(own, "two")
    assert socket_of(named, "one") == Path("/run/keeper")
