"""Who is up in a rehearsal: instances that start and stop by what is asked of them, and what is paid of each.

    stopped ──start──▶ starting ──start_s──▶ up ──drain──▶ draining ──idle, at a look──▶ stopped, its pool empty
       ▲                  │                  ▲                │
       └──────────────────┘                  └────────────────┘

An instance is paid from its start until it is stopped. Those with the lowest numbers go on: their pools stay warm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from jevons.base.compiled import Ints, Reals, Records
from jevons.base.hub import Hub
from jevons.config.scenario import Scenario
from jevons.control import board
from jevons.perf.pace import step_s
from jevons.policy.scale import Asked, Kind, Rule, Work, scale
from jevons.twin import kernel
from jevons.twin.fleet import Made

_DECODES = 64  # of a usual batch: what one more costs there
_USUAL_TOKENS = 2_048  # that each of them attends to, before any was seen

_STOPPED, _STARTING, _UP, _DRAINING = range(4)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that started or stopped instances."""

    at_s: float
    role: str
    before: int  # up or starting
    wanted: int
    reason: str


class Instances:
    """All of a rehearsal; without `scaling` they are paid all the time and nothing happens to them here.

    Args:
        make_room: in the hub, for what one pool gives up.
    """

    def __init__(self, scenario: Scenario, made: Sequence[Made], hub: Hub, make_room: Callable[[], None]) -> None:
        self._hub, self._make_room, count = hub, make_room, len(hub["engines"])
        self._from_s: Reals = np.zeros(count)  # paid since; NaN: stopped
        self._paid_s: Reals = np.zeros(count)  # before that
        self._state: Ints = np.full(count, _UP)
        self._ready_s: Reals = np.full(count, np.inf)
        self.counts: list[tuple[float, int]] = []  # from when on how many were up
        self.changes: list[Change] = []
        self._roles: list[_Role] = []
        self._look_s, self._hold_s = np.inf, 0.0
        self._rule: Rule | None = None
        if scenario.scaling is not None:
            rule = scenario.scaling
            self._look_s, self._hold_s = rule.every_s, rule.hold_s
            self._rule = Rule(
                every_s=rule.every_s, least=rule.least, headroom=rule.headroom, tpot_s=scenario.slo.tpot_s
            )
            self._roles = _roles(made, hub)
            board.set_all_up(hub.record, np.arange(count), True)
            self.counts.append((0.0, count))

    @property
    def next_s(self) -> float:
        """When something is to be done here; infinite: never again."""
        return min(self._look_s, float(self._ready_s.min()))

    def go_on(self, *, is_over: bool) -> None:
        """Do what is due at `next_s`.

        Args:
            is_over: nothing is left to happen in the fleet: there is no next time.
        """
        now_s = self.next_s
        for who in np.flatnonzero(self._ready_s <= now_s).tolist():
            self._take_up(who)
        if now_s == self._look_s:
            self._look(now_s)
        if is_over:
            self._look_s = np.inf
            self._ready_s[:] = np.inf
        up = int((self._state == _UP).sum())
        if up != self.counts[-1][1]:
            self.counts.append((now_s, up))

    def paid_s(self, simulated_s: float) -> Reals:
        """Of each instance in the hub, seconds up to then. [instances]"""
        running_s = np.where(np.isnan(self._from_s), 0.0, simulated_s - self._from_s)
        # The last look may come after the last answer: nothing is paid after that.
        return np.asarray(np.clip(self._paid_s + running_s, 0.0, simulated_s))

    def _look(self, now_s: float) -> None:
        assert self._rule is not None, "who looks has a rule"
        for who in np.flatnonzero(self._state == _DRAINING).tolist():
            if self._is_idle(who):
                self._make_room()
                kernel.fail(self._hub.record, who, now_s)  # its pool is empty when it starts again
                self._stop(who, now_s)
        asked = [role.asked(self._state, self._rule) for role in self._roles]
        for role, wanted in zip(self._roles, scale(asked, self._rule), strict=True):
            role.keep(now_s, wanted.needed, self._hold_s)
            before = sum(self._state[who] in (_STARTING, _UP) for who in role.numbers)
            if before != wanted.count:
                self.changes.append(
                    Change(at_s=now_s, role=wanted.role, before=before, wanted=wanted.count, reason=wanted.reason)
                )
            self._change(role, wanted.count, now_s)
        self._look_s += self._rule.every_s

    def _is_idle(self, who: int) -> bool:
        engine, worker = self._hub["engines"][who], self._hub["workers"][who]
        return not (engine["running"] or engine["waiting"] or worker["requests"] or worker["decoding"])

    def _change(self, role: _Role, wanted: int, now_s: float) -> None:
        """Start or stop as many as are wanted more or fewer."""

        def those(state: int) -> list[int]:
            return [who for who in role.numbers if self._state[who] == state]

        more = wanted - len(those(_UP)) - len(those(_STARTING))
        back = those(_DRAINING)[: max(0, more)]
        for who in back:
            self._take_up(who)
        for who in those(_STOPPED)[: max(0, more - len(back))]:
            self._state[who], self._from_s[who] = _STARTING, now_s
            self._ready_s[who] = now_s + role.start_s
        fewer = [*reversed(those(_STARTING)), *reversed(those(_UP))][: max(0, -more)]
        for who in fewer:
            if self._state[who] == _STARTING:
                self._stop(who, now_s)
            else:
                self._state[who] = _DRAINING
                board.set_up(self._hub.record, who, False)

    def _take_up(self, who: int) -> None:
        self._state[who], self._ready_s[who] = _UP, np.inf
        self._hub["engines"]["up"][who] = 1
        board.set_up(self._hub.record, who, True)

    def _stop(self, who: int, now_s: float) -> None:
        self._state[who], self._ready_s[who] = _STOPPED, np.inf
        self._paid_s[who] += now_s - self._from_s[who]
        self._from_s[who] = np.nan


