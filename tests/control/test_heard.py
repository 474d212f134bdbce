"""What real engines told, byte for byte: what is predicted of a prompt is what its engine then reported as cached."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.heard import Asked, Heard, Told, read

from jevons.base.ids import WorkerId
from jevons.control.router import Router
from jevons.control.shapes import decode_batch
from jevons.facts.event import KvBatch, KvPayload
from jevons.facts.worker import IndexMode, WorkerFacts

Batch = Callable[[Told], KvPayload | KvBatch]


def as_bytes(told: Told) -> KvPayload:
    return KvPayload(told.seq, told.payload)


def as_records(told: Told) -> KvBatch:
    return decode_batch(told.seq, told.payload)


class Replayed:
    """A router that hears again what was heard, and is asked before each prompt."""

    def __init__(self, heard: Heard, batch: Batch) -> None:
        self.router = Router()
        self.cached: list[tuple[int, int]] = []  # tokens of each prompt: predicted, reported
        ids = [WorkerId(str(rank)) for rank in range(heard.ranks)]
        for id in ids:
            self.router.join(WorkerFacts(id=id, model="m", kind="openai"))
            self.router.roster.heard(id, 0.0)
        for step in heard.steps:
            if isinstance(step, Told):
                self.router.intake(ids[step.rank]).on_batch(batch(step))
            else:
                self.cached.append((self._predicted(ids[step.rank], step), step.cached_tokens))
        self.intakes = [self.router.intake(id) for id in ids]

    def _predicted(self, id: WorkerId, asked: Asked) -> int:
        placements = self.router.rank(asked.tokens, salt=asked.salt)
        return next(placement.cached_tokens for placement in placements if placement.worker == id)


@pytest.mark.parametrize("batch", [as_bytes, as_records])
@pytest.mark.parametrize("name", ["windows", "offloads", "offloads-chunks", "offloads-described", "offloads-windows"])
def test_what_is_predicted_is_what_the_engine_reports(name: str, batch: Batch) -> None:
    replayed = Replayed(read(name), batch)

    assert [predicted for predicted, _ in replayed.cached] == [reported for _, reported in replayed.cached]
    assert sum(reported > 0 for _, reported in replayed.cached) >= len(replayed.cached) // 2
    assert all(intake.mode is IndexMode.EXACT for intake in replayed.intakes)
