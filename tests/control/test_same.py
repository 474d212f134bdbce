"""Live and rehearsed decisions are the same objects, and stay what they were."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from jevons.base.ids import RequestId, WorkerId
from jevons.control import board, book, choice, queues
from jevons.control.router import Router
from jevons.facts.event import BlocksRemoved, BlocksStored, KvBatch
from jevons.facts.worker import PageFacts, Role, StepReport, WorkerFacts
from jevons.kv import holders, index
from jevons.policy import belief, disagg, route
from jevons.policy.admit import Promise
from jevons.twin import fleet, hearing, kernel, placing

A, B, C, D, E, F, P = (WorkerId(name) for name in "abcdefp")
GOLDEN = Path(__file__).parent / "golden_decisions.json"


def globals_of(kernel: Any) -> dict[str, Any]:
    """The names a kernel can call."""
    found: dict[str, Any] = kernel.py_func.__globals__
    return found


def test_the_live_router_and_the_twin_call_the_same_kernels_on_the_same_arrays() -> None:
    assert vars(book)["board"] is vars(fleet)["board"] is board
    assert vars(book)["choice"] is choice
    assert vars(book)["queues"] is queues
    assert vars(index)["holders"] is holders
    for name in ("gather", "conclude", "place"):
        assert vars(placing)[name] is vars(choice)[name]
    for name in ("wait", "unwait", "count_decode"):
        assert vars(placing)[name] is vars(queues)[name]
    for name in ("computed", "count_decode", "attend"):
        assert vars(kernel)[name] is vars(queues)[name]
    assert vars(kernel)["rekey"] is board.rekey
    assert vars(kernel)["want"] is choice.want
    assert globals_of(choice.place)["gather"] is choice.gather
    assert globals_of(choice.place)["conclude"] is choice.conclude
    assert globals_of(choice.conclude)["choose"] is route.choose
    assert globals_of(choice.conclude)["choose_apart"] is disagg.choose_apart
    assert vars(kernel)["confirm"] is vars(book)["confirm"] is belief.confirm
    assert globals_of(choice.gather)["confidence"] is belief.confidence
    assert vars(hearing)["store_one"] is holders.store_one
    live, twin = book.Book(route.KV).hub, board.board_arrays(board.kinds_of([]), np.zeros(1, board.WORKER), 1)[0]
    assert all(live[name].dtype == array.dtype for name, array in twin.items())


class Day:
    """A made-up day of a small fleet of unlike workers, and what was decided in it."""

    def __init__(self, policy: str, apart: bool, asks: bool = False) -> None:
        self.draw = random.Random(7)
        self.wishes = random.Random(11) if asks else None  # requests ask for more than an answer
        self.router = Router(policy, hang_s=1.0, shadow_ttl_s=20.0)
        self.fleet = [
            WorkerFacts(id=A, model="m", kind="reference", block_size=16, pages=PageFacts(b"f", 16, 1 << 16)),
            WorkerFacts(id=B, model="m", kind="reference", block_size=16, step_tokens=512),
            WorkerFacts(id=C, model="m", kind="openai", block_size=32),
            WorkerFacts(id=D, model="m", kind="openai", sends_events=False),
            WorkerFacts(id=E, model="n", kind="reference", block_size=16),
            *([WorkerFacts(id=F, model="m", kind="openai", adapters=frozenset({"poet"}))] if asks else []),
        ]
        if apart:
            self.fleet.append(WorkerFacts(id=P, model="m", kind="reference", block_size=16, role=Role.PREFILL))
        for facts in self.fleet:
            self.router.join(facts)
            self.router.roster.heard(facts.id, 0.0)
        self.talks = [[self.draw.randrange(50_000) for _ in range(self.draw.randint(40, 900))] for _ in range(12)]
        self.stored: dict[WorkerId, list[list[int | bytes]]] = {f.id: [] for f in self.fleet if f.sends_events}
        self.seqs = dict.fromkeys(self.stored, 0)
        self.open: list[tuple[RequestId, bool]] = []  # requests, and whether their first token has come
        self.decisions: list[list[Any]] = []

    def place(self, name: str, now_s: float) -> None:
        tokens = self.talks[self.draw.randrange(12)]
        model = self.draw.choice(["m", "m", "m", "n", None])
        avoid = {self.draw.choice([A, B])} if self.draw.random() < 0.1 else set()
        asked = {} if self.wishes is None else self.wish(self.wishes)
        p = self.router.place(RequestId(name), tokens, now_s, **{"model": model, "avoid": avoid, **asked})
        self.decisions.append([p.worker, p.decode, p.cached_tokens, round(p.ttft_s, 9)])
        self.open.append((RequestId(name), False))
        if p.worker in self.stored:
            self.store(p.worker, tokens)
        tokens += [self.draw.randrange(50_000) for _ in range(self.draw.randint(0, 40))]

    def wish(self, draw: random.Random) -> dict[str, Any]:
        """What one request asks for; now and then who stalls is looked for."""
        if draw.random() < 0.1:
            self.router.stalled(draw.random() * 20.0)
        promise = Promise(draw.choice([None, 0.05, 1.0, 60.0]), draw.choice([None, None, 0.001, 0.006, 0.1]))
        adapter = {"model": "poet"} if draw.random() < 0.1 else {}
        limit = draw.choice([None, 1, 40, 4_000])
        return {"promise": promise, "session": str(draw.randrange(6)), "output_tokens": limit, **adapter}

    def store(self, worker: WorkerId, tokens: list[int]) -> None:
        size = 32 if worker == C else 16
        blocks = len(tokens) // size
        hashes: list[int | bytes] = [hash((ord(worker), *tokens[: (i + 1) * size])) for i in range(blocks)]
        self.tell(worker, BlocksStored(hashes=hashes, tokens=tokens[: blocks * size], block_size=size))
        self.stored[worker].append(hashes)

    def evict(self) -> None:
        worker = self.draw.choice(list(self.stored))
        if self.stored[worker]:
            gone = self.stored[worker].pop(self.draw.randrange(len(self.stored[worker])))
            self.tell(worker, BlocksRemoved(hashes=gone[len(gone) // 2 :]))

    def tell(self, worker: WorkerId, event: BlocksStored | BlocksRemoved) -> None:
        self.router.intake(worker).on_batch(KvBatch(seq=self.seqs[worker], events=[event]))
        self.seqs[worker] += 1

    def go_on(self, now_s: float) -> None:
        at = self.draw.randrange(len(self.open))
        name, has_begun = self.open[at]
        if has_begun:
            if self.wishes is not None:  # what was predicted is there, mostly
                self.router.on_cached(name, int(self.wishes.choice([1, 1, 1, 0.5, 0]) * self.wishes.randrange(900)))
            self.router.done(name, None if self.wishes is None else self.wishes.randrange(1, 600))
            self.open.pop(at)
        else:
            self.router.on_first(name, now_s)
            self.open[at] = (name, True)

    def step(self) -> None:
        worker, tokens = self.draw.choice(list(self.stored)), self.draw.randrange(1, 512)
        seconds = tokens * 1e-4 * (1 + (worker == C))
        self.router.on_step(worker, StepReport(seconds, tokens, tokens * 300, self.draw.randrange(8)))

    def run(self) -> list[list[Any]]:
        for turn in range(400):
            now_s, what = turn * 0.05, self.draw.random()
            if what < 0.5:
                self.place(str(turn), now_s)
            elif what < 0.7 and self.open:
                self.go_on(now_s)
            elif what < 0.85:
                self.step()
            elif what < 0.95:
                self.evict()
            else:
                silent_s = self.draw.choice([0.0, 5.0])
                self.router.roster.heard(self.draw.choice([A, B, C, D]), now_s, silent_s)
        return self.decisions


def all_histories() -> dict[str, list[list[Any]]]:
    both = [(policy, apart) for policy in route.POLICIES for apart in (False, True)]
    usual = {f"{policy}{' apart' * apart}": Day(policy, apart).run() for policy, apart in both}
    return usual | {f"kv asking{' apart' * apart}": Day("kv", apart, asks=True).run() for apart in (False, True)}


def test_decisions_are_those_of_the_golden_replay() -> None:
    """After a change of a rule, not of its code: `python -m tests.control.test_same` writes it anew."""
    assert all_histories() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(all_histories(), indent=None).replace("], [", "],\n["))
