"""Records of `control.blocks`: what it knows of a block, its copy in the arena, who has a lease on it, what moves."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from jevons.facts.block import BlockKey, BlockMeta, Tier


class LeaseId(NamedTuple):
    client: int
    request: int


class Move(msgspec.Struct, frozen=True):
    """A block to copy from the arena to a tier below, or back."""

    key: BlockKey
    meta: BlockMeta
    tier: Tier  # the one below
    offset: int  # in the arena


class Offer(msgspec.Struct, frozen=True):
    """An answer about one block of a fetch: where it is, or why it cannot be had."""

    lease: LeaseId
    key: BlockKey
    offset: int = -1
    meta: BlockMeta | None = None
    tier: Tier | None = None  # it came from
    reason: str = ""


class Change(msgspec.Struct, frozen=True):
    """A tier holds a block from now on, or no longer."""

    key: BlockKey
    tier: Tier
    held: bool


class Copy:
    """A block's place in the arena. `users` read, fill, load or write it; while there are any, it stays."""

    __slots__ = ("condemned", "filled", "meta", "offset", "users")

    def __init__(self, offset: int, meta: BlockMeta) -> None:
        self.offset = offset
        self.meta = meta
        self.users = 0
        self.filled = False
        self.condemned = False  # nobody else may use it; its place is free when the last user is done


class Known:
    """What is known of one block."""

    __slots__ = ("below", "copy", "meta", "used", "waiting")

    def __init__(self, meta: BlockMeta) -> None:
        self.meta = meta
        self.copy: Copy | None = None
        self.below: set[Tier] = set()
        self.waiting: set[LeaseId] = set()  # fetches that wait for it to be filled or loaded
        self.used = False  # fetched since it was written


class Lease:
    """What one fetch or reservation has."""

    __slots__ = ("copies", "took", "waits")

    def __init__(self) -> None:
        self.copies: dict[BlockKey, Copy] = {}
        self.took: list[BlockKey] = []  # that are copied already
        self.waits: set[BlockKey] = set()
