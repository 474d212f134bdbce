"""An engine and the keeper of its node's tiers, as real processes: what comes back is what was saved, or nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.processes import until

from jevons.base.ids import BlockHash, BlockId
from jevons.facts.block import Tier
from jevons.facts.move import Answer, Arrived, Bring, Cancel, Computed, Found, Look, Missed, Over, Save, Written
from jevons.store.arena import Arena
from jevons.store.node import ALL, Introduction, Node, Page
from jevons.wire.channel import Failed, KeeperConfig, Ready

PAGE, LAYERS = 8192, 4
MARK = b"f" * 16
WAIT_S = 10.0


class Keeper:
    """A keeper process of the test's own."""

    def __init__(self, config: KeeperConfig) -> None:
        self.config = config
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jevons.serve.keeper"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(config) + b"\n")
        self.process.stdin.flush()
        self.first = msgspec.json.decode(self.process.stdout.readline(), type=Ready | Failed)

    def stop(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(WAIT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Memory:
    """An engine's pool: 64 places of a page."""

    def __init__(self) -> None:
        self.pages = np.zeros((64, PAGE), np.uint8)
        self.copied: list[slice] = []  # layers, one for each call
        self.arena: Arena | None = None

    @property
    def reached(self) -> int:
        """Layers copied out so far."""
        return max((LAYERS if layers.stop is None else layers.stop for layers in list(self.copied)), default=0)

    def attach(self, arena: Arena) -> None:
        self.arena = arena

    def copy_out(self, pages: Sequence[Page], layers: slice = ALL) -> None:
        assert self.arena is not None
        for (place,), offset in pages:
            page = np.frombuffer(self.arena.page(offset, PAGE), np.uint8).reshape(LAYERS, -1)
            page[layers] = self.pages[place].reshape(LAYERS, -1)[layers]
        self.copied.append(layers)

    def copy_in(self, pages: Sequence[Page]) -> None:
        assert self.arena is not None
        for (place,), offset in pages:
            self.pages[place] = np.frombuffer(self.arena.page(offset, PAGE), np.uint8)


class Engine:
    """A node and a pool, asked and answered one thing at a time."""

    def __init__(self, socket: str, mark: bytes = MARK) -> None:
        self.memory = Memory()
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.node = Node(Path(socket), Introduction("test", mark, PAGE), self.memory, self.answers.put)
        self._id = 0
        until(lambda: self.node.is_attached, WAIT_S, "attached to the keeper")

    def save(self, first: int, count: int, salt: str = "") -> int:
        """Save pages full of their own number. Returns how many were refused."""
        names, places = (
            [name(n) for n in range(first, first + count)],
            [BlockId(n % 64) for n in range(first, first + count)],
        )
        for place, number in zip(places, range(first, first + count), strict=True):
            self.memory.pages[place] = number % 251
        self._id += 1
        self.node.ask(Save(self._id, names, places, [n * 16 for n in range(count)], salt))
        return self.over().refused

    def save_ahead(self, first: int, count: int) -> int:
        """Save places in which nothing is computed yet. Returns the ask."""
        self._id += 1
        places = [BlockId(n % 64) for n in range(first, first + count)]
        self.memory.pages[places] = 255
        names = [name(n) for n in range(first, first + count)]
        self.node.ask(Save(self._id, names, places, [0] * count, "", is_ahead=True))
        return self._id

    def compute(self, first: int, count: int, layers: range) -> None:
        """A step goes on by these layers of pages full of their own number."""
        for number in range(first, first + count):
            page = self.memory.pages[number % 64].reshape(LAYERS, -1)
            page[layers.start : layers.stop] = number % 251
        self.node.ask(Written(layers.stop, LAYERS))

    def has_copied(self, layers: int) -> bool:
        return self.memory.reached >= layers

    def over(self) -> Over:
        over = self.answers.get(timeout=WAIT_S)
        assert isinstance(over, Over)
        return over

    def look(self, first: int, count: int) -> list[Tier | None]:
        self._id += 1
        self.node.ask(Look(self._id, [name(n) for n in range(first, first + count)]))
        found = self.answers.get(timeout=WAIT_S)
        assert isinstance(found, Found)
        return found.tiers

    def bring(self, first: int, count: int) -> dict[int, str]:
        """Bring blocks into a cleared pool. Returns what came of each: its tier, or the reason why not."""
        self.memory.pages[:] = 255
        self._id += 1
        places = [BlockId((n + 7) % 64) for n in range(first, first + count)]
        self.node.ask(Bring(self._id, [name(n) for n in range(first, first + count)], places))
        result: dict[int, str] = {}
        while not isinstance(answer := self.answers.get(timeout=WAIT_S), Over):
            match answer:
                case Arrived(_, blocks):
                    result |= {first + index: str(tier) for index, tier in blocks}
                case Missed(_, lost):
                    result |= {first + index: reason for index, reason in lost}
        for number, what in result.items():
            expected = number % 251 if what in list(Tier) else 255
            assert (self.memory.pages[(number + 7) % 64] == expected).all()
        return result


def name(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "big"))


Start = Callable[..., Keeper]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Keeper] = []

    def start(**more: object) -> Keeper:
        values: dict[str, object] = {"socket": str(tmp_path / "k"), "dram_bytes": 64 * PAGE, **more}
        keeper = Keeper(msgspec.convert(values, KeeperConfig))
        started.append(keeper)
        return keeper

    yield start
    for keeper in started:
        if keeper.process.poll() is None:
            keeper.stop()


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(keeper: Keeper, mark: bytes = MARK) -> Engine:
        made.append(Engine(keeper.config.socket, mark))
        return made[-1]

    yield make
    for each in made:
        each.node.close()


