"""What a router knows, kept in a file for its next life.

    magic, then frames: length (4 bytes), BLAKE2b of what follows (16), MessagePack
    frames   Header, WorkerState of each worker, End

A file that is not whole, of another version, or of a jevons that names blocks otherwise is refused as a whole. One that
is old does no harm: a source is believed only where it proves to be the same (see `control.intake`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from jevons.base.errors import StateError
from jevons.base.ids import WorkerId
from jevons.control.router import Router
from jevons.facts.state import WorkerState
from jevons.kv.engine_names import SLOT
from jevons.kv.hashing import block_hashes

log = logging.getLogger("jevons.kept")

SAVE_S = 30.0  # vLLM keeps 10,000 batches for a replay, of a step each: 100 s at 10 ms
_SHARE = 100  # saving takes at most this part of the time
_MAGIC = b"jevons state 1\n"
_LENGTH, _SUM = 4, 16


class _Header(msgspec.Struct, frozen=True):
    names: bytes  # how blocks are named


class _End(msgspec.Struct, frozen=True):
    workers: int


def encode(states: Sequence[WorkerState]) -> Iterator[bytes]:
    """A file, in pieces."""
    yield _MAGIC + _frame(_Header(_naming()))
    for state in states:
        yield _frame(state)
    yield _frame(_End(len(states)))


def decode(raw: bytes) -> list[WorkerState]:
    """Read a file.

    Raises:
        StateError: it is not whole, or not ours to read; says which.
    """
    if not raw.startswith(_MAGIC):
        raise StateError(f"must begin with {_MAGIC!r}, got {raw[: len(_MAGIC)]!r}")
    frames = list(_frames(memoryview(raw)[len(_MAGIC) :]))
    try:
        header = msgspec.msgpack.decode(frames[0], type=_Header) if frames else None
        if header is None or header.names != _naming():
            raise StateError("it names blocks otherwise than this version does")
        states = [msgspec.msgpack.decode(frame, type=WorkerState) for frame in frames[1:-1]]
        end = msgspec.msgpack.decode(frames[-1], type=_End)
    except msgspec.MsgspecError as error:
        raise StateError(f"a record cannot be read: {error}") from error
    if end.workers != len(states):
        raise StateError(f"must hold {end.workers} workers, got {len(states)}")
    return states


class Kept(Collector):
    """The file of one server.

    Args:
        saves: whether this process writes it.
    """

    def __init__(self, path: Path, *, saves: bool = True) -> None:
        self.counts: Counter[str] = Counter()
        self.saves = saves
        self._path = path

    def load(self, router: Router, workers: Collection[WorkerId]) -> int:
        """Let `router` recall what is kept of these workers. Returns of how many.

        A file that is no good is said once, and counted. Costs 1 us a block.
        """
        try:
            states = decode(self._path.read_bytes())
        except FileNotFoundError:
            return 0
        except Exception as error:  # the edge: what is known is worth much, but no server must fail to start for it
            self.counts["refused"] += 1
            is_foreseen = isinstance(error, OSError | StateError)
            log.warning("state %s: not used, the index begins empty: %s", self._path, error, exc_info=not is_foreseen)
            return 0
        asked = [state for state in states if state.worker in workers]
        for state in asked:
            router.recall(state)
        self.counts["loaded"] += len(asked)
        return len(asked)

    async def keep(self, router: Router) -> None:
        """Save now and then, until cancelled."""
        pause_s = SAVE_S
        while True:
            await asyncio.sleep(pause_s)
            began_s = time.monotonic()
            await self.save(router)
            pause_s = max(SAVE_S, _SHARE * (time.monotonic() - began_s))

    async def save(self, router: Router) -> None:
        """Save what is known now, worker by worker; other work goes on between them. What fails is counted: a worker
        that cannot be told is left out, a file that cannot be written leaves the one before.

        Costs 0.1 us a block on the event loop, in a stretch for each worker, and as much in a thread.
        """
        if not self.saves:
            return
        states = []
        for worker in router.remembered():
            state = self._state(router, worker)
            if state is not None:
                states.append(state)
            await asyncio.sleep(0)
        try:
            await asyncio.to_thread(self._write, states)
            self.counts["saved"] += 1
        except Exception as error:  # the edge: a server goes on without
            self._failed("unsaved", f"cannot be written: {error}", error)

    def _state(self, router: Router, worker: WorkerId) -> WorkerState | None:
        try:
            return router.state(worker)
        except Exception as error:  # the edge: one worker must not cost what is known of the others
            self._failed("left_out", f"worker {worker} is left out: {error}", error)
            return None

    def _failed(self, fate: str, what: str, error: Exception) -> None:
        """Count it, and say it the first time."""
        if not self.counts[fate]:
            log.warning("state %s: %s", self._path, what, exc_info=not isinstance(error, OSError))
        self.counts[fate] += 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "jevons_state", "Workers loaded, left out; files saved, unsaved, refused.", labels=["fate"]
        )
        for fate, times in self.counts.items():
            family.add_metric([fate], times)
        yield family

    def _write(self, states: Sequence[WorkerState]) -> None:
        """A whole file takes the place of the one before, or none does."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.writelines(encode(states))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        finally:
            fresh.unlink(missing_ok=True)


def _naming() -> bytes:
    """Changes with the names of blocks, and with how they are kept."""
    return block_hashes(range(32), 16, "salt", "adapter")[-1] + repr(SLOT.descr).encode()


def _frame(record: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(record)
    return len(body).to_bytes(_LENGTH, "big") + blake2b(body, digest_size=_SUM).digest() + body


def _frames(raw: memoryview) -> Iterator[memoryview]:
    while raw:
        size = int.from_bytes(raw[:_LENGTH], "big")
        body = raw[_LENGTH + _SUM : _LENGTH + _SUM + size]
        if len(body) < size or blake2b(body, digest_size=_SUM).digest() != raw[_LENGTH : _LENGTH + _SUM]:
            raise StateError("a record is cut off or was changed")
        yield body
        raw = raw[_LENGTH + _SUM + size :]
