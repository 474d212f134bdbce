"""What a server lived through, as rows of a trace: no text, names of blocks only. No I/O.

Ids name blocks of `BLOCK` tokens, of the prompt and the answer. Who knows a prompt can tell whether it was asked.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np

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
PORTION = 500  # requests: told within 1 or 2 ms
LATELY_S, LATELY_BYTES = 600.0, 32 << 20  # what `Lately` keeps at most
ANSWERED_BYTES = 700  # measured, of an `Answered` besides its blocks: itself, a placement and its reason, its entry


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that came to its end."""

    id: RequestId
    prompt: Sequence[int]
    tokens: Sequence[int]  # empty where only their count is known
    output_tokens: int
    placement: Placement  # the first
    first_s: float | None  # when its first token came
    cached_tokens: int | None
    names: Ints | None = None  # of the prompt's full blocks of `BLOCK`, two numbers each, where the router has them


class Answered(msgspec.Struct, gc=False, frozen=True):
    """What a row is made of, if somebody asks. No token is in it."""

    id: RequestId
    prompt_tokens: int
    output_tokens: int
    placement: Placement
    cached_tokens: int | None
    arrived_s: float
    first_s: float | None  # after that
    done_s: float  # after that
    leader: tuple[RequestId, float] | None  # whom it goes on from, and how long after that
    blocks: bytes  # second halves of the names of its full blocks, 8 bytes each
    left: int | None  # id of what is left

    @property
    def size_bytes(self) -> int:
        return ANSWERED_BYTES + len(self.blocks)

    def row(self, began_s: float) -> RecordedRow:
        """Its times count from `began_s`, of the clock that it was told by."""
        leader, ids = self.leader, (np.frombuffer(self.blocks, np.int64).byteswap() & _ID).tolist()
        return RecordedRow(
            input_length=self.prompt_tokens,
            output_length=self.output_tokens,
            timestamp=ms(self.arrived_s - began_s),
            hash_ids=ids if self.left is None else [*ids, self.left],
            request_id=self.id,
            wait_for=[] if leader is None else [leader[0]],
            delay=None if leader is None else ms(leader[1]),
            block_size=BLOCK,
            worker=self.placement.worker,
            decode=self.placement.decode,
            predicted_ttft_ms=ms(self.placement.ttft_s),
            predicted_cached_tokens=self.placement.cached_tokens,
            ttft_ms=None if self.first_s is None else ms(self.first_s),
            done_ms=ms(self.done_s),
            cached_tokens=self.cached_tokens,
        )


class Rows:
    """Makes rows of what is answered; who goes on with a conversation waits for what was said."""

    def __init__(self) -> None:
        # The last full block of prompts that were answered: of which request, and when.
        self._talks: OrderedDict[int, tuple[RequestId, float, int]] = OrderedDict()

    def answered(self, a: Finished, salt: str, arrived_s: float, done_s: float) -> Answered:
        """A request is over, and its client has all of it. Times in seconds, of one clock."""
        names, left = _named(a, salt)
        blocks = names[1::2]  # the second half of each name is enough to know a block by
        prompt: list[int] = blocks[: len(a.prompt) // BLOCK].tolist()
        leader = self._leader(prompt, len(a.prompt), arrived_s)
        if prompt:
            self._talks[prompt[-1]] = (a.id, done_s, len(a.prompt))
            self._talks.move_to_end(prompt[-1])
            if len(self._talks) > _MOST_TALKS:
                self._talks.popitem(last=False)
        return Answered(
            a.id,
            len(a.prompt),
            a.output_tokens,
            a.placement,
            a.cached_tokens,
            arrived_s,
            None if a.first_s is None else a.first_s - arrived_s,
            done_s - arrived_s,
            leader,
            blocks.tobytes(),
            left,
        )

    def let_go(self, before_s: float) -> None:
        """Who was answered before then is nobody's leader any more."""
        while self._talks and next(iter(self._talks.values()))[1] < before_s:
            self._talks.popitem(last=False)

    def _leader(self, blocks: Sequence[int], tokens: int, arrived_s: float) -> tuple[RequestId, float] | None:
        """The request this one goes on from, and how long after that was done: its prompt begins with all of that
        one's."""
        for id, done_s, prompt_tokens in filter(None, map(self._talks.get, reversed(blocks))):
            if done_s <= arrived_s and prompt_tokens < tokens:
                return id, arrived_s - done_s
        return None


class Wanted(msgspec.Struct, frozen=True):
    """Of what `Lately` keeps: done since then, from this number on."""

    since_s: float
    number: int = 0


class Portion(msgspec.Struct, frozen=True):
    next: int  # number to ask for
    answered: list[Answered]  # none: that was all


class Lately:
    """What was answered in the last minutes, bounded in time and memory. What it costs, each request pays."""

    def __init__(self) -> None:
        self._rows = Rows()
        self._gone = 0  # let go; those that are kept have the numbers from there on
        self._kept: deque[tuple[float, Answered]] = deque()  # when it was done
        self._size_bytes = 0

    def answered(self, a: Finished, salt: str, arrived_s: float, done_s: float) -> None:
        """See `Rows.answered`."""
        self._rows.let_go(done_s - LATELY_S)
        answered = self._rows.answered(a, salt, arrived_s, done_s)
        self._kept.append((done_s, answered))
        self._size_bytes += answered.size_bytes
        while self._size_bytes > LATELY_BYTES or self._kept[0][0] < done_s - LATELY_S:
            self._size_bytes -= self._kept.popleft()[1].size_bytes
            self._gone += 1

    def since(self, at_s: float) -> list[Answered]:
        """Requests done since then, in the order they were."""
        return [answered for done_s, answered in self._kept if done_s >= at_s]

    def portion(self, asked: Wanted) -> Portion:
        """The same by portions: of a whole that is not told at once."""
        numbered = islice(enumerate(self._kept, self._gone), max(0, asked.number - self._gone), None)
        recent = ((number, answered) for number, (done_s, answered) in numbered if done_s >= asked.since_s)
        found = list(islice(recent, PORTION))
        return Portion(found[-1][0] + 1 if found else asked.number, [answered for _, answered in found])


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
    answered: list[Answered]
    silent: int = 0  # frontends that did not tell theirs in time


def _named(a: Finished, salt: str) -> tuple[Ints, int | None]:
    """The names of its full blocks, see `kv.blake2b.name_prompt`, and the id of what is left."""
    if a.names is not None and not a.tokens:
        names, left = a.names[: 2 * (len(a.prompt) // BLOCK)], a.prompt[len(a.prompt) // BLOCK * BLOCK :]
    else:
        tokens = [*a.prompt, *a.tokens]
        names, left = name_prompt(tokens, BLOCK, salt)[1], tokens[len(tokens) // BLOCK * BLOCK :]
    if not left:
        return names, None
    before = BlockHash(names[-2:].tobytes()) if len(names) else root(BLOCK, salt)
    return names, int.from_bytes(chain(left, len(left), before)[0][-8:], "big") & _ID


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
