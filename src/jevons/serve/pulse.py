"""When to look whether an attached engine lives, so that a thousand of them cost little.

nothing asked of it    every REST_S: the closing of a kept connection tells at once if it ends, and that it hangs
                       concerns nobody yet
asked something        every PROBE_S, unless something of an answer came meanwhile: that is proof enough
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from zlib import crc32

from jevons.base.ids import WorkerId
from jevons.control.roster import Roster
from jevons.facts.worker import Health

PROBE_S = 0.2
SETTLE_S = 0.5  # events come within milliseconds of the answer; whoever is asked again meanwhile is not at rest
REST_S = 2.0  # below the 5 s after which usual servers close a connection without requests


class Pulse:
    """Of one engine. `look` is to be called every `PROBE_S` or more often.

    Args:
        on_settled: told some time after it came to rest: if the last of its KV events was lost no later one shows it.
    """

    def __init__(
        self, worker: WorkerId, roster: Roster, now_s: Callable[[], float], on_settled: Callable[[], None] | None = None
    ) -> None:
        self.is_heard = False  # something of an answer came since the last look
        self._worker = worker
        self._roster = roster
        self._now_s = now_s
        self._on_settled = on_settled
        self._settles_s = inf
        self._is_asked = False
        self._probe_s = 0.0  # when the next probe is due
        self._woken: asyncio.Future[None] | None = None
        self._spread = crc32(worker.encode()) / 2**32  # who joined together is not probed together

    def asked(self) -> None:
        """Something is asked of it that was at rest: its silence counts from now on."""
        if not self._is_asked:
            self._is_asked, self._settles_s = True, inf
            now_s = self._now_s()
            self._roster.expect(self._worker, now_s)
            self._probe_s = min(self._probe_s, now_s + PROBE_S)

    def rests(self) -> None:
        """Nothing is asked of it any more."""
        self._is_asked, self._settles_s = False, self._now_s() + SETTLE_S

    def heard(self) -> None:
        """It lives: it answered a probe, or a request."""
        self.is_heard = False
        now_s = self._now_s()
        if self._is_asked:
            self._roster.heard(self._worker, now_s)
            self._probe_s = now_s + PROBE_S
        else:
            self._roster.rests(self._worker, now_s, REST_S)
            self._probe_s = now_s + REST_S * (1 - self._spread / 2)

    def look(self) -> None:
        """Whether it lives, as far as can be seen from here; wakes who probes it where that is not enough."""
        now_s = self._now_s()
        if self._roster.health(self._worker) is Health.DOWN:
            self.is_heard = False  # that was the last it said; who introduces itself anew is heard of then
        if self.is_heard:
            self.heard()
        elif now_s >= self._probe_s:
            self.wake()
        if now_s >= self._settles_s and self._on_settled is not None:
            self._settles_s = inf
            self._on_settled()

    def wake(self) -> None:
        """A probe is due."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def due(self) -> None:
        """Wait until a probe is due."""
        self._woken = asyncio.get_running_loop().create_future()
        try:
            await self._woken
        finally:
            self._woken = None
