"""Scaling: how many instances of each role are wanted until the next look.

An instance's seconds are shared by prompts and by steps of answers. For each second n instances must find P seconds of
prompts, R tokens of answers at d seconds each, and as each step begins with `step_s` and may take as long as a token
is promised to take, step_s / tpot_s of their time goes to that: n (1 - step_s / tpot_s) ≥ P + R d. What waits, and
what will until new instances are up, is to be done within an interval besides. Memory must hold all that is under way.

More is wanted at once; fewer only when none of the looks within `hold_s` needed more: a load that swings about a
boundary does not start and stop instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of all instances of a role, at the prices of one of them."""

    prompt_s: float = 0.0  # seconds of computing prompts that arrived in each second of late
    queued_s: float = 0.0  # ... of prompts placed and not yet computed
    tokens_per_s: float = 0.0  # of answers
    token_s: float = 0.0  # of computing, for each of these besides its step
    held_tokens: float = 0.0  # of requests under way: what their keys and values are kept of


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance of a role is like."""

    step_s: float  # that each step of answers begins with; 0: it computes prompts alone
    room_tokens: float  # it can keep
    start_s: float  # from its start until it takes work


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How to scale."""

    every_s: float  # from look to look
    least: int  # of each role
    headroom: float  # more than is asked for, as a share of it
    tpot_s: float  # a token is promised to take at most


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One role at the time of a look."""

    role: str
    work: Work
    kind: Kind
    most: int  # instances there can be
    up: int
    starting: int = 0
    needed: Sequence[int] = ()  # at the looks within the hold time


class Wanted(msgspec.Struct, frozen=True):
    """A decision, with the numbers that justified it."""

    role: str
    count: int  # instances up or starting
    needed: int  # by this look alone: to be told at the next ones
    reason: str


def scale(asked: Sequence[Asked], rule: Rule) -> list[Wanted]:
    """How many of each role, least ≤ count ≤ most (or `most`, where that is less), in the order of `asked`."""
    return [_scale(each, rule) for each in asked]


def _scale(asked: Asked, rule: Rule) -> Wanted:
    needs = {"computing": _for_computing(asked, rule), "memory": _for_memory(asked, rule)}
    why = max(needs, key=lambda name: needs[name])
    needed = min(max(rule.least, _whole(needs[why])), asked.most)
    held = max((min(each, asked.most) for each in asked.needed), default=0)
    reason = f"{why} needs {needs[why]:.2f} instances"
    if needs[why] > asked.most:
        reason += f", there are {asked.most}"
    elif needed == rule.least and needs[why] < rule.least:
        reason += f", at least {rule.least} stay"
    if held > needed:
        reason += f"; {held} were needed within the hold time"
    return Wanted(asked.role, max(needed, held), needed, reason)


def _for_computing(asked: Asked, rule: Rule) -> float:
    """Instances, parts of one too; infinite where no instance keeps the promise."""
    work, kind = asked.work, asked.kind
    share = 1.0 - kind.step_s / rule.tpot_s
    answers_s = work.tokens_per_s * work.token_s
    if share <= 0.0:
        return math.inf
    there = asked.up + asked.starting / 2  # until others are: who is starting has half of that to go, by the mean
    waits_s = max(0.0, work.queued_s + (work.prompt_s - there) * kind.start_s)
    return (work.prompt_s + answers_s + waits_s / rule.every_s) * (1.0 + rule.headroom) / share


def _for_memory(asked: Asked, rule: Rule) -> float:
    return asked.work.held_tokens * (1.0 + rule.headroom) / asked.kind.room_tokens


def _whole(needed: float) -> int:
    """Instances; a rounding error is none."""
    return math.ceil(min(needed, 1e9) - 1e-9)
