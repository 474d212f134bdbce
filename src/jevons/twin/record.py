"""What a server wrote with `--record`: a fleet to rehearse, and what the rehearsal is held to.

The folder's files are described in `serve.record`, their lines in `facts.trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from jevons.base.compiled import Reals, Records
from jevons.base.errors import ConfigError
from jevons.config.catalog import Catalog
from jevons.config.scenario import Group, Scenario, StepPrices, Traffic
from jevons.facts.trace import REQUESTS, STEPS, WORKERS, RecordedRow, RecordedStep, RecordedWorker
from jevons.perf.calibration import Calibration
from jevons.perf.measured import Load, Prices, fit_prices
from jevons.twin.run import simulate

OWN = "reference"  # kind of a worker whose engine is our own
_LEAST_STEPS = 100  # that say something of a worker's prices

T = TypeVar("T", bound=msgspec.Struct)


class Fitted(msgspec.Struct, frozen=True):
    """What the steps of some workers say."""

    workers: list[str]
    steps: int
    prices: Prices
    off_p50: float  # of the steps that were fitted: measured over predicted, less one
    off_p90: float
    off_sum: float  # of all their seconds together


class Recorded(msgspec.Struct, frozen=True):
    """A server's record, read."""

    folder: Path
    workers: list[RecordedWorker]  # as they joined last, in that order: a router prefers the first of equals
    steps: dict[str, list[RecordedStep]]

    @property
    def policy(self) -> str:
        return self.workers[0].policy


def read_record(folder: Path) -> Recorded:
    """Workers and steps; the requests are a trace.

    Raises:
        ConfigError: a file is not there or not such a record's, or there was no worker.
    """
    workers: dict[str, RecordedWorker] = {}
    for worker in _read(folder / WORKERS, RecordedWorker):
        workers.pop(worker.id, None)
        workers[worker.id] = worker
    if not workers:
        raise ConfigError(f"record {folder}: must tell of at least one worker, none joined")
    steps: dict[str, list[RecordedStep]] = {id: [] for id in workers}
    for step in _read(folder / STEPS, RecordedStep):
        steps.setdefault(step.worker, []).append(step)
    return Recorded(folder, list(workers.values()), steps)


def together(records: Sequence[Recorded]) -> Recorded:
    """The first one, with the steps of all.

    Raises:
        ConfigError: they are not of the same workers under the same policy.
    """
    first = records[0]
    for other in records[1:]:
        if sorted(map(repr, other.workers)) != sorted(map(repr, first.workers)):
            raise ConfigError(f"record {other.folder}: must be of the same workers as {first.folder}, it is not")
    steps = {id: [step for record in records for step in record.steps[id]] for id in first.steps}
    return Recorded(first.folder, first.workers, steps)


def read_requests(folder: Path) -> list[RecordedRow]:
    """In the order they were answered. Raises ConfigError, see `read_record`."""
    return _read(folder / REQUESTS, RecordedRow)


