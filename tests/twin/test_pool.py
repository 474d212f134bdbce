"""Processes that rehearse side by side end with who started them."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time

import pytest

from jevons.twin.pool import side_by_side

WAITS = """
import os, time
from jevons.twin.pool import side_by_side
with side_by_side(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_what_is_given_up_is_not_waited_for() -> None:
    def given_up() -> None:
        with side_by_side(1) as pool:
            assert pool.submit(abs, -1).result() == 1
            for _ in range(3):
                pool.submit(time.sleep, 600)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        given_up()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_who_started_it_is_killed(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip().isdecimal()
        parent.send_signal(how)
        assert parent.communicate(timeout=60)[0] == ""  # its output ends once nobody has it open any more
