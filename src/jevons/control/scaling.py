"""How many workers are wanted, live: what the router's book has of each role, put to `policy.scale` at each look.

The twin asks the same of its simulated instances, see `twin.instances`. Nothing is counted here as requests pass by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from jevons.base.compiled import Records
from jevons.base.hub import Hub
from jevons.base.ids import WorkerId
from jevons.control.board import ARRIVALS_S
from jevons.control.ledger import Member
from jevons.facts.scaling import WantedWorkers
from jevons.policy.scale import Asked, Kind, Rule, Wanted, Work, scale

_MOST = 1_000_000  # where nobody says how many there can be
_LATE = 3.0  # times what starting takes: who is not up by then is not counted on
Key = tuple[str, str]  # model, role


class Crewed(msgspec.Struct, frozen=True, kw_only=True):
    """The workers of one role of a model, all together."""

    model: str
    role: str
    up: Sequence[WorkerId]  # take work, in order
    draining: Sequence[WorkerId]  # are to be stopped, up or not
    prompts_s: float  # seconds of prompts that arrived, those longer ago the less by ARRIVALS_S
    queued_s: float
    decoding: float
    step_s: float  # of the mean worker: an empty step
    token_s: float  # … and each token of an answer in it, besides
    held_tokens: float
    room_tokens: float  # of one; infinite where that is not known


def crewed(hub: Hub, members: Sequence[tuple[Member, bool]], now_s: float) -> list[Crewed]:
    """By model and role, in order.

    Args:
        members: in the order of their ids, with whether each takes work.
    """
    by_key: dict[Key, list[tuple[Member, bool]]] = {}
    for member, is_up in members:
        by_key.setdefault((member.facts.model, str(member.facts.role)), []).append((member, is_up))
    return [_crewed(hub, key, by_key[key], now_s) for key in sorted(by_key)]


def _crewed(hub: Hub, key: Key, members: Sequence[tuple[Member, bool]], now_s: float) -> Crewed:
    w: Records = hub["workers"][[member.number for member, _ in members]]
    faded = np.exp(np.minimum(0.0, w["prompts_at_s"] - now_s) / ARRIVALS_S)
    promised = sum(member.promised for member, _ in members)
    decoding = float(w["decoding"].sum()) - promised
    held = float(w["context"].sum())
    each = held / max(1, int(w["requests"].sum()))
    rooms = [member.facts.blocks * (member.block_size or 0) for member, _ in members if member.facts.blocks]
    return Crewed(
        model=key[0],
        role=key[1],
        up=[member.facts.id for member, is_up in members if is_up],
        draining=[member.facts.id for member, _ in members if member.is_draining],
        prompts_s=float((w["prompts_s"] * faded).sum()),
        queued_s=float((w["queued_tokens"] * w["per_token_s"] + w["queued_context"] * w["per_token_context_s"]).sum()),
        decoding=max(0.0, decoding),
        step_s=0.0 if key[1] == "prefill" else float(w["per_step_s"].mean()),
        token_s=float((w["per_decode_s"] + w["per_context_s"] * each).mean()),
        held_tokens=held,
        room_tokens=float(np.mean(rooms)) if rooms and min(rooms) > 0 else np.inf,
    )


class Scaling:
    """Remembers what was needed and told before. `now_s` is of any clock, always the same.

    Args:
        hold_s: so long fewer must have been enough before one is not wanted any more.
        most: workers there can be, by role.
        start_s: from the start of a worker until it takes work, by role.
    """

    def __init__(self, rule: Rule, hold_s: float, most: Mapping[str, int], start_s: Mapping[str, float]) -> None:
        self.every_s = rule.every_s
        self._rule, self._hold_s, self._most, self._start_s = rule, hold_s, most, start_s
        self._needed: dict[Key, list[tuple[float, int]]] = {}
        self._arrived: dict[Key, tuple[float, float]] = {}  # when last looked, and `prompts_s` then
        self._rises: dict[Key, tuple[float, int]] = {}  # when more were wanted than were up, and how many

    def look(self, crews: Sequence[Crewed], tokens_per_s: float, now_s: float) -> list[WantedWorkers]:
        """What is wanted now.

        Args:
            tokens_per_s: of answers, of all crews.
        """
        decoding = sum(crew.decoding for crew in crews if crew.role != "prefill")
        asked = []
        for crew in crews:
            share = 0.0 if crew.role == "prefill" or not decoding else crew.decoding / decoding
            asked.append(self._asked(crew, tokens_per_s * share, now_s))
        found = zip(crews, asked, scale(asked, self._rule), strict=True)
        return [self._told(crew, each, wanted, now_s) for crew, each, wanted in found]

    def _asked(self, crew: Crewed, tokens_per_s: float, now_s: float) -> Asked:
        key, up = (crew.model, crew.role), len(crew.up)
        history = self._needed.setdefault(key, [(now_s, up)])  # who begins with some keeps them a while
        self._needed[key] = history = [each for each in history if each[0] > now_s - self._hold_s]
        start_s = self._start_s.get(crew.role, 0.0)
        risen_s, risen = self._rises.get(key, (now_s, 0))
        is_late = now_s > risen_s + max(self._rule.every_s, _LATE * start_s)
        is_prefill = crew.role == "prefill"
        return Asked(
            role=crew.role,
            work=Work(
                prompt_s=self._prompt_s(key, crew.prompts_s, now_s),
                queued_s=crew.queued_s,
                # Streams that are slower than is promised ask for more than they get.
                tokens_per_s=0.0 if is_prefill else max(tokens_per_s, crew.decoding / self._rule.tpot_s),
                token_s=crew.token_s,
                held_tokens=crew.held_tokens,
            ),
            kind=Kind(step_s=crew.step_s, room_tokens=crew.room_tokens, start_s=start_s),
            most=self._most.get(crew.role, _MOST),
            up=up,
            starting=0 if is_late else max(0, risen - up),
            needed=[needed for _, needed in history],
        )

    def _prompt_s(self, key: Key, prompts_s: float, now_s: float) -> float:
        """Seconds of prompts that arrived in each second since the last look: what the sum has beside what is left."""
        before_s, before = self._arrived.get(key, (-math.inf, 0.0))
        self._arrived[key] = now_s, prompts_s
        left = math.exp(-max(now_s - before_s, 1e-3) / ARRIVALS_S)
        return max(0.0, prompts_s - before * left) / (ARRIVALS_S * (1.0 - left))

    def _told(self, crew: Crewed, asked: Asked, wanted: Wanted, now_s: float) -> WantedWorkers:
        key = (crew.model, crew.role)
        self._needed[key].append((now_s, wanted.needed))
        if wanted.count <= asked.up:
            self._rises.pop(key, None)
        elif wanted.count > asked.up + asked.starting or key not in self._rises:
            self._rises[key] = (now_s, wanted.count)
        return WantedWorkers(
            model=crew.model,
            role=crew.role,
            wanted=wanted.count,
            up=asked.up,
            starting=asked.starting,
            reason=wanted.reason,
            prompt_s=asked.work.prompt_s,
            tokens_per_s=asked.work.tokens_per_s,
        )
