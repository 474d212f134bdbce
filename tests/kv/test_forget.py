"""An index whose memory is short forgets what is stalest, and never tells of what nobody holds."""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import Ints
from jevons.kv import holders
from jevons.kv.index import PrefixIndex

MOST = 1 << 14  # the least limit there is


def chain(number: int, blocks: int) -> Ints:
    return np.random.default_rng(number).integers(1, 1 << 62, blocks)


def test_an_index_at_its_limit_forgets_what_was_stored_longest_ago() -> None:
    index = PrefixIndex(most=MOST)
    holdings = [index.holding(worker) for worker in range(4)]
    for number in range(48):
        holdings[number % 4].store_names(chain(number, 1_024))

    assert MOST - 1_024 <= len(index) <= MOST
    assert index.forgotten == 48 * 1_024 - len(index) == 48 * 1_024 - sum(map(len, holdings))
    assert [holdings[number % 4].depth_of(chain(number, 1_024)) for number in (45, 46, 47)] == [1_024] * 3
    assert sum(holdings[number % 4].depth_of(chain(number, 1_024)) for number in range(16)) < 4 * 1_024


def test_what_was_forgotten_is_unknown_when_it_is_removed_and_can_be_stored_again() -> None:
    index = PrefixIndex(most=MOST)
    holding, first = index.holding(0), chain(0, 1_024)
    holding.store_names(first)
    for number in range(1, 40):
        holding.store_names(chain(number, 1_024))

    kept = len(holding)
    unknown = holding.remove_names(first)
    assert unknown > 0
    assert len(holding) == kept - (1_024 - unknown)
    holding.store_names(first)
    assert holding.depth_of(first) == 1_024


def test_where_several_hold_a_block_the_first_to_have_got_it_is_forgotten() -> None:
    index = PrefixIndex(most=MOST)
    holdings, shared = [index.holding(worker) for worker in range(40)], chain(0, 1_024)
    for holding in holdings:
        holding.store_names(shared)

    assert index.forgotten > 0
    assert sum(map(len, holdings)) == 40 * 1_024 - index.forgotten <= MOST
    workers, depths = index.find(shared, 64)
    assert max(depths) <= 1_024
    assert dict(zip(workers.tolist(), depths.tolist(), strict=True))[39] == 1_024
    assert all(depth == holdings[worker].depth_of(shared) for worker, depth in zip(workers, depths, strict=True))


def test_what_is_promised_is_not_forgotten_and_not_refused() -> None:
    index = PrefixIndex(most=MOST)
    holding, promised = index.holding(0), chain(0, 3 * MOST)
    for at in range(0, len(promised), 1_024):
        part = promised[at : at + 1_024]
        index.make_room(len(part))
        holders.promise(index.hub.record[0], holding.holder, part)
    holding.store_names(chain(1, 64))

    assert holding.depth_of(promised) == len(promised)
    assert holding.depth_of(chain(1, 64)) == 64
    assert index.forgotten == 0
