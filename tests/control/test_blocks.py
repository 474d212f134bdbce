"""The tiers' state: what is lent stays in place, what is written below can be given up, and nothing leaks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import ConfigError
from jevons.base.ids import BlockHash
from jevons.control.blocks import Blocks
from jevons.control.copies import Change, LeaseId, Move, Offer
from jevons.facts.block import BlockKey, BlockMeta, Tier

PAGE = 4096
A, B, C, D = (LeaseId(client, 1) for client in range(4))


def key(number: int) -> BlockKey:
    return BlockKey(b"f" * 16, BlockHash(number.to_bytes(16, "big")))


def blocks(pages: int = 4, *below: Tier) -> Blocks:
    made = Blocks(pages * PAGE, below)
    made.welcome(PAGE)
    return made


def reserve(b: Blocks, lease: LeaseId, *numbers: int) -> list[int]:
    return b.reserve(lease, [(key(n), BlockMeta(PAGE, 0)) for n in numbers], 0.0)


def fill(b: Blocks, *numbers: int, lease: LeaseId = A) -> None:
    for number, offset in zip(numbers, reserve(b, lease, *numbers), strict=True):
        assert offset >= 0
        b.filled(lease, key(number), number, 0.0)


def fetch(b: Blocks, lease: LeaseId, *numbers: int) -> list[Offer]:
    b.fetch(lease, [key(n) for n in numbers], 0.0)
    return b.drain_offers()


def write_all(b: Blocks, tier: Tier) -> list[Move]:
    moves = b.take_writes(tier, 1 << 30)
    for move in moves:
        b.on_written(move, "")
    return moves


def test_a_block_is_there_once_it_is_filled_and_not_before() -> None:
    b = blocks()
    reserve(b, A, 1)
    assert b.tier(key(1)) is None

    b.filled(A, key(1), 77, 0.0)
    assert b.tier(key(1)) is Tier.DRAM
    offer = fetch(b, B, 1)[0]
    assert offer.meta is not None
    assert (offer.meta.checksum, offer.tier) == (77, Tier.DRAM)


def test_a_block_that_is_there_is_not_wanted_again() -> None:
    b = blocks()
    fill(b, 1)

    assert reserve(b, B, 1) == [-1]


def test_who_fetches_what_another_is_filling_gets_it_when_it_is_filled() -> None:
    b = blocks()
    reserve(b, A, 1)
    assert fetch(b, B, 1) == []

    b.filled(A, key(1), 5, 0.0)
    assert [(o.lease, o.reason) for o in b.drain_offers()] == [(B, "")]


def test_who_waits_for_a_filler_that_leaves_is_turned_away() -> None:
    b = blocks()
    reserve(b, A, 1)
    fetch(b, B, 1)

    b.release_client(A.client, 0.0)
    assert [(o.lease, o.reason) for o in b.drain_offers()] == [(B, "cancelled")]
    assert (b.leases, b.used_bytes) == (0, 0)


def test_a_full_arena_gives_up_the_least_recently_used() -> None:
    b = blocks(2)
    fill(b, 1, 2)
    fetch(b, B, 1)
    b.release(B, 0.0)
    fill(b, 3)

    assert [b.tier(key(n)) for n in (1, 2, 3)] == [Tier.DRAM, None, Tier.DRAM]


def test_what_is_lent_is_not_given_up() -> None:
    b = blocks(2)
    fill(b, 1, 2)
    fetch(b, B, 1, 2)

    assert reserve(b, A, 3) == [-1]
    b.took(B, [key(2)])
    assert reserve(b, A, 4)[0] >= 0
    assert b.tier(key(1)) is Tier.DRAM


def test_a_chain_that_was_taken_bit_by_bit_loses_its_tail_before_its_head() -> None:
    b = blocks(3)
    fill(b, 1, 2, 3)
    fetch(b, B, 1, 2, 3)
    b.took(B, [key(1)])
    b.took(B, [key(2)])
    b.release(B, 0.0)
    fill(b, 5)

    assert [b.tier(key(n)) for n in (1, 2, 3)] == [Tier.DRAM, Tier.DRAM, None]


def test_what_is_kept_for_somebody_is_not_given_up_until_then() -> None:
    b = blocks(4)
    fill(b, 1, 2, 3, 4)
    b.keep([key(1)], until_s=10.0, now_s=0.0)
    for number in range(5, 12):
        b.reserve(A, [(key(number), BlockMeta(PAGE, 0))], 5.0)
        b.filled(A, key(number), 0, 5.0)
    assert b.tier(key(1)) is Tier.DRAM

    for number in range(12, 20):
        b.reserve(A, [(key(number), BlockMeta(PAGE, 0))], 11.0)
        b.filled(A, key(number), 0, 11.0)
    assert b.tier(key(1)) is None


def test_wishes_beyond_a_quarter_of_the_arena_are_refused_and_counted() -> None:
    b = blocks(4)
    fill(b, 1, 2)
    b.keep([key(1), key(2)], until_s=10.0, now_s=0.0)

    assert b.counts["keep_refused"] == 1


def test_what_waits_to_be_written_below_stays_until_it_is() -> None:
    b = blocks(4, Tier.DISK)
    fill(b, 1, 2)
    moves = b.take_writes(Tier.DISK, 1 << 30)
    fill(b, 3, 4)
    assert [m.key for m in moves] == [key(1), key(2)]
    assert reserve(b, A, 5)[0] >= 0  # 3 or 4 went: they do not wait, half of the arena did already

    for move in moves:
        b.on_written(move, "")
    assert b.tier(key(1)) in (Tier.DRAM, Tier.DISK)
    assert b.counts["disk_write_backlog"] == 2


def test_a_block_on_disk_is_loaded_for_who_asks() -> None:
    b = blocks(2, Tier.DISK)
    fill(b, 1)
    write_all(b, Tier.DISK)
    fill(b, 2)
    write_all(b, Tier.DISK)
    fill(b, 3)
    assert b.tier(key(1)) is Tier.DISK

    assert fetch(b, B, 1) == []
    (move,) = b.take_loads(Tier.DISK, 4, 0.0)
    b.on_loaded(move, "", 0.0)
    (offer,) = b.drain_offers()
    assert (offer.lease, offer.offset, offer.tier) == (B, move.offset, Tier.DISK)


def test_loads_wait_for_a_place_and_go_on_when_a_lease_ends() -> None:
    b = blocks(2, Tier.DISK)
    b.found_below(Tier.DISK, [(key(n), BlockMeta(PAGE, n)) for n in range(5)])
    fetch(b, B, 0, 1, 2, 3)
    moves = b.take_loads(Tier.DISK, 8, 0.0)
    assert len(moves) == 2

    for move in moves:
        b.on_loaded(move, "", 0.0)
    assert b.take_loads(Tier.DISK, 8, 0.0) == []
    b.took(B, [key(0)])
    assert len(b.take_loads(Tier.DISK, 8, 0.0)) == 1


@pytest.mark.parametrize(("reason", "left"), [("corrupt", None), ("io", Tier.DISK), ("timeout", Tier.DISK)])
def test_a_load_that_fails_is_told_and_counted(reason: str, left: Tier | None) -> None:
    b = blocks(2, Tier.DISK)
    b.found_below(Tier.DISK, [(key(1), BlockMeta(PAGE, 0))])
    fetch(b, B, 1)
    (move,) = b.take_loads(Tier.DISK, 4, 0.0)
    b.on_loaded(move, reason, 0.0)

    assert [(o.lease, o.reason) for o in b.drain_offers()] == [(B, reason)]
    assert (b.counts[f"disk_read_{reason}"], b.tier(key(1)), b.used_bytes, b.leases) == (1, left, 0, 0)


@pytest.mark.parametrize("page_bytes", [None, PAGE])
def test_what_the_arena_has_no_place_for_is_told_at_once_and_costs_no_other_block(page_bytes: int | None) -> None:
    """A peer may ask for what is on disk before any engine has come here, or for larger blocks than those here have."""
    b = Blocks(4 * PAGE, [Tier.DISK])
    b.found_below(Tier.DISK, [(key(1), BlockMeta(5 * PAGE, 0))])
    if page_bytes is not None:
        b.welcome(page_bytes)
        fill(b, 2)
        write_all(b, Tier.DISK)

    assert [(o.lease, o.reason) for o in fetch(b, B, 1)] == [(B, "full")]
    assert b.take_loads(Tier.DISK, 4, 0.0) == []
    assert (b.counts["dram_read_full"], b.counts["dram_evicted"], b.leases, b.queued_bytes[Tier.DISK]) == (1, 0, 0, 0)


def test_a_load_nobody_waits_for_any_more_is_not_started() -> None:
    b = blocks(2, Tier.DISK)
    b.found_below(Tier.DISK, [(key(1), BlockMeta(PAGE, 0))])
    fetch(b, B, 1)
    b.release(B, 0.0)

    assert b.take_loads(Tier.DISK, 4, 0.0) == []
    assert (b.leases, b.queued_bytes[Tier.DISK]) == (0, 0)


def test_a_copy_found_corrupt_is_never_lent_again_and_its_place_is_free_when_its_readers_are_done() -> None:
    b = blocks(2)
    fill(b, 1)
    fetch(b, B, 1)
    b.corrupt([key(1)])

    assert b.tier(key(1)) is None
    assert fetch(b, C, 1)[0].reason == "missing"
    assert b.used_bytes == PAGE
    b.release(B, 0.0)
    assert b.used_bytes == 0


def test_watchers_hear_of_every_change() -> None:
    b = blocks(2, Tier.DISK)
    fill(b, 1)
    write_all(b, Tier.DISK)
    b.lost_below(Tier.DISK, [key(1)])

    assert b.drain_changes() == [
        Change(key(1), Tier.DRAM, True),
        Change(key(1), Tier.DISK, True),
        Change(key(1), Tier.DISK, False),
    ]
    assert b.held(b.keys()) == [Change(key(1), Tier.DRAM, True)]


def test_an_arena_that_cannot_hold_a_block_says_so() -> None:
    with pytest.raises(ConfigError, match="dram_bytes: must hold at least one block"):
        Blocks(PAGE).welcome(PAGE + 1)


class World:
    """Clients and movers that do anything at any time; the arena's content is checked whenever it is lent."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.blocks = blocks(self.draw.randrange(2, 7), Tier.DISK, Tier.REMOTE)
        self.arena: dict[int, BlockKey] = {}
        self.below: dict[Tier, set[BlockKey]] = {Tier.DISK: set(), Tier.REMOTE: set()}
        self.filling: list[tuple[LeaseId, BlockKey, int]] = []
        self.lent: list[Offer] = []
        self.outstanding: dict[tuple[LeaseId, BlockKey], int] = {}
        self.moves: list[tuple[str, Move]] = []
        self.next = 0

    def turn(self) -> None:
        self.draw.choice(
            [self.reserve, self.fill, self.fetch, self.took, self.release, self.take, self.finish, self.leave]
        )()
        self.look()

    def lease(self) -> LeaseId:
        self.next += 1
        return LeaseId(self.draw.randrange(3), self.next)

    def reserve(self) -> None:
        lease = self.lease()
        keys = [key(n) for n in {self.draw.randrange(10) for _ in range(3)}]
        for each, offset in zip(
            keys, self.blocks.reserve(lease, [(k, BlockMeta(PAGE, 0)) for k in keys], 0.0), strict=True
        ):
            if offset >= 0:
                self.filling.append((lease, each, offset))

    def fill(self) -> None:
        if self.filling:
            lease, each, offset = self.filling.pop(self.draw.randrange(len(self.filling)))
            self.arena[offset] = each
            self.blocks.filled(lease, each, 1, 0.0)

    def fetch(self) -> None:
        lease = self.lease()
        keys = [key(n) for n in {self.draw.randrange(10) for _ in range(3)}]
        for each in keys:
            self.outstanding[lease, each] = 1
        self.blocks.fetch(lease, keys, 0.0)

    def release(self) -> None:
        if self.outstanding:
            lease, _ = self.draw.choice(sorted(self.outstanding))
            self.end(lease)

    def took(self) -> None:
        if self.lent:
            offer = self.lent.pop(self.draw.randrange(len(self.lent)))
            self.blocks.took(offer.lease, [offer.key])

    def end(self, lease: LeaseId) -> None:
        self.look()
        self.blocks.release(lease, 0.0)
        self.lent = [o for o in self.lent if o.lease != lease]
        self.outstanding = {at: n for at, n in self.outstanding.items() if at[0] != lease}

    def leave(self) -> None:
        if self.draw.random() < 0.2:
            client = self.draw.randrange(3)
            self.look()
            self.blocks.release_client(client, 0.0)
            self.filling = [f for f in self.filling if f[0].client != client]
            self.lent = [o for o in self.lent if o.lease.client != client]
            self.outstanding = {at: n for at, n in self.outstanding.items() if at[0].client != client}
        elif self.draw.random() < 0.1:
            self.blocks.corrupt([key(self.draw.randrange(10))])

    def take(self) -> None:
        tier = self.draw.choice([Tier.DISK, Tier.REMOTE])
        self.moves += [("write", m) for m in self.blocks.take_writes(tier, PAGE * self.draw.randrange(1, 3))]
        self.moves += [("load", m) for m in self.blocks.take_loads(tier, self.draw.randrange(3), 0.0)]

    def finish(self) -> None:
        if not self.moves:
            return
        kind, move = self.moves.pop(self.draw.randrange(len(self.moves)))
        failed = self.draw.random() < 0.2
        if kind == "write":
            assert self.arena[move.offset] == move.key, "what is being written stays in place"
            if not failed:
                self.below[move.tier].add(move.key)
            self.blocks.on_written(move, "io" if failed else "")
        elif move.key not in self.below[move.tier]:
            self.blocks.on_loaded(move, "missing", 0.0)
        else:
            self.arena[move.offset] = move.key
            self.blocks.on_loaded(move, "io" if failed else "", 0.0)
        if self.draw.random() < 0.1:
            gone = self.draw.choice(sorted(self.below[move.tier]) or [key(0)])
            self.below[move.tier].discard(gone)
            self.blocks.lost_below(move.tier, [gone])

    def look(self) -> None:
        for offer in self.blocks.drain_offers():
            if offer.reason == "cancelled" and (offer.lease, offer.key) not in self.outstanding:
                continue  # its client left with who was filling it
            self.outstanding[offer.lease, offer.key] -= 1
            assert self.outstanding[offer.lease, offer.key] == 0, "a fetch answers each block once"
            if not offer.reason:
                self.lent.append(offer)
        for offer in self.lent:
            assert self.arena[offer.offset] == offer.key, "what is lent stays in place"

    def settle(self) -> None:
        for _ in range(100):
            while self.filling:
                self.fill()
            for tier in (Tier.DISK, Tier.REMOTE):
                self.moves += [("write", m) for m in self.blocks.take_writes(tier, 1 << 30)]
                self.moves += [("load", m) for m in self.blocks.take_loads(tier, 8, 0.0)]
            while self.moves:
                self.finish()
            self.look()
        for lease in {at[0] for at in self.outstanding}:
            self.end(lease)
        for tier in (Tier.DISK, Tier.REMOTE):
            assert self.blocks.take_loads(tier, 8, 0.0) == []


@given(seed=st.integers(0, 2**32))
def test_whatever_clients_and_movers_do_what_is_lent_is_what_was_asked_and_nothing_leaks(seed: int) -> None:
    world = World(seed)
    for _ in range(120):
        world.turn()
    world.settle()

    b = world.blocks
    assert (b.leases, b.queued_bytes.total(), b.waiting_bytes.total()) == (0, 0, 0)
    dram = sum(1 for c in b.held(b.keys()) if c.tier is Tier.DRAM)
    assert (b.used_bytes, b.held_blocks[Tier.DRAM]) == (dram * PAGE, dram)
    b.corrupt([key(n) for n in range(10)])
    assert b.used_bytes == 0
