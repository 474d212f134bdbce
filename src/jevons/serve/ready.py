"""The router's kernels made ready before anything waits for them; memory that getting ready took is given back."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import mmap
import sys
from pathlib import Path

from jevons.control.warm import is_warm, warm
from jevons.serve.tokenizer import Tokenizer

log = logging.getLogger("jevons.ready")


async def ready_kernels() -> None:
    """Compiling takes 300 MB, which a process keeps that did it: so another one does, and this one reads what it made.

    Where that one fails this one compiles, and raises what is wrong.
    """
    if not is_warm():
        log.info("compiling the router's kernels, this once: about 20 s")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jevons.control.warm"),
            start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
        )
        try:
            if await child.wait():
                log.warning("kernels cannot be compiled in a process of their own (it ended with %d)", child.returncode)
        finally:
            if child.returncode is None:
                child.kill()
    await asyncio.to_thread(warm)  # while workers load their model
    give_back()


def hasten(tokenizer: Tokenizer) -> str:
    """See `Tokenizer.hasten`. Proving the fast one leaves 50 MB of holes."""
    by = tokenizer.hasten()
    give_back()
    return by


def give_back() -> None:
    """Return memory to the system: what is free of glibc's, and 50 MB of LLVM that reading kernels touched.

    Other C libraries return theirs by themselves, or cannot.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    for first, last in code_of("libllvmlite", Path("/proc/self/maps").read_text()):
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def code_of(library: str, maps: str) -> list[tuple[int, int]]:
    """Where the program of a library lies, its first byte and that after its last, by the lines of /proc/PID/maps.

    Only what can be run and not be written: it is as in the file, where the system reads a page again if it is needed.
    """
    found = []
    for line in maps.splitlines():
        span, rights, *_, path = line.split(maxsplit=5)
        if library in path and rights.startswith("r-x"):
            first, last = span.split("-")
            found.append((int(first, 16), int(last, 16)))
    return found