def _roles(made: Sequence[Made], hub: Hub) -> list[_Role]:
    found, first = list[_Role](), 0
    for m in made:
        found.append(_Role(m, first, hub))
        first += m.group.instances
    return found


class _Role:
    """Instances of one role, and what was asked of them."""

    def __init__(self, made: Made, first: int, hub: Hub) -> None:
        count = made.group.instances
        self.numbers = range(first, first + count)
        self._here, self._hub, self._role = slice(first, first + count), hub, made.group.role
        self._room_tokens, self.start_s = made.blocks * made.group.block_size, made.group.up_after_s
        self._prompts_s, self._tokens = 0.0, 0.0  # sums so far: of prompts that came, and tokens of answers
        self._needed: list[tuple[float, int]] = [(0.0, count)]  # when, how many: who starts with all keeps them a while

    def asked(self, state: Ints, rule: Rule) -> Asked:
        """Of them, since the last time."""
        engines, workers, here = self._hub["engines"][self._here], self._hub["workers"][self._here], state[self._here]
        queued_s = self._seconds(workers, workers["queued_tokens"], workers["queued_context"])
        if self._role == "prefill":
            computed_s = float(engines["busy_s"].sum())
        else:
            computed_s = self._seconds(workers, engines["sum_prompt_tokens"], engines["sum_prompt_pairs"])
        prompts_s, tokens = computed_s + queued_s, float(engines["sum_decodes"].sum())
        came_s, told = prompts_s - self._prompts_s, tokens - self._tokens
        self._prompts_s, self._tokens = prompts_s, tokens
        decoding = 0.0 if self._role == "prefill" else float(workers["decoding"].sum())
        one_s, token_s = self._step(engines)
        return Asked(
            role=self._role,
            work=Work(
                prompt_s=max(0.0, came_s) / rule.every_s,
                queued_s=queued_s,
                # Streams that are slower than is promised ask for more than they get.
                tokens_per_s=max(told / rule.every_s, decoding / rule.tpot_s),
                token_s=token_s,
                held_tokens=float(max(workers["context"].sum(), engines["context"].sum())),
            ),
            kind=Kind(
                step_s=0.0 if self._role == "prefill" else one_s, room_tokens=self._room_tokens, start_s=self.start_s
            ),
            most=len(self.numbers),
            up=int((here == _UP).sum()),
            starting=int((here == _STARTING).sum()),
            needed=[needed for _, needed in self._needed],
        )

    def keep(self, now_s: float, needed: int, hold_s: float) -> None:
        """What was needed at this look, for those within the hold time."""
        self._needed.append((now_s, needed))
        self._needed = [each for each in self._needed if each[0] > now_s - hold_s]

    def _step(self, engines: Records) -> tuple[float, float]:
        """Seconds of a step of answers with nothing in it, and of each token in one, as long as those that run are."""
        running = int(engines["decodes"].sum())
        each = float(engines["context"].sum()) / running if running else float(_USUAL_TOKENS)
        hub, pace = self._hub.record[0], int(engines["pace"][0])
        one_s, full_s = (float(step_s(hub, pace, 0.0, 0.0, float(n), n * each)) for n in (1, _DECODES))
        token_s = (full_s - one_s) / (_DECODES - 1)
        return max(0.0, one_s - token_s), token_s

    def _seconds(self, workers: Records, tokens: Reals, context: Reals) -> float:
        """Of computing prompts, at the router's prices."""
        return float((tokens * workers["per_token_s"] + context * workers["per_token_context_s"]).sum())
