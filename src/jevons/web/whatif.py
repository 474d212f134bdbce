"""What if: the last minutes of a server's traffic, rehearsed on the fleet as it is and on another one.

A rehearsal is a process of its own, the same command a user would give, so the server goes on as before; one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from jevons.base.errors import ConfigError, RequestError
from jevons.config import scenario
from jevons.config.catalog import Catalog
from jevons.config.scenario import Group, Scenario, StepPrices, Traffic
from jevons.control.lived import Answered, Lived, LivedWorker
from jevons.facts.page import Asked, Page
from jevons.facts.trace import REQUESTS, RecordedRow
from jevons.perf.measured import Prices
from jevons.policy.route import POLICIES
from jevons.web.site import json_page, only

DEADLINE_S = 180.0  # the first time the kernels are compiled, which takes a minute
_NICE = 10  # of 19: who serves goes before
_SAID_BYTES = 4_000  # of what a process says when it fails


class Server(Protocol):
    """Whose traffic it is."""

    def lived(self, seconds: float) -> Lived | Awaitable[Lived]: ...


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to rehearse instead of the fleet as it is. Either `workers` or a `fleet` with its `model`, or neither."""

    minutes: Annotated[float, Meta(gt=0, le=10)] = 5.0
    policy: str | None = None  # None: as it is
    workers: Annotated[int, Meta(ge=1, le=10_000)] | None = None  # of each kind there is now, in proportion
    fleet: Annotated[str, Meta(pattern=r"^[0-9]{1,5}x([0-9]{1,4}x)?[A-Za-z0-9._-]{1,64}$")] | None = None
    model: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,80}$")] | None = None


class Choices(msgspec.Struct, frozen=True):
    """What may be asked."""

    policies: Sequence[str]
    chips: Sequence[str]
    models: Sequence[str]


class LivedTimes(msgspec.Struct, frozen=True):
    """The same requests as they were answered."""

    ttft_p50_s: float | None
    reuse: float | None  # share of prompt tokens, where the engines told


class Answer(msgspec.Struct, frozen=True):
    """Reports are those of `jevons simulate --json`."""

    name: str  # of what was asked
    now: msgspec.Raw | None  # the fleet as it is; None where it cannot be rehearsed, see `notes`
    then: msgspec.Raw
    lived: LivedTimes
    notes: list[str]


class _Run(NamedTuple):
    """One rehearsal."""

    options: list[str]  # of `jevons simulate`
    file: str  # of its scenario; "" where the options say all


class WhatIf:
    """Answers /ui/what-if: GET tells what may be asked, POST asks."""

    def __init__(self, server: Server, catalog: Catalog) -> None:
        self._server = server
        self._catalog = catalog
        self._is_busy = False

    async def __call__(self, asked: Asked) -> Page:
        """Raises RequestError: what is asked for cannot be rehearsed, and why."""
        only(asked, "GET", "HEAD", "POST")
        if asked.method != "POST":
            return json_page(Choices(list(POLICIES), sorted(self._catalog.chips), sorted(self._catalog.models)))
        question = self._read(asked)
        if self._is_busy:
            raise RequestError("what-if: another one is being rehearsed; wait for it", status=429)
        self._is_busy = True
        try:
            return json_page(await self._answer(question))
        finally:
            self._is_busy = False

    def _read(self, asked: Asked) -> Question:
        # A page of another site can post a form, but not JSON: the browser would ask first.
        if asked.content_type.partition(";")[0].strip() != "application/json":
            raise RequestError(f"content-type: must be application/json, got {asked.content_type[:60]!r}", status=415)
        try:
            question = msgspec.json.decode(asked.body, type=Question)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RequestError(f"what-if: {error}") from error
        if question.policy is not None and question.policy not in POLICIES:
            raise RequestError(f"policy: must be one of {', '.join(POLICIES)}, got {question.policy[:40]!r}", "policy")
        if (question.fleet is None) != (question.model in (None, "")):
            raise RequestError("fleet, model: times come from both; give both, or neither", "fleet")
        if question.fleet is not None and question.workers is not None:
            raise RequestError("fleet, workers: give one of them", "workers")
        return question

    async def _answer(self, question: Question) -> Answer:
        found = self._server.lived(question.minutes * 60)
        lived = found if isinstance(found, Lived) else await found
        if not lived.answered:
            raise RequestError(f"what-if: no request was answered in the last {question.minutes:g} min", status=409)
        with tempfile.TemporaryDirectory(prefix="jevons-what-if-") as name:
            folder = Path(name)
            rows = await asyncio.to_thread(write_trace, folder, lived.answered)
            notes = ["Caches begin empty in both rehearsals; live they were warm."]
            if lived.silent:
                notes.append(f"Of {lived.silent} frontends that did not answer in time, requests are missing.")
            now, why = _as_it_is(lived, None)
            if why is not None:
                notes.append(f"The fleet as it is cannot be rehearsed: {why}.")
            runs = [] if now is None else [_written(folder, "now", now)]
            runs.append(_asked_for(folder, question, lived))
            reports = await _all(folder, runs)
        told = None if now is None else reports[0]
        return Answer(_name(question, lived), told, reports[-1], _lived_times(rows), notes)


