"""What a server lived through, as rows of a trace: no text, names of blocks only. No I/O.

Ids name blocks of `BLOCK` tokens, of the prompt and the answer. Who knows a prompt can tell whether it was asked.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from jevons.base.compiled import Ints
from jevons.base.ids import BlockHash, RequestId
from jevons.facts.trace import RecordedRow, RecordedWorker
from jevons.facts.worker import WorkerFacts
from jevons.kv.blake2b import name_prompt
from jevons.kv.hashing import chain, root
from jevons.perf.measured import Prices
from jevons.policy.route import Placement

BLOCK = 16  # tokens behind an id
_MOST_TALKS = 65_536  # conversations that may go on: those answered last
_ID = (1 << 36) - 1  # of a block's name: copies of a trace are told apart by the bits above
LATELY_S, LATELY_BYTES = 600.0, 32 << 20  # what `Lately` keeps at most


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that came to its end."""

    id: RequestId
    prompt: Sequence[int]
    tokens: Sequence[int]  # empty where only their count is known
    output_tokens: int
    placement: Placement  # the first
    first_s: float | None  # when its first token came
    cached_tokens: int | None


class Rows:
    """Makes rows of what is answered; who goes on with a conversation waits for what was said.

    Args:
        began_s: times of rows count from then.
    """

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        # The last full block of prompts that were answered: of which request, and when.
        self._talks: OrderedDict[int, tuple[RequestId, float, int]] = OrderedDict()

    def answered(self, a: Finished, salt: str, arrived_s: float, done_s: float) -> RecordedRow:
        """A request is over, and its client has all of it. Times in seconds, of one clock."""
        tokens = [*a.prompt, *a.tokens]
        _, names = name_prompt(tokens, BLOCK, salt)
        full: list[int] = names[1::2].tolist()  # the second half of each name is enough to know a block by
        named = len(a.prompt) // BLOCK
        leader = self._leader(full[:named], len(a.prompt), arrived_s)
        row = RecordedRow(
            input_length=len(a.prompt),
            output_length=a.output_tokens,
            timestamp=ms(arrived_s - self._began_s),
            hash_ids=_ids(tokens, names, salt),
            request_id=a.id,
            wait_for=[] if leader is None else [leader[0]],
            delay=None if leader is None else ms(arrived_s - leader[1]),
            block_size=BLOCK,
            worker=a.placement.worker,
            decode=a.placement.decode,
            predicted_ttft_ms=ms(a.placement.ttft_s),
            predicted_cached_tokens=a.placement.cached_tokens,
            ttft_ms=None if a.first_s is None else ms(a.first_s - arrived_s),
            done_ms=ms(done_s - arrived_s),
            cached_tokens=a.cached_tokens,
        )
        if named:
            self._talks[full[named - 1]] = (a.id, done_s, len(a.prompt))
            self._talks.move_to_end(full[named - 1])
            if len(self._talks) > _MOST_TALKS:
                self._talks.popitem(last=False)
        return row

    def _leader(self, blocks: Sequence[int], tokens: int, arrived_s: float) -> tuple[RequestId, float] | None:
        """The request this one goes on from, and when that was done: its prompt begins with all of that one's."""
        for block in reversed(blocks):
            found = self._talks.get(block)
            if found is not None and found[1] <= arrived_s and found[2] < tokens:
                return found[0], found[1]
        return None


class Lately:
    """Rows of the last minutes, bounded in time and memory."""

    def __init__(self, began_s: float) -> None:
        self._rows = Rows(began_s)
        self._kept: deque[tuple[float, bytes]] = deque()  # when it was done, and its line
        self._size_bytes = 0

    def answered(self, a: Finished, salt: str, arrived_s: float, done_s: float) -> None:
        """See `Rows.answered`."""
        line = msgspec.json.encode(self._rows.answered(a, salt, arrived_s, done_s))
        self._kept.append((done_s, line))
        self._size_bytes += len(line)
        while self._size_bytes > LATELY_BYTES or self._kept[0][0] < done_s - LATELY_S:
            self._size_bytes -= len(self._kept.popleft()[1])

    def since(self, at_s: float) -> list[bytes]:
        """Lines of requests done since then, in the order they were."""
        return [line for done_s, line in self._kept if done_s >= at_s]


class LivedWorker(NamedTuple):
    """A worker, and what its steps are believed to take."""

    worker: RecordedWorker
    prices: Prices
    chip: str  # "": not known
    chips: int


def lived_worker(policy: str, f: WorkerFacts, block_size: int | None, prices: Prices) -> LivedWorker:
    """`block_size`: of its blocks as it turned out; `f` may not tell."""
    recorded = RecordedWorker(policy, f.id, f.model, f.kind, f.role, f.step_tokens, block_size, f.blocks, f.max_running)
    return LivedWorker(recorded, prices, f.chip, f.chips)


class Lived(NamedTuple):
    """What a rehearsal of the last minutes needs."""

    policy: str
    workers: list[LivedWorker]
    lines: list[bytes]  # of `RecordedRow`


def _ids(tokens: Sequence[int], names: Ints, salt: str) -> list[int]:
    """Of the full blocks, and of what is left. `names`: see `kv.blake2b.name_prompt`."""
    ids: list[int] = (names[1::2].byteswap() & _ID).tolist()
    left = tokens[len(ids) * BLOCK :]
    if left:
        before = BlockHash(names[-2:].tobytes()) if ids else root(BLOCK, salt)
        ids.append(int.from_bytes(chain(left, len(left), before)[0][-8:], "big") & _ID)
    return ids


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
