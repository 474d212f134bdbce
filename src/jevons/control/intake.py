"""Event intake: one source's numbered batches become changes of the index, with no hole unnoticed.

    batch seq as expected      apply
    seq ahead                  some were lost: ask for a replay from the first missing one, keep what comes meanwhile
    seq goes back              the engine restarted: it holds nothing; forget all, start again from its 0
    replay cannot close it     forget all, go on from what there is, mode DEGRADED until the engine starts anew
    recalled from before       ask for a replay from the last batch that was taken then; believe it if that is the same

The engine's names for blocks are opaque. Ours are recomputed from the tokens in each event, so hash seeds and
algorithms cannot matter; the map from its names to ours serves parents and removals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from jevons.base.ids import BlockHash
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, EngineHash, KvBatch
from jevons.facts.state import SourceState
from jevons.facts.worker import IndexMode
from jevons.kv.hashing import HASH_BYTES, chain, root
from jevons.kv.index import Holding

# While a replay is awaited at most this many batches are kept; vLLM's own replay window is 10,000.
MAX_WAITING = 10_000


class Intake:
    """The state of one event source. `counts` tells what was rejected, by reason.

    Args:
        holding: what it is known to hold.
        on_block_size: told when its blocks have another size than they had.
    """

    def __init__(self, holding: Holding, on_block_size: Callable[[], None] | None = None) -> None:
        self._holding = holding
        self._on_block_size = on_block_size
        self.block_size: int | None = None
        self.mode = IndexMode.NONE
        self.counts: Counter[str] = Counter()
        self._ours: dict[EngineHash, BlockHash] = {}  # engine's name → our name
        self._more: dict[EngineHash, int] = {}  # copies beyond the first, where there are any
        self._next = 0  # the sequence number expected
        self._last_live = -1  # the highest number that came by itself, not by replay
        self._waiting: dict[int, KvBatch] | None = None  # what came after a hole, while its replay is awaited
        self._last_ts = 0.0  # the source's clock at the last batch taken
        self._recalled: SourceState | None = None  # until a replay shows whether it is still so
        self._is_refuted = False  # by the replay under way: that was another life, all is asked for again

    @property
    def awaits_replay(self) -> bool:
        """After `on_replay_end` too, where another one is to be asked for at once."""
        return self._waiting is not None

    def recall(self, state: SourceState) -> None:
        """This is what the source, of which nothing was heard yet, held before; to be told before the first replay."""
        self._recalled = state

    def state(self) -> SourceState | None:
        """What `recall` takes; None if nothing is known, or its batches bear no time to be known again by.

        Costs O(blocks), 0.1 us each.
        """
        if self._recalled is not None:
            return self._recalled
        if not self._next or not self._last_ts or self.block_size is None:
            return None
        return SourceState(
            seq=self._next - 1,
            ts=self._last_ts,
            block_size=self.block_size,
            is_degraded=self.mode is IndexMode.DEGRADED,
            theirs=list(self._ours),
            ours=b"".join(self._ours.values()),
            more=dict(self._more),
        )

    def on_batch(self, batch: KvBatch) -> int | None:
        """Take a batch that came by itself. Returns the number to ask a replay from, if one is needed."""
        if batch.seq <= self._last_live:
            self.counts["restart"] += 1
            self.reset()
        self._last_live = batch.seq
        if batch.seq < self._next:
            return None  # a replay brought it already
        if self._waiting is not None:
            self._keep(batch)
            return None
        if batch.seq == self._next:
            self._recalled = None  # it counts from 0 again
            self._apply(batch)
            return None
        self.counts["gap"] += 1
        self._waiting = {batch.seq: batch}
        return self._next

    def on_replayed(self, batch: KvBatch) -> None:
        """Take a batch of the replay asked for, in rising order."""
        if self._recalled is not None:
            self._prove(self._recalled, batch)
        if batch.seq < self._next or self._is_refuted:
            return
        if batch.seq > self._next:
            self._lost(batch.seq - self._next)
            self._next = batch.seq
        self._apply(batch)

    def begin_replay(self) -> int:
        """A replay is about to be asked for. Returns the number to ask from."""
        if self._waiting is None:
            self._waiting = {}
        return self._next if self._recalled is None else self._recalled.seq

    def on_replay_end(self, *, complete: bool) -> None:
        """The replay is over: go on with what came meanwhile. `complete` if it was answered to its end."""
        if self._is_refuted or self._recalled is not None:  # or there is no such batch any more
            self.counts["recall_refused"] += 1
            self._is_refuted, self._recalled = False, None
            return
        waiting, self._waiting = self._waiting or {}, None
        if complete and self.mode is IndexMode.NONE:
            self.mode = IndexMode.EXACT
        for seq in sorted(waiting):
            self.on_replayed(waiting[seq])

    def reset(self) -> None:
        """The engine is new or unknown: it holds nothing, and counts from 0."""
        self._holding.clear()
        self._forget_names()
        self._next, self._last_live, self._waiting = 0, -1, None
        self._recalled, self._is_refuted = None, False
        self.mode = IndexMode.NONE

    def _prove(self, state: SourceState, first: KvBatch) -> None:
        """The replay begins with `first`: the source is the one it was if that is what was then its last batch."""
        self._recalled = None
        if (first.seq, first.ts) != (state.seq, state.ts):
            self._is_refuted = True
            return
        names = [BlockHash(state.ours[i : i + HASH_BYTES]) for i in range(0, len(state.ours), HASH_BYTES)]
        self._ours, self._more = dict(zip(state.theirs, names, strict=True)), dict(state.more)
        self._holding.store(names)
        for theirs, copies in state.more.items():
            for _ in range(copies):
                self._holding.store([self._ours[theirs]])
        self._next, self._last_ts = state.seq + 1, state.ts
        if state.is_degraded:
            self.mode = IndexMode.DEGRADED
        self._learn_block_size(state.block_size)
        self.counts["recalled"] += len(names)

    def _learn_block_size(self, size: int) -> None:
        if size != self.block_size:
            self.block_size = size
            if self._on_block_size is not None:
                self._on_block_size()

    def _keep(self, batch: KvBatch) -> None:
        assert self._waiting is not None
        if len(self._waiting) >= MAX_WAITING:
            self.counts["waiting_overflow"] += 1
            return
        self._waiting[batch.seq] = batch

    def _lost(self, batches: int) -> None:
        """Removals may be among the lost, so nothing known before can be trusted."""
        self.counts["lost_batches"] += batches
        self._holding.clear()
        self._forget_names()
        self.mode = IndexMode.DEGRADED

    def _apply(self, batch: KvBatch) -> None:
        self._next, self._last_ts = batch.seq + 1, batch.ts
        self.counts["unread"] += batch.unread
        if batch.unread and self.mode is not IndexMode.DEGRADED:
            self.mode = IndexMode.DEGRADED
        elif self.mode is IndexMode.NONE and self._waiting is None:  # amid a replay more is to come
            self.mode = IndexMode.EXACT
        for event in batch.events:
            if isinstance(event, BlocksStored):
                self._stored(event)
            elif isinstance(event, BlocksRemoved):
                self._removed(event)
            elif isinstance(event, AllCleared):
                self._holding.clear()
                self._forget_names()
                self.mode = IndexMode.EXACT  # whatever was lost before is gone there too

    def _forget_names(self) -> None:
        self._ours.clear()
        self._more.clear()

    def _stored(self, event: BlocksStored) -> None:
        reason = self._reject(event)
        if reason is not None:
            self.counts[reason] += len(event.hashes)
            return
        if event.parent is None:
            parent = root(event.block_size, _salt(event), event.adapter or "")
        else:
            parent = self._ours[event.parent]
        names = chain(event.tokens, event.block_size, parent, _extra(event))
        known = self._ours
        for theirs, ours in zip(event.hashes, names, strict=True):
            if theirs in known:
                self._more[theirs] = self._more.get(theirs, 0) + 1
            known[theirs] = ours
        self._holding.store(names)
        self._learn_block_size(event.block_size)
        self.counts["stored"] += len(names)

    def _reject(self, event: BlocksStored) -> str | None:
        """Why these blocks cannot serve as a prefix here, or None."""
        if event.medium not in (None, "GPU"):
            return "ignored_tier"
        if event.kind not in (None, "full_attention") or event.group:
            return "ignored_group"
        if event.block_size < 1 or len(event.tokens) != len(event.hashes) * event.block_size:
            return "misshapen"
        if event.extra is not None and len(event.extra) != len(event.hashes):
            return "misshapen"
        if event.parent is not None and event.parent not in self._ours:
            return "orphan"
        return None

    def _removed(self, event: BlocksRemoved) -> None:
        if event.medium not in (None, "GPU") or event.group:
            self.counts["ignored_tier" if not event.group else "ignored_group"] += len(event.hashes)
            return
        gone = []
        for theirs in event.hashes:
            ours = self._ours.get(theirs)
            if ours is None:
                self.counts["unknown_removed"] += 1
                continue
            gone.append(ours)
            more = self._more.pop(theirs, 0)
            if more > 1:
                self._more[theirs] = more - 1
            elif not more:
                del self._ours[theirs]
        self._holding.remove(gone)
        self.counts["removed"] += len(gone)


def _salt(event: BlocksStored) -> str:
    """The cache salt of a prompt's first block: vLLM and we send it as that block's only text key."""
    keys = event.extra[0] if event.extra else None
    return keys[0] if keys and len(keys) == 1 and isinstance(keys[0], str) else ""


def _extra(event: BlocksStored) -> list[bytes] | None:
    """What makes blocks differ besides tokens and salt (images, embeddings): kept apart, never shared."""
    if event.extra is None:
        return None
    salted = event.parent is None and _salt(event)
    return [b"" if not keys or (i == 0 and salted) else repr(keys).encode() for i, keys in enumerate(event.extra)]
