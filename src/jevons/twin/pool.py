"""Processes that rehearse side by side, and end with who started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def side_by_side(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many of them. What ends the block early, such as a Ctrl-C, ends them at once, with all that they were given;
    so does the end of this process, however it comes.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_follow) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            ours = multiprocessing.active_children()
            for process in ours:
                process.terminate()
            for process in ours:
                process.join()
            raise


def _follow() -> None:
    """A Ctrl-C at the terminal is for who started us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a pool started us"
    parent.join()
    os._exit(1)  # nobody waits for what is being computed
