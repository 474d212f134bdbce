"""Blocks of one source in other tiers and groups of layers than the one that is followed, the long way.

    followed          called        ours                of the first group that keeps all tokens, in hbm
    any other part    called XOR s  ours XOR s          s stands for tier and group, see `kv.groups`

So one table of names and one holder in the index serve all parts: a copy there is never taken for one elsewhere. What
an engine keeps in its host's memory it often tells without tokens: that is known by the engine's name, or not at all.

What it does with payloads, kernels do too (`control.naming`), with the same results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import gcd

import numpy as np

from jevons.base.compiled import Ints
from jevons.base.ids import BlockHash
from jevons.control.naming import MOST_GROUPS
from jevons.facts.block import Tier
from jevons.facts.event import IN_DRAM, SLIDING, BlocksRemoved, BlocksStored, EngineHash
from jevons.kv.engine_names import EngineNames, number_of
from jevons.kv.groups import FULL, TIERS, group_part, part_of, salt_of, window_blocks
from jevons.kv.hashing import chain
from jevons.kv.index import Holding

FULL_KINDS = (None, "full_attention", "mla_attention", "sink_full_attention")  # groups that keep all tokens
DRAM_PART = part_of(Tier.DRAM, 0)
Told = tuple[int, int, str | None, int | None]
"""A group that is told of: its number, tokens of a block, its kind, its window."""


class Beside:
    """What one source holds beside the followed group in hbm.

    Args:
        names: what the source calls its blocks.
        on_first: told when it is the first time that it holds anything there.

    Attributes:
        windows: of each group but the one that is followed, by the engine's number: blocks that it looks back to; FULL.
        chunk_blocks: that it keeps in its host's memory as one; 0: not known yet.
    """

    def __init__(self, names: EngineNames, holding: Holding, on_first: Callable[[], None] | None) -> None:
        self._names = names
        self._holding = holding
        self._on_first = on_first
        self.windows: dict[int, int] = {}
        self.chunk_blocks = 0

    @property
    def in_dram(self) -> int:
        """Blocks."""
        return int(self._names.hub.number("in_dram"))

    @property
    def in_groups(self) -> int:
        """Blocks, of each group but the one that is followed."""
        return int(self._names.hub.number("in_groups"))

    def tell_groups(self, told: Iterable[Told]) -> None:
        """A batch tells of these groups in hbm, in this order."""
        hub, several = self._names.hub, [one for one in told if 0 <= one[0] < MOST_GROUPS and one[2] is not None]
        for group, _, kind, _ in several:
            if hub.number("group") < 0 and kind in FULL_KINDS:
                hub.set("group", group)
        for group, size, kind, window in several:
            is_known = kind in FULL_KINDS or (kind == SLIDING and (window or 0) > 0 and size > 0)
            if not is_known or hub.number("groups") >> group & 1:
                continue
            hub.set("groups", int(hub.number("groups")) | 1 << group)
            if group != hub.number("group"):
                self.windows[group] = FULL if kind in FULL_KINDS else window_blocks(window or 0, size)
                self._begin()

    def tell_dram(self) -> None:
        """A batch tells of blocks in dram."""
        if not self._names.hub.number("offloads"):
            self._names.hub.set("offloads", 1)
            self._begin()

    def loadable(self, names: Ints, depth: int) -> int:
        """Blocks of a prompt after the first `depth` that the engine would load from its host's memory.

        vLLM keeps chunks of several blocks there if it is told to, and tells of each its last block alone, not of how
        many. So all that is known there of any prompt stands at multiples of that; what was seen so far may make it too
        large, until more is seen. vLLM loads whole chunks, and nothing where less than one is missing.

        Of a model with sliding windows each group must have its own there, and what reaches back before `depth` too
        counts for nothing. With chunks of several blocks besides nothing is expected to be loaded.
        """
        if self.chunk_blocks == 1:
            return self._holding.reach(names[depth:], {0: FULL, **_by_number(self.windows)}, Tier.DRAM)
        ends = self._holding.held(names, Tier.DRAM) + 1
        self.chunk_blocks = chunk = gcd(self.chunk_blocks, *ends.tolist())
        if chunk == 1:
            return self.loadable(names, depth)
        if not chunk or self.windows:
            return 0
        known, end = set(ends.tolist()), depth // chunk * chunk
        while end + chunk in known:
            end += chunk
        return end - depth if end - depth >= chunk else 0

    def recall(self, windows: dict[int, int], in_dram: int, in_groups: int) -> None:
        """This is what was told of before; what is held is among the names."""
        self.clear()
        hub = self._names.hub
        for group in windows:
            hub.set("groups", int(hub.number("groups")) | 1 << group)
        hub.set("in_groups", in_groups)
        hub.set("in_dram", in_dram)
        self.windows = dict(windows)
        if windows:
            self._begin()
        if in_dram:
            self.tell_dram()

    def clear(self) -> None:
        """It holds nothing, and of what groups it has nothing is known."""
        self.windows = {}
        for number in ("groups", "in_dram", "in_groups"):
            self._names.hub.set(number, 0)

    def part(self, event: BlocksStored | BlocksRemoved) -> int:
        """Which tier and group an event tells of, as in `kv.groups`; 0: the followed one, or one not kept apart."""
        hub = self._names.hub
        followed = max(int(hub.number("group")), 0)
        tier = Tier.DRAM if event.medium in IN_DRAM else Tier.HBM
        if event.group == followed:
            keeps_all = isinstance(event, BlocksRemoved) or event.kind in FULL_KINDS
            return DRAM_PART if tier is Tier.DRAM and keeps_all else 0
        is_apart = event.medium in (None, "GPU", *IN_DRAM) and 0 <= event.group < MOST_GROUPS
        return group_part(event.group, tier) if is_apart and hub.number("groups") >> event.group & 1 else 0

    def known_as(self, called: EngineHash, part: int = 0) -> BlockHash | None:
        """What we call a block in the followed group in hbm: one that is known there, in dram or in `part`."""
        for there in (0, DRAM_PART, part):
            salt = int(salt_of(there))
            ours = self._names.get(number_of(called) ^ salt)
            if ours is not None:
                return _salted(ours, salt)
        return None

    def stored(
        self, event: BlocksStored, part: int, parent: BlockHash | None, extra: list[bytes] | None
    ) -> Counter[str]:
        """Blocks are stored in a part. Returns what became of them.

        Args:
            parent: what we call the block before them, or the root; None: not known.
        """
        size, salt, kept = event.block_size, int(salt_of(part)), []
        are_told = 0 < size == self._names.hub.number("size") and len(event.tokens) == len(event.hashes) * size
        are_told &= event.extra is None or len(event.extra) == len(event.hashes)
        are_told &= all(0 <= token < 1 << 32 for token in event.tokens)
        for block, called in enumerate(event.hashes):
            ours = self.known_as(called, part)
            if ours is None and parent is not None and are_told:
                tokens, more = event.tokens[block * size : (block + 1) * size], extra and extra[block : block + 1]
                [ours] = chain(tokens, size, parent, more)
            parent = ours
            if ours is not None:
                self._put(number_of(called) ^ salt, _salted(ours, salt), part)
                kept.append(_salted(ours, salt))
        self._holding.store(kept)
        return Counter({"stored_beside": len(kept), _unkept(part): len(event.hashes) - len(kept)})

    def removed(self, event: BlocksRemoved, part: int) -> Counter[str]:
        """Blocks are gone from a part. Returns what became of them."""
        salt, gone = int(salt_of(part)), []
        for called in event.hashes:
            ours = self._names.take(number_of(called) ^ salt)
            if ours is not None:
                gone.append(ours)
                self._count(part, -(self._names.get(number_of(called) ^ salt) is None))
        self._holding.remove(gone)
        return Counter({"removed_beside": len(gone), _unkept(part): len(event.hashes) - len(gone)})

    def _put(self, called: int, ours: BlockHash, part: int) -> None:
        self._count(part, self._names.get(called) is None)
        self._names.put(called, ours)

    def _count(self, part: int, change: int) -> None:
        number = "in_dram" if part == DRAM_PART else "in_groups"
        self._names.hub.set(number, int(self._names.hub.number(number)) + change)

    def _begin(self) -> None:
        if self._on_first is not None:
            self._on_first()


def reached(holding: Holding, windows: dict[int, int], names: Ints) -> int:
    """Leading blocks of `names`, all held in the followed group, after which the engine can go on by its other groups:
    vLLM takes the longest prefix that every group has all of, or of which a sliding window finds what it looks back to.
    """
    return holding.reach(names, _by_number(windows))


def _by_number(windows: dict[int, int]) -> dict[int, int]:
    """By our number of each group, see `kv.groups`."""
    return {group + 1: blocks for group, blocks in windows.items()}


def promised(names: Ints, windows: dict[int, int]) -> Ints:
    """What is to be computed of blocks, in all groups."""
    return np.concatenate([names, *(names ^ int(salt_of(group_part(group))) for group in windows)])


def _unkept(part: int) -> str:
    return "ignored_tier" if part % TIERS == DRAM_PART else "ignored_group"


def _salted(ours: BlockHash, salt: int) -> BlockHash:
    if not salt:
        return ours
    first, second = np.frombuffer(ours, np.int64)
    return BlockHash(np.array([first, second ^ salt], np.int64).tobytes())
