"""What the connector's two sides tell each other with every step of vLLM: plain values, pickled by vLLM."""

from __future__ import annotations

import msgspec

from jevons.base.ids import BlockHash, BlockId
from jevons.facts.block import Tier
from jevons.facts.move import MoveReport


class Fetch(msgspec.Struct, frozen=True):
    """Bring these blocks, first to last, for a request that waits for them."""

    request: str
    names: list[BlockHash]
    blocks: list[BlockId]  # vLLM's
    tiers: list[Tier]  # that hold them
    wait_s: float  # at most


class Store(msgspec.Struct, frozen=True):
    """These blocks are full once the step is computed."""

    names: list[BlockHash]
    blocks: list[BlockId]
    depth: int  # tokens before the first of them
    salt: str


class Orders(msgspec.Struct, frozen=True):
    """Scheduler to worker, with a step."""

    number: int  # of the step
    fetches: list[Fetch]
    stores: list[Store]
    cancels: list[str]  # requests that are gone
    is_idle: bool  # nothing is computed in it


class Told(msgspec.Struct, frozen=True):
    """Worker to scheduler, after a step."""

    number: int  # of the step
    seconds: float  # of computing it
    moves: list[MoveReport]
    late: list[Tier]  # of which nothing or not all came in time
