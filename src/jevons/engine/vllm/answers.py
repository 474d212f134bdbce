"""What the node answers, on its way from its thread to vLLM's."""

from __future__ import annotations

import queue
from collections.abc import Iterator

from jevons.base.clock import Clock
from jevons.facts.move import Answer


class Answers:
    """A queue that keeps the time at which each came: vLLM asks only between its steps, which may take seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queue: queue.SimpleQueue[tuple[float, Answer]] = queue.SimpleQueue()

    def put(self, answer: Answer) -> None:
        """Called by the node."""
        self._queue.put((self._clock.now_s(), answer))

    def take(self, wait_s: float = 0.0) -> Iterator[tuple[float, Answer]]:
        """All that came, each with its time; waits for the first at most so long."""
        try:
            yield self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            while True:
                yield self._queue.get_nowait()
        except queue.Empty:
            return
