"""Nothing is compiled, or read, while a request waits."""

from __future__ import annotations

import subprocess
import sys

UNREAD = """
import sys
from jevons.control import sharing, warm
warm.warm()
for name, module in sorted(sys.modules.items()):
    for function in vars(module).values() if name.startswith("jevons.") else ():
        kernel = getattr(function, "__wrapped__", None)  # of `alike`: what is called from Python
        if hasattr(kernel, "signatures") and not kernel.signatures:
            print(name, kernel.__name__)
"""


def test_all_that_a_router_or_several_call_is_ready_before_the_first_request() -> None:
    done = subprocess.run([sys.executable, "-c", UNREAD], capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
