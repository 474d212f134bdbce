"""What one source tells that it holds: read, named by its tokens, and told to the index.

The engine's names for blocks are opaque. Ours are recomputed from the tokens in each event, so hash seeds and
algorithms cannot matter; the map from its names to ours serves parents and removals. Payloads of the usual shapes are
read, named and applied by kernels (`control.naming`); what those do not know is decoded into records and goes the long
way, with the same results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jevons.control import naming
from jevons.control.beside import Beside, Told
from jevons.control.naming import FATES, FULL, ONE_STORE, SPECIAL, root_numbers, set_size, source_names
from jevons.control.orphans import Orphans, Prompted, Prompts
from jevons.control.reading import (
    CLEARED,
    DRAM,
    IGNORED_ADAPTER,
    IGNORED_TIER,
    NO_ROOM,
    NOT_READ,
    ORPHAN,
    REMOVED,
    STORED,
    Scratch,
)
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
Batch = KvBatch | KvPayload

_BYTES = np.dtype(np.uint8)
_DEGRADED = IndexMode.DEGRADED  # a member is found in its class in 50 ns


class Contents:
    """What a source holds by all that it told. `mode` is how far that is to be believed; `tally` counts what became of
    batches and of what went the long way.

    Args:
        holding: what it is known to hold.
        scratch: what payloads are read into; sources of one thread may share it.
        prompts: of all sources that share them.
        on_block_size: told when its blocks have another size than they had.
        on_beside: told when it is the first time that it holds something in another tier or group, see `beside`.
    """

    def __init__(
        self,
        holding: Holding,
        scratch: Scratch,
        prompts: Prompts,
        on_block_size: Callable[[], None] | None = None,
        on_beside: Callable[[], None] | None = None,
    ) -> None:
        self.block_size: int | None = None
        self.mode = IndexMode.NONE
        self.tally: Counter[str] = Counter()
        self._holding = holding
        self._scratch = scratch
        self._on_block_size = on_block_size
        self._names = source_names()
        self._hubs = scratch.hub.record, self._names.hub.record  # what kernels take
        self._orphans = Orphans(self._names, holding, prompts)
        self.beside = Beside(self._names, holding, on_beside)
        self._records = Records(self._names, holding, self.beside, self.tally)
        self._taken = 0  # batches
        self._stale = 0.0  # blocks that were removed unheard, about

    @property
    def counts(self) -> Counter[str]:
        """Blocks by what became of them; batches and events that were lost or could not be read, by reason."""
        fates = {fate: int(count) for fate, count in zip(FATES, self._names.hub["fates"], strict=True) if count}
        return Counter(fates) + Counter({"recovered": self._orphans.recovered}) + self.tally

    @property
    def ts(self) -> float:
        """The source's clock at the last batch taken."""
        return float(self._names.hub.number("ts"))

    @property
    def names_bytes(self) -> int:
        """What the map from the engine's names to ours takes."""
        return self._names.size_bytes

    def name_adapters(self, numbers: Mapping[int, str]) -> None:
        """These are the names of what its events tell by number alone."""
        self._records.adapters = numbers

    def state(self, seq: int) -> SourceState | None:
        """What `recall` takes, `seq` being the last batch taken; None: nothing is known, or when that was is not."""
        if not self.ts or self.block_size is None:
            return None
        return SourceState(
            seq=seq,
            ts=self.ts,
            block_size=self.block_size,
            group=int(self._names.hub.number("group")),
            is_degraded=self.mode is IndexMode.DEGRADED,
            names=self._names.dump(),
            windows=dict(self.beside.windows),
            in_dram=self.beside.in_dram,
            in_groups=self.beside.in_groups,
        )

    def recall(self, state: SourceState) -> bool:
        """It holds what it held before. Returns False, and nothing was done, if that cannot be read."""
        try:
            names = self._names.load(state.names)
        except ValueError:  # it is whole, or it would not be here, and yet not ours to read
            return False
        copy, left = 0, names
        while left:
            self._holding.store([name for name, _ in left])
            copy, left = copy + 1, [pair for pair in left if pair[1] > copy + 1]
        self._names.hub.set("ts", state.ts)
        if state.is_degraded:
            self.mode = IndexMode.DEGRADED
        self._names.hub.set("group", state.group)
        self.beside.recall(state.windows, state.in_dram, state.in_groups)
        self._names.hub.set("size", state.block_size)
        self._follow_size()
        self.tally["recalled"] += len(names)
        return True

    def take(self, batch: Batch) -> None:
        """Do what a batch tells."""
        self._taken += 1
        if isinstance(batch, KvBatch):
            self._apply_records(batch)
        elif not self._apply_payload(batch.payload):
            self._apply_unusual(batch)

    def miss(self, batches: int) -> None:
        """So many were lost: nobody has them any more."""
        self.tally["lost_batches"] += batches
        self.mode = IndexMode.DEGRADED
        self._stale += batches * self.counts["removed"] / max(1, self._taken)
        if self._stale > GUESS_STALE_SHARE * len(self._holding):
            self.tally["forgotten"] += len(self._holding)
            self._forget()

    def on_prompted(self, prompt: Prompted) -> None:
        """The worker has computed a prompt of ours: that may tell what blocks are whose storing was lost."""
        self._orphans.prompted(prompt)
        self._adopt(self._orphans.adopt())

    def reset(self) -> None:
        """It holds nothing, as if it had never told anything."""
        self._forget()
        self._taken = 0
        self.mode = IndexMode.NONE

    def end(self) -> None:
        """The source is listened to no more."""
        self._orphans.clear()

    def on_garbage(self) -> None:
        """Something came that is no batch."""
        self.tally["malformed"] += 1

    def _forget(self) -> None:
        self._orphans.clear()
        self._stale = 0.0
        self._holding.clear()
        self._names.clear()
        self.beside.clear()
        self._names.hub.set("group", -1)
        self._names.hub.set("size", 0)

    def _adopt(self, orphans: list[BlocksStored]) -> None:
        """What they go on from is known by now."""
        for event in orphans:
            if self._records.stored(event) == "stored":
                self._adopt(self._orphans.children_of(map(number_of, event.hashes)))
        self._follow_size()

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

    @property
    def _followed(self) -> int:
        """The group of layers."""
        return max(int(self._names.hub.number("group")), 0)

    def _keep_orphans(self) -> None:
        """What was rejected for its unknown parent, of the payload just taken, and not removed since; who waited for
        what it stored is an orphan no more."""
        scratch = self._scratch.hub
        hashes = scratch["hashes"][: scratch.number("hashes_used")].tolist()
        events = scratch["events"][: scratch.number("events_used")]
        are_orphans = (events["kind"] == STORED) & (events["reject"] == ORPHAN)
        are_gone = (events["kind"] == REMOVED) & (events["part"] == 0) & (events["reject"] != IGNORED_TIER)
        are_gone &= events["group"] == self._followed
        for e in events[are_orphans | are_gone].copy():
            names = hashes[e["hash_at"] : e["hash_at"] + e["hashes"]]
            if e["kind"] == REMOVED:
                self._orphans.removed(names)
            elif not (e["salt"] or e["adapter"] or e["adapter_number"] > 0):
                its = scratch["tokens"][e["token_at"] : e["token_at"] + e["tokens"]].tolist()
                parent, size, group = (int(e[field]) for field in ("parent", "size", "group"))
                event = BlocksStored(hashes=names, parent=parent, tokens=its, block_size=size, group=group)
                self._orphans.keep(event)
        self._settle_degraded(hashes)

    def _settle_degraded(self, told: Sequence[int]) -> None:
        """A batch is taken. Who waited for blocks of which it told goes on from those that are held after it."""
        if len(self._orphans):
            self._adopt(self._orphans.children_of(number for number in told if self._names.get(number) is not None))
            self._adopt(self._orphans.adopt())
        self._orphans.let_go(told)

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
            self.tally["unread"] += batch.unread
            self.mode = IndexMode.DEGRADED
        stored = [event for event in batch.events if isinstance(event, BlocksStored)]
        self.beside.tell_groups((e.group, e.block_size, e.kind, e.window) for e in stored if e.medium in (None, "GPU"))
        if any(event.medium in IN_DRAM for event in stored):
            self.beside.tell_dram()
        for event in self._records.in_order(batch.events):
            if isinstance(event, BlocksStored):
                if self._records.stored(event) == "orphan" and self.mode is IndexMode.DEGRADED:
                    self._orphans.keep(event)
            elif isinstance(event, BlocksRemoved):
                self._records.removed(event)
                if event.medium in (None, "GPU") and event.group == self._followed:
                    self._orphans.removed(number_of(name) for name in event.hashes)
            else:
                self._names.clear()
                for number in ("in_dram", "in_groups"):
                    self._names.hub.set(number, 0)
                self._cleared()
        self._follow_size()
        if self.mode is IndexMode.DEGRADED:
            told = [event for event in batch.events if isinstance(event, BlocksStored | BlocksRemoved)]
            self._settle_degraded([number_of(name) for event in told for name in event.hashes])


def _group_told(event: Any) -> Told:
    kind = "full_attention" if event["says_full"] else (None, SLIDING, "other")[event["says_other"]]
    return int(event["group"]), int(event["size"]), kind, int(event["window"])