def _read(path: Path, kind: type[T]) -> list[T]:
    try:
        return msgspec.json.Decoder(kind).decode_lines(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"record {path}: cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"record {path}: not of `jevons serve --record`: {error}") from error


def scenario_of(record: Recorded) -> tuple[Scenario, list[Fitted]]:
    """The fleet that was recorded, and its requests, to be rehearsed; workers that are alike are one group.

    Raises:
        ConfigError: a worker reported too few steps, or did not tell its blocks.
    """
    alike: dict[tuple[object, ...], list[RecordedWorker]] = {}
    for w in record.workers:
        alike.setdefault((w.model, w.kind, w.role, w.step_tokens, w.block_size, w.blocks, w.max_running), []).append(w)
    groups, fits = [], []
    for workers in alike.values():
        fitted = _fit(record, [w.id for w in workers])
        fits.append(fitted)
        groups.append(_group(record, workers[0], fitted))
    scenario = Scenario(
        title=f"As recorded in {record.folder.name}",
        fleet=groups,
        traffic=Traffic(trace=REQUESTS),
        router=record.policy,
    )
    return scenario, fits


def _fit(record: Recorded, workers: Sequence[str]) -> Fitted:
    steps = [step for id in workers for step in record.steps[id] if step.seconds > 0]
    if not steps and not any(w.kind == OWN for w in record.workers if w.id in workers):
        raise ConfigError(
            f"record {record.folder}: {', '.join(workers)}: attached engines report no steps, nothing can be fitted; "
            f"rehearse what they answered on chips of the catalog: jevons simulate --fleet {len(workers)}xCHIP "
            f"--model NAME --trace {record.folder / REQUESTS}"
        )
    if len(steps) < _LEAST_STEPS:
        raise ConfigError(
            f"record {record.folder}: {', '.join(workers)}: must have reported at least {_LEAST_STEPS} steps, "
            f"got {len(steps)}; record for longer"
        )
    loads = [Load(1, step.tokens, step.token_context, step.decodes) for step in steps]
    seconds = [step.seconds for step in steps]
    prices = fit_prices(loads, seconds)
    predicted = np.array([prices.seconds(load) for load in loads])
    off = np.abs(np.array(seconds) / predicted - 1)
    p50, p90 = (float(q) for q in np.quantile(off, (0.5, 0.9)))
    return Fitted(list(workers), len(steps), prices, p50, p90, float(predicted.sum() / np.sum(seconds) - 1))


def _group(record: Recorded, worker: RecordedWorker, fitted: Fitted) -> Group:
    if worker.block_size is None or worker.blocks is None:
        raise ConfigError(f"record {record.folder}: worker {worker.id}: must have told its blocks, it did not")
    p = fitted.prices
    own = worker.kind == OWN
    group = Group(
        instances=len(fitted.workers),
        names=fitted.workers,
        role=worker.role,  # type: ignore[arg-type]  # checked when it was read
        block_size=worker.block_size,
        blocks=worker.blocks,
        step_tokens=worker.step_tokens,
        engine="jevons" if own else "vllm",
        prices=StepPrices(
            per_step_s=p.per_step_s,
            per_token_s=p.per_token_s,
            per_token_context_s=p.per_token_context_s,
            per_decode_s=p.per_decode_s,
        ),
    )
    return group if worker.max_running is None else msgspec.structs.replace(group, max_running=worker.max_running)


def rehearse(folder: Path, scenario: Scenario, catalog: Catalog, calibration: Calibration) -> Fidelity:
    """Rehearse recorded requests on a fleet, and hold what comes of it to what was recorded.

    Raises:
        ConfigError: a group does not name the live workers it stands for; see `read_record`, `simulate`.
    """
    names = _names(read_record(folder), scenario)
    traffic = Traffic(trace=str(folder / REQUESTS))
    pieces: list[Records] = []
    simulate(
        msgspec.structs.replace(scenario, traffic=traffic),
        catalog,
        calibration,
        on_results=lambda results: pieces.append(results.copy()),
    )
    return fidelity(read_requests(folder), np.concatenate(pieces), names)


def _names(record: Recorded, scenario: Scenario) -> list[str]:
    """The live worker of each instance. Those of a group in the order they joined in this record."""
    joined, names = [worker.id for worker in record.workers], list[str]()
    for number, group in enumerate(scenario.fleet):
        if not group.names:
            raise ConfigError(f"fleet[{number}].names: must tell which live workers the instances stand for")
        missing = set(group.names) - set(joined)
        if missing:
            raise ConfigError(f"fleet[{number}].names: {min(missing)!r} is no worker of the record {record.folder}")
        names += [id for id in joined if id in group.names]
    return names


class Both(msgspec.Struct, frozen=True):
    """One figure, live and rehearsed."""

    live: float
    twin: float

    @property
    def off(self) -> float:
        """Of what was live."""
        return self.twin / self.live - 1 if self.live else float("nan")


class Fidelity(msgspec.Struct, frozen=True):
    """How a rehearsal of recorded requests compares to what was recorded. Seconds and tokens.

    Times are None where no request tells: those to the first token of none, those per token of answers of one alone.
    """

    requests: int
    placed_alike: int
    cached_alike: int  # as many tokens of the prompt
    ttft_p50_s: Both | None
    ttft_p90_s: Both | None
    tpot_p50_s: Both | None
    tpot_mean_s: Both | None
    cached_tokens: Both
    first_apart: str | None  # request_id of the first that was placed differently, by arrival

    @property
    def times(self) -> dict[str, Both]:
        """Those that are known, by name."""
        named = {
            "TTFT p50": self.ttft_p50_s,
            "TTFT p90": self.ttft_p90_s,
            "TPOT p50": self.tpot_p50_s,
            "TPOT mean": self.tpot_mean_s,
        }
        return {name: both for name, both in named.items() if both is not None}


def fidelity(rows: Sequence[RecordedRow], results: Records, names: Sequence[str]) -> Fidelity:
    """Hold a rehearsal to the record.

    Args:
        rows: in the order of the trace.
        results: `kernel.RESULT` of all of them, in any order.
        names: of the live workers, by instance.

    Raises:
        ConfigError: not all were rehearsed.
    """
    if len(results) != len(rows):
        raise ConfigError(f"record: {len(rows)} requests were recorded, {len(results)} rehearsed; rehearse all")
    found = results[np.argsort(results["request"], kind="stable")]
    placed = [names[worker] for worker in found["worker"]]
    alike = np.array([row.worker == name for row, name in zip(rows, placed, strict=True)])
    cached = np.array([-1 if row.cached_tokens is None else row.cached_tokens for row in rows])
    told = np.array([row.ttft_ms is not None for row in rows])
    many = np.array([row.tpot_ms is not None for row in rows])
    ttft = np.array([row.ttft_ms for row in rows if row.ttft_ms is not None]) / 1e3
    tpot = np.array([row.tpot_ms for row in rows if row.tpot_ms is not None]) / 1e3
    twin_ttft = (found["first_s"] - found["at_s"])[told]
    twin_tpot = ((found["done_s"] - found["first_s"]) / np.maximum(found["output"] - 1, 1))[many]
    apart = sorted((row.timestamp or 0.0, row.request_id) for row, same in zip(rows, alike, strict=True) if not same)
    return Fidelity(
        requests=len(rows),
        placed_alike=int(alike.sum()),
        cached_alike=int((cached == found["cached"]).sum()),
        ttft_p50_s=_both(ttft, twin_ttft, 0.5),
        ttft_p90_s=_both(ttft, twin_ttft, 0.9),
        tpot_p50_s=_both(tpot, twin_tpot, 0.5),
        tpot_mean_s=Both(float(tpot.mean()), float(twin_tpot.mean())) if len(tpot) else None,
        cached_tokens=Both(float(cached[cached >= 0].sum()), float(found["cached"][cached >= 0].sum())),
        first_apart=apart[0][1] if apart else None,
    )


def _both(live: Reals, twin: Reals, q: float) -> Both | None:
    return Both(float(np.quantile(live, q)), float(np.quantile(twin, q))) if len(live) else None
