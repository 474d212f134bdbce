"""Worker and keeper processes on this host: start, watch, stop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence

import msgspec

from jevons.base.errors import EngineError
from jevons.wire.channel import Failed, Ready

START_S = 120.0  # a large model on a slow disk; the embedded one takes 3 s
STOP_S = 2.0

_FIRST_LINE: msgspec.json.Decoder[Ready | Failed] = msgspec.json.Decoder(Ready | Failed)


class Process:
    """One process of ours. It ends when its standard input closes, so it cannot outlive us."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    @classmethod
    async def start(cls, module: str, config: msgspec.Struct, name: str, fds: Sequence[int] = ()) -> Process:
        """Start `python -m module` and wait until it can be connected to.

        Args:
            config: what it reads from its standard input.
            name: what errors call it.
            fds: what it inherits, by the same numbers.

        Raises:
            EngineError: it cannot start; says why.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=fds,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
            )
        except OSError as error:
            raise EngineError(f"{name}: cannot be started: {error.strerror}") from error
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(config) + b"\n")
            return cls(process, await asyncio.wait_for(_port(process, name), START_S))
        except BaseException as error:
            await _end(process)
            if isinstance(error, TimeoutError):
                raise EngineError(f"{name}: was not ready within {START_S:g} s") from error
            raise

    async def wait(self) -> int:
        """Its exit code, once it has ended; negative for a signal."""
        return await self._process.wait()

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Ask it to end, then make it."""
        await _end(self._process, grace_s)

    @property
    def pid(self) -> int:
        return self._process.pid


async def _port(process: asyncio.subprocess.Process, name: str) -> int:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise EngineError(f"{name}: ended with code {await process.wait()} before it was ready")
    message = _FIRST_LINE.decode(line)
    if isinstance(message, Failed):
        raise EngineError(f"{name}: {message.error}")
    return message.port


async def _end(process: asyncio.subprocess.Process, grace_s: float = STOP_S) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), grace_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
