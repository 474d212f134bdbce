"""Links bring pages from a peer's arena into our own: the contract, for `tcp_link` and `nixl_link`.

    owner of an arena    Source: listens; its `address` goes to peers over a connection they already have
    who wants pages      Link: one per peer, `read` while a lease holds the pages in place over there

A link brings bytes or says why not. Whether they are the right ones is for the reader's checksum to say.

The rule that matters most: when `read` is over, however it ends (done, an error, cancelled), nothing writes to the
local pages any more. They are given to others then, and a late write would be silent corruption. So the only one who
writes to them is the coroutine that reads, or what it waits for on this event loop: never a device, a thread or
another process that would have to be trusted to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from jevons.base.errors import StoreError


class Range(NamedTuple):
    """Bytes to bring."""

    remote_offset: int  # in the peer's arena
    local_offset: int  # in our own
    size_bytes: int


class LinkAddress(msgspec.Struct, frozen=True):
    """What a peer needs to read from a source, besides the host by which it reaches us: to be kept as a secret."""

    kind: Literal["tcp", "nixl"]
    port: int
    secret: bytes


class Memory(Protocol):
    """An arena, as links see it."""

    @property
    def fd(self) -> int:
        """Its shared memory."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def memory(self) -> memoryview:
        """The same, mapped here; writable."""


class Source(Protocol):
    """Lets peers read an arena, until it is closed."""

    @property
    def address(self) -> LinkAddress: ...

    @property
    def counts(self) -> Counter[str]:
        """What was served and refused, by reason."""

    async def close(self) -> None:
        """End every connection and the listening."""


class Link(Protocol):
    """Reads one peer's arena. It connects when it is first used, and again after it was lost."""

    async def read(self, ranges: Sequence[Range], timeout_s: float) -> None:
        """Bring these ranges into our arena. Reads may run at the same time; their local ranges must not overlap.

        After an error or cancellation the local pages may hold anything, but nothing writes to them any more.

        Raises:
            StoreError: `timeout`; `gone`: the peer or the way to it; `denied`: wrong secret, or ranges outside of the
                peer's arena; `full`: it serves too many; `io`: anything else on the way.
        """

    async def close(self) -> None:
        """Reads in progress end with `gone`."""


def check(ranges: Sequence[Range], memory: Memory) -> None:
    """Our own offsets are ours to get right; the peer's came from it.

    Raises:
        StoreError: an offset of the peer's is none.
    """
    for remote_offset, local_offset, size_bytes in ranges:
        assert 0 <= local_offset <= local_offset + size_bytes <= memory.size_bytes, "local ranges lie in the arena"
        if remote_offset < 0:
            raise StoreError("denied", f"offset {remote_offset} of a peer's arena: must be at least 0")


@contextlib.asynccontextmanager
async def told(peer: str, timeout_s: float) -> AsyncIterator[asyncio.Timeout]:
    """What goes wrong on the way to `peer` within `timeout_s`, as a StoreError."""
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            yield deadline
    except TimeoutError as error:
        raise StoreError("timeout", f"link to {peer}: not within {timeout_s:g} s") from error
    except (ConnectionError, EOFError) as error:
        raise StoreError("gone", f"link to {peer}: {error}") from error
    except OSError as error:
        raise StoreError("io", f"link to {peer}: {error}") from error
