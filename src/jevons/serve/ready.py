"""The router's kernels made ready before anything waits for them; memory that getting ready took is given back."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys

from jevons.control.warm import is_warm, warm
from jevons.serve.tokenizer import Tokenizer

log = logging.getLogger("jevons.ready")


async def ready_kernels() -> None:
    """Compiling takes 300 MB, which a process keeps that did it: so another one does, and this one reads what it made.

    Where that one fails this one compiles, and raises what is wrong.
    """
    if not is_warm():
        log.info("compiling the router's kernels, this once: about 20 s")
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "jevons.control.warm")
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
    """Have glibc return memory that is free to the system; other C libraries do by themselves, or cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
