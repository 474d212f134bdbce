"""The arena: one stretch of memory that all processes of a host share, without a name that could be left behind.

The memory belongs to a file descriptor which is passed from process to process; when the last one ends, however it
ends, the memory is free again.
"""

from __future__ import annotations

import mmap
import os
import tempfile

from jevons.base.errors import ConfigError, StoreError


class Arena:
    """Shared memory, mapped here.

    Args:
        fd: its descriptor; owned by the arena from now on.
        size_bytes: its size.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self.memory = memoryview(mmap.mmap(fd, size_bytes))

    @classmethod
    def create(cls, size_bytes: int) -> Arena:
        """A new arena. Memory is taken as it is written.

        Raises:
            ConfigError: there is not so much.
        """
        fd = _anonymous()
        try:
            os.ftruncate(fd, size_bytes)
            return cls(fd, size_bytes)
        except (OSError, OverflowError) as error:
            os.close(fd)
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"dram_bytes: {size_bytes} bytes cannot be shared: {why}") from error

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """Map an arena that another process made.

        Raises:
            StoreError: the descriptor is not one.
        """
        try:
            return cls(fd, os.fstat(fd).st_size)
        except (OSError, ValueError) as error:
            raise StoreError("gone", f"arena: cannot be mapped: {error}") from error

    def page(self, offset: int, size_bytes: int) -> memoryview:
        """`size_bytes` of the memory from `offset` on; writable."""
        return self.memory[offset : offset + size_bytes]

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped here until the last view of it is gone."""
        os.close(self.fd)


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("jevons-arena", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # a file without a name, where the system has no memory without one
        return os.dup(file.fileno())
