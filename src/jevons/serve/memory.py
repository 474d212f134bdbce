"""How much memory there is, and how much of it an index may take; how many files, and how many clients they do for."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from jevons.base.errors import ConfigError

# What a container may use: cgroup v2, then v1, where the number is astronomical for no limit.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

INDEX_SHARE = 8  # of the memory that all indexes may take together: on a machine of 12 GB, 25 million entries

MOST_FILES = 1 << 20  # open at once; more than any machine has clients
_OWN_FILES, _ENGINE_FILES = 256, 4  # kernels, logs, channels; of an engine its events, their replay, looks at it
LEAST_CLIENTS = 16


def raise_files() -> None:
    """Let this process, and those it starts, open as many files as they may: the usual 1,024 do for 400 streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has another limit besides, that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_clients(engines: int) -> int:
    """How many clients may be connected at once. Each takes a file and, for an attached engine, one more there: where
    none is left an engine would seem to be gone, with all that it answers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    left = files - _OWN_FILES - engines * _ENGINE_FILES
    return max(LEAST_CLIENTS, left // 2 if engines else left)


def index_bytes(processes: int) -> int:
    """For the index of one of so many processes at most."""
    return memory_bytes() // (INDEX_SHARE * processes)


def check_shared(dram_bytes: int) -> None:
    """Raises ConfigError if the tiers' memory is more than there is: it is taken as it is written, so the system would
    end some process once that is all used.
    """
    has_bytes = memory_bytes()
    if dram_bytes > has_bytes:
        rule = f"must be no more than the memory of this machine or container, {has_bytes} bytes"
        raise ConfigError(f"dram_bytes: {rule}, got {dram_bytes}; lower it")


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
