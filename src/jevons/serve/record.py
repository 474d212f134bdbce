"""What a server lives through, written down for `jevons calibrate`, `simulate` and `validate`: no text, names only.

    workers.jsonl    each worker, whenever it joins
    steps.jsonl      each step that a worker reports: worker, seconds, prompt tokens, token·context, decodes, when
    requests.jsonl   each answered sequence, a Mooncake trace: who goes on with a conversation waits for what was said

Ids name blocks of `BLOCK` tokens, of the prompt and the answer. Who knows a prompt can tell whether it was asked.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError
from jevons.base.ids import BlockHash, RequestId, WorkerId
from jevons.control.ledger import HERE
from jevons.control.router import Router
from jevons.facts.trace import REQUESTS, STEPS, WORKERS, RecordedRow, RecordedStep, RecordedWorker
from jevons.facts.worker import StepReport, WorkerFacts
from jevons.kv.hashing import block_hashes, chain, root
from jevons.policy.route import Placement

log = logging.getLogger("jevons.record")

BLOCK = 16  # tokens behind an id
_MOST_TALKS = 65_536  # conversations that may go on: those answered last
_ID_BITS = 36  # of a block's name: copies of a trace are told apart by those above


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that came to its end."""

    id: RequestId
    prompt: Sequence[int]
    tokens: Sequence[int]  # empty where only their count is known
    output_tokens: int
    placement: Placement  # the first
    first_s: float | None  # when its first token came
    cached_tokens: int | None


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
        # The last full block of prompts that were answered: of which request, and when.
        self._talks: OrderedDict[BlockHash, tuple[RequestId, float, int]] = OrderedDict()
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
        at_ms = _ms(self._now_s() - self._began_s)
        self._write(STEPS, RecordedStep(worker, round(r.seconds, 7), r.tokens, r.token_context, r.decodes, at_ms))

    def answered(self, a: Finished, salt: str, arrived_s: float, done_s: float) -> None:
        """A request is over, and its client has all of it. Times in seconds, of the recorder's clock."""
        tokens = [*a.prompt, *a.tokens]
        full = block_hashes(tokens, BLOCK, salt)
        named = len(a.prompt) // BLOCK
        leader = self._leader(full[:named], len(a.prompt), arrived_s)
        row = RecordedRow(
            input_length=len(a.prompt),
            output_length=a.output_tokens,
            timestamp=_ms(arrived_s - self._began_s),
            hash_ids=_ids(tokens, full, salt),
            request_id=a.id,
            wait_for=[] if leader is None else [leader[0]],
            delay=None if leader is None else _ms(arrived_s - leader[1]),
            block_size=BLOCK,
            worker=a.placement.worker,
            decode=a.placement.decode,
            predicted_ttft_ms=_ms(a.placement.ttft_s),
            predicted_cached_tokens=a.placement.cached_tokens,
            ttft_ms=None if a.first_s is None else _ms(a.first_s - arrived_s),
            done_ms=_ms(done_s - arrived_s),
            cached_tokens=a.cached_tokens,
        )
        self._write(REQUESTS, row)
        if named:
            self._talks[full[named - 1]] = (a.id, done_s, len(a.prompt))
            self._talks.move_to_end(full[named - 1])
            if len(self._talks) > _MOST_TALKS:
                self._talks.popitem(last=False)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _leader(self, blocks: Sequence[BlockHash], tokens: int, arrived_s: float) -> tuple[RequestId, float] | None:
        """The request this one goes on from, and when that was done: its prompt begins with all of that one's."""
        for block in reversed(blocks):
            found = self._talks.get(block)
            if found is not None and found[1] <= arrived_s and found[2] < tokens:
                return found[0], found[1]
        return None

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


def _ids(tokens: Sequence[int], full: Sequence[BlockHash], salt: str) -> list[int]:
    """Of the full blocks, and of what is left."""
    left, names = tokens[len(full) * BLOCK :], list(full)
    if left:
        names += chain(left, len(left), full[-1] if full else root(BLOCK, salt))
    return [int.from_bytes(name[-8:], "big") & ((1 << _ID_BITS) - 1) for name in names]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