Make = Callable[..., Engine]


def test_what_one_engine_saves_another_brings(start: Start, engine: Make) -> None:
    keeper = start()
    a, b = engine(keeper), engine(keeper)
    assert a.save(0, 20) == 0

    assert b.look(18, 4) == [Tier.DRAM, Tier.DRAM, None, None]
    assert b.bring(18, 4) == {18: "dram", 19: "dram", 20: "missing", 21: "missing"}


def test_blocks_of_another_model_are_never_found(start: Start, engine: Make) -> None:
    keeper = start()
    engine(keeper).save(0, 4)

    assert engine(keeper, b"g" * 16).look(0, 4) == [None] * 4


def test_a_page_that_changed_in_the_arena_is_not_served_and_counted(start: Start, engine: Make) -> None:
    keeper = start()
    a = engine(keeper)
    a.save(0, 3)
    assert a.memory.arena is not None
    whole = bytes(a.memory.arena.memory)
    at = whole.index(bytes([1]) * PAGE)
    a.memory.arena.memory[at + 100] ^= 4

    assert a.bring(0, 3) == {0: "dram", 1: "corrupt", 2: "dram"}
    assert a.look(0, 3) == [Tier.DRAM, None, Tier.DRAM]
    assert a.node.counts["corrupt"] == 1


def test_when_the_keeper_dies_what_is_outstanding_ends_and_a_new_one_is_used(start: Start, engine: Make) -> None:
    keeper = start()
    a = engine(keeper)
    a.save(0, 3)
    os.kill(keeper.process.pid, signal.SIGSTOP)
    a.node.ask(Look(1_000, [name(0)]))
    keeper.stop()

    assert a.answers.get(timeout=WAIT_S) == Found(1_000, [None], {})
    assert a.bring(0, 2) == {0: "gone", 1: "gone"}
    start()
    until(lambda: a.node.is_attached, WAIT_S, "attached to the new keeper")
    assert a.look(0, 1) == [None]
    assert a.save(0, 3) == 0


def test_what_is_cancelled_is_over_though_the_keeper_hangs(start: Start, engine: Make) -> None:
    keeper = start()
    a = engine(keeper)
    a.save(0, 3)
    os.kill(keeper.process.pid, signal.SIGSTOP)
    try:
        a.node.ask(Bring(1_000, [name(0)], [BlockId(0)]))
        a.node.ask(Cancel(1_000))
        assert a.answers.get(timeout=WAIT_S) == Missed(1_000, [(0, "cancelled")])
        assert a.answers.get(timeout=WAIT_S) == Over(1_000)
    finally:
        os.kill(keeper.process.pid, signal.SIGCONT)
    until(lambda: a.look(0, 1) == [Tier.DRAM], WAIT_S, "the keeper goes on")


