"""Event intake: one source's numbered batches become changes of the index, with no hole unnoticed.

    batch seq as expected      apply
    seq ahead                  some were lost: ask for a replay from the last one taken, keep what comes meanwhile
    seq goes back              the engine restarted: it holds nothing; forget all, start again from its 0
    replay without that one    the engine restarted, and what showed it was lost (`control.lives`): the same
    replay not answered        go on without; the next one is asked for all, to begin again from that
    replay cannot close it     mode DEGRADED until the engine starts anew: what was known is kept as long as little of
                               it can have been removed in what was lost, and what goes on from unknown blocks is kept
                               aside until prompts tell what those were (`control.orphans`)
    recalled from before       ask for a replay from the last batch that was taken then; believe it if that is the same

The engine's names for blocks are opaque. Ours are recomputed from the tokens in each event, so hash seeds and
algorithms cannot matter; the map from its names to ours serves parents and removals. Payloads of the usual shapes are
read, named and applied by kernels (`control.naming`); what those do not know is decoded into records and goes the long
way here, with the same results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jevons.control import naming
from jevons.control.beside import Beside, Told
from jevons.control.lives import Doubts, Mark
from jevons.control.naming import FATES, FULL, ONE_STORE, SPECIAL, root_numbers, set_size, source_names
from jevons.control.orphans import Orphans, Prompted, Prompts
from jevons.control.reading import CLEARED, DRAM, IGNORED_ADAPTER, NO_ROOM, NOT_READ, ORPHAN, STORED, Scratch
from jevons.control.records import Records
from jevons.control.shapes import Malformed, decode_batch
from jevons.facts.event import IN_DRAM, SLIDING, BlocksRemoved, BlocksStored, KvBatch, KvPayload
from jevons.facts.state import SourceState
from jevons.facts.worker import IndexMode
from jevons.kv.engine_names import number_of
from jevons.kv.index import Holding

# So much of what is known may have been removed unheard, by the removals a batch has on the mean; then all is
# forgotten. GUESS: what a wrong block costs is a prompt computed where another worker has it.
GUESS_STALE_SHARE = 0.1
# While a replay is awaited at most this many batches are kept; vLLM's own replay window is 10,000.
MAX_WAITING = 10_000
_Batch = KvBatch | KvPayload

_BYTES = np.dtype(np.uint8)
_NONE, _DEGRADED = IndexMode.NONE, IndexMode.DEGRADED  # a member is found in its class in 50 ns


class Intake:
    """The state of one event source. `counts` tells what became of blocks, and of batches that were lost or odd.

    Args:
        holding: what it is known to hold.
        on_block_size: told when its blocks have another size than they had.
        scratch: what payloads are read into; sources of one thread may share it.
        on_beside: told when it is the first time that it holds something in another tier or group, see `beside`.
        prompts: of all sources that share them.
    """

    def __init__(
        self,
        holding: Holding,
        on_block_size: Callable[[], None] | None = None,
        scratch: Scratch | None = None,
        on_beside: Callable[[], None] | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self._holding = holding
        self._on_block_size = on_block_size
        self._scratch = scratch or Scratch()
        self.block_size: int | None = None
        self.mode = IndexMode.NONE
        self._counts: Counter[str] = Counter()
        self._names = source_names()
        self._hubs = self._scratch.hub.record, self._names.hub.record  # what kernels take
        self._next = 0  # the sequence number expected
        self._last_live = -1  # the highest number that came by itself, not by replay
        self._waiting: dict[int, _Batch] | None = None  # what came after a hole, while its replay is awaited
        self._orphans = Orphans(self._names, holding, prompts or Prompts())
        self.beside = Beside(self._names, holding, on_beside)
        self._records = Records(self._names, holding, self.beside, self._counts)
        self._taken = 0  # batches
        self._stale = 0.0  # blocks that were removed unheard, about
        self._asked_after = -1  # the highest number that had come by itself when the last replay was asked for
        self._recalled: SourceState | None = None  # until a replay shows whether it is still so
        self._doubts = Doubts()
        self._is_replaying = False
        self._is_refuted = False  # by the replay under way: that was another life, all is asked for again
        self._keeps_batches = False  # replays had some in them
        self._is_owed = False  # a replay was not answered, and batches passed over: they may still be had
        self._is_rebuilding = False  # the replay under way was asked for all

    @property
    def counts(self) -> Counter[str]:
        """Blocks by what became of them; batches and events that were lost or could not be read, by reason."""
        fates = {fate: int(count) for fate, count in zip(FATES, self._names.hub["fates"], strict=True) if count}
        return Counter(fates) + Counter({"recovered": self._orphans.recovered}) + self._counts

    def name_adapters(self, numbers: Mapping[int, str]) -> None:
        """These are the names of what its events tell by number alone."""
        self._records.adapters = numbers

    @property
    def _last_ts(self) -> float:
        """The source's clock at the last batch taken."""
        return float(self._names.hub.number("ts"))

    @property
    def position(self) -> int:
        """The number of the batch expected next."""
        return self._next

    @property
    def names_bytes(self) -> int:
        """What the map from the engine's names to ours takes."""
        return self._names.size_bytes

    @property
    def awaits_replay(self) -> bool:
        """After `on_replay_end` too, where another one is to be asked for at once."""
        return self._waiting is not None

    def recall(self, state: SourceState) -> None:
        """This is what the source, of which nothing was heard yet, held before; to be told before the first replay."""
        self._recalled = state

    def state(self) -> SourceState | None:
        """What `recall` takes; None if nothing is known, or its batches bear no time to be known again by.

        Costs O(blocks), some ns each.
        """
        if self._recalled is not None:
            return self._recalled
        if not self._next or not self._last_ts or self.block_size is None:
            return None
        return SourceState(
            seq=self._next - 1,
            ts=self._last_ts,
            block_size=self.block_size,
            group=int(self._names.hub.number("group")),
            is_degraded=self.mode is IndexMode.DEGRADED,
            names=self._names.dump(),
            windows=dict(self.beside.windows),
            in_dram=self.beside.in_dram,
            in_groups=self.beside.in_groups,
        )

    def on_batch(self, batch: _Batch) -> int | None:
        """Take a batch that came by itself. Returns the number of the first one missing, if a replay is needed."""
        if batch.seq <= self._last_live:
            self._begin_anew()
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
        self._counts["gap"] += 1
        self._waiting = {batch.seq: batch}
        self.check()
        return self._next

    def on_replayed(self, batch: _Batch) -> None:
        """Take a batch of the replay asked for, in rising order."""
        self._keeps_batches = True
        if self._is_refuted:
            return
        if self._recalled is not None:
            self._prove(self._recalled, batch)
        elif self._is_rebuilding:
            self._rebuild(batch)
        if self._doubts.is_open(batch.seq) and self._doubts.on_replayed(batch.seq, _time_of(batch)):
            self._begin_anew()
        if not self._is_refuted:
            self._take(batch)

    def _take(self, batch: _Batch) -> None:
        if batch.seq < self._next:
            return
        if batch.seq > self._next:
            self._lost(batch.seq - self._next)
            self._next = batch.seq
        self._apply(batch)

    def doubt(self) -> None:
        """The source may have started anew unseen: the next replay begins with the last batch taken, to see whether
        that is still the same.
        """
        self._doubt(is_grave=True)

    def check(self) -> None:
        """As `doubt`, with no reason to think so: only a source that is known to keep its batches is taken for another
        one where that batch is missing.
        """
        self._doubt(is_grave=False)

    def _doubt(self, *, is_grave: bool) -> None:
        if self._next and self._last_ts:
            self._doubts.add(Mark(self._next - 1, self._last_ts, is_grave))
        elif is_grave and self._is_replaying and not self._next:  # what is known next may be told by the old life
            self._is_refuted, self._waiting, self._last_live = True, {}, -1

    def on_garbage(self) -> None:
        """Something came that is no numbered batch."""
        self._counts["malformed"] += 1

    def begin_replay(self) -> int:
        """A replay is about to be asked for. Returns the number to ask from."""
        if self._waiting is None:
            self._waiting = {}
        self._is_replaying = True
        self._asked_after = self._last_live
        if self._recalled is not None:
            return self._recalled.seq
        doubted = self._doubts.begin()
        self._is_rebuilding = self._is_owed
        if self._is_owed:
            return 0
        return self._next if doubted is None else doubted

    def on_replay_end(self, *, complete: bool) -> None:
        """The replay is over: go on with what came meanwhile. `complete` if it was answered to its end."""
        if self._recalled is not None:
            self._refuse()  # there is no such batch any more
        elif self._doubts.on_end(complete, self._keeps_batches, max(self._waiting or (), default=-1)):
            self._begin_anew()
        self._is_replaying = self._is_rebuilding = False
        if self._is_refuted:
            self._is_refuted = False
            return
        self._is_owed = self._is_owed and not complete
        if complete and self.mode is IndexMode.NONE:
            self.mode = IndexMode.EXACT
        self._take_waiting(complete)

    def _take_waiting(self, complete: bool) -> None:
        waiting, self._waiting = self._waiting or {}, None
        for seq in sorted(waiting):
            if seq > self._next and complete and seq > self._asked_after:
                # A hole from after the replay was asked for, perhaps from after it was answered: another one closes it.
                self._waiting = {later: batch for later, batch in waiting.items() if later >= seq}
                return
            self._is_owed |= seq > self._next and not complete
            self._take(waiting[seq])

    def reset(self) -> None:
        """The engine is new or unknown: it holds nothing, and counts from 0."""
        self._forget()
        self._taken = 0
        self._next, self._last_live, self._waiting = 0, -1, None
        self._recalled, self._is_refuted = None, False
        self._is_replaying = self._is_owed = self._is_rebuilding = False
        self._doubts.clear()
        self.mode = IndexMode.NONE

    def _prove(self, state: SourceState, first: _Batch) -> None:
        """The replay begins with `first`: the source is the one it was if that is what was then its last batch."""
        if (first.seq, _time_of(first)) != (state.seq, state.ts):
            self._refuse()
            return
        try:
            names = self._names.load(state.names)
        except ValueError:  # it is whole, or it would not be here, and yet not ours to read
            self._refuse()
            return
        self._recalled = None
        for copy in range(max((copies for _, copies in names), default=0)):
            self._holding.store([name for name, copies in names if copies > copy])
        self._next = state.seq + 1
        self._names.hub.set("ts", state.ts)
        if state.is_degraded:
            self.mode = IndexMode.DEGRADED
        self._names.hub.set("group", state.group)
        self.beside.recall(state.windows, state.in_dram, state.in_groups)
        self._names.hub.set("size", state.block_size)
        self._follow_size()
        self._counts["recalled"] += len(names)

    def _refuse(self) -> None:
        self._counts["recall_refused"] += 1
        self._recalled, self._is_refuted = None, True

    def _rebuild(self, first: _Batch) -> None:
        """The replay was asked for all that there is: if that is from 0 on, what is known begins again with it."""
        self._is_rebuilding = False
        if first.seq == 0:
            self._counts["rebuilt"] += 1
            self._forget()
            self._doubts.clear()
            self._next, self._taken = 0, 0
            self.mode = IndexMode.NONE

    def _begin_anew(self) -> None:
        """The source has restarted. Of a replay under way nothing is taken, nor what was kept meanwhile: it was asked
        for from where the old life was. Another one brings all of the new life.
        """
        self._counts["restart"] += 1
        is_replaying = self._is_replaying
        self.reset()
        if is_replaying:
            self._waiting, self._is_replaying, self._is_refuted = {}, True, True

    def _keep(self, batch: _Batch) -> None:
        assert self._waiting is not None
        if len(self._waiting) >= MAX_WAITING:
            self._counts["waiting_overflow"] += 1
            return
        self._waiting[batch.seq] = batch

    def _lost(self, batches: int) -> None:
        """Batches that nobody has any more."""
        self._counts["lost_batches"] += batches
        self.mode = IndexMode.DEGRADED
        self._stale += batches * self.counts["removed"] / max(1, self._taken)
        if self._stale > GUESS_STALE_SHARE * len(self._holding):
            self._counts["forgotten"] += len(self._holding)
            self._forget()

    def on_prompted(self, prompt: Prompted) -> None:
        """The worker has computed a prompt of ours: that may tell what blocks are whose storing was lost."""
        self._orphans.prompted(prompt)
        self._adopt(self._orphans.adopt())

    def end(self) -> None:
        """The source is listened to no more."""
        self._orphans.clear()

    def _adopt(self, orphans: list[BlocksStored]) -> None:
        """What they go on from is known by now."""
        for event in orphans:
            self._stored(event)

    def _forget(self) -> None:
        self._orphans.clear()
        self._stale = 0.0
        self._holding.clear()
        self._names.clear()
        self.beside.clear()
        self._names.hub.set("group", -1)
        self._names.hub.set("size", 0)

    def _apply(self, batch: _Batch) -> None:
        self._next = batch.seq + 1
        self._taken += 1
        if self.mode is _NONE and self._waiting is None:  # amid a replay more is to come
            self.mode = IndexMode.EXACT
        if isinstance(batch, KvBatch):
            self._apply_records(batch)
        elif not self._apply_payload(batch.payload):
            self._apply_unusual(batch)

    def _apply_unusual(self, batch: KvPayload) -> None:
        try:
            decoded = decode_batch(batch.seq, batch.payload)
        except Malformed:
            self.on_garbage()
            self._names.hub.set("ts", 0.0)  # nor when that was
            self.mode = IndexMode.DEGRADED  # whatever it was to tell is not known
        else:
            self._apply_records(decoded)

    def _apply_payload(self, payload: bytes) -> bool:
        """Returns whether it is of a shape that kernels know; if not, nothing was done."""
        raw, hubs = np.frombuffer(payload, _BYTES), self._hubs
        runs = naming.take_payload(*hubs, raw)
        if runs >= ONE_STORE and self.mode is not _DEGRADED:  # as nearly all are
            self._holding.store_names(self._scratch.hub["changed"][: runs - ONE_STORE])
            return True
        while runs == NO_ROOM:
            self._scratch.grow()
            runs = naming.take_payload(*hubs, raw)
        if runs == FULL:
            self._names.make_room(self._scratch.hub.number("hashes_used"))
            runs = naming.take_read(*hubs)
        if runs == SPECIAL:
            if not self._tell_roots(payload):
                return False
            self._tell_beside()
            runs = naming.apply(*hubs)
            self._follow_size()
        if runs == NOT_READ:
            return False
        self._apply_runs(runs)
        if self.mode is IndexMode.DEGRADED:
            self._keep_orphans()
        return True

    def _keep_orphans(self) -> None:
        """What was rejected for its unknown parent, of the payload just taken; who waited for what it stored is not."""
        scratch = self._scratch.hub
        hashes = scratch["hashes"][: scratch.number("hashes_used")].tolist()
        events = scratch["events"][: scratch.number("events_used")]
        orphans = events[(events["kind"] == STORED) & (events["reject"] == ORPHAN)].copy()
        tokens = [scratch["tokens"][e["token_at"] : e["token_at"] + e["tokens"]].tolist() for e in orphans]
        for e, its in zip(orphans, tokens, strict=True):
            if e["salt"] or e["adapter"] or e["adapter_number"] >= 0:
                continue
            names, parent = hashes[e["hash_at"] : e["hash_at"] + e["hashes"]], int(e["parent"])
            self._orphans.keep(BlocksStored(hashes=names, parent=parent, tokens=its, block_size=int(e["size"])))
        if len(self._orphans):
            self._adopt(self._orphans.children_of(number for number in hashes if self._names.get(number) is not None))
        self._settle_degraded()

    def _settle_degraded(self) -> None:
        if len(self._orphans):
            self._adopt(self._orphans.adopt())
        self._orphans.let_go()

    def _tell_roots(self, payload: bytes) -> bool:
        """Where prompts begin that have a salt, an adapter or another block size than most."""
        events = self._scratch.hub["events"][: self._scratch.hub.number("events_used")]
        for i, event in enumerate(events):
            if event["kind"] != STORED:
                continue
            try:
                salt, name = (self._scratch.text(payload, i, field) for field in ("salt", "adapter"))
            except UnicodeDecodeError:
                return False
            adapter = self._records.adapter(name, int(event["adapter_number"]))
            if adapter is None:
                event["reject"] = IGNORED_ADAPTER
                continue
            if event["has_parent"] or event["size"] < 1:
                continue
            event["first"], event["second"] = root_numbers(int(event["size"]), salt, adapter)
        return True

    def _tell_beside(self) -> None:
        """Tiers and groups that the payload just read tells of."""
        events = self._scratch.hub["events"][: self._scratch.hub.number("events_used")]
        stored = events[events["kind"] == STORED]
        self.beside.tell_groups(_group_told(event) for event in stored[stored["tier"] == 0])
        if (stored["tier"] == DRAM).any():
            self.beside.tell_dram()

    def _apply_runs(self, count: int) -> None:
        if count >= ONE_STORE:
            self._holding.store_names(self._scratch.hub["changed"][: count - ONE_STORE])
            return
        begin, changed = 0, self._scratch.hub["changed"]
        runs = self._scratch.hub["runs"][: 2 * count].tolist()
        for kind, end in zip(runs[::2], runs[1::2], strict=True):
            if kind == CLEARED:
                self._cleared()
            elif kind == STORED:
                self._holding.store_names(changed[begin:end])
            else:
                self._holding.remove_names(changed[begin:end])
            begin = end

    def _cleared(self) -> None:
        self._holding.clear()
        self._orphans.clear()
        self._stale = 0.0
        self.mode = IndexMode.EXACT  # whatever was lost before is gone there too

    def _follow_size(self) -> None:
        size = self._names.hub.number("size")
        if size and size != self.block_size:
            self.block_size = int(size)
            set_size(self._names, self.block_size)
            if self._on_block_size is not None:
                self._on_block_size()

    # The long way

    def _apply_records(self, batch: KvBatch) -> None:
        self._names.hub.set("ts", batch.ts)
        if batch.unread:
            self._counts["unread"] += batch.unread
            self.mode = IndexMode.DEGRADED
        stored = [event for event in batch.events if isinstance(event, BlocksStored)]
        self.beside.tell_groups((e.group, e.block_size, e.kind, e.window) for e in stored if e.medium in (None, "GPU"))
        if any(event.medium in IN_DRAM for event in stored):
            self.beside.tell_dram()
        for event in self._records.in_order(batch.events):
            if isinstance(event, BlocksStored):
                self._stored(event)
            elif isinstance(event, BlocksRemoved):
                self._records.removed(event)
            else:
                self._names.clear()
                for number in ("in_dram", "in_groups"):
                    self._names.hub.set(number, 0)
                self._cleared()
        self._follow_size()
        if self.mode is IndexMode.DEGRADED:
            self._settle_degraded()

    def _stored(self, event: BlocksStored) -> None:
        fate = self._records.stored(event)
        if fate == "orphan" and self.mode is IndexMode.DEGRADED:
            self._orphans.keep(event)
        elif fate == "stored" and len(self._orphans):
            self._adopt(self._orphans.children_of(number_of(name) for name in event.hashes))


def _group_told(event: Any) -> Told:
    kind = "full_attention" if event["says_full"] else (None, SLIDING, "other")[event["says_other"]]
    return int(event["group"]), int(event["size"]), kind, int(event["window"])


def _time_of(batch: _Batch) -> float:
    """The source's clock at a batch; 0 if it cannot be read."""
    if isinstance(batch, KvBatch):
        return batch.ts
    try:
        return decode_batch(batch.seq, batch.payload).ts
    except Malformed:
        return 0.0
