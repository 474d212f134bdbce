"""What a server lives through, written down for `jevons calibrate`, `simulate` and `validate`: no text, names only.

    workers.jsonl    each worker, whenever it joins
    steps.jsonl      each step that a worker reports: worker, seconds, prompt tokens, token·context, decodes, when
    requests.jsonl   each answered sequence, a Mooncake trace: who goes on with a conversation waits for what was said

Rows are made by `control.lived`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError
from jevons.base.ids import WorkerId
from jevons.control.ledger import HERE
from jevons.control.lived import Finished, Rows, ms
from jevons.control.router import Router
from jevons.facts.trace import REQUESTS, STEPS, WORKERS, RecordedStep, RecordedWorker
from jevons.facts.worker import StepReport, WorkerFacts

log = logging.getLogger("jevons.record")


class Recorder:
    """Writes a folder. What cannot be written is counted in `lost`, and said once.

    Args:
        now_s: a monotonic clock; times told later are of it.

    Raises:
        ConfigError: the folder cannot be made, or holds a record already.
    """

    def __init__(self, folder: Path, policy: str, now_s: Callable[[], float]) -> None:
        self.lost = 0
        self._policy = policy
        self._folder = folder
        self._now_s, self._began_s = now_s, now_s()
        self._rows = Rows()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: (folder / name).open("xb", buffering=0) for name in (WORKERS, STEPS, REQUESTS)}
        except FileExistsError as error:
            raise ConfigError(f"record: {folder} must hold no record yet; give another folder, or remove it") from error
        except OSError as error:
            raise ConfigError(f"record: {folder}: cannot be written: {error.strerror}") from error

    def joined(self, f: WorkerFacts) -> None:
        worker = RecordedWorker(
            self._policy, f.id, f.model, f.kind, f.role, f.step_tokens, f.block_size, f.blocks, f.max_running
        )
        self._write(WORKERS, worker)

    def stepped(self, worker: WorkerId, r: StepReport) -> None:
        at_ms = ms(self._now_s() - self._began_s)
        self._write(STEPS, RecordedStep(worker, round(r.seconds, 7), r.tokens, r.token_context, r.decodes, at_ms))

    def answered(self, a: Finished, salt: str, arrived_s: float, done_s: float) -> None:
        """A request is over, and its client has all of it. Times in seconds, of the recorder's clock."""
        self._write(REQUESTS, self._rows.answered(a, salt, arrived_s, done_s).row(self._began_s))

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, name: str, row: msgspec.Struct) -> None:
        """A line, whole or not at all. Unbuffered: what is there when the server is killed can be read."""
        file, line = self._files[name], msgspec.json.encode(row) + b"\n"
        end = file.tell()
        try:
            if file.write(line) == len(line):
                return
            file.truncate(end)
            file.seek(end)
            self._lose(name, "the disk is full")
        except OSError as error:
            self._lose(name, error.strerror)

    def _lose(self, name: str, reason: str | None) -> None:
        if not self.lost:
            log.warning("record %s: %s; lines that are lost are counted", self._folder / name, reason)
        self.lost += 1


class RecordingRouter(Router):
    """A router whose workers and their steps are written down."""

    def __init__(self, recorder: Recorder, policy: str, *, hang_s: float, shadow_ttl_s: float) -> None:
        super().__init__(policy, hang_s=hang_s, shadow_ttl_s=shadow_ttl_s)
        self._recorder = recorder

    def join(self, facts: WorkerFacts, node: str = HERE) -> None:
        self._recorder.joined(facts)
        super().join(facts, node)

    def on_step(self, worker: WorkerId, report: StepReport) -> None:
        self._recorder.stepped(worker, report)
        super().on_step(worker, report)