def write_trace(folder: Path, answered: Sequence[Answered]) -> list[RecordedRow]:
    """Requests in a trace of their own: times from its first one, and who waits for nobody in it comes at its time."""
    began_s = min(each.arrived_s for each in answered)
    rows = [each.row(began_s) for each in answered]
    there = {row.request_id for row in rows}
    for row in rows:
        row.wait_for = [id for id in row.wait_for if id in there]
        row.delay = row.delay if row.wait_for else None
    (folder / REQUESTS).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return rows


def as_it_is(lived: Lived, workers: int | None, policy: str | None = None) -> Scenario:
    """The fleet of a server, its steps timed as the router learned them.

    Args:
        workers: so many instead, of each kind in proportion, and one of each role at least.

    Raises:
        ConfigError: something that a rehearsal needs is not known, or `workers` are fewer than there are roles.
    """
    alike: dict[tuple[object, ...], list[LivedWorker]] = {}
    if len({each.worker.model for each in lived.workers}) != 1:
        raise ConfigError("a rehearsal is of one model, the fleet serves several, or none")
    sizes = [each.worker.block_size for each in lived.workers if each.worker.block_size is not None]
    for each in lived.workers:
        w = each.worker
        size = w.block_size or next(iter(sizes), None)  # who was asked nothing yet has not told
        if w.blocks is None or size is None:
            raise ConfigError(f"how many blocks the pool of worker {w.id} has, or of how many tokens, is not known")
        told = each._replace(worker=msgspec.structs.replace(w, block_size=size))
        alike.setdefault((w.kind, w.role, w.step_tokens, size, w.blocks, w.max_running), []).append(told)
    kinds = list(alike.values())
    counts = [len(members) for members in kinds] if workers is None else _in_proportion(kinds, workers)
    return Scenario(
        title="The fleet as it is" if workers is None else f"{workers} workers",
        fleet=[_group(members, count) for members, count in zip(kinds, counts, strict=True) if count],
        traffic=Traffic(trace=REQUESTS),
        router=policy or lived.policy,
    )


def _in_proportion(kinds: Sequence[Sequence[LivedWorker]], workers: int) -> list[int]:
    """How many of them are of each kind: one after another goes where it is due most (Sainte-Laguë)."""
    largest: dict[str, int] = {}  # kind of each role
    for at, members in enumerate(kinds):
        role = members[0].worker.role
        if role not in largest or len(members) > len(kinds[largest[role]]):
            largest[role] = at
    if workers < len(largest):
        raise ConfigError(f"workers: must be at least {len(largest)}, one for each role there is, got {workers}")
    counts = [int(at in largest.values()) for at in range(len(kinds))]
    due = [(-len(members) / (2 * counts[at] + 1), at) for at, members in enumerate(kinds)]
    heapq.heapify(due)
    for _ in range(workers - len(largest)):
        at = due[0][1]
        counts[at] += 1
        heapq.heapreplace(due, (-len(kinds[at]) / (2 * counts[at] + 1), at))
    return counts


