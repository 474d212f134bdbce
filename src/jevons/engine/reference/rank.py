"""A follower: the process of any rank but the first. It computes its part of the leader's steps.

    main thread      steps: what to compute; then a byte for each layer: go on, or give the step up
    command thread   attach the arena, copy blocks out of and into it; each answered with a byte when done

Started by `leader` as `python -m jevons.engine.reference.rank`. Standard input is a socket: its configuration as one
line of JSON, then commands, a line each. When the leader is gone its sockets close and the follower ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from jevons.base.errors import JevonsError
from jevons.engine.reference.group import Together
from jevons.engine.reference.runner import Abandoned, Cache, Runner, Slice
from jevons.store.arena import Arena

GO, STOP, DONE = b"g", b"s", b"d"
_LENGTH_BYTES = 4

_STEP: msgspec.msgpack.Decoder[list[tuple[list[int], int, list[int]]]] = msgspec.msgpack.Decoder(
    list[tuple[list[int], int, list[int]]]
)


class RankConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower is started with; as `Runner` and `Together` take it."""

    rank: int
    ranks: int
    store: str
    steps: int  # file descriptor of the socket that steps come from
    threads: int
    model_dir: str
    cache: Cache
    device: str
    invariant: bool


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """Map the shared memory behind the file descriptor that comes along."""


class CopyOut(msgspec.Struct, frozen=True, tag="copy_out"):
    pages: Sequence[tuple[Sequence[int], int]]  # block ids, offset in the arena
    first: int | None  # layers of them, as of a slice
    end: int | None


class CopyIn(msgspec.Struct, frozen=True, tag="copy_in"):
    pages: Sequence[tuple[Sequence[int], int]]


Command = Attach | CopyOut | CopyIn
_COMMAND: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


def encoded(slices: Sequence[Slice]) -> bytes:
    """A step for followers: what to compute, not what to draw. A step of nothing ends a phase."""
    body = msgspec.msgpack.encode([(list(s.tokens), s.start, list(s.table)) for s in slices])
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Follower(Runner):
    """A part of the model that computes what the leader says.

    It goes through the leader's phases: meet, prove (if invariant), serve. Each begins when all followers have said
    that they are ready for it (a command must not come before the pages are there), and ends with a step of nothing.
    """

    def __init__(self, config: RankConfig, control: socket.socket) -> None:
        self._steps = open(config.steps, "rb")  # noqa: SIM115 — open as long as we live
        self._control = control
        threading.Thread(target=self._obey, name="commands", daemon=True).start()
        super().__init__(
            Path(config.model_dir),
            config.cache,
            device=rank_device(config.device, config.rank),
            invariant=config.invariant,
            group=Together(config.rank, config.ranks, Path(config.store), self.follow),
        )

    def follow(self) -> None:
        """Say that we are ready for the next phase, and compute the leader's steps to its end.

        Raises:
            EOFError: the leader is gone.
        """
        self._control.sendall(DONE)
        while slices := self._next():
            with contextlib.suppress(Abandoned):
                self.step(slices, self._is_given_up)
                self._read(1)  # the word on the layer after the last

    def _prove(self, block_size: int) -> None:
        self.follow()

    def _next(self) -> list[Slice]:
        size = int.from_bytes(self._read(_LENGTH_BYTES), "big")
        return [Slice(tokens, start, table, None) for tokens, start, table in _STEP.decode(self._read(size))]

    def _is_given_up(self) -> bool:
        return self._read(1) == STOP

    def _read(self, count: int) -> bytes:
        data = self._steps.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _obey(self) -> None:
        """Runs on the command thread, which ends the process: with the leader, or by an error."""
        code = 1
        try:
            while (received := receive(self._control))[0]:
                self._do(*received)
                self._control.sendall(DONE)
            code = 0
        except ConnectionError:
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _do(self, line: bytes, descriptors: list[int]) -> None:
        match _COMMAND.decode(line):
            case Attach():
                arena = Arena.attach(descriptors[0])
                self.exchange.attach(arena)
                arena.close()
            case CopyOut(pages, first, end):
                self.exchange.copy_out(pages, slice(first, end))
            case CopyIn(pages):
                self.exchange.copy_in(pages)


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """A line and the file descriptors that came with it; an empty one when the other end is closed."""
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        data, came, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not data:
            return b"", []
        line += data
        descriptors += came
    return line, descriptors


def rank_device(device: str, rank: int) -> str:
    """The leader's device, and on machines with many of a kind the following ones: cuda:2 → cuda:3 for rank 1."""
    first = torch.device(device)
    return device if first.type == "cpu" else f"{first.type}:{(first.index or 0) + rank}"


def main() -> None:
    control = socket.socket(fileno=0)
    line, _ = receive(control)
    if not line:
        return  # the leader has ended meanwhile
    config = msgspec.json.decode(line, type=RankConfig)
    torch.set_num_threads(config.threads)
    try:
        Follower(config, control).follow()
    except (EOFError, ConnectionError):
        pass
    except JevonsError as error:
        sys.exit(f"rank {config.rank} of {config.ranks}: {error}")


if __name__ == "__main__":
    main()
