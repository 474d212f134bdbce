"""What drives an intake: a source's batches as they come, and replays wherever some are missing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

from jevons.base.errors import EngineError
from jevons.control.intake import Intake
from jevons.facts.event import KvPayload
from jevons.wire.sources import Sources

log = logging.getLogger("jevons.events")

REPLAY_TIMEOUT_S = 2.0
# Who twice did not answer a replay is not asked again so soon: live batches wait for the answer. llm-d's value.
COOLDOWN_S = 30.0
RETRY_S = 0.5  # after the first time; an engine that restarts takes what it was asked along
MOST_RETRIES = 5  # who never answers is asked only where something shows that batches are missing
JOIN_S = 0.1  # a ZMQ subscription takes a moment to hold; the replay asked for after it overlaps, nothing falls between
LISTEN_AGAIN_S = 5.0  # where a port is taken


class EventsAt(NamedTuple):
    """Where a source's events can be had."""

    live: str
    replays: str | None  # None: it answers none


async def feed(
    intake: Intake,
    sources: Sources,
    at: EventsAt,
    missing: asyncio.Event,
    on_known: Callable[[], None] | None = None,
) -> None:
    """Bring a source's KV events into the index, with replays wherever some are missing, until cancelled.

    Args:
        missing: set by who believes that some are.
        on_known: told when what it held before is known, or cannot be.
    """

    def on_batch(batch: KvPayload) -> None:
        if intake.on_batch(batch) is not None:
            missing.set()

    replays = _Replays(sources, at)

    def on_line(is_there: bool) -> None:
        if not is_there:
            intake.doubt()
        elif replays.have_begun:  # what was said while nobody heard is missing, as far as can be known
            replays.forgive()
            asyncio.get_running_loop().call_later(JOIN_S, missing.set)

    while True:
        await sources.turns.pass_through()
        try:
            source = sources.listen(at.live, on_batch, intake.on_garbage, on_line)
        except EngineError as error:
            log.warning("%s; trying again in %.0f s", error, LISTEN_AGAIN_S)
            await asyncio.sleep(LISTEN_AGAIN_S)
            continue
        with source:
            await asyncio.sleep(JOIN_S)
            while True:
                missing.clear()
                await replays.close_gaps(intake)
                if on_known is not None:
                    on_known()
                await replays.until_due(missing)


class _Replays:
    """Those of one source."""

    def __init__(self, sources: Sources, at: EventsAt) -> None:
        self._sources = sources
        self._at = at
        self.have_begun = False
        self._failures = 0  # in a row
        self._silent_until_s = 0.0

    def forgive(self) -> None:
        """It is there anew: that it did not answer before means nothing."""
        self._failures, self._silent_until_s = 0, 0.0

    async def close_gaps(self, intake: Intake) -> None:
        """Ask for what is missing, all there is at first, until what can be had is there."""
        self.have_begun = True
        while True:
            start = intake.begin_replay()
            intake.on_replay_end(complete=await self._ask(intake, start))
            if not intake.awaits_replay:  # it does where what was recalled is so no more, or another one was lost
                return

    async def until_due(self, missing: asyncio.Event) -> None:
        """Until some are missing, or it is time to ask again who did not answer."""
        if not 0 < self._failures <= MOST_RETRIES:
            await missing.wait()
            return
        pause_s = max(RETRY_S, self._silent_until_s - asyncio.get_running_loop().time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await missing.wait()

    async def _ask(self, intake: Intake, start: int) -> bool:
        now_s = asyncio.get_running_loop().time
        if self._at.replays is None or now_s() < self._silent_until_s:
            return False
        complete = await self._sources.replay(self._at.replays, start, REPLAY_TIMEOUT_S, intake.on_replayed)
        self._failures = 0 if complete else self._failures + 1
        self._silent_until_s = now_s() + COOLDOWN_S if self._failures > 1 else 0.0
        return complete
