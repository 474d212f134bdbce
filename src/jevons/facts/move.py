"""What an engine asks of its node's tiers, and what it is told: values that cross between threads and clocks.

A page is a block as the tiers keep it. It covers one or more of the engine's own blocks, the same number for all of an
engine's pages: `places` holds so many of the pool's places for each name, in order.
"""

from __future__ import annotations

import msgspec

from jevons.base.ids import BlockHash, BlockId
from jevons.facts.block import Tier


class Look(msgspec.Struct, frozen=True):
    """Which tiers hold these pages? Answered by Found."""

    id: int
    names: list[BlockHash]


class Bring(msgspec.Struct, frozen=True):
    """Copy these pages to these places of the pool, in this order. Answered by Arrived and Missed, ended by Over."""

    id: int
    names: list[BlockHash]
    places: list[BlockId]


class Save(msgspec.Struct, frozen=True):
    """Copy these places of the pool to the tiers, under these names. Ended by Over.

    One that is asked ahead of the step that fills the places is copied as far as Written tells, and nobody may read
    what is copied before Computed; if that never comes, Cancel must.
    """

    id: int
    names: list[BlockHash]
    places: list[BlockId]
    depths: list[int]  # tokens before each page
    salt: str
    worth_s: float = 0.0  # seconds to compute one
    is_ahead: bool = False


class Written(msgspec.Struct, frozen=True):
    """The step in progress has written so many layers `of` all, in every place that a Save ahead of it names."""

    layers: int
    of: int


class Computed(msgspec.Struct, frozen=True):
    """The step that a Save was ahead of is booked: its pages are what their names say."""

    id: int


class Cancel(msgspec.Struct, frozen=True):
    """Go on with it no longer. Its Over comes once no place is read or written any more."""

    id: int


class Keep(msgspec.Struct, frozen=True):
    """The user of these pages will be back within so many seconds."""

    names: list[BlockHash]
    seconds: float


Ask = Look | Bring | Save | Written | Computed | Cancel | Keep


class Found(msgspec.Struct, frozen=True):
    """The nearest tier of each page looked for, and the bytes that others already wait for, by tier."""

    id: int
    tiers: list[Tier | None]
    queued_bytes: dict[Tier, int]


class Arrived(msgspec.Struct, frozen=True):
    """Pages that are in their places now, checked: index in the Bring, and the tier they came from."""

    id: int
    blocks: list[tuple[int, Tier]]


class Missed(msgspec.Struct, frozen=True):
    """Pages that will not come: index in the Bring, and the reason, one of `facts.block.LOST`."""

    id: int
    blocks: list[tuple[int, str]]


class Over(msgspec.Struct, frozen=True):
    """A Bring or Save is over: its places are touched no more. `refused` pages of a Save were not taken."""

    id: int
    refused: int = 0


class MoveReport(msgspec.Struct, frozen=True, array_like=True):
    """Bytes asked of one tier, and how long they took to the last one's arrival; what was given up, extrapolated."""

    tier: Tier
    size_bytes: int
    seconds: float


Answer = Found | Arrived | Missed | Over
