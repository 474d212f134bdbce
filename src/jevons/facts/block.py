"""Blocks outside the device pool: their keys, what is known of each, and why one cannot be had."""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from jevons.base.ids import BlockHash

FINGERPRINT_BYTES = 16


class Tier(enum.StrEnum):
    """Where a copy of a block lies, nearest first."""

    HBM = "hbm"  # an engine's device pool, whatever the device
    DRAM = "dram"  # the node's shared arena
    DISK = "disk"
    PEER = "peer"  # another node's dram or disk, over a link
    REMOTE = "remote"  # an object store


class BlockKey(NamedTuple):
    """What a block is stored under: equal keys, equal bytes (up to rounding where the engine is not invariant)."""

    fingerprint: bytes  # 16 bytes: who computed it and how its page is laid out, see `kv.layout`
    name: BlockHash  # 16 bytes: its tokens and all before them, adapter, tenant


class BlockMeta(msgspec.Struct, frozen=True):
    """What is known of a stored block."""

    size_bytes: int  # of its page
    checksum: int  # 64 bits, of page and key, see `kv.layout.checksum`
    depth: int = 0  # tokens before the block: what computing it again costs grows with it
    tenant: bytes = b""  # 16 bytes that stand for a cache salt; empty without one


# Why a block could not be had or kept: the words that are counted and shown.
LOST = (
    "missing",  # it is not there (any more)
    "corrupt",  # its bytes do not match its checksum: quarantined, never served
    "mismatch",  # another key, size or layout than expected
    "undecryptable",  # no key, the wrong key, or altered bytes
    "full",  # no room: quota, ENOSPC, every block in use
    "io",  # read or write error, directory gone
    "timeout",  # past its deadline
    "denied",  # the store refuses access
    "gone",  # the store or the link to it is gone
    "cancelled",  # nobody wants it any more
)