def _as_it_is(lived: Lived, workers: int | None, policy: str | None = None) -> tuple[Scenario | None, str | None]:
    """The scenario, or why there is none."""
    try:
        return as_it_is(lived, workers, policy), None
    except ConfigError as error:
        return None, str(error)


def _group(members: Sequence[LivedWorker], instances: int) -> Group:
    w, of = members[0].worker, [member.prices for member in members]
    middle = {name: statistics.median(getattr(p, name) for p in of) for name in Prices.__struct_fields__}
    assert w.block_size is not None, "asked before"
    more: dict[str, Any] = {} if w.max_running is None else {"max_running": w.max_running}
    return Group(
        instances=instances,
        role=w.role,  # type: ignore[arg-type]  # the router has it from a Role
        block_size=w.block_size,
        blocks=w.blocks,
        step_tokens=w.step_tokens,
        engine="jevons" if w.kind == "reference" else "vllm",
        prices=StepPrices(**{**middle, "per_token_s": max(middle["per_token_s"], 1e-9)}),
        **more,
    )


def _written(folder: Path, name: str, made: Scenario) -> _Run:
    (folder / f"{name}.toml").write_text(scenario.as_toml(made), "utf-8")
    return _Run([], f"{name}.toml")


def _asked_for(folder: Path, question: Question, lived: Lived) -> _Run:
    policy = question.policy or lived.policy
    if question.fleet is None:
        made, why = _as_it_is(lived, question.workers, policy)
        if made is None:
            raise RequestError(f"what-if: {why}; name a fleet of chips and its model instead", status=409)
        return _written(folder, "then", made)
    assert question.model is not None, "asked before"
    options = ["--fleet", question.fleet, "--model", question.model, "--trace", REQUESTS, "--router", policy]
    return _Run(options, "")


async def _all(folder: Path, runs: Sequence[_Run]) -> list[msgspec.Raw]:
    """Side by side; where one fails, or nobody waits any more, none goes on."""
    rehearsals = [asyncio.ensure_future(_rehearse(folder, run)) for run in runs]
    try:
        return await asyncio.gather(*rehearsals)
    finally:
        for each in rehearsals:
            each.cancel()
        await asyncio.gather(*rehearsals, return_exceptions=True)


async def _rehearse(folder: Path, run: _Run) -> msgspec.Raw:
    """Raises RequestError: it failed, with what it said, or took too long."""
    command = [sys.executable, "-m", "jevons", "simulate", *([run.file] if run.file else []), *run.options, "--json"]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        async with asyncio.timeout(DEADLINE_S):
            told, said = await process.communicate()
    except TimeoutError as error:
        raise RequestError(f"what-if: took longer than {DEADLINE_S:g} s; take fewer minutes", status=504) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        lines = said[-_SAID_BYTES:].decode(errors="replace").strip().splitlines()
        raise RequestError(f"what-if: {lines[-1] if lines else 'the rehearsal failed'}", status=422)
    return msgspec.Raw(told.strip())


def _lived_times(rows: Sequence[RecordedRow]) -> LivedTimes:
    ttft = [row.ttft_ms / 1e3 for row in rows if row.ttft_ms is not None]
    told = [row for row in rows if row.cached_tokens is not None]
    prompt = sum(row.input_length for row in told)
    reuse = sum(row.cached_tokens or 0 for row in told) / prompt if prompt else None
    return LivedTimes(statistics.median(ttft) if ttft else None, reuse)


def _name(question: Question, lived: Lived) -> str:
    what: list[Any] = [question.fleet] if question.fleet else []
    what += [f"{question.workers} workers"] if question.workers else []
    what += [question.policy] if question.policy and question.policy != lived.policy else []
    return ", ".join(what) or "the same"
