"""Block hashes: the one name a block of tokens has everywhere in jevons.

A prompt is cut into blocks of `block_size` tokens. A block's hash covers its own tokens and the hash of the block
before it, so equal hashes mean equal prefixes, and a prefix match is a walk along a list:

    tokens   [ t0 .. t15 ][ t16 .. t31 ][ t32 .. t40 ]
    hashes       h0    ──▶    h1            none: the block is not full

The root starts the chain. It keeps apart what must never share: block sizes, adapters, tenants. BLAKE2b with 16 bytes
is collision-resistant, so a crafted prompt cannot take another's name; it costs 0.6 µs a block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

from jevons.base.errors import ConfigError
from jevons.base.ids import BlockHash

HASH_BYTES = 16
TOKEN_BYTES = 4


@lru_cache(maxsize=1024)
def root(block_size: int, salt: str = "", adapter: str = "") -> BlockHash:
    """The start of a chain. Prompts with different roots never match.

    Raises:
        ConfigError: `block_size` is below 1.
    """
    if block_size < 1:
        raise ConfigError(f"block_size: must be at least 1 token, got {block_size}")
    name = b"\0".join((str(block_size).encode(), adapter.encode(), salt.encode()))
    return BlockHash(blake2b(name, digest_size=HASH_BYTES).digest())


def chain(
    tokens: Sequence[int], block_size: int, parent: BlockHash, extra: Iterable[bytes] | None = None
) -> list[BlockHash]:
    """Hash every full block of `tokens`, first to last, going on from `parent`.

    Args:
        tokens: token ids, each in [0, 2**32).
        block_size: tokens per block, at least 1.
        parent: hash of the block before, or a `root`.
        extra: per block, what else makes it differ (images, say), empty for nothing.

    Returns:
        `len(tokens) // block_size` hashes. A trailing partial block has none: it may still grow, and a name must
        not change.
    """
    raw = array("I", tokens).tobytes()
    width = block_size * TOKEN_BYTES
    hashes = []
    if extra is None:
        for end in range(width, len(raw) + 1, width):
            parent = BlockHash(blake2b(parent + raw[end - width : end], digest_size=HASH_BYTES).digest())
            hashes.append(parent)
    else:
        for end, more in zip(range(width, len(raw) + 1, width), extra, strict=False):
            parent = BlockHash(blake2b(parent + raw[end - width : end] + more, digest_size=HASH_BYTES).digest())
            hashes.append(parent)
    return hashes


def block_hashes(tokens: Sequence[int], block_size: int, salt: str = "", adapter: str = "") -> list[BlockHash]:
    """Hash every full block of a prompt: `chain` from its `root`."""
    return chain(tokens, block_size, root(block_size, salt, adapter))


def wire_hash(name: BlockHash) -> int:
    """The 64-bit number that stands for a block in KV events: the low half of its hash, as vLLM does."""
    return int.from_bytes(name[-8:], "big")
