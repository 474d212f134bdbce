"""A process that serves an arena of known bytes, until its standard input closes.

    python tests/wire/link_source.py KIND HOST SIZE_BYTES

Prints its address as one line of JSON.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import uvloop

from jevons.serve.stdio import stdin_closed, tell
from jevons.store.arena import Arena
from jevons.wire.link import Source
from jevons.wire.nixl_link import NixlSource
from jevons.wire.tcp_link import TcpSource


def content(size_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """What lies in the arena: no two places look alike."""
    return np.random.default_rng(7).integers(0, 256, size_bytes, np.uint8)


async def serve(kind: str, host: str, size_bytes: int, ready: int) -> None:
    arena = Arena.create(size_bytes)
    arena.memory[:] = content(size_bytes).data
    source: Source = await (NixlSource if kind == "nixl" else TcpSource).open(arena, host)
    tell(ready, source.address)
    try:
        await stdin_closed()
    finally:
        await source.close()


def main() -> None:
    kind, host, size_bytes = sys.argv[1:]
    ready = os.dup(1)
    os.dup2(2, 1)
    uvloop.run(serve(kind, host, int(size_bytes), ready))


if __name__ == "__main__":
    main()
