"""What the blocks of a cache without keys and values hold, and the tokens drawn from it.

A block holds a digest of its tokens and of all before them. A token is drawn from the digests of all blocks of its
sequence, so whoever gives a sequence a wrong block gets a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jevons.base.ids import BlockHash, BlockId, RequestId
from jevons.control.batch import Chunk
from jevons.kv.hashing import HASH_BYTES, chain, root, wire_hash

FIRST, COUNT = 1_000, 30_000  # tokens drawn: none that ends an answer
_MASK = (1 << 64) - 1
_NOTHING = BlockHash(bytes(HASH_BYTES))


def mix(digest: int, token: int) -> int:
    """The digest of a sequence that goes on with `token`."""
    mixed = ((digest ^ token) * 0x9E3779B97F4A7C15 + 1) & _MASK
    return mixed ^ mixed >> 29


def token_of(seen: int) -> int:
    """The token drawn from what was seen in the cache."""
    return FIRST + mix(seen, 0) % COUNT


def token_after(tokens: Sequence[int], block_size: int) -> int:
    """What is drawn after `tokens` if every block is right: the oracle of `Contents`."""
    names = chain(tokens, block_size, root(block_size))
    seen = 0
    for name in names:
        seen ^= wire_hash(name)
    return token_of(_with_rest(seen, tokens[len(names) * block_size :]))


def _with_rest(seen: int, rest: Sequence[int]) -> int:
    """`rest` are the tokens of a block that is not full."""
    digest = 0
    for token in rest:
        digest = mix(digest, token)
    return seen ^ digest


class _Sequence(NamedTuple):
    """How far one sequence is written."""

    end: int
    parent: BlockHash  # what its last full block holds
    seen: int  # of all full blocks
    rest: list[int]  # tokens after them


class Contents:
    """The blocks of one pool."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._root = root(block_size)
        self._held = [_NOTHING] * blocks
        self._sequences: dict[RequestId, _Sequence] = {}

    def write(self, chunk: Chunk) -> int | None:
        """Compute a chunk. Returns the token drawn after it, if one is wanted."""
        at = self._sequences.get(chunk.id)
        if at is None or at.end != chunk.start:
            at = self._found(chunk.table, chunk.start)
        rest = [*at.rest, *chunk.tokens]
        first = chunk.start // self._block_size
        names = chain(rest, self._block_size, at.parent)
        seen = at.seen
        for place, name in zip(chunk.table[first : first + len(names)], names, strict=True):
            self._held[place] = name
            seen ^= wire_hash(name)
        rest = rest[len(names) * self._block_size :]
        parent = names[-1] if names else at.parent
        self._sequences[chunk.id] = _Sequence(chunk.start + len(chunk.tokens), parent, seen, rest)
        return None if chunk.sampling is None else token_of(_with_rest(seen, rest))

    def forget(self, id: RequestId) -> None:
        """A sequence is over; what its blocks hold stays."""
        self._sequences.pop(id, None)

    def _found(self, table: Sequence[BlockId], start: int) -> _Sequence:
        """A sequence that begins with what the cache holds of it."""
        assert start % self._block_size == 0, "whole blocks are found"
        held = [self._held[place] for place in table[: start // self._block_size]]
        seen = 0
        for name in held:
            seen ^= wire_hash(name)
        return _Sequence(start, held[-1] if held else self._root, seen, [])
