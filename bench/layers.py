"""What is left to copy when a prefill step ends: its blocks saved after it, and layer by layer while it runs.

    PYTHONPATH=. python bench/layers.py

The embedded engine on one core, its node thread and a real keeper. Every round computes the same chunk once in each
way, in turning order, so that whatever else the machine does falls on all of them alike. Medians, of steps also of
their ratio to the round's step that is not saved; CPU seconds are of the engine's process, both threads.
"""

from __future__ import annotations

import queue
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch
from bench.restore import keeper, names, until

from jevons.base.ids import BlockId
from jevons.engine.pull import resolve
from jevons.engine.reference.runner import Cache, Runner, Slice
from jevons.facts.move import Answer, Computed, Over, Save, Written
from jevons.facts.request import Sampling
from jevons.kv.layout import Layout
from jevons.store.node import Introduction, Node
from jevons.wire.channel import KeeperConfig

MODEL, BLOCK, TOKENS = "smollm2-135m", 16, 256
LEFT_BEFORE = 256  # tokens of the prompt that earlier steps computed
ROUNDS = 40
WAYS = {"not saved": None, "after the step": 0, "by 1 layer": 1, "by 4 layers": 4}


class Taken(NamedTuple):
    """Of one step: seconds of wall and CPU until the tokens are there, then until the blocks can be read."""

    step_s: float
    cpu_s: float
    left_s: float


class Engine:
    """A runner and its node."""

    def __init__(self, socket: str) -> None:
        self.runner = Runner(resolve(MODEL), Cache(64, BLOCK))
        shape = self.runner.shape
        layout = Layout(shape.layers, shape.kv_heads, shape.head_dim, BLOCK, "bfloat16")
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        own = Introduction("bench", b"f" * 16, layout.page_bytes)
        self.node = Node(Path(socket), own, self.runner.exchange, self._answers.put)
        self._ids = count(1)
        self._table = list(range((LEFT_BEFORE + TOKENS) // BLOCK))
        self.runner.step([Slice([5] * LEFT_BEFORE, 0, self._table, None)])
        until(lambda: self.node.is_attached)

    def step(self, together: int | None) -> Taken:
        """Compute the chunk; save it by so many layers, after all (0), or not at all."""
        id = next(self._ids)
        places = [BlockId(place) for place in self._table[LEFT_BEFORE // BLOCK :]]
        numbers = range(id * 1_000, id * 1_000 + len(places))
        save = Save(id, names(numbers), places, [0] * len(places), "", is_ahead=bool(together))

        def on_layer(layers: int, of: int) -> None:
            if together and (layers % together == 0 or layers == of):
                self.node.ask(Written(layers, of))

        cpu_s, began_s = time.process_time(), time.perf_counter()
        if together:
            self.node.ask(save)
        chunk = Slice([7] * TOKENS, LEFT_BEFORE, self._table, Sampling(temperature=0))
        self.runner.step([chunk], on_layer=on_layer)
        ended_s = time.perf_counter()
        if together is not None:
            self.node.ask(Computed(id) if together else save)
            assert self._answers.get() == Over(id)
        left_s = time.perf_counter() - ended_s
        return Taken(ended_s - began_s, time.process_time() - cpu_s, left_s)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = KeeperConfig(socket=f"{folder}/k", dram_bytes=48 << 20)
        with keeper(config):
            engine = Engine(config.socket)
            taken: dict[str, list[Taken]] = {way: [] for way in WAYS}
            for turn in range(ROUNDS + 2):
                ways = list(WAYS.items())
                for way, together in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                    one = engine.step(together)
                    if turn >= 2:  # the arena's memory has been touched
                        taken[way].append(one)
            engine.node.close()
    print(f"{TOKENS} tokens after {LEFT_BEFORE}, {TOKENS // BLOCK} blocks; {ROUNDS} rounds")
    plain = taken["not saved"]
    for way, all_of in taken.items():
        step, cpu, left = (list(column) for column in zip(*all_of, strict=True))
        ratio = median(one.step_s / other.step_s for one, other in zip(all_of, plain, strict=True))
        late = quantiles(left, n=10)[-1]
        print(
            f"{way:15} step {median(step) * 1e3:6.1f} ms ({ratio:.3f} x), CPU {median(cpu) * 1e3:6.1f} ms, "
            f"then {median(left) * 1e3:5.2f} ms (p90 {late * 1e3:5.2f})"
        )


if __name__ == "__main__":
    main()
