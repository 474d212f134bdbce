"""Live and rehearsed decisions are the same objects, and stay what they were."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from jevons.base.ids import RequestId, WorkerId
from jevons.control import board, book
from jevons.control.router import Router
from jevons.facts.event import BlocksRemoved, BlocksStored, KvBatch
from jevons.facts.worker import PageFacts, Role, StepReport, WorkerFacts
from jevons.kv import holders, index
from jevons.policy import disagg, route
from jevons.twin import fleet, kernel

GOLDEN = Path(__file__).parent / "golden_decisions.json"


def globals_of(kernel: Any) -> dict[str, Any]:
    """The names a kernel can call."""
    found: dict[str, Any] = kernel.py_func.__globals__
    return found


def test_the_live_router_and_the_twin_call_the_same_kernels_on_the_same_arrays() -> None:
    assert vars(book)["board"] is vars(fleet)["board"] is board
    assert vars(index)["holders"] is holders
    for name in ("place", "wait", "unwait", "computed", "count_decode", "rekey"):
        assert vars(kernel)[name] is vars(board)[name]
    assert globals_of(board.place)["gather"] is board.gather
    assert globals_of(board.place)["conclude"] is board.conclude
    assert globals_of(board.conclude)["choose"] is route.choose
    assert globals_of(board.conclude)["choose_apart"] is disagg.choose_apart
    assert vars(kernel)["store_one"] is holders.store_one
    live, twin = book.Book(route.KV).hub, board.board_arrays(board.kinds_of([]), np.zeros(1, board.WORKER), 1)[0]
    assert all(live[name].dtype == array.dtype for name, array in twin.items())


def history(policy: str, apart: bool) -> list[list[Any]]:
    """A made-up day of a small fleet of unlike workers: what was decided."""
    draw, r = random.Random(7), Router(policy, hang_s=1.0, shadow_ttl_s=20.0)
    kinds = [
        WorkerFacts(id=WorkerId("a"), model="m", kind="reference", block_size=16, pages=PageFacts(b"f", 16, 1 << 16)),
        WorkerFacts(id=WorkerId("b"), model="m", kind="reference", block_size=16, step_tokens=512),
        WorkerFacts(id=WorkerId("c"), model="m", kind="openai", block_size=32),
        WorkerFacts(id=WorkerId("d"), model="m", kind="openai", sends_events=False),
        WorkerFacts(id=WorkerId("e"), model="n", kind="reference", block_size=16),
    ]
    if apart:
        kinds.append(
            WorkerFacts(
                id=WorkerId("p"), model="m", kind="reference", block_size=16, role=Role.PREFILL, step_tokens=8_192
            )
        )
    for facts in kinds:
        r.join(facts)
        r.roster.heard(facts.id, 0.0)
    talks = [[draw.randrange(50_000) for _ in range(draw.randint(40, 900))] for _ in range(12)]
    stored: dict[WorkerId, list[list[int | bytes]]] = {facts.id: [] for facts in kinds if facts.sends_events}
    seqs = dict.fromkeys(stored, 0)
    open_requests: list[tuple[RequestId, bool]] = []
    decisions = []
    for turn in range(400):
        now_s = turn * 0.05
        what = draw.random()
        if what < 0.5:
            tokens = talks[draw.randrange(12)]
            name, model = RequestId(str(turn)), draw.choice(["m", "m", "m", "n", None])
            avoid = {WorkerId(draw.choice("ab"))} if draw.random() < 0.1 else set()
            p = r.place(name, tokens, now_s, model=model, avoid=avoid)
            decisions.append([p.worker, p.decode, p.cached_tokens, round(p.ttft_s, 9)])
            open_requests.append((name, False))
            if p.worker in stored:
                size = 32 if p.worker == "c" else 16
                blocks = len(tokens) // size
                hashes: list[int | bytes] = [hash((ord(p.worker), *tokens[: (i + 1) * size])) for i in range(blocks)]
                event = BlocksStored(hashes=hashes, tokens=tokens[: blocks * size], block_size=size)
                r.intake(p.worker).on_batch(KvBatch(seq=seqs[p.worker], events=[event]))
                stored[p.worker].append(hashes)
                seqs[p.worker] += 1
            tokens += [draw.randrange(50_000) for _ in range(draw.randint(0, 40))]
        elif what < 0.7 and open_requests:
            at = draw.randrange(len(open_requests))
            name, first = open_requests[at]
            if first:
                r.done(name)
                open_requests.pop(at)
            else:
                r.on_first(name, now_s)
                open_requests[at] = (name, True)
        elif what < 0.85:
            worker = draw.choice(list(stored))
            tokens_now = draw.randrange(1, 512)
            seconds = tokens_now * 1e-4 * (1 + (worker == "c"))
            r.on_step(worker, StepReport(seconds, tokens_now, tokens_now * 300, draw.randrange(8)))
        elif what < 0.95:
            worker = draw.choice(list(stored))
            if stored[worker]:
                gone = stored[worker].pop(draw.randrange(len(stored[worker])))
                removed = BlocksRemoved(hashes=gone[len(gone) // 2 :])
                r.intake(worker).on_batch(KvBatch(seq=seqs[worker], events=[removed]))
                seqs[worker] += 1
        else:
            r.roster.heard(WorkerId(draw.choice("abcd")), now_s, draw.choice([0.0, 5.0]))
    return decisions


def all_histories() -> dict[str, list[list[Any]]]:
    both = [(policy, apart) for policy in route.POLICIES for apart in (False, True)]
    return {f"{policy}{' apart' * apart}": history(policy, apart) for policy, apart in both}


def test_decisions_are_those_of_the_golden_replay() -> None:
    """After a change of a rule, not of its code: `python -m tests.control.test_same` writes it anew."""
    assert all_histories() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(all_histories(), indent=None).replace("], [", "],\n["))
