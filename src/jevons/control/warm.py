"""Compiling what a router calls, before anything waits for it."""

from __future__ import annotations

import msgspec

from jevons.base.compiled import is_compiled
from jevons.base.ids import RequestId, WorkerId
from jevons.control import book
from jevons.control.router import Router
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvBatch, KvEvent, KvPayload
from jevons.facts.worker import Role, StepReport, WorkerFacts

_FIRST_BLOCK = {
    "type": "BlockStored",
    "block_hashes": [2],
    "parent_block_hash": None,
    "token_ids": list(range(32)),
    "block_size": 32,
}


def is_warm() -> bool:
    """Whether `warm` will find all compiled; a kernel that it calls among the last tells."""
    return is_compiled(book._finish)


def warm() -> None:
    """Have all that a router calls compiled, or read from where it was kept: a placement must not wait for it."""
    router, tokens = Router(), list(range(64))
    for name, role in (("both", Role.BOTH), ("prompts", Role.PREFILL)):
        router.join(WorkerFacts(id=WorkerId(name), model="", kind="", block_size=16, role=role))
        router.roster.heard(WorkerId(name), 0.0)
        stored = BlocksStored(hashes=[1], tokens=tokens[:16], block_size=16)
        events: list[KvEvent] = [stored, BlocksRemoved(hashes=[1]), AllCleared(), stored]
        router.intake(WorkerId(name)).on_batch(KvBatch(seq=0, events=events))
        router.intake(WorkerId(name)).on_batch(KvPayload(1, msgspec.msgpack.encode([0.0, [_FIRST_BLOCK]])))
    router.join(WorkerFacts(id=WorkerId("new"), model="", kind=""))
    router.roster.heard(WorkerId("new"), 0.0)
    router.place(RequestId("s"), tokens, 0.0, session="s", avoid={WorkerId("both"), WorkerId("prompts")})
    router.done(RequestId("s"))
    router.place(RequestId("s"), tokens, 0.0, session="s")
    router.on_answered(RequestId("s"), 0.0)
    router.done(RequestId("s"))
    router.leave(WorkerId("new"))
    for _ in range(2):
        worker = router.place(RequestId(""), tokens, 0.0).worker
        router.on_step(worker, StepReport(seconds=0.1, tokens=8, token_context=64, decodes=0))
        router.on_first(RequestId(""), 0.0)
        router.on_cached(RequestId(""), 16, len(tokens))
        router.done(RequestId(""), 1)
    router.leave(WorkerId("both"))


if __name__ == "__main__":
    warm()
