"""Where a disk store lies: the lock that makes one process its owner, and how the bytes it may take are divided."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError
from jevons.store.segment import BLOCKS, HEADERS

LOCK = "lock"
SEGMENT_BYTES = 64 << 20
MAX_SEGMENTS = 256  # each is an open file; processes may often have no more than 1,024
MIN_SEGMENTS = 8  # so that recycling one takes no more than an eighth of what is held
KEPT_SHARE = 3  # a recycled segment may fill a third of the next one: two thirds are always for new blocks


class Room(msgspec.Struct, frozen=True):
    """Sizes in bytes, see `divide`."""

    size_bytes: int  # of all files at any time
    segment_bytes: int

    @property
    def kept_bytes(self) -> int:
        """The most that is copied from a segment when it is recycled."""
        return self.segment_bytes // KEPT_SHARE

    @property
    def quota_bytes(self) -> int:
        """Of all segments when none is being recycled."""
        return self.size_bytes - self.kept_bytes


def divide(size_bytes: int, segment_bytes: int | None, least_bytes: int) -> Room:
    """The room for segments; their size is chosen where it is not given.

    Args:
        least_bytes: what the largest block takes.

    Raises:
        ConfigError: a segment cannot hold that block, or the whole not two segments and what is kept of a third.
    """
    if segment_bytes is None:
        usual = max(min(SEGMENT_BYTES, size_bytes // MIN_SEGMENTS), size_bytes // MAX_SEGMENTS)
        segment_bytes = max(usual, least_bytes)
    if segment_bytes < least_bytes:
        rule = f"must hold at least one block, which takes {least_bytes} bytes"
        raise ConfigError(f"segment_bytes: {rule}, got {segment_bytes}; raise it or leave it out")
    room = Room(size_bytes, segment_bytes)
    least = 2 * segment_bytes + room.kept_bytes
    if size_bytes < least:
        rule = f"must hold two segments of {segment_bytes} bytes and a third of one, {least} in all"
        raise ConfigError(f"size_bytes: {rule}, got {size_bytes}; raise it, lower segment_bytes or remove the tier")
    return room


class Directory:
    """A directory with one owner. Other files in it are left alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = -1

    @property
    def is_locked(self) -> bool:
        """By us, and still the one at that path: it may have been removed, or another put in its place."""
        try:
            return os.path.samestat(os.stat(self.path / LOCK), os.fstat(self._lock_fd))
        except OSError:
            return False

    def lock(self) -> None:
        """Make it if it is not there, and own it.

        Raises:
            BlockingIOError: another process does.
            OSError: it cannot be made or used.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Let another own it; also where it was not locked."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def segment_numbers(self) -> list[int]:
        """Of the segments of which there is any file, ascending. Raises OSError."""
        names = [path for path in self.path.iterdir() if path.suffix in (BLOCKS, HEADERS)]
        return sorted({int(path.stem) for path in names if path.stem.isdecimal()})