def test_layers_move_as_they_are_computed_and_nobody_reads_them_before_the_step_is_booked(
    start: Start, engine: Make
) -> None:
    keeper = start()
    a, b = engine(keeper), engine(keeper)
    id = a.save_ahead(0, 3)
    for number in range(LAYERS):
        a.compute(0, 3, range(number, number + 1))
        until(partial(a.has_copied, number + 1), WAIT_S, "the layer is copied")
        assert b.look(0, 3) == [None] * 3
    a.node.ask(Computed(id))

    assert a.over() == Over(id)
    assert b.bring(0, 3) == dict.fromkeys(range(3), "dram")
    assert len(a.memory.copied) == LAYERS


def test_places_that_are_told_in_mid_step_are_filled_with_all_layers_so_far(start: Start, engine: Make) -> None:
    keeper = start()
    a = engine(keeper)
    os.kill(keeper.process.pid, signal.SIGSTOP)
    try:
        id = a.save_ahead(0, 3)
        a.compute(0, 3, range(2))
    finally:
        os.kill(keeper.process.pid, signal.SIGCONT)
    until(partial(a.has_copied, 2), WAIT_S, "the places came")
    a.compute(0, 3, range(2, LAYERS))
    a.node.ask(Computed(id))

    assert a.over() == Over(id)
    assert a.bring(0, 3) == dict.fromkeys(range(3), "dram")
    assert a.memory.copied == [slice(0, 2), slice(2, None)]


def test_places_that_are_told_after_the_step_are_filled_at_once(start: Start, engine: Make) -> None:
    keeper = start()
    a = engine(keeper)
    os.kill(keeper.process.pid, signal.SIGSTOP)
    try:
        id = a.save_ahead(0, 3)
        a.compute(0, 3, range(LAYERS))
        a.node.ask(Computed(id))
        late = a.save_ahead(3, 2)  # the next step's
        a.compute(3, 2, range(1))
    finally:
        os.kill(keeper.process.pid, signal.SIGCONT)

    assert a.over() == Over(id)
    a.node.ask(Cancel(late))
    assert a.over() == Over(late, refused=2)
    assert a.bring(0, 5) == {0: "dram", 1: "dram", 2: "dram", 3: "missing", 4: "missing"}


def test_an_engine_that_tells_of_no_layer_has_all_copied_once_the_step_is_booked(start: Start, engine: Make) -> None:
    a = engine(start())
    id = a.save_ahead(0, 3)
    a.memory.pages[:3] = np.arange(3)[:, None]
    a.node.ask(Computed(id))

    assert a.over() == Over(id)
    assert a.bring(0, 3) == dict.fromkeys(range(3), "dram")
    assert a.memory.copied == [slice(0, None)]


@pytest.mark.parametrize("layers", [0, 2, LAYERS])
def test_a_step_that_is_given_up_publishes_nothing_and_keeps_no_place(start: Start, engine: Make, layers: int) -> None:
    keeper = start(dram_bytes=8 * PAGE)
    a, b = engine(keeper), engine(keeper)
    for _ in range(3):
        id = a.save_ahead(0, 8)
        if layers:
            a.compute(0, 8, range(layers))
            until(partial(a.has_copied, layers), WAIT_S, "the layers are copied")
        a.node.ask(Cancel(id))
        a.node.ask(Computed(id))  # comes too late, if it ever comes
        assert a.over() == Over(id, refused=8)
        assert a.look(0, 8) == [None] * 8  # the keeper has heard it, before what another one asks it
        assert b.bring(0, 8) == dict.fromkeys(range(8), "missing")
        a.memory.copied.clear()

    assert a.save(100, 8) == 0  # every place can be had
    assert b.bring(100, 8) == dict.fromkeys(range(100, 108), "dram")


