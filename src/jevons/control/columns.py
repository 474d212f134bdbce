"""A router's workers as columns, for pages: from the book's arrays, so that thousands cost a millisecond or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jevons.base.compiled import Ints, Records
from jevons.base.hub import Hub
from jevons.base.ids import WorkerId
from jevons.control.ledger import Member
from jevons.control.roster import Roster
from jevons.control.scaling import Crewed, crewed
from jevons.facts.view import HEALTHS, Who, Workers
from jevons.facts.worker import Health

_HEALTH = {Health.UP: "up", Health.SUSPECT: "suspect", Health.DOWN: "down"}


class Columns:
    """Reads the book of a router. `members` and `roster` are its own, and change."""

    def __init__(self, hub: Hub, members: Mapping[WorkerId, Member], roster: Roster) -> None:
        self._hub = hub
        self._members = members
        self._roster = roster
        self._version = -1
        self._numbers: Ints = np.zeros(0, np.int64)
        self._in_order: list[Member] = []
        self._who = Who(ids=[], models=[], roles=[], chips=[], chip_counts=[], blocks=[])

    def workers(self, version: int, seen: int | None) -> Workers:
        """All of them now.

        Args:
            version: another one whenever a worker came or left.
            seen: the one whose `Who` the reader has.
        """
        if version != self._version:
            self._seat(version)
        w = self._hub["workers"][self._numbers]
        promised = np.array([m.promised for m in self._in_order], np.int64)
        running = w["decoding"] - promised
        return Workers(
            version=version,
            who=None if seen == version else self._who,
            health=self._health(w),
            running=running.tolist(),
            waiting=np.maximum(w["requests"] - promised - running, 0).tolist(),
            queue_ms=queue_ms(w),
            held=self._hub["held"][w["holder"]].tolist() if len(w) else [],
        )

    def crewed(self, version: int, now_s: float) -> list[Crewed]:
        """By model and role; see `control.scaling`."""
        if version != self._version:
            self._seat(version)
        is_up = self._hub["workers"]["up"][self._numbers] > 0
        return crewed(self._hub, list(zip(self._in_order, is_up.tolist(), strict=True)), now_s)

    def chips(self) -> dict[str, int]:
        """How many of each kind; "": workers whose chips are not known."""
        found: dict[str, int] = {}
        for m in self._in_order:
            found[m.facts.chip] = found.get(m.facts.chip, 0) + (m.facts.chips if m.facts.chip else 1)
        return found

    def _seat(self, version: int) -> None:
        self._version = version
        self._in_order = [member for _, member in sorted(self._members.items())]
        self._numbers = np.array([m.number for m in self._in_order], np.int64)
        facts = [m.facts for m in self._in_order]
        self._who = Who(
            ids=[f.id for f in facts],
            models=[f.model for f in facts],
            roles=[str(f.role) for f in facts],
            chips=[f.chip for f in facts],
            chip_counts=[f.chips for f in facts],
            blocks=[f.blocks for f in facts],
        )

    def _health(self, w: Records) -> list[int]:
        """Numbers of `HEALTHS`. Only of those that get no work more is asked: they are few."""
        found = np.zeros(len(w), np.int64)
        for at in np.flatnonzero(w["up"] == 0).tolist():
            member = self._in_order[at]
            name = _HEALTH[self._roster.health(member.facts.id)]
            is_ending = member.is_draining or member.is_leaving
            found[at] = HEALTHS.index(name if name != "up" else "draining" if is_ending else "stalled")
        health: list[int] = found.tolist()
        return health


def queue_ms(w: Records) -> list[int]:
    """What is queued on each takes so long, as predicted: its tokens, and the steps they are computed in."""
    tokens = w["queued_tokens"]
    steps = np.ceil(tokens / np.maximum(w["step_tokens"], 1.0))
    seconds = tokens * w["per_token_s"] + w["queued_context"] * w["per_token_context_s"] + steps * w["per_step_s"]
    told: Any = np.minimum(seconds * 1e3, 1e9).astype(np.int64)
    milliseconds: list[int] = told.tolist()
    return milliseconds
