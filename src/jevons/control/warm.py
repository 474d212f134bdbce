"""Compiling what a router calls, before anything waits for it."""

from __future__ import annotations

import msgspec

from jevons.base.compiled import is_compiled
from jevons.base.ids import RequestId, WorkerId
from jevons.control import book as kernels
from jevons.control.board import WHOLE
from jevons.control.book import Book
from jevons.control.router import Router
from jevons.control.sharing import SharingRouter
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvBatch, KvEvent, KvPayload
from jevons.facts.news import BegunThere, DoneThere, PlacedThere
from jevons.facts.worker import Role, StepReport, WorkerFacts
from jevons.policy.route import KV, POLICIES


def _stored(blocks: int) -> bytes:
    event = {
        "type": "BlockStored",
        "block_hashes": list(range(2, 2 + blocks)),
        "parent_block_hash": None,
        "token_ids": list(range(32 * blocks)),
        "block_size": 32,
    }
    return msgspec.msgpack.encode([0.0, [event]])


def is_warm() -> bool:
    """Whether `warm` will find all compiled; a kernel that it calls among the last tells."""
    return is_compiled(kernels._put_also)


def warm() -> None:
    """Have all that a router calls compiled, or read from where it was kept: a placement must not wait for it."""
    router, tokens = SharingRouter("kv", hang_s=1.0, shadow_ttl_s=60.0, on_news=lambda: None), list(range(64))
    elsewhere = PlacedThere(1, WorkerId("both"), None, len(tokens), 0, 0.0, 1.0, bytes(8), wants=1)
    for name, role in (("both", Role.BOTH), ("prompts", Role.PREFILL)):
        router.join(WorkerFacts(id=WorkerId(name), model="", kind="", block_size=16, role=role))
        router.roster.heard(WorkerId(name), 0.0)
        stored = BlocksStored(hashes=[1], tokens=tokens[:16], block_size=16)
        events: list[KvEvent] = [stored, BlocksRemoved(hashes=[1]), AllCleared(), stored]
        router.intake(WorkerId(name)).on_batch(KvBatch(seq=0, events=events))
        router.intake(WorkerId(name)).on_batch(KvPayload(1, _stored(1)))
        router.intake(WorkerId(name)).on_batch(KvPayload(2, _stored(1_000)))  # for which there is no room yet
    router.join(WorkerFacts(id=WorkerId("new"), model="", kind=""))
    router.roster.heard(WorkerId("new"), 0.0)
    router.place(RequestId("s"), tokens, 0.0, session="s", avoid={WorkerId("both"), WorkerId("prompts")})
    router.done(RequestId("s"))
    router.place(RequestId("s"), tokens, 0.0, session="s")
    router.on_answered(RequestId("s"), 0.0)
    router.done(RequestId("s"))
    router.leave(WorkerId("new"))
    router.hear(1, [elsewhere, BegunThere(1), DoneThere(1)], 0.0)
    for _ in range(2):
        worker = router.place(RequestId(""), tokens, 0.0).worker
        router.on_step(worker, StepReport(seconds=0.1, tokens=8, token_context=64, decodes=0))
        router.on_first(RequestId(""), 0.0)
        router.on_cached(RequestId(""), 16, len(tokens))
        router.done(RequestId(""), 1)
    router.leave(WorkerId("both"))
    _warm_rest()


def _warm_rest() -> None:
    """What engines without events take, and the policies that know of no blocks."""
    for policy in POLICIES:
        router, quiet = Router(policy), WorkerId("quiet")
        router.join(WorkerFacts(id=quiet, model="", kind="", sends_events=False))
        router.roster.heard(quiet, 0.0)
        router.place(RequestId(""), list(range(64)), 0.0)
        router.on_first(RequestId(""), 0.0)
        router.done(RequestId(""), 1)
    book = Book(KV)
    number, _ = book.add_worker(lambda: None)
    book.set_kind(number, "", False, 0)
    book.candidate_of(WHOLE, 0, number)


if __name__ == "__main__":
    warm()