def test_a_keeper_lost_in_mid_step_ends_the_save_and_the_next_one_knows_nothing_of_it(
    start: Start, engine: Make
) -> None:
    keeper = start()
    a = engine(keeper)
    id = a.save_ahead(0, 3)
    a.compute(0, 3, range(2))
    until(partial(a.has_copied, 2), WAIT_S, "two layers are copied")
    keeper.stop()
    assert a.over() == Over(id, refused=3)
    start()
    until(lambda: a.node.is_attached, WAIT_S, "attached to the new keeper")
    a.compute(0, 3, range(2, LAYERS))
    a.node.ask(Computed(id))

    assert a.bring(0, 3) == dict.fromkeys(range(3), "missing")
    assert a.save(0, 3) == 0


def test_pages_that_the_tiers_hold_are_refused_ahead_and_the_others_filled(start: Start, engine: Make) -> None:
    a = engine(start())
    a.save(1, 2)
    id = a.save_ahead(0, 4)
    a.compute(0, 4, range(LAYERS))
    a.node.ask(Computed(id))

    assert a.over() == Over(id, refused=2)
    assert a.bring(0, 4) == dict.fromkeys(range(4), "dram")


def test_an_engine_that_dies_leaves_no_lease_and_no_memory_behind(start: Start, engine: Make) -> None:
    keeper = start(dram_bytes=8 * PAGE)
    a = engine(keeper)
    for _ in range(30):
        b = Engine(keeper.config.socket)
        b.save(0, 8)
        b.node.ask(Bring(1_000, [name(n) for n in range(8)], [BlockId(n) for n in range(8)]))
        b.node.close()

    numbers = itertools.count(100, 8)
    until(lambda: a.save(next(numbers), 8) == 0, WAIT_S, "every place can be had")


def save_on_disk(engine: Engine, count: int, folder: Path) -> None:
    """More than the arena holds, each written before the next: what a disk is too slow for is not written at all."""

    def are_written(blocks: int) -> bool:
        return sum(path.stat().st_size for path in folder.glob("*.headers")) == 128 * blocks

    for number in range(count):
        engine.save(number, 1)
        until(partial(are_written, number + 1), WAIT_S, "on the disk")


def test_a_prompt_larger_than_the_arena_comes_back_from_the_disk_whole(
    start: Start, engine: Make, tmp_path: Path
) -> None:
    one = engine(start(dram_bytes=8 * PAGE, disk_path=str(tmp_path / "disk"), disk_bytes=200 * PAGE))

    save_on_disk(one, 24, tmp_path / "disk")

    assert set(one.bring(0, 24).values()) <= {Tier.DRAM, Tier.DISK}


def test_an_arena_too_small_for_a_block_refuses_the_engine(start: Start) -> None:
    keeper = start(dram_bytes=PAGE // 2)
    node = Node(Path(keeper.config.socket), Introduction("test", MARK, PAGE), Memory(), lambda answer: None)
    until(lambda: node.counts["keeper_lost"] > 0, WAIT_S, "it is told")
    node.close()


def test_an_engine_with_more_than_a_thousand_files_open_has_its_tiers(start: Start, engine: Make) -> None:
    keeper = start()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(2048, limits[1])), limits[1]))
    with contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1024):
            opened.enter_context(Path(os.devnull).open())
        a = engine(keeper)
        assert a.save(0, 3) == 0
        assert a.bring(0, 3) == {0: "dram", 1: "dram", 2: "dram"}


SECRET = "a secret of all nodes"


def two_nodes(start: Start, tmp_path: Path, secret: str = SECRET, **of_first: object) -> tuple[Keeper, Keeper]:
    """Keepers of two nodes, the second of which fetches from the first."""
    first = start(listen="127.0.0.1:0", peer_secret=SECRET, **of_first)
    assert isinstance(first.first, Ready)
    address = f"127.0.0.1:{first.first.port}"
    return first, start(socket=str(tmp_path / "other"), peers=[address], peer_secret=secret)


def test_what_an_engine_of_another_node_saved_is_brought_over_a_link(
    start: Start, engine: Make, tmp_path: Path
) -> None:
    here, there = two_nodes(start, tmp_path)
    a, b = engine(here), engine(there)
    a.save(0, 20)
    until(lambda: b.look(0, 20) == [Tier.PEER] * 20, WAIT_S, "the peer's blocks are known")

    assert b.bring(0, 22) == {n: "peer" if n < 20 else "missing" for n in range(22)}
    assert b.look(0, 20) == [Tier.DRAM] * 20


