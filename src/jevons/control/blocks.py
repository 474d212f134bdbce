"""The tiers of one node: which block lies where, who reads or writes it, and what may move next. No I/O.

    engine ──reserve──▶ being filled ──filled──▶ dram ◀──load── disk, remote
                                                  │ ▲
                            write (disk, remote) ◀┘ └─ fetch: a lease holds the copy in place until it is released

The arena (dram) is the only place engines read and write. Every block that arrives there is offered to the tiers below
at once and stays until it is written, so giving up its place later costs nothing. What wants to move is pulled by who
moves it (`take_writes`, `take_loads`), in batches as large as it likes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

import msgspec

from jevons.control.copies import Change, Copy, Known, Lease, LeaseId, Move, Offer
from jevons.facts.block import BlockKey, BlockMeta, Tier
from jevons.kv.slabs import Slabs
from jevons.policy.evict import Evictor
from jevons.policy.pins import Pins

LOWER = (Tier.DISK, Tier.PEER, Tier.REMOTE)
READ_ONLY = (Tier.PEER,)  # others fill it
# A tier that answers so does not hold the block any more.
GONE_FOR_GOOD = ("missing", "corrupt", "mismatch", "undecryptable")
# Share of the arena that may wait to be written below. What comes beyond it stays in dram alone.
WAITING_SHARE = 0.5
# Seconds to compute a block, until an engine with such blocks tells. GUESS: equal for all, so recency decides.
GUESS_WORTH_S = 0.05
# Share of it that users who said they will be back may keep.
KEPT_SHARE = 0.25


class Blocks:
    """The state of a node's tiers.

    Args:
        dram_bytes: size of the arena.
        below: the tiers there are below it.
    """

    def __init__(self, dram_bytes: int, below: Iterable[Tier] = ()) -> None:
        self.dram_bytes = dram_bytes
        self.below = tuple(tier for tier in LOWER if tier in set(below))
        self.counts: Counter[str] = Counter()
        self.waiting_bytes: Counter[Tier] = Counter()  # in the arena, to be written to a tier below
        self.queued_bytes: Counter[Tier] = Counter()  # asked of a tier below and not loaded yet
        self.held_blocks: Counter[Tier] = Counter()
        self._slabs: Slabs | None = None  # made for the first page size seen
        self._blocks: dict[BlockKey, Known] = {}
        self._leases: dict[LeaseId, Lease] = {}
        self._evictor: Evictor[BlockKey] = Evictor()
        self._pins: Pins[BlockKey] = Pins(int(KEPT_SHARE * dram_bytes))
        self._worth_s: dict[int, float] = {}  # by page size: seconds to compute one, as told last
        self._writes: dict[Tier, deque[tuple[BlockKey, Copy]]] = {tier: deque() for tier in self.below}
        self._loads: dict[Tier, deque[BlockKey]] = {tier: deque() for tier in self.below}
        self._writing: dict[tuple[Tier, int], Copy] = {}
        self._loading: dict[BlockKey, tuple[Tier, int]] = {}  # tier and size of what is asked for, until it is over
        self._offers: list[Offer] = []
        self._changes: list[Change] = []

    # Questions

    def tier(self, key: BlockKey) -> Tier | None:
        """The nearest tier that holds the block."""
        block = self._blocks.get(key)
        if block is None:
            return None
        if block.copy is not None and block.copy.filled:
            return Tier.DRAM
        return next((tier for tier in self.below if tier in block.below), None)

    def is_used(self, key: BlockKey) -> bool:
        """Whether it was fetched since it was last written: worth writing again."""
        block = self._blocks.get(key)
        return block is not None and block.used

    def keys(self) -> list[BlockKey]:
        """Every block of which something is known."""
        return list(self._blocks)

    def held(self, keys: Iterable[BlockKey]) -> list[Change]:
        """What tiers hold of these blocks now, for who starts to watch."""
        changes = []
        for key in keys:
            block = self._blocks.get(key)
            if block is not None and block.copy is not None and block.copy.filled:
                changes.append(Change(key, Tier.DRAM, True))
            changes += [Change(key, tier, True) for tier in (() if block is None else block.below)]
        return changes

    @property
    def leases(self) -> int:
        return len(self._leases)

    @property
    def used_bytes(self) -> int:
        """Of the arena; places being filled, read or written included."""
        return 0 if self._slabs is None else self._slabs.used_bytes

    # Engines

    def welcome(self, page_bytes: int) -> None:
        """An engine with pages of this size is about to use the arena.

        Raises:
            ConfigError: the arena cannot hold one.
        """
        if self._slabs is None:
            self._slabs = Slabs(self.dram_bytes, page_bytes)
        self._slabs.check(page_bytes)

    def is_worth(self, size_bytes: int, seconds: float) -> None:
        """Computing a block of this size takes so long."""
        self._worth_s[size_bytes] = seconds

    def reserve(self, lease: LeaseId, blocks: Sequence[tuple[BlockKey, BlockMeta]], now_s: float) -> list[int]:
        """Places for blocks an engine has computed: an offset each, -1 where it is not wanted (held, or no room).

        `filled` must follow for each place, or `release`.
        """
        return [self._reserve(lease, key, meta, now_s) for key, meta in blocks]

    def filled(self, lease: LeaseId, key: BlockKey, checksum: int, now_s: float) -> None:
        """A reserved place holds its block now."""
        holder = self._leases.get(lease)
        copy = holder.copies.get(key) if holder is not None else None
        if copy is None or copy.filled:
            return  # released meanwhile
        block = self._blocks[key]
        block.meta = copy.meta = msgspec.structs.replace(copy.meta, checksum=checksum)
        self._offer_below(key, copy)
        self._has_arrived(key, block, Tier.DRAM, now_s)
        self._end(lease, key)

    def fetch(self, lease: LeaseId, keys: Sequence[BlockKey], now_s: float) -> None:
        """An engine wants these blocks. Each gets one `Offer`, now or when it has been loaded.

        What is offered stays in place until `release`. A peer may ask before any engine has come here, or for larger
        blocks than those of the engines here: for these there is no place.
        """
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                self._offers.append(Offer(lease, key, reason="missing"))
            elif block.copy is not None and block.copy.filled:
                self._lend(lease, key, block, Tier.DRAM)
            elif self._slabs is None or not self._slabs.can_hold(block.meta.size_bytes):
                self.counts["dram_read_full"] += 1
                self._offers.append(Offer(lease, key, reason="full"))
            else:
                self._wait(lease, key, block)

    def took(self, lease: LeaseId, keys: Sequence[BlockKey]) -> None:
        """Of a fetch these are copied: what it still waits for may have their places."""
        holder = self._leases.get(lease)
        if holder is not None:
            holder.took += keys
            for key in keys:
                self._end(lease, key)

    def release(self, lease: LeaseId, now_s: float) -> None:
        """The lease is over.

        Its blocks, given first to last, count as used last to first: a chain loses its tail before its head.
        """
        holder = self._leases.get(lease)
        if holder is not None:
            for key in reversed([*holder.took, *holder.copies, *holder.waits]):
                block = self._blocks.get(key)
                if block is not None and block.copy is not None and block.copy.filled:
                    self._evictor.hit(key, now_s)
                self._end(lease, key)

    def release_client(self, client: int, now_s: float) -> None:
        """A client is gone, and all its leases."""
        for lease in [lease for lease in self._leases if lease.client == client]:
            self.release(lease, now_s)

    def keep(self, keys: Iterable[BlockKey], until_s: float, now_s: float) -> None:
        """Do not give up these blocks' places in the arena before then, as far as there is room for such wishes."""
        known = [key for key in keys if key in self._blocks]
        if known:
            size_bytes = self._blocks[known[0]].meta.size_bytes
            self.counts["keep_refused"] += len(known) - self._pins.keep(known, size_bytes, until_s, now_s)

    def corrupt(self, keys: Iterable[BlockKey]) -> None:
        """A reader found that these copies in the arena do not match: nobody reads them again."""
        for key in keys:
            self.counts["dram_read_corrupt"] += 1
            block = self._blocks.get(key)
            if block is not None and block.copy is not None and block.copy.filled:
                self._evictor.remove(key)
                self._drop_copy(key, block)

    # Movers

    def found_below(self, tier: Tier, blocks: Iterable[tuple[BlockKey, BlockMeta]]) -> None:
        """A tier below holds these (after it was opened or listed)."""
        for key, meta in blocks:
            self._set_below(key, self._block(key, meta), tier, held=True)

    def lost_below(self, tier: Tier, keys: Iterable[BlockKey]) -> None:
        """A tier below does not hold these any more."""
        for key in keys:
            block = self._blocks.get(key)
            if block is not None:
                self._set_below(key, block, tier, held=False)
                self._forget_if_nowhere(key, block)

    def take_writes(self, tier: Tier, limit_bytes: int) -> list[Move]:
        """Blocks to write to a tier below now: at least one, if any wait. `on_written` must follow for each."""
        moves: list[Move] = []
        queue, size_bytes = self._writes[tier], 0
        while queue and size_bytes < limit_bytes:
            key, copy = queue.popleft()
            if copy.condemned:
                self._write_over(tier, copy)
                continue
            self._writing[tier, copy.offset] = copy
            moves.append(Move(key, copy.meta, tier, copy.offset))
            size_bytes += copy.meta.size_bytes
        return moves

    def on_written(self, move: Move, reason: str) -> None:
        """A write is over: the tier holds the block, or does not, for that reason."""
        copy = self._writing.pop((move.tier, move.offset))
        block = self._blocks.get(move.key)
        if reason:
            self.counts[f"{move.tier}_write_{reason}"] += 1
        else:
            block = block or self._block(move.key, move.meta)  # the copy was found corrupt since; this one is checked
            block.used = False
            self._set_below(move.key, block, move.tier, held=True)
        self._write_over(move.tier, copy)

    def take_loads(self, tier: Tier, limit: int, now_s: float) -> list[Move]:
        """Blocks to load from a tier below now, as far as there are places. `on_loaded` must follow for each."""
        moves: list[Move] = []
        queue = self._loads[tier]
        while queue and len(moves) < limit:
            key = queue[0]
            block = self._blocks.get(key)
            if block is None or not block.waiting or block.copy is not None or tier not in block.below:
                queue.popleft()
                self._pass_over_load(key, block)
                continue
            offset = self._place(block.meta.size_bytes, now_s)
            if offset is None:
                break  # until a lease ends
            queue.popleft()
            block.copy = copy = Copy(offset, block.meta)
            copy.users = 1  # the loader
            moves.append(Move(key, block.meta, tier, offset))
        return moves

    def on_loaded(self, move: Move, reason: str, now_s: float, checksum: int = 0) -> None:
        """A load is over: the block is in its place, with this checksum, or cannot be had for that reason."""
        key, block = move.key, self._blocks[move.key]
        copy = block.copy
        assert copy is not None, "what is being loaded stays"
        if reason:
            self.counts[f"{move.tier}_read_{reason}"] += 1
            block.copy, copy.condemned = None, True
            if reason in GONE_FOR_GOOD:
                self._set_below(key, block, move.tier, held=False)
        else:
            block.meta = copy.meta = msgspec.structs.replace(copy.meta, checksum=checksum)
            self._has_arrived(key, block, move.tier, now_s)
        self._use_over(copy)
        self._load_over(key)
        self._turn_away(key, block, reason)
        self._forget_if_nowhere(key, block)

    def drain_offers(self) -> list[Offer]:
        offers, self._offers = self._offers, []
        return offers

    def drain_changes(self) -> list[Change]:
        changes, self._changes = self._changes, []
        return changes

    # Inside: places

    def _reserve(self, lease: LeaseId, key: BlockKey, meta: BlockMeta, now_s: float) -> int:
        block = self._blocks.get(key)
        if block is not None and (block.copy is not None or block.below):
            self.counts["offered_again"] += 1
            return -1
        offset = self._place(meta.size_bytes, now_s)
        if offset is None:
            self.counts["dram_write_full"] += 1
            return -1
        block = self._block(key, meta)
        block.copy = Copy(offset, meta)
        self._use(lease, key, block.copy)
        return offset

    def _place(self, size_bytes: int, now_s: float) -> int | None:
        """A place in the arena, another block's if need be; None if all are in use."""
        assert self._slabs is not None, "who has no place for a page was told so before"
        while (offset := self._slabs.allocate(size_bytes)) is None:
            victim = self._evictor.victim(lambda key: self._is_kept(key, now_s), now_s)
            if victim is None:
                return None
            self.counts["dram_evicted"] += 1
            self._drop_copy(victim, self._blocks[victim])
        return offset

    def _is_kept(self, key: BlockKey, now_s: float) -> bool:
        copy = self._blocks[key].copy
        assert copy is not None, "the evictor knows filled copies only"
        return copy.users > 0 or self._pins.is_kept(key, now_s)

    def _has_arrived(self, key: BlockKey, block: Known, source: Tier, now_s: float) -> None:
        """The block's copy is filled: who waits gets it."""
        assert block.copy is not None
        block.copy.filled = True
        size_bytes = block.meta.size_bytes
        self._evictor.insert(key, size_bytes, self._worth_s.get(size_bytes, GUESS_WORTH_S), now_s)
        self._change(key, Tier.DRAM, held=True)
        for lease in list(block.waiting):
            self._leases[lease].waits.discard(key)
            self._lend(lease, key, block, source)
        block.waiting.clear()

    def _drop_copy(self, key: BlockKey, block: Known) -> None:
        """Give up the arena's copy, which the evictor has forgotten already."""
        copy = block.copy
        assert copy is not None, "only what is there can be given up"
        block.copy, copy.condemned = None, True
        self._change(key, Tier.DRAM, held=False)
        if not copy.users:
            self._free(copy)
        self._forget_if_nowhere(key, block)

    def _use_over(self, copy: Copy) -> None:
        copy.users -= 1
        if copy.condemned and not copy.users:
            self._free(copy)

    def _free(self, copy: Copy) -> None:
        assert self._slabs is not None
        self._slabs.free(copy.offset)

    # Inside: leases

    def _use(self, lease: LeaseId, key: BlockKey, copy: Copy) -> None:
        holder = self._leases.setdefault(lease, Lease())
        if key not in holder.copies:
            holder.copies[key] = copy
            copy.users += 1

    def _lend(self, lease: LeaseId, key: BlockKey, block: Known, source: Tier) -> None:
        assert block.copy is not None
        block.used = True
        self._use(lease, key, block.copy)
        self._offers.append(Offer(lease, key, block.copy.offset, block.meta, source))

    def _wait(self, lease: LeaseId, key: BlockKey, block: Known) -> None:
        """It is being filled, or has to be loaded."""
        block.waiting.add(lease)
        self._leases.setdefault(lease, Lease()).waits.add(key)
        if block.copy is None and key not in self._loading:
            tier = next(tier for tier in self.below if tier in block.below)
            self._loading[key] = (tier, block.meta.size_bytes)
            self._loads[tier].append(key)
            self.queued_bytes[tier] += block.meta.size_bytes

    def _pass_over_load(self, key: BlockKey, block: Known | None) -> None:
        """Nobody waits for it any more, somebody fills it anew, or the tier has lost it."""
        self._load_over(key)
        if block is not None and block.copy is None:
            self._turn_away(key, block, "missing")
            self._forget_if_nowhere(key, block)

    def _load_over(self, key: BlockKey) -> None:
        tier, size_bytes = self._loading.pop(key)
        self.queued_bytes[tier] -= size_bytes

    def _turn_away(self, key: BlockKey, block: Known, reason: str) -> None:
        """Who still waits for this block does so in vain."""
        for lease in block.waiting:
            holder = self._leases[lease]
            holder.waits.discard(key)
            self._offers.append(Offer(lease, key, reason=reason))
            self._end_if_empty(lease, holder)
        block.waiting.clear()

    def _end(self, lease: LeaseId, key: BlockKey) -> None:
        holder = self._leases.get(lease)
        if holder is None:
            return
        if key in holder.waits:
            holder.waits.discard(key)
            self._blocks[key].waiting.discard(lease)
        copy = holder.copies.pop(key, None)
        if copy is not None:
            if not copy.filled:
                self._give_up_filling(key, copy)
            self._use_over(copy)
        self._end_if_empty(lease, holder)

    def _end_if_empty(self, lease: LeaseId, holder: Lease) -> None:
        if not holder.copies and not holder.waits:
            self._leases.pop(lease, None)

    def _give_up_filling(self, key: BlockKey, copy: Copy) -> None:
        """Who reserved this place left before it was filled."""
        self.counts["dram_write_cancelled"] += 1
        block = self._blocks[key]
        block.copy, copy.condemned = None, True
        self._turn_away(key, block, "cancelled")
        self._forget_if_nowhere(key, block)

    # Inside: tiers below

    def _offer_below(self, key: BlockKey, copy: Copy) -> None:
        size_bytes = copy.meta.size_bytes
        for tier in self.below:
            if tier in READ_ONLY:
                continue
            if self.waiting_bytes[tier] + size_bytes > WAITING_SHARE * self.dram_bytes:
                self.counts[f"{tier}_write_backlog"] += 1
                continue
            self.waiting_bytes[tier] += size_bytes
            copy.users += 1  # the writer
            self._writes[tier].append((key, copy))

    def _write_over(self, tier: Tier, copy: Copy) -> None:
        self.waiting_bytes[tier] -= copy.meta.size_bytes
        self._use_over(copy)

    def _set_below(self, key: BlockKey, block: Known, tier: Tier, *, held: bool) -> None:
        if held == (tier in block.below):
            return
        if held:
            block.below.add(tier)
        else:
            block.below.discard(tier)
        self._change(key, tier, held=held)

    # Inside: bookkeeping

    def _block(self, key: BlockKey, meta: BlockMeta) -> Known:
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = Known(meta)
        return block

    def _forget_if_nowhere(self, key: BlockKey, block: Known) -> None:
        if block.copy is None and not block.below and not block.waiting:
            self._blocks.pop(key, None)
            self._pins.drop(key)

    def _change(self, key: BlockKey, tier: Tier, *, held: bool) -> None:
        self.held_blocks[tier] += 1 if held else -1
        self._changes.append(Change(key, tier, held))
