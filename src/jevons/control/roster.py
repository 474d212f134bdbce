"""The roster: which workers may be given work, by when they were last heard of.

    UP ──silent for hang_s──▶ SUSPECT ──heard of──▶ UP
     └──────── gone ────────▶ DOWN ────heard of───▶ UP

A suspect gets no new work while another worker is up, and what it runs goes on: silence is often only a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable

from jevons.base.ids import WorkerId
from jevons.facts.worker import Health


class Roster:
    def __init__(self, hang_s: float, on_health: Callable[[WorkerId, Health], None] | None = None) -> None:
        """`on_health` is told of every change."""
        self._hang_s = hang_s
        self._on_health = on_health
        self._heard_s: dict[WorkerId, float] = {}
        self._health: dict[WorkerId, Health] = {}
        self._up = 0

    def health(self, worker: WorkerId) -> Health:
        """DOWN if it was never heard of."""
        return self._health.get(worker, Health.DOWN)

    def heard(self, worker: WorkerId, now_s: float, silent_s: float = 0.0) -> bool:
        """`worker` made itself known, and last did something `silent_s` ago: who beats but is stuck counts as silent.

        Returns whether that changed its health.
        """
        self._heard_s[worker] = now_s - silent_s
        return self._set(worker, Health.UP if silent_s <= self._hang_s else Health.SUSPECT)

    def rests(self, worker: WorkerId, now_s: float, for_s: float) -> bool:
        """`worker` made itself known and has nothing to do: that it is not heard of for so long means nothing.

        Returns whether that changed its health.
        """
        return self.heard(worker, now_s, -for_s)

    def expect(self, worker: WorkerId, now_s: float) -> None:
        """Something is asked of `worker`: its silence counts from now on, if it did not already."""
        self._heard_s[worker] = min(self._heard_s.get(worker, now_s), now_s)

    def excuse(self, for_s: float) -> None:
        """For so long nobody could be heard: it was not they who were silent. Costs O(workers)."""
        self._heard_s = {worker: heard_s + for_s for worker, heard_s in self._heard_s.items()}

    def gone(self, worker: WorkerId) -> bool:
        """`worker` is known to have ended. Returns whether that changed its health."""
        return self._set(worker, Health.DOWN)

    def suspects(self, now_s: float, most: int | None = None) -> list[WorkerId]:
        """Workers that have just become suspect; so many at most, the others another time."""
        late = [w for w, h in self._health.items() if h is Health.UP and now_s - self._heard_s[w] > self._hang_s]
        for worker in late[:most]:
            self._set(worker, Health.SUSPECT)
        return late[:most]

    def silent(self, now_s: float, for_s: float) -> list[WorkerId]:
        """Suspects that have not been heard of for longer than `for_s`."""
        suspects = [w for w, h in self._health.items() if h is Health.SUSPECT]
        return [w for w in suspects if now_s - self._heard_s[w] > for_s]

    def up(self) -> list[WorkerId]:
        """Workers that may be given work."""
        return [w for w, h in self._health.items() if h is Health.UP]

    @property
    def has_up(self) -> bool:
        """Whether any may."""
        return self._up > 0

    def forget(self, worker: WorkerId) -> None:
        self._up -= self._health.pop(worker, None) is Health.UP
        self._heard_s.pop(worker, None)

    def _set(self, worker: WorkerId, health: Health) -> bool:
        before = self.health(worker)
        changed = before is not health
        self._up += (health is Health.UP) - (before is Health.UP)
        self._health[worker] = health
        if changed and self._on_health is not None:
            self._on_health(worker, health)
        return changed
