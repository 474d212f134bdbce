"""How much memory there is, and how much of it an index may take."""

from __future__ import annotations

import os
from pathlib import Path

# What a container may use: cgroup v2, then v1, where the number is astronomical for no limit.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

INDEX_SHARE = 8  # of the memory that all indexes may take together: on a machine of 12 GB, 25 million entries


def index_bytes(processes: int) -> int:
    """For the index of one of so many processes at most."""
    return memory_bytes() // (INDEX_SHARE * processes)


def memory_bytes(limits: tuple[Path, ...] = _LIMITS) -> int:
    """The machine's, or its container's limit where that is less."""
    least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in limits:
        try:
            text = path.read_text().strip()
        except OSError:
            continue  # not in a container of that kind
        if text.isdigit():
            least = min(least, int(text))
    return least
