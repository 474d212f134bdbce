"""How a process that we start speaks with us: one line each way, and an end when its standard input closes."""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec


def tell(fd: int, message: msgspec.Struct) -> None:
    """Write one line of JSON."""
    os.write(fd, msgspec.json.encode(message) + b"\n")


async def stdin_closed() -> None:
    """Wait until who started us is gone or wants us to end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
