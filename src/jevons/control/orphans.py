"""Blocks told of whose block before is unknown: kept aside until that is known, or a prompt shows what it is.

What stored that block was lost. But who computed it had a prompt from us: where the orphan's tokens stand in a prompt,
and in one place only, the block before it there is the one that the engine meant by its name for it. That block and
all before it are on the worker too, for the engine computed the orphan from them.

    lost      ■ ■ ■                     names of ours from the prompt, of the engine's only the last
    orphan          □ □                 its parent is that one
    prompt    ■ ■ ■ □ □ …
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from jevons.base.compiled import Ints
from jevons.base.ids import BlockHash
from jevons.facts.event import BlocksStored, EngineHash
from jevons.kv.blake2b import Tokens
from jevons.kv.engine_names import EngineNames, number_of
from jevons.kv.index import Holding

GUESS_KEPT = 256  # parents: some seconds of a busy engine's events
GUESS_AGREE = 4  # tokens of a prompt at least, of blocks of one or two (SGLang's): one token stands in many places
GUESS_EVENTS = 1_024  # of all parents: what goes on from one prefix may be all that an engine holds
GUESS_PROMPTS = 32  # of those told last: as many as run at once on a busy worker
GUESS_PROMPTS_BYTES = 32 << 20  # of all sources: a thousand engines' last second of long prompts


class Prompted(NamedTuple):
    """A prompt that a worker has computed."""

    tokens: Tokens
    names: Ints  # of its full blocks, two numbers each, as `kv.blake2b` makes them


class Prompts:
    """Prompts that workers have computed, of all sources together: the last of each, as far as they fit in memory."""

    def __init__(self, most_bytes: int = GUESS_PROMPTS_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._told = 0
        self._kept: dict[int, tuple[Prompted, deque[int]]] = {}  # by number, those told first come first; and whose

    def add(self, prompt: Prompted, own: deque[int]) -> None:
        """`own` are the numbers of the prompt's source, for whom it is kept; the oldest of them, and of all, go."""
        if len(own) == GUESS_PROMPTS:
            self._drop(own[0])
        self._told += 1
        self._kept[self._told] = prompt, own
        own.append(self._told)
        self._bytes += _bytes_of(prompt)
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def of(self, own: Iterable[int]) -> list[Prompted]:
        return [self._kept[number][0] for number in own]

    def clear(self, own: deque[int]) -> None:
        while own:
            self._drop(own[0])

    def _drop(self, number: int) -> None:
        """The oldest of its source."""
        prompt, own = self._kept.pop(number)
        own.popleft()
        self._bytes -= _bytes_of(prompt)


def _bytes_of(prompt: Prompted) -> int:
    return prompt.tokens.nbytes + prompt.names.nbytes


class _Kept(NamedTuple):
    """An orphan: `event` tells its blocks by our numbers for the engine's names."""

    first: bytes  # tokens of its first block, or of the first few small ones
    event: BlocksStored


