"""How many workers are wanted is looked at now and then, told, and, where a program is named, acted on.

The program starts workers when more are wanted. When fewer are, those with the highest names get no work more, and it
is told to stop them once they owe nobody an answer: no client notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jevons.base.ids import WorkerId
from jevons.config.scaling import LiveScaling
from jevons.control.scaling import Crewed, Key, Scaling
from jevons.facts.scaling import WantedWorkers
from jevons.facts.worker import Health
from jevons.policy.scale import Rule
from jevons.serve.front import Front

log = logging.getLogger("jevons.scaling")

TICK_S = 1.0
COMMAND_S = 30.0  # so long a program may take
_TOLD_BYTES = 2_000  # of what it said, in our log
_AGAIN_S = 5.0  # after it failed


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a program is told on its standard input, as JSON."""

    model: str
    role: str
    wanted: int
    up: int
    reason: str
    stop: list[WorkerId]  # that may be stopped now: they get no work


class Scale(NamedTuple):
    """How the number of workers that is wanted is told, and to whom."""

    how: LiveScaling
    command: Path | None  # run with model, role and that number; None: it is told alone


class Scaler(Collector):
    """Looks, tells and acts, until cancelled."""

    def __init__(self, front: Front, scale: Scale) -> None:
        how, command = scale
        rule = how.rule
        self._front, self._router, self._fleet = front, front.router, front.fleet
        self._command, self._how = command, how
        self._scaling = Scaling(
            Rule(every_s=rule.every_s, least=rule.least, headroom=rule.headroom, tpot_s=how.tpot_s),
            rule.hold_s,
            how.most,
            how.start_s,
        )
        self._told: dict[Key, tuple[int, float]] = {}  # what the program knows is wanted, and since when
        self._retry_s = 0.0
        self.counts: Counter[str] = Counter(dict.fromkeys(("done", "failed", "late"), 0))
        front.metrics.registry.register(self)

    async def keep(self) -> None:
        due_s = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            now_s = self._front.now_s()
            if not self._fleet.is_met:
                continue
            if now_s >= due_s:
                self._look(now_s)
                due_s = now_s + self._scaling.every_s
            if self._command is not None:
                await self._act(self._command)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        labels = ["model", "role"]
        wanted = GaugeMetricFamily("jevons_wanted_workers", "Workers that are wanted, up or starting.", labels=labels)
        up = GaugeMetricFamily("jevons_working_workers", "Workers that take work.", labels=labels)
        for each in self._front.wanted:
            wanted.add_metric([each.model, each.role], each.wanted)
            up.add_metric([each.model, each.role], each.up)
        runs = CounterMetricFamily(
            "jevons_scale_commands", "Runs of the program that scales, by fate.", labels=["fate"]
        )
        for fate, times in self.counts.items():
            runs.add_metric([fate], times)
        yield from (wanted, up, runs)

    def _look(self, now_s: float) -> None:
        before = {(each.model, each.role): each.wanted for each in self._front.wanted}
        rates = self._front.placements.watch.rates(now_s)
        found = self._scaling.look(self._router.crewed(now_s), rates.output_tokens, now_s)
        self._front.wanted = found
        for each in found:
            if before.get((each.model, each.role)) != each.wanted:
                told = f"{each.wanted} wanted, {each.up} up, {each.starting} starting: {each.reason}"
                log.info("%s %s: %s", each.model, each.role, told)

    async def _act(self, command: Path) -> None:
        now_s = self._front.now_s()
        crews = {(crew.model, crew.role): crew for crew in self._router.crewed(now_s)}
        for wanted in self._front.wanted:
            crew = crews.get((wanted.model, wanted.role))
            if crew is not None:
                await self._follow(command, wanted, crew, now_s)

    async def _follow(self, command: Path, wanted: WantedWorkers, crew: Crewed, now_s: float) -> None:
        """Have as many as are wanted: who is drained takes work again first."""
        key, more = (crew.model, crew.role), wanted.wanted - len(crew.up)
        draining = [id for id in crew.draining if self._fleet.health(id) is not Health.DOWN]
        for id in draining[: max(0, more)]:
            self._router.drain(id, False)
        draining = draining[max(0, more) :]
        for id in crew.up[wanted.wanted :]:
            self._router.drain(id, True)
            draining.append(id)
        if now_s < self._retry_s or not all(self._is_idle(id) for id in draining):
            return
        known, since_s = self._told.setdefault(key, (wanted.up, now_s))
        patience_s = max(self._scaling.every_s, 3 * self._how.start_s.get(crew.role, 0.0))
        is_missed = len(crew.up) < wanted.wanted or bool(draining)  # it was told, and nothing came of it
        if known == wanted.wanted and not (is_missed and now_s > since_s + patience_s):
            return
        if await self._run(command, wanted, sorted(draining)):
            self._told[key] = wanted.wanted, now_s
        else:
            self._retry_s = self._front.now_s() + _AGAIN_S

    def _is_idle(self, id: WorkerId) -> bool:
        attached = self._fleet.attached.get(id)
        return attached is None or attached.is_idle

    async def _run(self, command: Path, wanted: WantedWorkers, stop: Sequence[WorkerId]) -> bool:
        order = Order(
            model=wanted.model,
            role=wanted.role,
            wanted=wanted.wanted,
            up=wanted.up,
            reason=wanted.reason,
            stop=list(stop),
        )
        try:
            # What it starts may keep its output open: a file does not wait for that.
            with tempfile.TemporaryFile() as said:
                fate = await fate_of(command, order, said)
                said.seek(0)
                told = said.read(_TOLD_BYTES).decode(errors="replace").strip()
        except OSError as error:  # a disk that is full, or may not be written
            fate, told = "failed", f"no file for what it says: {error.strerror}"
        self.counts[fate] += 1
        level = logging.INFO if fate == "done" else logging.WARNING
        log.log(
            level, "%s %s %s %d: %s: %s", command, order.model, order.role, order.wanted, fate, told or "said nothing"
        )
        return fate == "done"


async def fate_of(command: Path, order: Order, said: IO[bytes]) -> str:
    """Run it; `said`: where its output goes. Its input is a file too: it need not read it."""
    with tempfile.TemporaryFile() as told:
        told.write(msgspec.json.encode(order))
        told.seek(0)
        arguments = (str(command), order.model, order.role, str(order.wanted))
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments, stdin=told, stdout=said, stderr=said, start_new_session=True
            )
        except OSError as error:
            said.write(f"cannot be started: {error.strerror}".encode())
            return "failed"
        try:
            async with asyncio.timeout(COMMAND_S):
                code = await process.wait()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if isinstance(error, TimeoutError):
                await process.wait()
                return "late"
            raise
    return "done" if code == 0 else "failed"
