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

What a batch tells is done by `control.contents`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from jevons.control.contents import Batch, Contents
from jevons.control.lives import Doubts, Mark
from jevons.control.orphans import Prompted, Prompts
from jevons.control.reading import Scratch
from jevons.control.shapes import Malformed, decode_batch
from jevons.facts.event import KvBatch
from jevons.facts.state import SourceState
from jevons.facts.worker import IndexMode
from jevons.kv.index import Holding

# While a replay is awaited at most this many batches are kept; vLLM's own replay window is 10,000.
MAX_WAITING = 10_000
_NONE = IndexMode.NONE  # a member is found in its class in 50 ns


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
        self._contents = Contents(holding, scratch or Scratch(), prompts or Prompts(), on_block_size, on_beside)
        self.beside = self._contents.beside
        self._tally = self._contents.tally
        self._next = 0  # the sequence number expected
        self._last_live = -1  # the highest number that came by itself, not by replay
        self._waiting: dict[int, Batch] | None = None  # what came after a hole, while its replay is awaited
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
        return self._contents.counts

    @property
    def mode(self) -> IndexMode:
        """How far what is known is to be believed."""
        return self._contents.mode

    @property
    def block_size(self) -> int | None:
        """Tokens in its blocks; None: not told yet."""
        return self._contents.block_size

    def name_adapters(self, numbers: Mapping[int, str]) -> None:
        """These are the names of what its events tell by number alone."""
        self._contents.name_adapters(numbers)

    @property
    def position(self) -> int:
        """The number of the batch expected next."""
        return self._next

    @property
    def names_bytes(self) -> int:
        """What the map from the engine's names to ours takes."""
        return self._contents.names_bytes

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
        return self._contents.state(self._next - 1) if self._next else None

    def on_batch(self, batch: Batch) -> int | None:
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
        self._tally["gap"] += 1
        self._waiting = {batch.seq: batch}
        self.check()
        return self._next

    def on_replayed(self, batch: Batch) -> None:
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

    def _take(self, batch: Batch) -> None:
        if batch.seq < self._next:
            return
        if batch.seq > self._next:
            self._contents.miss(batch.seq - self._next)
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
        if self._next and self._contents.ts:
            self._doubts.add(Mark(self._next - 1, self._contents.ts, is_grave))
        elif is_grave and self._is_replaying and not self._next:  # what is known next may be told by the old life
            self._is_refuted, self._waiting, self._last_live = True, {}, -1

    def on_garbage(self) -> None:
        """Something came that is no numbered batch."""
        self._contents.on_garbage()

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
            self._contents.mode = IndexMode.EXACT
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
        self._contents.reset()
        self._next, self._last_live, self._waiting = 0, -1, None
        self._recalled, self._is_refuted = None, False
        self._is_replaying = self._is_owed = self._is_rebuilding = False
        self._doubts.clear()

    def _prove(self, state: SourceState, first: Batch) -> None:
        """The replay begins with `first`: the source is the one it was if that is what was then its last batch."""
        if (first.seq, _time_of(first)) != (state.seq, state.ts) or not self._contents.recall(state):
            self._refuse()
            return
        self._recalled = None
        self._next = state.seq + 1

    def _refuse(self) -> None:
        self._tally["recall_refused"] += 1
        self._recalled, self._is_refuted = None, True

    def _rebuild(self, first: Batch) -> None:
        """The replay was asked for all that there is: if that is from 0 on, what is known begins again with it."""
        self._is_rebuilding = False
        if first.seq == 0:
            self._tally["rebuilt"] += 1
            self._contents.reset()
            self._doubts.clear()
            self._next = 0

    def _begin_anew(self) -> None:
        """The source has restarted. Of a replay under way nothing is taken, nor what was kept meanwhile: it was asked
        for from where the old life was. Another one brings all of the new life.
        """
        self._tally["restart"] += 1
        is_replaying = self._is_replaying
        self.reset()
        if is_replaying:
            self._waiting, self._is_replaying, self._is_refuted = {}, True, True

    def _keep(self, batch: Batch) -> None:
        assert self._waiting is not None
        if len(self._waiting) >= MAX_WAITING:
            self._tally["waiting_overflow"] += 1
            return
        self._waiting[batch.seq] = batch

    def on_prompted(self, prompt: Prompted) -> None:
        """The worker has computed a prompt of ours: that may tell what blocks are whose storing was lost."""
        self._contents.on_prompted(prompt)

    def end(self) -> None:
        """The source is listened to no more."""
        self._contents.end()

    def _apply(self, batch: Batch) -> None:
        self._next = batch.seq + 1
        if self._contents.mode is _NONE and self._waiting is None:  # amid a replay more is to come
            self._contents.mode = IndexMode.EXACT
        self._contents.take(batch)


def _time_of(batch: Batch) -> float:
    """The source's clock at a batch; 0 if it cannot be read."""
    if isinstance(batch, KvBatch):
        return batch.ts
    try:
        return decode_batch(batch.seq, batch.payload).ts
    except Malformed:
        return 0.0