class Orphans:
    """Those of one source. `recovered` counts the blocks that prompts told of.

    Args:
        names: what the source calls its blocks.
        holding: what it is known to hold.
        prompts: where its prompts are kept, with those of others.
    """

    def __init__(self, names: EngineNames, holding: Holding, prompts: Prompts) -> None:
        self._names = names
        self._holding = holding
        self._prompts = prompts
        self._own: deque[int] = deque()  # prompts
        self.recovered = 0
        # By a block's number, those before it that are held as long as that one is: their own removal nobody would
        # recognise, but an engine evicts from the end.
        self._before_it: dict[int, list[BlockHash]] = {}
        self._aside: dict[int, list[_Kept]] = {}  # by the parent's number
        self._events = 0  # of all parents
        self._parents: dict[int, int] = {}  # that number, by those of the blocks that are kept aside
        self._to_explain: dict[int, BlocksStored] = {}  # by the parent's number: the last, of those not looked for yet

    def __len__(self) -> int:
        return len(self._aside)

    def clear(self) -> None:
        self._aside.clear()
        self._events = 0
        self._parents.clear()
        self._to_explain.clear()
        self._prompts.clear(self._own)
        self._before_it.clear()

    def keep(self, event: BlocksStored) -> None:
        """An orphan came. Those that wait for longest are dropped where there are too many."""
        if event.adapter or event.adapter_number or any(event.extra or ()):  # prompts of ours have no such
            return
        if event.parent is None or not event.hashes:
            return
        parent, numbers = number_of(event.parent), [number_of(name) for name in event.hashes]
        event = replace(event, hashes=list[EngineHash](numbers), extra=None)
        first = np.array(event.tokens[: _telling(event.block_size)], np.uint32).tobytes()
        self._aside.setdefault(parent, []).append(_Kept(first, event))
        self._events += 1
        if parent not in self._parents:  # or it is known with that one
            self._to_explain[parent] = event
        self._parents.update(dict.fromkeys(numbers, parent))
        if len(self._aside) > GUESS_KEPT:
            self._take(next(iter(self._aside)))
        elif self._events > GUESS_EVENTS:
            oldest, kept = next(iter(self._aside.items()))
            self._cut(oldest, number_of(kept[0].event.hashes[0]))

    def removed(self, numbers: Iterable[int]) -> None:
        """The source has these blocks no more. Of what is kept aside each goes, and what comes after it with it."""
        for number in numbers:
            parent = self._parents.get(number)
            if parent is not None:
                self._cut(parent, number)

    def prompted(self, prompt: Prompted) -> None:
        """The worker has computed a prompt of ours. Costs 0.2 us for each of its blocks, and each orphan."""
        self._prompts.add(prompt, self._own)
        blocks, sizes = dict[int, set[bytes]](), {kept[-1].event.block_size for kept in self._aside.values()}
        for size in sizes:
            raw, each = prompt.tokens.tobytes(), prompt.tokens.itemsize
            width, step = each * _telling(size), each * size
            blocks.setdefault(width, set()).update(raw[at : at + width] for at in range(0, len(raw) - width + 1, step))
        for parent, kept in self._aside.items():
            for first, event in kept:
                if first in blocks.get(len(first), ()):
                    self._to_explain[parent] = event

    def children_of(self, numbers: Iterable[int]) -> list[BlocksStored]:
        """Those that come after blocks which are known now, by their numbers; they are kept aside no more."""
        return [event for number in numbers if number in self._aside for event in self._take(number)]

    def adopt(self) -> list[BlocksStored]:
        """Take prompts' word for what the parents of orphans are. Returns those that are orphans no more.

        Costs some us for each prompt, and each parent that has come or that a prompt may have told of since.
        """
        wanted = [(number, event) for number, event in self._to_explain.items() if number in self._aside]
        self._to_explain.clear()
        pairs = [(number, self._before(event)) for number, event in wanted]
        told = {number: before for number, before in pairs if before is not None}
        for number, before in told.items():
            missing = [name for name in before[:-1] if not self._holding.holds(name)]
            self._names.put(number, before[-1])
            self._before_it[number] = missing
            self._holding.store([*missing, before[-1]])
            self.recovered += 1 + len(missing)
        return self.children_of(told)

    def let_go(self, numbers: Iterable[int]) -> None:
        """Blocks held as long as others are go with them, of which `numbers` may be gone."""
        for number in numbers:
            if number in self._before_it and self._names.get(number) is None:
                self._holding.remove(self._before_it.pop(number))

    def _cut(self, parent: int, number: int) -> None:
        """Of those that wait for this parent, what stands before a block is left."""
        left = list[_Kept]()
        for kept in self._aside[parent]:
            hashes, event = kept.event.hashes, kept.event
            end = hashes.index(number) if number in hashes else len(hashes)
            for gone in hashes[end:]:
                self._parents.pop(number_of(gone), None)
            if 0 < end < len(hashes):
                event = replace(event, hashes=hashes[:end], tokens=event.tokens[: end * event.block_size])
            if end:
                left.append(_Kept(kept.first, event))
        self._events -= len(self._aside[parent]) - len(left)
        self._aside[parent] = left
        if not left:
            del self._aside[parent]

    def _take(self, parent: int) -> list[BlocksStored]:
        """Those that wait for this block; they are kept aside no more."""
        events = [kept.event for kept in self._aside.pop(parent)]
        self._events -= len(events)
        for event in events:
            for name in event.hashes:
                self._parents.pop(number_of(name), None)
        return events

    def _before(self, event: BlocksStored) -> list[BlockHash] | None:
        """All blocks before an orphan; None if no prompt has it, or they do not agree."""
        tokens, candidates = np.array(event.tokens, np.uint32), dict[bytes, list[BlockHash]]()
        for prompt in self._prompts.of(self._own):
            if len(prompt.names) // 2 != len(prompt.tokens) // event.block_size:
                continue  # it was cut into blocks of another size
            for at in _places(tokens, event.block_size, prompt.tokens):
                raw = prompt.names[: 2 * at].tobytes()
                candidates[raw[-16:]] = [BlockHash(raw[i : i + 16]) for i in range(0, len(raw), 16)]
        return next(iter(candidates.values())) if len(candidates) == 1 else None


def _places(tokens: Tokens, size: int, prompt: Tokens) -> list[int]:
    """Blocks of a prompt, not the first, where `tokens` stand as far as both go on, if these are enough to tell."""
    blocks = len(prompt) // size
    rows = prompt[: blocks * size].reshape(blocks, size)
    places = np.flatnonzero((rows == tokens[:size]).all(axis=1))
    return [int(at) for at in places if at and _goes_on(tokens, prompt[at * size :], _telling(size))]


def _telling(size: int) -> int:
    """Tokens of so many blocks as tell where in a prompt they stand."""
    return size * -(-GUESS_AGREE // size)


def _goes_on(tokens: Tokens, rest: Tokens, least: int) -> bool:
    both = min(len(tokens), len(rest))
    return both >= least and bool((tokens[:both] == rest[:both]).all())