def test_a_page_that_changed_at_the_peer_is_not_served(start: Start, engine: Make, tmp_path: Path) -> None:
    here, there = two_nodes(start, tmp_path)
    a, b = engine(here), engine(there)
    a.save(0, 3)
    until(lambda: b.look(0, 3) == [Tier.PEER] * 3, WAIT_S, "the peer's blocks are known")
    assert a.memory.arena is not None
    at = bytes(a.memory.arena.memory).index(bytes([1]) * PAGE)
    a.memory.arena.memory[at + 100] ^= 4

    assert b.bring(0, 3) == {0: "peer", 1: "corrupt", 2: "peer"}


def test_more_than_a_peer_has_in_memory_comes_from_its_disk(start: Start, engine: Make, tmp_path: Path) -> None:
    disk: dict[str, Any] = {"disk_path": str(tmp_path / "disk"), "disk_bytes": 200 * PAGE}
    here, there = two_nodes(start, tmp_path, dram_bytes=8 * PAGE, **disk)
    one, other = engine(here), engine(there)
    save_on_disk(one, 24, tmp_path / "disk")
    until(lambda: other.look(0, 24) == [Tier.PEER] * 24, WAIT_S, "the peer's blocks are known")

    assert other.bring(0, 24) == dict.fromkeys(range(24), "peer")


def test_a_peer_that_dies_costs_a_reason_and_one_that_returns_is_used_again(
    start: Start, engine: Make, tmp_path: Path
) -> None:
    here, there = two_nodes(start, tmp_path)
    a, b = engine(here), engine(there)
    a.save(0, 3)
    until(lambda: b.look(0, 3) == [Tier.PEER] * 3, WAIT_S, "the peer's blocks are known")
    os.kill(here.process.pid, signal.SIGSTOP)
    b.node.ask(Bring(1_000, [name(0)], [BlockId(0)]))
    # Killed before the keeper asks it, the peer's blocks would be "missing", rightly. Each of these answers takes one
    # more turn of the keeper's loop at least, and the third turn after it hears of a fetch sends that to the peer.
    for _ in range(8):
        assert b.look(0, 3) == [Tier.PEER] * 3
    here.stop()
    answer = b.answers.get(timeout=WAIT_S)

    assert isinstance(answer, Missed)
    assert answer.blocks[0][1] in ("gone", "timeout")
    assert b.answers.get(timeout=WAIT_S) == Over(1_000)
    until(lambda: b.look(0, 3) == [None] * 3, WAIT_S, "the peer's blocks are forgotten")


def test_who_does_not_know_the_secret_learns_nothing(start: Start, engine: Make, tmp_path: Path) -> None:
    here, there = two_nodes(start, tmp_path, secret="another secret")
    a, b = engine(here), engine(there)
    a.save(0, 3)

    assert b.bring(0, 3) == {0: "missing", 1: "missing", 2: "missing"}
    assert b.look(0, 3) == [None] * 3


def test_a_peer_that_asks_before_any_engine_has_come_is_answered(start: Start, engine: Make, tmp_path: Path) -> None:
    disk = {"disk_path": str(tmp_path / "disk"), "disk_bytes": 64 << 20}
    first = start(**disk)
    engine(first).save(0, 3)
    until(lambda: [p.stat().st_size for p in tmp_path.glob("disk/*.headers")] == [3 * 128], WAIT_S, "all is on disk")
    first.stop()
    here = start(socket=str(tmp_path / "again"), listen="127.0.0.1:0", peer_secret=SECRET, **disk)
    assert isinstance(here.first, Ready)
    there = start(socket=str(tmp_path / "other"), peers=[f"127.0.0.1:{here.first.port}"], peer_secret=SECRET)
    b = engine(there)
    until(lambda: b.look(0, 3) == [Tier.PEER] * 3, WAIT_S, "the peer's blocks are known")

    assert b.bring(0, 3) == {0: "full", 1: "full", 2: "full"}
    engine(here)
    assert b.bring(0, 3) == {0: "peer", 1: "peer", 2: "peer"}
